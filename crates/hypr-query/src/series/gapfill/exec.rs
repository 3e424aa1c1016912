//! The operator: reads rows sorted by series and time, and holds one series at a time.

use std::fmt;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::EmissionType;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{StreamExt, stream};

use super::series::{Series, Spec};

/// See [`super`].
#[derive(Clone, Debug)]
pub(super) struct GapFillExec {
    input: Arc<dyn ExecutionPlan>,
    spec: Arc<Spec>,
    schema: SchemaRef,
    ordering: LexOrdering,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GapFillExec {
    pub fn try_new(input: Arc<dyn ExecutionPlan>, spec: Arc<Spec>, schema: SchemaRef) -> Result<Self> {
        let by = spec.series.iter().chain([&spec.time]).map(|at| {
            let column = Arc::new(Column::new(schema.field(*at).name(), *at));
            PhysicalSortExpr::new(column, SortOptions { descending: false, nulls_first: false })
        });
        let Some(ordering) = LexOrdering::new(by) else {
            return internal_err!("GapFill has no time to order by");
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(Arc::clone(&schema), [ordering.clone()]),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        Ok(Self { input, spec, schema, ordering, properties, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl DisplayAs for GapFillExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |at: &usize| self.schema.field(*at).name().clone();
        let series: Vec<String> = self.spec.series.iter().map(name).collect();
        let fills: Vec<String> = self.spec.fills.iter().map(|(fill, at)| format!("{fill:?} {}", name(at))).collect();
        write!(
            f,
            "GapFillExec: time={}, from={}, to={}, series=[{}], fills=[{}]",
            name(&self.spec.time),
            crate::series::bucket::show(self.spec.buckets.first),
            crate::series::bucket::show(self.spec.buckets.last),
            series.join(", "),
            fills.join(", ")
        )
    }
}

impl ExecutionPlan for GapFillExec {
    fn name(&self) -> &str {
        "GapFillExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("GapFillExec takes one input");
        };
        Ok(Arc::new(Self::try_new(input, Arc::clone(&self.spec), Arc::clone(&self.schema))?))
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        let keys: Vec<Arc<dyn PhysicalExpr>> =
            self.spec.series.iter().map(|at| Arc::new(Column::new(self.schema.field(*at).name(), *at)) as _).collect();
        vec![if keys.is_empty() { Distribution::SinglePartition } else { Distribution::HashPartitioned(keys) }]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![Some(OrderingRequirements::from(self.ordering.clone()))]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let fields = self.spec.series.iter().map(|at| SortField::new(self.schema.field(*at).data_type().clone()));
        let filler = Filler {
            reader: SeriesReader {
                input: self.input.execute(partition, Arc::clone(&context))?,
                columns: self.spec.series.clone(),
                keys: RowConverter::new(fields.collect())?,
                current: None,
                pending: Vec::new(),
                rest: None,
                seen: false,
                memory: MemoryConsumer::new("GapFillExec").register(context.memory_pool()),
            },
            spec: Arc::clone(&self.spec),
            schema: Arc::clone(&self.schema),
            series: None,
            batch_rows: context.session_config().batch_size(),
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = stream::try_unfold((filler, metrics), |(mut filler, metrics)| async move {
            let batch = filler.next().await?;
            Ok(batch.map(|batch| {
                metrics.record_output(batch.num_rows());
                (batch, (filler, metrics))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

struct Filler {
    reader: SeriesReader,
    spec: Arc<Spec>,
    schema: SchemaRef,
    series: Option<Series>,
    batch_rows: usize,
}

impl Filler {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(series) = &mut self.series
                && let Some(batch) = series.emit(self.batch_rows)?
            {
                return Ok(Some(batch));
            }
            self.series = match self.reader.next().await? {
                Some(rows) => Some(Series::new(Arc::clone(&self.spec), Arc::clone(&self.schema), rows)?),
                None => return Ok(None),
            };
        }
    }
}

/// The bytes of the rows of a slice, without those of its neighbours.
fn slice_bytes(batch: &RecordBatch) -> Result<usize> {
    let mut bytes = 0;
    for column in batch.columns() {
        bytes += column.to_data().get_slice_memory_size()?;
    }
    Ok(bytes)
}

/// Cuts sorted rows into series.
struct SeriesReader {
    input: SendableRecordBatchStream,
    columns: Vec<usize>,
    keys: RowConverter,
    current: Option<OwnedRow>,
    pending: Vec<RecordBatch>,
    rest: Option<RecordBatch>,
    /// A series has been given out.
    seen: bool,
    /// What the series in hand takes.
    memory: MemoryReservation,
}

impl SeriesReader {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.memory.free();
        loop {
            let batch = match self.rest.take() {
                Some(rest) => Some(rest),
                None => self.input.next().await.transpose()?,
            };
            let Some(batch) = batch else {
                let whole = self.columns.is_empty() && !self.seen;
                return if self.pending.is_empty() && !whole { Ok(None) } else { self.finish().map(Some) };
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let end = if self.columns.is_empty() { batch.num_rows() } else { self.first_of_next(&batch)? };
            if end > 0 {
                let piece = batch.slice(0, end);
                self.memory.try_grow(slice_bytes(&piece)?)?;
                self.pending.push(piece);
            }
            if end < batch.num_rows() {
                self.rest = Some(batch.slice(end, batch.num_rows() - end));
                if !self.pending.is_empty() {
                    return self.finish().map(Some);
                }
            }
        }
    }

    /// How many rows of `batch` belong to the series in hand; with none in hand, to that of its first row.
    fn first_of_next(&mut self, batch: &RecordBatch) -> Result<usize> {
        let columns: Vec<_> = self.columns.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        let keys = self.keys.convert_columns(&columns)?;
        let current = match &self.current {
            Some(current) if !self.pending.is_empty() => current.clone(),
            _ => keys.row(0).owned(),
        };
        let end = keys.iter().position(|key| key != current.row()).unwrap_or(batch.num_rows());
        self.current = Some(current);
        Ok(end)
    }

    fn finish(&mut self) -> Result<RecordBatch> {
        self.seen = true;
        let pieces = std::mem::take(&mut self.pending);
        Ok(concat_batches(&self.input.schema(), &pieces)?)
    }
}
