//! `loaded_models`: the models that the engine has in memory, a row a copy.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::Result as DfResult;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;
use hypr_common::Result;
use hypr_inference::api::{Inference, LoadedModel};

use crate::error;

/// The columns.
pub(super) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("model_id", DataType::Utf8, false),
        Field::new("version", DataType::Int64, false),
        Field::new("state", DataType::Utf8, false),
        Field::new("pinned", DataType::Boolean, false),
        Field::new("bytes", DataType::Int64, false),
        Field::new("limit_bytes", DataType::Int64, true),
        Field::new("resident_bytes", DataType::Int64, true),
        Field::new("requests", DataType::Int32, false),
        Field::new("last_used_at", time, false),
    ]))
}

/// The copies as they are now.
pub(super) async fn plan(
    inference: &Arc<dyn Inference>,
    projection: Option<&Vec<usize>>,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let models = inference.loaded_models().await.map_err(error::to_datafusion)?;
    let batch = batch(&models).map_err(error::to_datafusion)?;
    let scan = MemorySourceConfig::try_new_exec(&[vec![batch]], schema(), projection.cloned())?;
    Ok(scan)
}

fn batch(models: &[LoadedModel]) -> Result<RecordBatch> {
    let long = |of: &dyn Fn(&LoadedModel) -> Option<u64>| -> ArrayRef {
        let values = models.iter().map(|model| of(model).map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
        Arc::new(values.collect::<Int64Array>())
    };
    let state = |model: &LoadedModel| if model.drains { "draining" } else { "loaded" };
    let requests = models.iter().map(|model| i32::try_from(model.requests).unwrap_or(i32::MAX));
    let times: TimestampMicrosecondArray = models.iter().map(|model| Some(model.last_used_us)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(models.iter().map(|model| Some(model.model_id.as_str())).collect::<StringArray>()),
        long(&|model| Some(model.version)),
        Arc::new(models.iter().map(|model| Some(state(model))).collect::<StringArray>()),
        Arc::new(models.iter().map(|model| Some(model.pinned)).collect::<BooleanArray>()),
        long(&|model| Some(model.bytes as u64)),
        long(&|model| model.limit_bytes.map(|bytes| bytes as u64)),
        long(&|model| model.resident_bytes),
        Arc::new(requests.collect::<Int32Array>()),
        Arc::new(times.with_timezone("UTC")),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
