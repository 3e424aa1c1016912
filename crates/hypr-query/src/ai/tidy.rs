//! After the optimizer's own rules: drops calls whose answers nobody reads, and moves a filter on answers into
//! the node that makes them, so that rows come out one by one and `LIMIT` stops early.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use super::node::{GenerateNode, GuardedCall};

/// The optimizer rule.
#[derive(Debug)]
pub(super) struct TidyGenerate;

impl OptimizerRule for TidyGenerate {
    fn name(&self) -> &str {
        "tidy_generate"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Filter(filter) => match GenerateNode::of(&filter.input) {
                Some(node) if !has_subquery(&filter.predicate) => {
                    let predicate = conjunction(node.predicate.iter().cloned().chain([filter.predicate.clone()]));
                    let node = GenerateNode::try_new(Arc::clone(&node.input), node.calls.clone(), predicate)?;
                    Ok(Transformed::yes(node.into_plan()))
                }
                _ => Ok(Transformed::no(LogicalPlan::Filter(filter))),
            },
            // The nodes whose output is only what they compute: what they do not read, nobody reads.
            LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) => drop_unread(plan),
            plan => Ok(Transformed::no(plan)),
        }
    }
}

fn has_subquery(expr: &Expr) -> bool {
    use datafusion::common::tree_node::TreeNode;
    let is_subquery = |expr: &Expr| matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
    expr.exists(|expr| Ok(is_subquery(expr))).unwrap_or(true)
}

fn drop_unread(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut read = HashSet::new();
    note(&plan.expressions(), &mut read);
    let Some(input) = plan.inputs().first().copied() else {
        return Ok(Transformed::no(plan));
    };
    match without_unread(input, &mut read)? {
        Some(input) => plan.with_new_exprs(plan.expressions(), vec![input]).map(Transformed::yes),
        None => Ok(Transformed::no(plan)),
    }
}

/// `plan` without the calls that are not in `read`, looked for through nodes that pass their input on.
fn without_unread(plan: &LogicalPlan, read: &mut HashSet<String>) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            let exprs = plan.expressions();
            note(&exprs, read);
            let input = without_unread(plan.inputs()[0], read)?;
            input.map(|input| plan.with_new_exprs(exprs, vec![input])).transpose()
        }
        LogicalPlan::Extension(_) => match GenerateNode::of(plan) {
            Some(node) => node_without_unread(node, read),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

fn node_without_unread(node: &GenerateNode, read: &mut HashSet<String>) -> Result<Option<LogicalPlan>> {
    note(node.predicate.as_slice(), read);
    let (kept, dropped): (Vec<GuardedCall>, Vec<_>) =
        node.calls.iter().cloned().partition(|call| read.contains(call.output.name()));
    for call in &kept {
        note(call.guard.as_slice(), read);
        note(&call.args, read);
    }
    let deeper = without_unread(&node.input, read)?;
    if dropped.is_empty() && deeper.is_none() {
        return Ok(None);
    }
    let input = deeper.map_or_else(|| Arc::clone(&node.input), Arc::new);
    if kept.is_empty() && node.predicate.is_none() {
        return Ok(Some(Arc::unwrap_or_clone(input)));
    }
    GenerateNode::try_new(input, kept, node.predicate.clone()).map(|node| Some(node.into_plan()))
}

fn note(exprs: &[Expr], read: &mut HashSet<String>) {
    for expr in exprs {
        read.extend(expr.column_refs().into_iter().map(|column| column.name.clone()));
    }
}
