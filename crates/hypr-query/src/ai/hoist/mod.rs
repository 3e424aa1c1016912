//! Moves every AI call of a plan into a [`GenerateNode`](super::node::GenerateNode) below the node it is in,
//! before any other rule could copy, reorder or merge it.
//!
//! Each node keeps its output schema. Runs after type coercion, so guards and arguments have their types.

mod collect;
mod constant;
mod guard;
mod join;
mod sort;

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, not_impl_err, plan_err};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, Filter, LogicalPlan, LogicalPlanBuilder, Projection, Values, Volatility, lit, when,
};
use datafusion::optimizer::AnalyzerRule;
use hypr_inference::api::Inference;

use super::function::AiFunction;
use super::node::{GenerateNode, GuardedCall};
use super::{AiOptions, options};
use crate::error;
use collect::{Collector, Names, has_call, has_subquery, place};

/// The analyzer rule.
#[derive(Debug)]
pub(super) struct HoistAiCalls {
    inference: Arc<dyn Inference>,
    options: Arc<AiOptions>,
}

impl HoistAiCalls {
    pub fn new(inference: Arc<dyn Inference>, options: Arc<AiOptions>) -> Self {
        Self { inference, options }
    }
}

impl AnalyzerRule for HoistAiCalls {
    fn name(&self) -> &str {
        "hoist_ai_calls"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let mut pass = Pass { rule: self, names: Names::after(&plan)? };
        let plan = pass.share_constants(plan)?;
        plan.transform_up_with_subqueries(|node| pass.hoist(node)).map(|done| done.data)
    }
}

/// One run over a plan.
struct Pass<'a> {
    rule: &'a HoistAiCalls,
    names: Names,
}

impl Pass<'_> {
    fn hoist(&mut self, node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if !node.expressions().iter().any(has_call) {
            return match node {
                LogicalPlan::Sort(sort) => sort::sink(sort),
                node => Ok(Transformed::no(node)),
            };
        }
        let hoisted = match node {
            LogicalPlan::Projection(projection) => self.projection(projection),
            LogicalPlan::Filter(filter) => self.filter(filter),
            LogicalPlan::Join(join) => join::hoist(self, join),
            LogicalPlan::Values(values) => self.values(values),
            LogicalPlan::Limit(_) => plan_err!("LIMIT and OFFSET take a number, not an AI call"),
            node if node.inputs().len() == 1 => self.single_input(node),
            node => not_impl_err!("an AI call in {}", node.display()),
        };
        hoisted.map(Transformed::yes)
    }

    /// Puts the nodes for `calls` above `input`.
    fn place(&mut self, calls: Vec<GuardedCall>, input: LogicalPlan) -> Result<LogicalPlan> {
        for call in &calls {
            self.check(call)?;
        }
        place(calls, input, &mut self.names)
    }

    /// Checks literal options, and that there is a model to ask.
    fn check(&self, call: &GuardedCall) -> Result<()> {
        let mut model = Some(None);
        for (name, value) in call.options.iter().zip(&call.args) {
            let literal = match value {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            };
            if let Some(value) = literal {
                options::check(call.function, name, value, self.rule.options.max_tokens_limit)
                    .map_err(error::to_datafusion)?;
            }
            if name == "model" {
                model = literal.map(|value| value.try_as_str().flatten());
            }
        }
        // That of an embedding was looked for when its type was asked for, by what is embedded.
        if let Some(model) = model
            && call.function != AiFunction::Embed
        {
            self.rule.inference.resolve(call.function.task(), model).map_err(error::to_datafusion)?;
        }
        Ok(())
    }

    fn projection(&mut self, projection: Projection) -> Result<LogicalPlan> {
        let input = Arc::unwrap_or_clone(projection.input);
        let names = NamePreserver::new_for_projection();
        let schema = Arc::clone(input.schema());
        let mut collector = Collector::new(&schema, &mut self.names);
        let exprs = projection
            .expr
            .into_iter()
            .map(|expr| {
                let name = names.save(&expr);
                Ok(name.restore(collector.rewrite(expr, None)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let calls = collector.finish();
        let input = self.place(calls, input)?;
        Projection::try_new_with_schema(exprs, Arc::new(input), projection.schema).map(LogicalPlan::Projection)
    }

    /// Conjuncts without calls filter first; then each other conjunct makes its calls for the rows that are
    /// left, and filters them.
    fn filter(&mut self, filter: Filter) -> Result<LogicalPlan> {
        let schema = Arc::clone(filter.input.schema());
        let (dear, cheap): (Vec<_>, Vec<_>) = split_conjunction_owned(filter.predicate).into_iter().partition(has_call);
        let mut plan = Arc::unwrap_or_clone(filter.input);
        if let Some(cheap) = conjunction(cheap) {
            plan = LogicalPlan::Filter(Filter::try_new(cheap, Arc::new(plan))?);
        }
        let mut known = Vec::new();
        for conjunct in dear {
            let mut collector = Collector::new(&schema, &mut self.names);
            collector.reuse(known);
            let predicate = collector.rewrite(conjunct, None)?;
            known = collector.unguarded();
            let calls = collector.finish();
            let made = self.place(calls, plan)?;
            plan = keep(made, predicate)?;
        }
        restore(plan, &schema)
    }

    /// `VALUES`: the calls move into a projection over the other values, each in the branch of its row.
    fn values(&mut self, values: Values) -> Result<LogicalPlan> {
        let width = values.schema.fields().len();
        let mut rows = Vec::with_capacity(values.values.len());
        let mut moved: Vec<Vec<(usize, Expr)>> = vec![Vec::new(); width];
        for (number, row) in values.values.into_iter().enumerate() {
            let mut plain = Vec::with_capacity(width + 1);
            for (column, expr) in row.into_iter().enumerate() {
                if has_call(&expr) {
                    let data_type = values.schema.field(column).data_type();
                    plain.push(Expr::Literal(ScalarValue::try_from(data_type)?, None));
                    moved[column].push((number, expr));
                } else {
                    plain.push(expr);
                }
            }
            plain.push(lit(number as u64));
            rows.push(plain);
        }
        let plain = LogicalPlanBuilder::values(rows)?.build()?;
        let mut exprs = Vec::with_capacity(width);
        for (column, calls) in moved.into_iter().enumerate() {
            let name = values.schema.field(column).name();
            let other = Expr::Column(plain.schema().columns()[column].clone());
            let row = Expr::Column(plain.schema().columns()[width].clone());
            let mut calls = calls.into_iter();
            let expr = match calls.next() {
                None => other,
                Some((number, call)) => {
                    let mut branches = when(row.clone().eq(lit(number as u64)), call);
                    for (number, call) in calls {
                        branches = branches.when(row.clone().eq(lit(number as u64)), call);
                    }
                    branches.otherwise(other)?
                }
            };
            exprs.push(expr.alias(name));
        }
        let projection = Projection::try_new_with_schema(exprs, Arc::new(plain), values.schema)?;
        self.projection(projection)
    }

    /// Sorts, aggregates, windows and other nodes of one input.
    fn single_input(&mut self, node: LogicalPlan) -> Result<LogicalPlan> {
        let original = Arc::clone(node.schema());
        let input = node.inputs()[0].clone();
        let schema = Arc::clone(input.schema());
        let mut collector = Collector::new(&schema, &mut self.names);
        let node = node.map_expressions(|expr| collector.rewrite(expr, None).map(Transformed::yes))?.data;
        let calls = collector.finish();
        let input = self.place(calls, input)?;
        let added = input.schema().fields().len() - schema.fields().len();
        let node = match node {
            LogicalPlan::Distinct(Distinct::On(on)) => {
                let on = DistinctOn::try_new(on.on_expr, on.select_expr, on.sort_expr, Arc::new(input))?;
                LogicalPlan::Distinct(Distinct::On(on))
            }
            node => match node.with_new_exprs(node.expressions(), vec![input])? {
                LogicalPlan::Sort(sort) => sort::sink(sort)?.data,
                node => node,
            },
        };
        if node.schema().fields().len() == original.fields().len() {
            return rename(node, &original, |at| at);
        }
        // The node passes its input on, with the answers between the input's columns and its own.
        rename(node, &original, |at| if at < schema.fields().len() { at } else { at + added })
    }
}

/// Keeps the rows of `plan` for which `predicate` is true, inside the node that made the last answer if it can.
fn keep(plan: LogicalPlan, predicate: Expr) -> Result<LogicalPlan> {
    match GenerateNode::of(&plan) {
        Some(node) if node.predicate.is_none() && !has_subquery(&predicate) && !has_stable(&predicate) => {
            GenerateNode::try_new(Arc::clone(&node.input), node.calls.clone(), Some(predicate))
                .map(GenerateNode::into_plan)
        }
        _ => Filter::try_new(predicate, Arc::new(plan)).map(LogicalPlan::Filter),
    }
}

/// True for functions such as `now()`, which only the simplifier computes; it does not see the node's predicate.
fn has_stable(expr: &Expr) -> bool {
    let is_stable = |expr: &Expr| match expr {
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Stable,
        _ => false,
    };
    expr.exists(|expr| Ok(is_stable(expr))).unwrap_or(true)
}

/// The columns of `schema` out of `plan`, by name.
fn restore(plan: LogicalPlan, schema: &Arc<DFSchema>) -> Result<LogicalPlan> {
    if plan.schema().fields().len() == schema.fields().len() {
        return Ok(plan);
    }
    let exprs = schema.columns().into_iter().map(Expr::Column).collect();
    Projection::try_new(exprs, Arc::new(plan)).map(LogicalPlan::Projection)
}

/// Column `place(i)` of `plan` under the name of column `i` of `schema`.
fn rename(plan: LogicalPlan, schema: &Arc<DFSchema>, place: impl Fn(usize) -> usize) -> Result<LogicalPlan> {
    let columns = plan.schema().columns();
    let exprs: Vec<Expr> = schema
        .columns()
        .into_iter()
        .enumerate()
        .map(|(at, wanted)| {
            let column = columns[place(at)].clone();
            if column == wanted {
                Expr::Column(column)
            } else {
                Expr::Column(column).alias_qualified(wanted.relation, wanted.name)
            }
        })
        .collect();
    if exprs.len() == columns.len() && exprs.iter().all(|expr| matches!(expr, Expr::Column(_))) {
        return Ok(plan);
    }
    Projection::try_new(exprs, Arc::new(plan)).map(LogicalPlan::Projection)
}
