//! `model_kv_cache`: keys and values of the sequences that the engine has, and of saved prefixes, a row a sequence and
//! layer.
//!
//! A scan asks once which sequences there are; what they hold is read, layer by layer, only for rows and columns that are
//! wanted. Invariant: no copy of the cache is made: a reader has the blocks of one sequence at a time.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    ArrayRef, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream;
use hypr_common::prefix::Prefix;
use hypr_common::types;
use hypr_inference::api::Inference;
use hypr_inference::kv_table::{KvPart, KvSequence, saved_states};
use hypr_storage::{PrefixStore, SavedPrefix};

use super::weights_scan::{is_on, unqualified};
use crate::error;
use crate::prefixes::current;

/// Columns that say which sequence and layer a row is.
const SMALL_COLUMNS: [&str; 8] =
    ["sequence_id", "layer_id", "timestamp", "state", "tokens", "model_id", "model_version", "adapter_version"];
const KEYS: &str = "key_states";
const VALUES: &str = "value_states";

/// Columns of the table: the documents', then whose the sequence is.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("sequence_id", DataType::Utf8, false),
        Field::new("layer_id", DataType::Int32, false),
        Field::new("timestamp", DataType::Int64, false),
        types::dynamic_vector_field(KEYS, true),
        types::dynamic_vector_field(VALUES, true),
        Field::new("state", DataType::Utf8, false),
        Field::new("tokens", DataType::Int32, false),
        Field::new("model_id", DataType::Utf8, false),
        Field::new("model_version", DataType::Int64, false),
        Field::new("adapter_version", DataType::Int64, false),
    ]))
}

/// True for filters that [`plan`] evaluates exactly.
pub(super) fn is_on_small_columns(filter: &Expr) -> bool {
    is_on(filter, &SMALL_COLUMNS)
}

/// A sequence and what its rows have in common.
#[derive(Debug)]
struct Sequence {
    id: String,
    state: &'static str,
    timestamp: i64,
    tokens: usize,
    layers: usize,
    model_id: String,
    model_version: u64,
    adapter_version: u64,
    states: States,
}

/// Where the keys and values of a sequence are.
#[derive(Debug)]
enum States {
    Engine(Box<KvSequence>),
    Saved { store: Arc<PrefixStore>, name: String },
}

/// The saved prefix that a scan has read last, for the other layers of it.
#[derive(Debug, Default)]
struct Opened(Option<(String, Prefix)>);

impl Opened {
    fn prefix(&mut self, store: &PrefixStore, name: &str) -> Result<&Prefix> {
        if self.0.as_ref().is_none_or(|(known, _)| known != name) {
            // One at a time, also while the next is read.
            self.0 = None;
            self.0 = Some((name.to_owned(), store.load(name).map_err(error::to_datafusion)?));
        }
        match &self.0 {
            Some((_, prefix)) => Ok(prefix),
            None => exec_err!("the saved prefix {name} is not there"),
        }
    }
}

impl Sequence {
    fn live(sequence: KvSequence) -> Self {
        Self {
            id: sequence.id.clone(),
            state: sequence.state.name(),
            timestamp: sequence.computed_us,
            tokens: sequence.tokens,
            layers: sequence.shape.layers,
            model_id: sequence.identity.model.clone(),
            model_version: sequence.identity.version,
            adapter_version: sequence.identity.adapter_version,
            states: States::Engine(Box::new(sequence)),
        }
    }

    fn saved(saved: SavedPrefix, store: &Arc<PrefixStore>) -> Self {
        Self {
            id: saved.name.clone(),
            state: "saved",
            timestamp: saved.saved_us,
            tokens: saved.tokens.len(),
            layers: saved.layers,
            model_id: saved.origin.model_id,
            model_version: saved.origin.model_version,
            adapter_version: saved.origin.adapter_version,
            states: States::Saved { store: Arc::clone(store), name: saved.name },
        }
    }

    /// Keys or values of a layer; none where their memory was needed for others since the sequences were listed.
    fn read(&self, layer: usize, part: KvPart, opened: &mut Opened) -> Result<Option<Vec<f32>>> {
        match &self.states {
            // Held for no longer than it is copied: a scan that waits for its reader keeps no sequence waiting.
            States::Engine(sequence) => Ok(sequence.open().map(|reading| reading.states(layer, part))),
            States::Saved { store, name } => {
                saved_states(opened.prefix(store, name)?, layer, part).map(Some).map_err(error::to_datafusion)
            }
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
struct Row {
    sequence: Arc<Sequence>,
    layer: usize,
}

/// Lists the sequences and chooses the rows that `filters` want.
pub(super) async fn plan(
    state: &dyn Session,
    inference: &Arc<dyn Inference>,
    store: &Arc<PrefixStore>,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let live = inference.sequences().await.map_err(error::to_datafusion)?;
    let saved = current(store, inference.as_ref()).map_err(error::to_datafusion)?;
    let sequences = live.into_iter().map(Sequence::live);
    let sequences = sequences.chain(saved.into_iter().map(|saved| Sequence::saved(saved, store))).map(Arc::new);
    let mut rows: Vec<Row> = sequences
        .flat_map(|sequence| (0..sequence.layers).map(move |layer| Row { sequence: Arc::clone(&sequence), layer }))
        .collect();
    if let Some(filter) = conjunction(filters.to_vec()) {
        let small = small_columns(&rows)?;
        let filter = state.create_physical_expr(unqualified(filter)?, &DFSchema::try_from(small.schema())?)?;
        let wanted = filter.evaluate(&small)?.into_array(rows.len())?;
        let Some(wanted) = wanted.as_boolean_opt() else {
            return exec_err!("a filter on model_kv_cache is not a condition");
        };
        let mut wanted = wanted.iter();
        rows.retain(|_| wanted.next().flatten() == Some(true));
    }
    rows.truncate(limit.unwrap_or(usize::MAX));
    let full = schema();
    let projection = projection.cloned().unwrap_or_else(|| (0..full.fields().len()).collect());
    let schema = Arc::new(full.project(&projection)?);
    let scan: Arc<dyn PartitionStream> = Arc::new(Scan { rows, schema: Arc::clone(&schema) });
    Ok(Arc::new(StreamingTableExec::try_new(schema, vec![scan], None, Vec::new(), false, None)?))
}

/// The rows without keys and values.
fn small_columns(rows: &[Row]) -> Result<RecordBatch> {
    let small = SMALL_COLUMNS.map(|name| schema().index_of(name)).into_iter().collect::<Result<Vec<_>, _>>()?;
    batch_of(rows, &Arc::new(schema().project(&small)?), &mut Opened::default())
}

/// The columns of `schema` of `rows`.
fn batch_of(rows: &[Row], schema: &SchemaRef, opened: &mut Opened) -> Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| column(rows, field, opened)).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn column(rows: &[Row], field: &Field, opened: &mut Opened) -> Result<ArrayRef> {
    let text =
        |of: fn(&Row) -> &str| -> ArrayRef { Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>()) };
    let long =
        |of: fn(&Row) -> u64| -> ArrayRef { Arc::new(rows.iter().map(|row| of(row) as i64).collect::<Int64Array>()) };
    Ok(match field.name().as_str() {
        "sequence_id" => text(|row| &row.sequence.id),
        "layer_id" => Arc::new(rows.iter().map(|row| row.layer as i32).collect::<Int32Array>()),
        "timestamp" => Arc::new(rows.iter().map(|row| row.sequence.timestamp).collect::<Int64Array>()),
        "state" => text(|row| row.sequence.state),
        "tokens" => Arc::new(rows.iter().map(|row| row.sequence.tokens as i32).collect::<Int32Array>()),
        "model_id" => text(|row| &row.sequence.model_id),
        "model_version" => long(|row| row.sequence.model_version),
        "adapter_version" => long(|row| row.sequence.adapter_version),
        name => return vectors(rows, field, if name == KEYS { KvPart::Keys } else { KvPart::Values }, opened),
    })
}

/// Keys or values of each row, `[tokens, width]` as one vector.
fn vectors(rows: &[Row], field: &Field, part: KvPart, opened: &mut Opened) -> Result<ArrayRef> {
    let DataType::List(item) = field.data_type() else {
        return exec_err!("{} is no list", field.name());
    };
    let (mut elements, mut lengths, mut present) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let states = row.sequence.read(row.layer, part, opened)?;
        present.push(states.is_some());
        lengths.push(states.as_ref().map_or(0, Vec::len));
        elements.extend(states.into_iter().flatten());
    }
    let values: ArrayRef = Arc::new(Float32Array::from(elements));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, values, Some(present.into()))?))
}

/// Hands out the chosen rows, a batch each.
struct Scan {
    rows: Vec<Row>,
    schema: SchemaRef,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCacheScan").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let reads = schema.fields().iter().any(|field| [KEYS, VALUES].contains(&field.name().as_str()));
        // Small rows go together; keys and values of a layer may be many megabytes.
        let size = if reads { 1 } else { 8192 };
        let chunks: Vec<Vec<Row>> = self.rows.chunks(size).map(<[Row]>::to_vec).collect();
        let mut opened = Opened::default();
        let batches = chunks.into_iter().map(move |rows| batch_of(&rows, &schema, &mut opened));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(batches)))
    }
}
