//! Sorts that read no answer go below the calls: `ORDER BY score LIMIT 3` then makes three calls, and rows of
//! longer results come out in order while later ones are still being generated.
//!
//! The sort stays on top, too: it has nothing left to do, and says that what stands between must keep the order.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Sort, SortExpr};

use super::super::node::GenerateNode;
use super::collect::has_subquery;

/// Moves `sort` below the nodes that make calls, or leaves it.
pub(super) fn sink(sort: Sort) -> Result<Transformed<LogicalPlan>> {
    // The limit of a sort would count rows that a predicate of the node drops.
    if sort.fetch.is_some() {
        return Ok(Transformed::no(LogicalPlan::Sort(sort)));
    }
    match sink_into(&sort.input, &sort.expr)? {
        Some(plan) => Ok(Transformed::yes(LogicalPlan::Sort(Sort { input: Arc::new(plan), ..sort }))),
        None => Ok(Transformed::no(LogicalPlan::Sort(sort))),
    }
}

/// `plan` with its rows in the order of `keys`, sorted below a call; `None` when no call can be passed.
fn sink_into(plan: &LogicalPlan, keys: &[SortExpr]) -> Result<Option<LogicalPlan>> {
    let input = match plan {
        LogicalPlan::Projection(projection) => {
            let Some(keys) = substitute(keys, plan, &projection.expr)? else {
                return Ok(None);
            };
            sink_into(&projection.input, &keys)?
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
            let Some(keys) = substitute(keys, plan, &columns)? else {
                return Ok(None);
            };
            sink_into(&alias.input, &keys)?
        }
        LogicalPlan::Extension(_) => {
            let Some(node) = GenerateNode::of(plan) else {
                return Ok(None);
            };
            if keys.iter().any(|key| key.expr.column_refs().iter().any(|column| node.makes(&column.name))) {
                return Ok(None);
            }
            if matches!(node.input.as_ref(), LogicalPlan::Sort(below) if below.expr == keys) {
                return Ok(None);
            }
            let deeper = sink_into(&node.input, keys)?;
            Some(deeper.unwrap_or_else(|| {
                let input = Arc::clone(&node.input);
                LogicalPlan::Sort(Sort { expr: keys.to_vec(), input, fetch: None })
            }))
        }
        _ => None,
    };
    input.map(|input| plan.with_new_exprs(plan.expressions(), vec![input])).transpose()
}

/// `keys` over the input of `plan`, whose column `i` is `exprs[i]` there. `None` when a key would be evaluated
/// anew with another result, or twice at a cost.
fn substitute(keys: &[SortExpr], plan: &LogicalPlan, exprs: &[Expr]) -> Result<Option<Vec<SortExpr>>> {
    let columns: Vec<Column> = plan.schema().columns();
    let mut possible = true;
    let mut below = Vec::with_capacity(keys.len());
    for key in keys {
        let expr = key.expr.clone().transform(|expr| match &expr {
            Expr::Column(column) => match columns.iter().position(|other| other == column) {
                Some(at) => {
                    let under = exprs[at].clone().unalias_nested().data;
                    possible &= !under.is_volatile() && !has_subquery(&under);
                    Ok(Transformed::yes(under))
                }
                None => {
                    possible = false;
                    Ok(Transformed::no(expr))
                }
            },
            _ => Ok(Transformed::no(expr)),
        })?;
        // What was put in is over the input; it must not be looked up again.
        below.push(SortExpr::new(expr.data, key.asc, key.nulls_first));
    }
    Ok(possible.then_some(below))
}
