//! The operator: both sides come hash-partitioned by the keys and sorted by keys and time, in falling time when the
//! match lies ahead. Then the match of a left row is the last right row that does not sort after it, if the keys agree.
//!
//! Holds one batch of each side, and the right batches that the rows in hand refer to.

use std::fmt;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, new_null_array};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::filter::filter_record_batch;
use arrow_select::interleave::interleave;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{StreamExt, stream};

use super::node::Direction;
use crate::series::times::{steps, unit_ns};

/// How far apart the times of a match may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tolerance {
    /// Times are counted in steps of `unit` nanoseconds.
    Nanoseconds {
        limit: i128,
        unit: i128,
    },
    Number(f64),
}

/// What matches what.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub left_keys: Vec<Arc<dyn PhysicalExpr>>,
    pub right_keys: Vec<Arc<dyn PhysicalExpr>>,
    pub left_time: Arc<dyn PhysicalExpr>,
    pub right_time: Arc<dyn PhysicalExpr>,
    pub direction: Direction,
    /// With true, a distance of just that much is too far.
    pub tolerance: Option<(Tolerance, bool)>,
    pub inner: bool,
}

const KEY_ORDER: SortOptions = SortOptions { descending: false, nulls_first: false };

impl Match {
    fn time_order(&self) -> SortOptions {
        SortOptions { descending: self.direction.forward, nulls_first: false }
    }

    fn ordering(&self, keys: &[Arc<dyn PhysicalExpr>], time: &Arc<dyn PhysicalExpr>) -> Result<LexOrdering> {
        let keys = keys.iter().map(|key| PhysicalSortExpr::new(Arc::clone(key), KEY_ORDER));
        let by = keys.chain([PhysicalSortExpr::new(Arc::clone(time), self.time_order())]);
        match LexOrdering::new(by) {
            Some(ordering) => Ok(ordering),
            None => internal_err!("an ASOF join has nothing to order by"),
        }
    }

    fn is_near(&self, left: &Clocked, row: usize, right: &Clocked, other: usize) -> bool {
        let Some((tolerance, strict)) = self.tolerance else {
            return true;
        };
        match (tolerance, &left.distance, &right.distance) {
            (Tolerance::Nanoseconds { limit, unit }, Distance::Steps(a), Distance::Steps(b)) => {
                let apart = (i128::from(a.value(row)) - i128::from(b.value(other))).abs() * unit;
                apart < limit || (!strict && apart == limit)
            }
            (Tolerance::Number(limit), Distance::Numbers(a), Distance::Numbers(b)) => {
                let apart = (a.value(row) - b.value(other)).abs();
                apart < limit || (!strict && apart == limit)
            }
            _ => false,
        }
    }
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct AsofExec {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    how: Arc<Match>,
    schema: SchemaRef,
    orderings: (LexOrdering, LexOrdering),
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl AsofExec {
    pub fn try_new(
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        how: Arc<Match>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let orderings =
            (how.ordering(&how.left_keys, &how.left_time)?, how.ordering(&how.right_keys, &how.right_time)?);
        // The columns of the left side keep their places, so its partitioning and order are those of the output.
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(Arc::clone(&schema), [orderings.0.clone()]),
            left.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(Self { left, right, how, schema, orderings, properties, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl DisplayAs for AsofExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = &self.how;
        let kind = if how.inner { "Inner" } else { "Left" };
        write!(f, "AsofExec: {kind}, left={}, right={}", how.left_time, how.right_time)?;
        write!(f, ", forward={}, strict={}", how.direction.forward, how.direction.strict)?;
        for (left, right) in how.left_keys.iter().zip(&how.right_keys) {
            write!(f, ", {left} = {right}")?;
        }
        match how.tolerance {
            Some((tolerance, strict)) => write!(f, ", tolerance={tolerance:?}, exclusive={strict}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for AsofExec {
    fn name(&self) -> &str {
        "AsofExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([left, right]) = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children) else {
            return internal_err!("AsofExec takes two inputs");
        };
        Ok(Arc::new(Self::try_new(left, right, Arc::clone(&self.how), Arc::clone(&self.schema))?))
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        if self.how.left_keys.is_empty() {
            return vec![Distribution::SinglePartition, Distribution::SinglePartition];
        }
        let (left, right) = (self.how.left_keys.clone(), self.how.right_keys.clone());
        vec![Distribution::HashPartitioned(left), Distribution::HashPartitioned(right)]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let (left, right) = self.orderings.clone();
        vec![Some(OrderingRequirements::from(left)), Some(OrderingRequirements::from(right))]
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (left, right) =
            (self.left.output_partitioning().partition_count(), self.right.output_partitioning().partition_count());
        if left != right {
            return internal_err!("the sides of an ASOF join have {left} and {right} partitions");
        }
        let clock = |keys: &[Arc<dyn PhysicalExpr>], time: &Arc<dyn PhysicalExpr>, schema: &SchemaRef| {
            Clock::new(keys.to_vec(), Arc::clone(time), self.how.time_order(), schema)
        };
        let merge = Merge {
            how: Arc::clone(&self.how),
            schema: Arc::clone(&self.schema),
            left: self.left.execute(partition, Arc::clone(&context))?,
            left_clock: clock(&self.how.left_keys, &self.how.left_time, &self.left.schema())?,
            right: Cursor {
                input: self.right.execute(partition, context)?,
                clock: clock(&self.how.right_keys, &self.how.right_time, &self.right.schema())?,
                batch: None,
                at: 0,
                candidate: None,
                done: false,
            },
            right_schema: self.right.schema(),
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = stream::try_unfold((merge, metrics), |(mut merge, metrics)| async move {
            let batch = merge.next().await?;
            Ok(batch.map(|batch| {
                metrics.record_output(batch.num_rows());
                (batch, (merge, metrics))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Reads keys and times of batches in a form that compares.
struct Clock {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    time: Arc<dyn PhysicalExpr>,
    /// Of the keys alone; `None` without keys.
    key_rows: Option<RowConverter>,
    /// Of the keys and the time.
    rows: RowConverter,
}

/// A batch with its keys and times.
struct Clocked {
    batch: RecordBatch,
    keys: Option<Rows>,
    rows: Rows,
    /// False where a key or the time is NULL.
    matches: Vec<bool>,
    distance: Distance,
}

/// Times to subtract.
enum Distance {
    Steps(Int64Array),
    Numbers(Float64Array),
}

impl Clock {
    fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        time: Arc<dyn PhysicalExpr>,
        time_order: SortOptions,
        schema: &SchemaRef,
    ) -> Result<Self> {
        let mut fields = keys
            .iter()
            .map(|key| Ok(SortField::new_with_options(key.data_type(schema)?, KEY_ORDER)))
            .collect::<Result<Vec<_>>>()?;
        let key_rows = if fields.is_empty() { None } else { Some(RowConverter::new(fields.clone())?) };
        fields.push(SortField::new_with_options(time.data_type(schema)?, time_order));
        Ok(Self { keys, time, key_rows, rows: RowConverter::new(fields)? })
    }

    fn read(&mut self, batch: RecordBatch) -> Result<Clocked> {
        let rows = batch.num_rows();
        let mut columns =
            self.keys.iter().map(|key| key.evaluate(&batch)?.into_array(rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let keys = match &self.key_rows {
            Some(converter) => Some(converter.convert_columns(&columns)?),
            None => None,
        };
        let time = self.time.evaluate(&batch)?.into_array(rows)?;
        let distance = match time.data_type() {
            t if unit_ns(t).is_some() => Distance::Steps(steps(&time)?),
            t if t.is_integer() => Distance::Steps(cast(&time, &DataType::Int64)?.as_primitive::<Int64Type>().clone()),
            _ => Distance::Numbers(cast(&time, &DataType::Float64)?.as_primitive::<Float64Type>().clone()),
        };
        columns.push(time);
        let matches = (0..rows).map(|row| columns.iter().all(|column| column.is_valid(row))).collect();
        let rows = self.rows.convert_columns(&columns)?;
        Ok(Clocked { batch, keys, rows, matches, distance })
    }
}

/// The right side, read up to the left row in hand.
struct Cursor {
    input: SendableRecordBatchStream,
    clock: Clock,
    batch: Option<Arc<Clocked>>,
    at: usize,
    /// The last row passed.
    candidate: Option<(Arc<Clocked>, usize)>,
    done: bool,
}

impl Cursor {
    /// Passes every row that does not sort after `row`; with `strict`, none that sorts like it.
    async fn pass(&mut self, row: &OwnedRow, strict: bool) -> Result<()> {
        loop {
            let Some(batch) = &self.batch else {
                if self.done {
                    return Ok(());
                }
                match self.input.next().await.transpose()? {
                    Some(batch) => (self.batch, self.at) = (Some(Arc::new(self.clock.read(batch)?)), 0),
                    None => self.done = true,
                }
                continue;
            };
            let passed = |other: Row<'_>| if strict { other < row.row() } else { other <= row.row() };
            let start = self.at;
            while self.at < batch.batch.num_rows() && passed(batch.rows.row(self.at)) {
                self.at += 1;
            }
            if self.at > start {
                self.candidate = Some((Arc::clone(batch), self.at - 1));
            }
            if self.at < batch.batch.num_rows() {
                return Ok(());
            }
            self.batch = None;
        }
    }
}

struct Merge {
    how: Arc<Match>,
    schema: SchemaRef,
    left: SendableRecordBatchStream,
    left_clock: Clock,
    right: Cursor,
    right_schema: SchemaRef,
}

impl Merge {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(batch) = self.left.next().await.transpose()? else {
                return Ok(None);
            };
            let left = self.left_clock.read(batch)?;
            let mut matches = Vec::with_capacity(left.batch.num_rows());
            for row in 0..left.batch.num_rows() {
                matches.push(self.find(&left, row).await?);
            }
            let joined = self.join(&left.batch, &matches)?;
            if joined.num_rows() > 0 {
                return Ok(Some(joined));
            }
        }
    }

    /// The right row that a left row matches.
    async fn find(&mut self, left: &Clocked, row: usize) -> Result<Option<(Arc<Clocked>, usize)>> {
        if !left.matches[row] {
            return Ok(None);
        }
        self.right.pass(&left.rows.row(row).owned(), self.how.direction.strict).await?;
        let found = self.right.candidate.as_ref().filter(|(right, other)| {
            let same_keys = match (&left.keys, &right.keys) {
                (Some(a), Some(b)) => a.row(row) == b.row(*other),
                _ => true,
            };
            same_keys && right.matches[*other] && self.how.is_near(left, row, right, *other)
        });
        Ok(found.cloned())
    }

    fn join(&self, left: &RecordBatch, matches: &[Option<(Arc<Clocked>, usize)>]) -> Result<RecordBatch> {
        let mut batches: Vec<&Arc<Clocked>> = Vec::new();
        let mut indices = Vec::with_capacity(matches.len());
        for found in matches {
            let Some((batch, row)) = found else {
                indices.push((0, 0));
                continue;
            };
            // Rows come in order, so a batch is the last one or a new one.
            if batches.last().is_none_or(|last| !Arc::ptr_eq(last, batch)) {
                batches.push(batch);
            }
            indices.push((batches.len(), *row));
        }
        let mut columns = left.columns().to_vec();
        for (at, field) in self.right_schema.fields().iter().enumerate() {
            let null = new_null_array(field.data_type(), 1);
            let arrays: Vec<&dyn Array> = std::iter::once(null.as_ref())
                .chain(batches.iter().map(|batch| batch.batch.column(at).as_ref()))
                .collect();
            columns.push(interleave(&arrays, &indices)?);
        }
        if !self.how.inner {
            return Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        }
        // Columns that cannot be NULL are, until the rows without a match are gone.
        let nullable = self.schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let nullable = Arc::new(arrow_schema::Schema::new(nullable.collect::<Vec<_>>()));
        let kept: BooleanArray = matches.iter().map(|found| Some(found.is_some())).collect();
        let joined = filter_record_batch(&RecordBatch::try_new(nullable, columns)?, &kept)?;
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), joined.columns().to_vec())?)
    }
}
