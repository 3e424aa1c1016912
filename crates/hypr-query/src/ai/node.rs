//! The logical node that AI calls run in: its input's columns, then one column for each call.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_schema::FieldRef;
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

use super::function::AiFunction;

/// What starts the name of every output of a node; no user writes it.
pub(super) const OUTPUT_PREFIX: &str = "__ai_";

/// A call that a node makes for each row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct GuardedCall {
    /// A row gets NULL without a call unless this is true; `None` needs every row.
    pub guard: Option<Expr>,
    /// What is called.
    pub function: AiFunction,
    /// The names of the options.
    pub options: Vec<String>,
    /// The values of the options, then the function's own arguments.
    pub args: Vec<Expr>,
    /// The column that holds the answers; its name is unique in the plan.
    pub output: FieldRef,
}

/// Makes calls of one function for each row of its input, and keeps the rows for which `predicate` is true.
///
/// Calls of a node do not read one another's outputs; the predicate may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerateNode {
    pub input: Arc<LogicalPlan>,
    pub calls: Vec<GuardedCall>,
    /// Over the output schema.
    pub predicate: Option<Expr>,
    schema: DFSchemaRef,
}

impl GenerateNode {
    pub fn try_new(input: Arc<LogicalPlan>, calls: Vec<GuardedCall>, predicate: Option<Expr>) -> Result<Self> {
        let mut fields: Vec<_> =
            input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        fields.extend(calls.iter().map(|call| (None, Arc::clone(&call.output))));
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?
            .with_functional_dependencies(input.schema().functional_dependencies().clone())?;
        Ok(Self { input, calls, predicate, schema: Arc::new(schema) })
    }

    /// The node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// The node that `plan` is, if it is one.
    pub fn of(plan: &LogicalPlan) -> Option<&Self> {
        match plan {
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// True for the name of one of its outputs.
    pub fn makes(&self, name: &str) -> bool {
        self.calls.iter().any(|call| call.output.name() == name)
    }
}

impl Hash for GenerateNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.calls, &self.predicate).hash(state);
    }
}

impl PartialOrd for GenerateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let key = |node: &Self| node.calls.iter().map(|call| call.output.name().clone()).collect::<Vec<_>>();
        match key(self).cmp(&key(other)) {
            Ordering::Equal if self != other => self.input.partial_cmp(&other.input).filter(|order| order.is_ne()),
            order => Some(order),
        }
    }
}

impl UserDefinedLogicalNodeCore for GenerateNode {
    fn name(&self) -> &str {
        "Generate"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    /// The predicate is not among them: rules resolve expressions against the input, which has no answers yet.
    fn expressions(&self) -> Vec<Expr> {
        self.calls.iter().flat_map(|call| call.guard.iter().chain(&call.args)).cloned().collect()
    }

    /// A predicate above that reads no answer is better applied before any call.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.calls.iter().map(|call| call.output.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generate: ")?;
        for (at, call) in self.calls.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{} = {}(", call.output.name(), call.function.name())?;
            let (values, args) = call.args.split_at(call.options.len());
            let args = args.iter().map(ToString::to_string);
            let options = call.options.iter().zip(values).map(|(name, value)| format!("{name} => {value}"));
            write!(f, "{})", args.chain(options).collect::<Vec<_>>().join(", "))?;
            if let Some(guard) = &call.guard {
                write!(f, " when {guard}")?;
            }
        }
        match &self.predicate {
            Some(predicate) => write!(f, " where {predicate}"),
            None => Ok(()),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
            return internal_err!("Generate takes one input");
        };
        let mut exprs = exprs.into_iter();
        let calls = self
            .calls
            .iter()
            .map(|call| GuardedCall {
                guard: if call.guard.is_some() { exprs.next() } else { None },
                args: exprs.by_ref().take(call.args.len()).collect(),
                ..call.clone()
            })
            .collect();
        Self::try_new(Arc::new(input), calls, self.predicate.clone())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        let width = schema.fields().len();
        let mut needed: Vec<usize> = output_columns.iter().copied().filter(|column| *column < width).collect();
        let filtered = self.predicate.iter().flat_map(Expr::column_refs);
        needed.extend(filtered.filter_map(|column| schema.maybe_index_of_column(column)));
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }

    /// Without a predicate each row of the input gives one of the output.
    fn supports_limit_pushdown(&self) -> bool {
        self.predicate.is_none()
    }
}
