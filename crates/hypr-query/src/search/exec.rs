//! The plan node that searches: it reads the candidates' row ids if there are conditions, searches, and fetches the
//! rows that it found.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, Float32Array, Float64Array, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow_schema::{Schema, SchemaRef, SortOptions};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, execute_stream};
use futures::{StreamExt, TryStreamExt, stream};
use hypr_common::Error;
use hypr_inference::api::{EmbedRequest, Inference};
use hypr_storage::ann::{Effort, RowSet};
use hypr_storage::{NearestRequest, PinnedTable, ROW_ID_COLUMN, TextOptions, TextSearch};

use super::node::{Search, SearchKind};
use crate::functions::vector::VectorArg;
use crate::{ai, error};

/// Rows are given in batches of at most this many.
const BATCH_ROWS: usize = 1024;

/// All that running takes.
#[derive(Clone, Debug)]
pub(super) struct SearchPlan {
    pub search: Arc<Search>,
    pub pinned: PinnedTable,
    pub query: Arc<dyn PhysicalExpr>,
    pub limit: Arc<dyn PhysicalExpr>,
    pub inference: Arc<dyn Inference>,
    pub busy_timeout: Duration,
    /// How much a search by distance looks at.
    pub effort: Effort,
    /// The columns to give: of the table, perhaps the row id, and the score.
    pub schema: SchemaRef,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct SearchExec {
    plan: Arc<SearchPlan>,
    /// The ids of the rows to search among.
    allowed: Option<Arc<dyn ExecutionPlan>>,
    /// The most rows that somebody reads.
    fetch: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SearchExec {
    pub fn try_new(plan: SearchPlan, allowed: Option<Arc<dyn ExecutionPlan>>) -> Result<Self> {
        let score = Column::new_with_schema(&plan.search.score, &plan.schema)?;
        let descending = plan.search.kind.descending();
        let options = SortOptions { descending, nulls_first: descending };
        let mut equivalences = EquivalenceProperties::new(Arc::clone(&plan.schema));
        equivalences.add_orderings(LexOrdering::new([PhysicalSortExpr::new(Arc::new(score), options)]));
        let properties = PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Self {
            plan: Arc::new(plan),
            allowed,
            fetch: None,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

/// Rows that were found.
struct Found {
    pinned: PinnedTable,
    row_ids: Vec<u64>,
    /// One a row, best first.
    scores: ArrayRef,
}

impl SearchPlan {
    async fn run(
        &self,
        allowed: Option<Arc<dyn ExecutionPlan>>,
        fetch: Option<usize>,
        context: Arc<TaskContext>,
    ) -> Result<Vec<RecordBatch>> {
        let query = constant(&self.query)?;
        let limit = self.limit()?.min(fetch.unwrap_or(usize::MAX));
        let allowed = match allowed {
            Some(rows) => Some(row_ids(execute_stream(rows, context)?).await?),
            None => None,
        };
        let found = match &self.search.kind {
            SearchKind::Text { column, options } => self.by_words(column, options, query, limit, allowed).await?,
            SearchKind::Vector { .. } => self.by_distance(query, limit, allowed).await?,
        };
        self.rows_of(&found).await
    }

    fn limit(&self) -> Result<usize> {
        let limit = constant(&self.limit)?.cast_to(&arrow_schema::DataType::Int64)?;
        match limit {
            ScalarValue::Int64(Some(limit)) if limit >= 0 => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
            other => Err(self.invalid(&format!("the limit is a whole number that is not negative, not {other}"))),
        }
    }

    fn invalid(&self, what: &str) -> datafusion::common::DataFusionError {
        error::to_datafusion(Error::invalid(format!("{}: {what}", self.search.kind.function())))
    }

    async fn by_words(
        &self,
        column: &str,
        options: &TextOptions,
        query: ScalarValue,
        limit: usize,
        allowed: Option<Vec<u64>>,
    ) -> Result<Found> {
        let Some(Some(query)) = query.try_as_str() else {
            return Err(self.invalid(&format!("the query is text, not {query}")));
        };
        let request =
            TextSearch { column: column.to_owned(), options: options.clone(), query: query.to_owned(), limit, allowed };
        let matches = self.search.table.text_search(request).await.map_err(error::to_datafusion)?;
        let scores = Arc::new(Float32Array::from(matches.scores));
        Ok(Found { pinned: matches.pinned, row_ids: matches.row_ids, scores })
    }

    async fn by_distance(&self, query: ScalarValue, limit: usize, allowed: Option<Vec<u64>>) -> Result<Found> {
        let SearchKind::Vector { column, metric, model, .. } = &self.search.kind else {
            return internal_err!("a search by distance has no vector column");
        };
        let vector = match query.try_as_str() {
            Some(Some(text)) => self.embed(model.as_deref(), text).await?,
            _ => match VectorArg::new(&ColumnarValue::Scalar(query))?.get(0) {
                Some(vector) => vector.to_vec(),
                None => return Err(self.invalid("the query is NULL")),
            },
        };
        let mut request = NearestRequest::new(*column, *metric, vector, limit);
        request.allowed = allowed.map(|ids| {
            let mut set = RowSet::default();
            set.extend(ids);
            Arc::new(set)
        });
        request.effort = self.effort;
        let nearest = self.pinned.nearest(&request).await.map_err(error::to_datafusion)?;
        let scores = nearest.iter().map(|neighbor| neighbor.distance);
        Ok(Found {
            pinned: self.pinned.clone(),
            row_ids: nearest.iter().map(|neighbor| neighbor.row_id).collect(),
            scores: Arc::new(Float64Array::from_iter_values(scores)),
        })
    }

    async fn embed(&self, model: Option<&str>, text: &str) -> Result<Vec<f32>> {
        let offer = || {
            let inputs = vec![text.into()];
            self.inference.embed(EmbedRequest { model: model.map(ToOwned::to_owned), inputs, normalize: true })
        };
        let mut vectors = ai::patiently(self.busy_timeout, offer, || ()).await.map_err(error::to_datafusion)?;
        match vectors.pop() {
            Some(vector) => Ok(vector),
            None => internal_err!("the engine answered without a vector"),
        }
    }

    async fn rows_of(&self, found: &Found) -> Result<Vec<RecordBatch>> {
        let table = found.pinned.schema();
        let (score, columns) = match self.schema.fields().split_last() {
            Some(split) => split,
            None => return internal_err!("a search gives no columns"),
        };
        debug_assert_eq!(score.name(), &self.search.score);
        let stored: Vec<usize> = columns
            .iter()
            .filter(|field| field.name() != ROW_ID_COLUMN)
            .map(|field| table.index_of(field.name()))
            .collect::<Result<_, _>>()?;
        let mut batches = Vec::new();
        for start in (0..found.row_ids.len()).step_by(BATCH_ROWS) {
            let ids = &found.row_ids[start..found.row_ids.len().min(start + BATCH_ROWS)];
            let taken = found.pinned.take_rows(ids, &stored).await.map_err(error::to_datafusion)?;
            let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
            let mut next = taken.columns().iter();
            for field in columns {
                if field.name() == ROW_ID_COLUMN {
                    arrays.push(Arc::new(UInt64Array::from(ids.to_vec())));
                } else if let Some(array) = next.next() {
                    arrays.push(Arc::clone(array));
                }
            }
            arrays.push(found.scores.slice(start, ids.len()));
            let options = RecordBatchOptions::new().with_row_count(Some(ids.len()));
            batches.push(RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?);
        }
        Ok(batches)
    }
}

/// The value of an expression that reads no columns.
pub(crate) fn constant(expr: &Arc<dyn PhysicalExpr>) -> Result<ScalarValue> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    match expr.evaluate(&row)? {
        ColumnarValue::Scalar(scalar) => Ok(scalar),
        ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0),
    }
}

async fn row_ids(mut rows: SendableRecordBatchStream) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    while let Some(batch) = rows.try_next().await? {
        ids.extend_from_slice(batch.column(0).as_primitive::<UInt64Type>().values());
    }
    Ok(ids)
}

impl DisplayAs for SearchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Search { table, kind, .. } = self.plan.search.as_ref();
        let definition = table.definition();
        write!(f, "SearchExec: {}, table={}, ", kind.function(), definition.qualified_name())?;
        match kind {
            SearchKind::Text { column, .. } => write!(f, "column={column}")?,
            SearchKind::Vector { column, metric, .. } => {
                write!(f, "column={}, metric={metric:?}", definition.columns.field(*column).name())?;
            }
        }
        write!(f, ", query={}, limit={}{}", self.plan.query, self.plan.limit, self.plan.effort)?;
        match self.fetch {
            Some(fetch) => write!(f, ", fetch={fetch}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for SearchExec {
    fn name(&self) -> &str {
        "SearchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        self.allowed.iter().map(|_| Distribution::SinglePartition).collect()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.allowed.iter().collect()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.allowed.iter().map(|_| false).collect()
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != self.children().len() {
            return internal_err!("SearchExec has {} inputs", self.children().len());
        }
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Arc::new(Self { allowed: children.pop(), metrics, ..Self::clone(&self) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (plan, allowed, fetch) = (Arc::clone(&self.plan), self.allowed.clone(), self.fetch);
        let found = async move { plan.run(allowed, fetch, context).await };
        let batches = stream::once(found).map_ok(|batches| stream::iter(batches).map(Ok)).try_flatten();
        let counted = batches.inspect_ok(move |batch: &RecordBatch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), counted)))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(Self { fetch: limit, metrics: ExecutionPlanMetricsSet::new(), ..self.clone() }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
