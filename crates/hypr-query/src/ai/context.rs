//! Gathers the rows of `USING CONTEXT (query)` into one row with a list of passages, in the query's order.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, execute_stream};
use futures::{StreamExt, stream};

use super::text;

/// The column of passages.
pub(super) const PASSAGES: &str = "__context";

fn schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Utf8, true));
    Arc::new(Schema::new(vec![Field::new(PASSAGES, DataType::List(item), false)]))
}

/// The logical node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextNode {
    input: Arc<LogicalPlan>,
    pub max_bytes: usize,
    schema: DFSchemaRef,
}

impl ContextNode {
    pub fn try_new(input: Arc<LogicalPlan>, max_bytes: usize) -> Result<Self> {
        Ok(Self { input, max_bytes, schema: Arc::new(DFSchema::try_from(schema())?) })
    }

    /// The node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl Hash for ContextNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, self.max_bytes).hash(state);
    }
}

impl PartialOrd for ContextNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.input.partial_cmp(&other.input).filter(|order| order.is_ne() || self == other)
    }
}

impl UserDefinedLogicalNodeCore for ContextNode {
    fn name(&self) -> &str {
        "Context"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context: rows as passages")
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (inputs.pop(), inputs.is_empty()) {
            (Some(input), true) => Self::try_new(Arc::new(input), self.max_bytes),
            _ => internal_err!("Context takes one input"),
        }
    }
}

/// The physical operator. Its query is planned and optimised as a statement of its own and is no child for the
/// rules that optimise the plan around it: they may drop a sort whose order no operator above declares to need,
/// as that of `SELECT text .. ORDER BY score`.
#[derive(Debug)]
pub(super) struct ContextExec {
    query: Arc<dyn ExecutionPlan>,
    max_bytes: usize,
    properties: Arc<PlanProperties>,
}

impl ContextExec {
    /// Gathers the rows of `query`, which is optimised.
    pub fn new(query: Arc<dyn ExecutionPlan>, max_bytes: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { query, max_bytes, properties: Arc::new(properties) }
    }
}

/// The operators of `plan` from the top, for `EXPLAIN`.
fn operators(plan: &Arc<dyn ExecutionPlan>) -> String {
    let inputs: Vec<String> = plan.children().into_iter().map(operators).collect();
    match inputs.as_slice() {
        [] => plan.name().to_owned(),
        [one] => format!("{} <- {one}", plan.name()),
        many => format!("{} <- ({})", plan.name(), many.join(", ")),
    }
}

impl DisplayAs for ContextExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContextExec: max_bytes={}, query=[{}]", self.max_bytes, operators(&self.query))
    }
}

impl ExecutionPlan for ContextExec {
    fn name(&self) -> &str {
        "ContextExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("ContextExec takes no inputs") }
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = execute_stream(Arc::clone(&self.query), context)?;
        let gathered = stream::once(gather(rows, self.max_bytes));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), gathered)))
    }
}

/// Reads passages until they exceed `max_bytes`; the one that does is the last.
async fn gather(mut rows: SendableRecordBatchStream, max_bytes: usize) -> Result<RecordBatch> {
    let mut passages = ListBuilder::new(StringBuilder::new());
    let mut bytes = 0;
    'rows: while let Some(batch) = rows.next().await {
        for passage in text::passages(&batch?)?.into_iter().flatten() {
            passages.values().append_value(&passage);
            bytes += passage.len();
            if bytes > max_bytes {
                break 'rows;
            }
        }
    }
    passages.append(true);
    let column: ArrayRef = Arc::new(passages.finish());
    Ok(RecordBatch::try_new(schema(), vec![column])?)
}
