//! The plan node of a search for nearest rows.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, Float64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, execute_stream,
};
use futures::{StreamExt, TryStreamExt, stream};
use hypr_storage::ann::{Effort, Neighbor, Odd, RowSet, SearchPath};
use hypr_storage::{NearestRequest, PinnedTable, ScanRequest};

use super::pattern::{DistanceFunction, vector};
use super::provider::NearestSearch;
use crate::{error, search};

/// An expression over some columns of the table.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    /// Over `columns`, in their order.
    pub physical: Arc<dyn PhysicalExpr>,
    /// Positions in the table's schema, ascending.
    pub columns: Vec<usize>,
    /// Its conjuncts for the store to make use of.
    pub pushed: Vec<Expr>,
}

/// What rows are compared with.
#[derive(Clone, Debug)]
pub(super) enum QueryVector {
    Known(Vec<f32>),
    /// Reads no columns; has its value when the search runs.
    Later(Arc<dyn PhysicalExpr>),
}

/// Gives the nearest rows of a table, or every row that may be among them.
#[derive(Debug)]
pub(super) struct NearestExec {
    name: String,
    run: Arc<Run>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// All that running takes.
#[derive(Debug)]
struct Run {
    pinned: PinnedTable,
    search: NearestSearch,
    query: QueryVector,
    effort: Effort,
    path: SearchPath,
    condition: Option<Condition>,
    /// The distance function itself, for rows that the search does not decide on.
    distance: Condition,
    schema: SchemaRef,
    /// Positions in the table's schema; one past its end is the distance.
    projection: Vec<usize>,
}

impl NearestExec {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        name: String,
        pinned: PinnedTable,
        search: NearestSearch,
        query: QueryVector,
        effort: Effort,
        path: SearchPath,
        condition: Option<Condition>,
        distance: Condition,
        schema: SchemaRef,
        projection: Vec<usize>,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let run = Run { pinned, search, query, effort, path, condition, distance, schema, projection };
        Self { name, run: Arc::new(run), properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl Run {
    async fn start(self: Arc<Self>, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if !self.path.is_indexed() {
            return self.every_row(context).await;
        }
        let Some(query) = self.query_vector()? else {
            return self.every_row(context).await;
        };
        let allowed = match &self.condition {
            Some(condition) => Some(Arc::new(self.matching(condition, &context).await?)),
            None => None,
        };
        let call = &self.search.call;
        let mut request = NearestRequest::new(self.search.column, call.function.metric(), query, self.search.k);
        request.effort = self.effort;
        request.allowed = allowed.clone();
        request.ties = self.search.ties;
        let found = self.pinned.nearest(&request).await.map_err(error::to_datafusion)?;
        if self.is_undecided(found.len(), allowed.as_deref()).await? {
            return self.every_row(context).await;
        }
        let batch = self.rows_of(&found).await?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter([Ok(batch)]))))
    }

    /// None for one that only the function itself can judge.
    fn query_vector(&self) -> Result<Option<Vec<f32>>> {
        let expr = match &self.query {
            QueryVector::Known(vector) => return Ok(Some(vector.clone())),
            QueryVector::Later(expr) => expr,
        };
        let found = vector(&search::constant(expr)?, self.search.call.function);
        let width = self.pinned.vector_width(self.search.column).map_err(error::to_datafusion)?;
        Ok(found.filter(|vector| vector.len() == width))
    }

    /// True when rows without a distance belong into the result.
    async fn is_undecided(&self, found: usize, allowed: Option<&RowSet>) -> Result<bool> {
        let search = &self.search;
        let odd = self.pinned.odd_rows(search.column, search.call.function.metric(), allowed).await;
        let odd = odd.map_err(error::to_datafusion)?;
        Ok(odd.into_iter().filter(|why| !(search.not_null && *why == Odd::Null)).any(|why| {
            let first = match why {
                Odd::Null | Odd::Undefined => search.nulls_first,
                // NaN is the largest of numbers.
                Odd::NotFinite => !search.call.function.ascends(),
            };
            first || found < search.k
        }))
    }

    /// The ids of the rows that pass the condition.
    async fn matching(&self, condition: &Condition, context: &Arc<TaskContext>) -> Result<RowSet> {
        let request = ScanRequest {
            projection: Some(condition.columns.clone()),
            filters: condition.pushed.clone(),
            limit: None,
            with_row_id: true,
        };
        let mut rows = self.scan(request, context).await?;
        let mut allowed = RowSet::default();
        while let Some(batch) = rows.try_next().await? {
            let batch = passing(&batch, &condition.physical)?;
            if let Some(ids) = batch.columns().last().and_then(|ids| ids.as_primitive_opt::<UInt64Type>()) {
                allowed.extend(ids.values().iter().copied());
            }
        }
        Ok(allowed)
    }

    async fn scan(&self, request: ScanRequest, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let partitions = context.session_config().target_partitions();
        let plan = self.pinned.scan(partitions, request).await.map_err(error::to_datafusion)?;
        execute_stream(plan, Arc::clone(context))
    }

    /// The rows that were found, with their distances.
    async fn rows_of(&self, found: &[Neighbor]) -> Result<RecordBatch> {
        let width = self.pinned.schema().fields().len();
        let stored: Vec<usize> = self.projection.iter().copied().filter(|column| *column < width).collect();
        let ids: Vec<u64> = found.iter().map(|neighbor| neighbor.row_id).collect();
        let rows = self.pinned.take_rows(&ids, &stored).await.map_err(error::to_datafusion)?;
        let value = |neighbor: &Neighbor| match self.search.call.function {
            DistanceFunction::CosineDistance | DistanceFunction::L2Distance => neighbor.distance,
            DistanceFunction::CosineSimilarity | DistanceFunction::InnerProduct => neighbor.measure,
        };
        let distances: ArrayRef = Arc::new(Float64Array::from_iter_values(found.iter().map(value)));
        self.output(rows.columns(), &distances)
    }

    /// Stored columns and the distance, in the order of the projection.
    fn output(&self, stored: &[ArrayRef], distances: &ArrayRef) -> Result<RecordBatch> {
        let width = self.pinned.schema().fields().len();
        let mut stored = stored.iter();
        let columns = self
            .projection
            .iter()
            .filter_map(|column| if *column < width { stored.next().cloned() } else { Some(Arc::clone(distances)) })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(distances.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// Every row that passes the condition, with its distance by the function itself.
    async fn every_row(self: Arc<Self>, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let width = self.pinned.schema().fields().len();
        let mut columns: Vec<usize> = self.projection.iter().copied().filter(|column| *column < width).collect();
        let stored = columns.len();
        columns.extend(&self.distance.columns);
        columns.extend(self.condition.iter().flat_map(|condition| &condition.columns));
        let mut read = columns.clone();
        read.sort_unstable();
        read.dedup();
        let place = |column: &usize| read.binary_search(column).unwrap_or(0);
        let places: Vec<usize> = columns.iter().map(place).collect();
        let request = ScanRequest {
            projection: Some(read.clone()),
            filters: self.condition.as_ref().map_or_else(Vec::new, |condition| condition.pushed.clone()),
            limit: None,
            with_row_id: false,
        };
        let rows = self.scan(request, &context).await?;
        let schema = Arc::clone(&self.schema);
        let finished = rows.map(move |batch| {
            let batch = batch?;
            let (own, rest) = places.split_at(stored);
            let (distance, condition) = rest.split_at(self.distance.columns.len());
            let mut out = self.with_distances(&batch, own, distance)?;
            if let Some(expr) = &self.condition {
                let mask = expr.physical.evaluate(&batch.project(condition)?)?.into_array(batch.num_rows())?;
                out = filter_record_batch(&out, mask.as_boolean())?;
            }
            Ok(out)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, finished)))
    }

    fn with_distances(&self, batch: &RecordBatch, own: &[usize], distance: &[usize]) -> Result<RecordBatch> {
        let distances = self.distance.physical.evaluate(&batch.project(distance)?)?.into_array(batch.num_rows())?;
        let stored: Vec<ArrayRef> = own.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        self.output(&stored, &distances)
    }
}

/// The rows of `batch` for which `condition`, over its first columns, is true.
fn passing(batch: &RecordBatch, condition: &Arc<dyn PhysicalExpr>) -> Result<RecordBatch> {
    let mask = condition.evaluate(batch)?.into_array(batch.num_rows())?;
    match mask.as_boolean_opt() {
        Some(mask) => Ok(filter_record_batch(batch, mask)?),
        None => Err(DataFusionError::Internal("a condition is no boolean".to_owned())),
    }
}

impl DisplayAs for NearestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (search, call) = (&self.run.search, &self.run.search.call);
        let metric = call.function.metric().name();
        write!(f, "NearestExec: table={}, column={}, metric={metric}, k={}", self.name, call.column.name, search.k)?;
        if let QueryVector::Later(query) = &self.run.query {
            write!(f, ", query={query}")?;
        }
        if let Some(condition) = &self.run.condition {
            let conjuncts: Vec<String> = condition.pushed.iter().map(ToString::to_string).collect();
            write!(f, ", filter={}", conjuncts.join(" AND "))?;
        }
        write!(f, "{}", self.run.effort)?;
        write!(f, ", {}", self.run.path)
    }
}

impl ExecutionPlan for NearestExec {
    fn name(&self) -> &'static str {
        "NearestExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = stream::once(Arc::clone(&self.run).start(context)).try_flatten();
        let counted = rows.inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.run.schema), counted)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
