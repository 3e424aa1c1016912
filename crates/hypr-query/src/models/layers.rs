//! `models`: a row a layer of a model.
//!
//! The documents' four columns come first: `metadata` has the layer's tensors with shape and encoding, `weights` their
//! bytes, one tensor behind the other in the order of `metadata`. `weights` is the one column that copies; whoever wants
//! the mapped bytes reads `model_weights`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{
    Int32Builder, Int64Builder, LargeBinaryBuilder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::Result as DfResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream;
use hypr_common::model::{LayerTable, ModelMetadata, ModelSource};
use hypr_common::{Error, Result, types};
use serde_json::{Value, json};

use super::weights_scan::wanted_ids;
use crate::error;

/// The columns.
pub(super) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("model_name", DataType::Utf8, false),
        Field::new("layer_id", DataType::Int32, false),
        Field::new("weights", DataType::LargeBinary, false),
        types::json_field("metadata", false),
        Field::new("version", DataType::Int64, false),
        Field::new("architecture", DataType::Utf8, false),
        Field::new("parameters", DataType::Int64, false),
        Field::new("bytes", DataType::Int64, false),
        Field::new("quantization", DataType::Utf8, false),
        Field::new("imported_at", time, true),
    ]))
}

/// Lists the layers of the models that `filters` may want, a batch a layer.
pub(super) fn plan(
    source: &Arc<dyn ModelSource>,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
    limit: Option<usize>,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let rows = rows(source, filters).map_err(error::to_datafusion)?;
    let projection = projection.cloned().unwrap_or_else(|| (0..schema().fields().len()).collect());
    let schema = Arc::new(schema().project(&projection)?);
    let layers = Arc::new(Layers { rows, projection, schema: Arc::clone(&schema) });
    let limit = if filters.is_empty() { limit } else { None };
    let scan = StreamingTableExec::try_new(schema, vec![layers], None, Vec::new(), false, limit)?;
    Ok(Arc::new(scan))
}

/// The rows of a scan, made one by one: `weights` of one layer is in memory at a time.
struct Layers {
    rows: Vec<Row>,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl PartitionStream for Layers {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let projection = self.projection.clone();
        let batches =
            self.rows.clone().into_iter().map(move |row| row.batch(&projection).map_err(error::to_datafusion));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(batches)))
    }
}

fn rows(source: &Arc<dyn ModelSource>, filters: &[Expr]) -> Result<Vec<Row>> {
    let ids = wanted_ids(filters, "model_name");
    let mut rows = Vec::new();
    for model in source.models()? {
        if ids.as_ref().is_some_and(|ids| !ids.contains(&model.model_id)) {
            continue;
        }
        let tables = source.open(&model.model_id)?;
        let imported_us = source.imported_us(&model.model_id, tables.version)?;
        let (model, version) = (Arc::new(model), i64::try_from(tables.version).unwrap_or(i64::MAX));
        let layers = tables.layers.iter().cloned();
        rows.extend(layers.map(|layer| Row { model: Arc::clone(&model), version, imported_us, layer }));
    }
    Ok(rows)
}

/// A layer, whose buffers are the mapped ones, and what is known of its model.
#[derive(Clone)]
struct Row {
    model: Arc<ModelMetadata>,
    version: i64,
    imported_us: Option<i64>,
    layer: LayerTable,
}

/// One tensor of a layer.
struct Tensor {
    shape: Vec<i32>,
    encoding: String,
    bytes: i64,
}

impl Tensor {
    fn parameters(&self) -> i64 {
        self.shape.iter().map(|length| i64::from(*length)).product()
    }
}

/// The tensors by name, `type.name`, in the order of their pieces.
fn tensors(layer: &LayerTable) -> Result<Vec<(String, Tensor)>> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for piece in &layer.pieces {
        let text = |at: usize| piece.column(at).as_string_opt::<i32>().map(|text| text.value(0).to_owned());
        let shape = piece.column(5).as_list_opt::<i32>().map(|shape| shape.value(0));
        let data = piece.column(6).as_binary_opt::<i64>().map(|data| data.value(0).len());
        let (Some(kind), Some(name), Some(encoding), Some(shape), Some(bytes)) =
            (text(1), text(2), text(4), shape, data)
        else {
            return Err(Error::corrupted("a piece of a model is no row of model_weights"));
        };
        let (name, bytes) = (format!("{kind}.{name}"), i64::try_from(bytes).unwrap_or(i64::MAX));
        match tensors.last_mut().filter(|(last, _)| *last == name) {
            Some((_, tensor)) => tensor.bytes += bytes,
            None => {
                let shape = shape.as_primitive::<Int32Type>().values().to_vec();
                tensors.push((name, Tensor { shape, encoding, bytes }));
            }
        }
    }
    Ok(tensors)
}

/// The encoding that most of the bytes have.
fn main_encoding(tensors: &[(String, Tensor)]) -> String {
    let mut bytes: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, tensor) in tensors {
        *bytes.entry(&tensor.encoding).or_default() += tensor.bytes;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(encoding, _)| encoding.to_owned())
}

/// The family, such as `llama`.
fn architecture(model: &ModelMetadata) -> String {
    let family = model.architecture_config.get("family").and_then(Value::as_str);
    family.unwrap_or(&model.model_type).to_owned()
}

impl Row {
    /// One row with the columns at `projection`.
    fn batch(&self, projection: &[usize]) -> Result<RecordBatch> {
        let tensors = tensors(&self.layer)?;
        let total = |of: fn(&Tensor) -> i64| -> i64 { tensors.iter().map(|(_, tensor)| of(tensor)).sum() };
        let column = |at: &usize| -> Result<ArrayRef> {
            Ok(match at {
                0 => text(&self.model.model_id),
                1 => {
                    let mut layers = Int32Builder::new();
                    layers.append_value(self.layer.layer_id);
                    Arc::new(layers.finish())
                }
                2 => weights(&self.layer),
                3 => text(&described(&tensors)),
                4 => long(self.version),
                5 => text(&architecture(&self.model)),
                6 => long(total(Tensor::parameters)),
                7 => long(total(|tensor| tensor.bytes)),
                8 => text(&main_encoding(&tensors)),
                _ => {
                    let mut times = TimestampMicrosecondBuilder::new().with_timezone("UTC");
                    times.append_option(self.imported_us);
                    Arc::new(times.finish())
                }
            })
        };
        let columns = projection.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        Ok(RecordBatch::try_new_with_options(Arc::new(schema().project(projection)?), columns, &options)?)
    }
}

/// `metadata` of a layer.
fn described(tensors: &[(String, Tensor)]) -> String {
    let listed = tensors.iter().map(|(name, tensor)| {
        json!({ "name": name, "shape": tensor.shape, "encoding": tensor.encoding, "bytes": tensor.bytes })
    });
    json!({ "tensors": listed.collect::<Vec<_>>() }).to_string()
}

fn text(value: &str) -> ArrayRef {
    let mut texts = StringBuilder::new();
    texts.append_value(value);
    Arc::new(texts.finish())
}

fn long(value: i64) -> ArrayRef {
    let mut numbers = Int64Builder::new();
    numbers.append_value(value);
    Arc::new(numbers.finish())
}

/// The bytes of all pieces, one behind the other.
fn weights(layer: &LayerTable) -> ArrayRef {
    let pieces = layer.pieces.iter().filter_map(|piece| piece.column(6).as_binary_opt::<i64>());
    let pieces: Vec<&[u8]> = pieces.map(|data| data.value(0)).collect();
    let mut weights = LargeBinaryBuilder::with_capacity(1, pieces.iter().map(|piece| piece.len()).sum());
    weights.append_value(pieces.concat());
    Arc::new(weights.finish())
}
