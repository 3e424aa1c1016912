//! The shape of results: what a client was told at prepare is what it gets at execution.
//!
//! DataFusion may hand out views for strings, or another nullability than it planned; some clients compare
//! the two schemas and refuse. Results therefore have nullable fields, plain strings and plain binaries.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use hypr_common::Result;

use crate::error;

/// The schema of the rows of `plan`.
pub(crate) fn result_schema(state: &SessionState, plan: &LogicalPlan) -> Result<SchemaRef> {
    let analyzed = state
        .analyzer()
        .execute_and_check(plan.clone(), state.config_options(), |_, _| {})
        .map_err(error::from_datafusion)?;
    Ok(plain_schema(analyzed.schema().as_arrow()))
}

fn plain_schema(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, true).with_metadata(field.metadata().clone())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// `stream` with the columns of `schema`.
pub(crate) fn conform(stream: SendableRecordBatchStream, schema: SchemaRef) -> SendableRecordBatchStream {
    let target = Arc::clone(&schema);
    let batches = stream.map(move |batch| conform_batch(&batch?, &target));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// Batches at hand as a result with the columns of `schema`.
pub(crate) fn rows(batches: Vec<RecordBatch>, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
    let batches = batches.iter().map(|batch| conform_batch(batch, &schema)).collect::<DfResult<Vec<_>>>();
    let batches = batches.map_err(error::from_datafusion)?;
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches.into_iter().map(Ok)))))
}

fn conform_batch(batch: &RecordBatch, schema: &SchemaRef) -> DfResult<RecordBatch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(DataFusionError::Internal("a result has another number of columns than planned".to_owned()));
    }
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
