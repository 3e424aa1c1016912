//! Makes the calls: guards and arguments are evaluated for a batch, then requests run, a bounded number at a
//! time, and rows come out in the order they came in, as soon as they and those before them have their answers.
//!
//! Nothing is spawned: requests are futures of the output stream, so dropping it drops them, and the engine
//! stops at its next step.

mod answers;
mod reduce;
mod request;
mod stream;

pub(super) use request::request_of;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_schema::{FieldRef, Schema};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::projection::ProjectionMapping;
use datafusion::physical_expr::{Distribution, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{CardinalityEffect, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use hypr_inference::api::Inference;

use super::AiOptions;
use super::answer::AnswerCache;
use super::function::AiFunction;
use crate::vector_search::settings::SearchSettings;

/// A call with its expressions planned over the input's columns.
#[derive(Clone, Debug)]
pub(super) struct PhysicalCall {
    pub guard: Option<Arc<dyn PhysicalExpr>>,
    pub function: AiFunction,
    pub options: Vec<String>,
    /// The values of the options, then the function's own arguments.
    pub args: Vec<Arc<dyn PhysicalExpr>>,
    pub output: FieldRef,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct GenerateExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Arc<Vec<PhysicalCall>>,
    predicate: Option<Arc<dyn PhysicalExpr>>,
    /// The most rows to emit.
    fetch: Option<usize>,
    inference: Arc<dyn Inference>,
    options: Arc<AiOptions>,
    cache: Arc<AnswerCache>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl GenerateExec {
    pub fn try_new(
        input: Arc<dyn ExecutionPlan>,
        calls: Vec<PhysicalCall>,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        inference: Arc<dyn Inference>,
        options: Arc<AiOptions>,
        cache: Arc<AnswerCache>,
    ) -> Result<Self> {
        let properties = properties(&input, &calls)?;
        let metrics = ExecutionPlanMetricsSet::new();
        let calls = Arc::new(calls);
        Ok(Self { input, calls, predicate, fetch: None, inference, options, cache, properties, metrics })
    }
}

fn properties(input: &Arc<dyn ExecutionPlan>, calls: &[PhysicalCall]) -> Result<Arc<PlanProperties>> {
    let input_schema = input.schema();
    let mut fields: Vec<FieldRef> = input_schema.fields().iter().cloned().collect();
    let width: Vec<usize> = (0..fields.len()).collect();
    fields.extend(calls.iter().map(|call| Arc::clone(&call.output)));
    let schema = Arc::new(Schema::new_with_metadata(fields, input_schema.metadata().clone()));
    let mapping = ProjectionMapping::from_indices(&width, &input_schema)?;
    Ok(Arc::new(PlanProperties::new(
        input.equivalence_properties().project(&mapping, schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        input.boundedness(),
    )))
}

impl DisplayAs for GenerateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateExec: ")?;
        for (at, call) in self.calls.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{}(", call.function.name())?;
            let (values, args) = call.args.split_at(call.options.len());
            let args = args.iter().map(ToString::to_string);
            let options = call.options.iter().zip(values).map(|(name, value)| format!("{name} => {value}"));
            write!(f, "{})", args.chain(options).collect::<Vec<_>>().join(", "))?;
            if let Some(guard) = &call.guard {
                write!(f, " when {guard}")?;
            }
        }
        if let Some(predicate) = &self.predicate {
            write!(f, ", where={predicate}")?;
        }
        match self.fetch {
            Some(fetch) => write!(f, ", fetch={fetch}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for GenerateExec {
    fn name(&self) -> &str {
        "GenerateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// The engine is one for all, and one stream decides the order in which requests reach it.
    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("GenerateExec takes one input");
        };
        let properties = properties(&input, &self.calls)?;
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Arc::new(Self { input, properties, metrics, ..Self::clone(&self) }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 || self.input.output_partitioning().partition_count() != 1 {
            return internal_err!("GenerateExec reads one partition");
        }
        let wanted = SearchSettings::keeps_answers(context.session_config());
        let rows = self.input.execute(partition, context)?;
        let work = stream::Work {
            calls: Arc::clone(&self.calls),
            predicate: self.predicate.clone(),
            schema: self.schema(),
            inference: Arc::clone(&self.inference),
            options: Arc::clone(&self.options),
            cache: Some(&self.cache).filter(|cache| cache.is_on() && wanted).cloned(),
            metrics: CallMetrics::new(&self.metrics, partition, &self.cache),
            fetch: self.fetch,
        };
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let output = stream::run(work, rows, baseline);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), output)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    /// A limit above is kept here where rows are filtered; else it belongs below.
    fn supports_limit_pushdown(&self) -> bool {
        self.predicate.is_none()
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        let metrics = ExecutionPlanMetricsSet::new();
        Some(Arc::new(Self { fetch: limit, metrics, ..self.clone() }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        match (&self.predicate, self.fetch) {
            (None, None) => CardinalityEffect::Equal,
            _ => CardinalityEffect::LowerEqual,
        }
    }
}

/// What `EXPLAIN ANALYZE` shows, and the same counted over all statements.
#[derive(Clone, Debug)]
pub(super) struct CallMetrics {
    /// Values asked of the engine.
    calls: Count,
    /// Rows that shared the answer of an equal call of the same statement, or of one under way.
    deduplicated: Count,
    /// Rows whose answers other statements have had.
    cache_hits: Count,
    failed: Count,
    prompt_tokens: Count,
    completion_tokens: Count,
    /// Times a full queue made a request wait.
    pub busy_retries: Count,
    totals: Arc<AnswerCache>,
}

impl CallMetrics {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize, totals: &Arc<AnswerCache>) -> Self {
        let count = |name| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            calls: count("calls"),
            deduplicated: count("deduplicated"),
            cache_hits: count("cache_hits"),
            failed: count("failed"),
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
            busy_retries: count("busy_retries"),
            totals: Arc::clone(totals),
        }
    }

    fn calls(&self, n: usize) {
        add(&self.calls, &self.totals.totals.calls, n);
    }

    fn deduplicated(&self, n: usize) {
        add(&self.deduplicated, &self.totals.totals.deduplicated, n);
    }

    fn cache_hits(&self, n: usize) {
        add(&self.cache_hits, &self.totals.totals.cache_hits, n);
    }

    fn failed(&self, n: usize) {
        add(&self.failed, &self.totals.totals.failed, n);
    }

    fn tokens(&self, prompt: usize, completion: usize) {
        add(&self.prompt_tokens, &self.totals.totals.prompt_tokens, prompt);
        add(&self.completion_tokens, &self.totals.totals.completion_tokens, completion);
    }
}

fn add(count: &Count, total: &AtomicU64, n: usize) {
    count.add(n);
    total.fetch_add(n as u64, Ordering::Relaxed);
}
