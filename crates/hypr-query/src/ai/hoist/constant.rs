//! Embeddings that are the same for every row: `cosine_distance(v, embed('text'))` needs one for the statement.
//!
//! Such a call becomes a subquery of one row, which is computed once, before the rows are read, and stands for a
//! constant wherever the statement uses it, so that a search for nearest rows can use an index. That is done only where
//! a distance compares it with something that is not an AI call, and every row needs it: a call under `CASE` or the
//! like stays where it is, and is made if a row gets there.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, Spans};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Subquery};

use super::super::function::{AiFunction, Call};
use super::super::node::{GenerateNode, GuardedCall};
use super::Pass;
use super::collect::{has_call, has_subquery};
use crate::functions::is_metric;

impl Pass<'_> {
    /// Moves constant embeddings of `plan` into subqueries, one for all equal calls.
    pub(super) fn share_constants(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let mut shared: Vec<(Call, Subquery)> = Vec::new();
        let done = plan.transform_up_with_subqueries(|node| {
            let is_filter = matches!(node, LogicalPlan::Filter(_));
            let is_projection = matches!(node, LogicalPlan::Projection(_));
            let takes_part = is_filter || is_projection || matches!(node, LogicalPlan::Sort(_));
            if !takes_part || !node.expressions().iter().any(has_call) {
                return Ok(Transformed::no(node));
            }
            let names = NamePreserver::new_for_projection();
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let shared = self.share(expr, is_filter, &mut shared)?;
                Ok(if is_projection { shared.update_data(|expr| name.restore(expr)) } else { shared })
            })
        })?;
        Ok(done.data)
    }

    /// `expr` with its constant embeddings shared. Each conjunct of a filter is needed for itself.
    fn share(&mut self, expr: Expr, is_filter: bool, shared: &mut Vec<(Call, Subquery)>) -> Result<Transformed<Expr>> {
        match expr {
            Expr::Alias(_) | Expr::Cast(_) | Expr::Negative(_) => {
                expr.map_children(|child| self.share(child, is_filter, shared))
            }
            Expr::BinaryExpr(BinaryExpr { op: Operator::And, .. }) if !is_filter => Ok(Transformed::no(expr)),
            Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => Ok(Transformed::no(expr)),
            Expr::BinaryExpr(_) => expr.map_children(|child| self.share(child, is_filter, shared)),
            Expr::ScalarFunction(ScalarFunction { func, mut args }) => {
                let compares = is_metric(func.name()) && args.len() == 2;
                for at in (0..args.len()).filter(|_| compares) {
                    if !has_call(&args[1 - at])
                        && let Some(subquery) = self.shared(&args[at], shared)?
                    {
                        args[at] = Expr::ScalarSubquery(subquery);
                        return Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args })));
                    }
                }
                let call = Expr::ScalarFunction(ScalarFunction { func, args });
                match &call {
                    // It needs all of its arguments for every row.
                    Expr::ScalarFunction(ScalarFunction { func, .. }) if !compares && !func.short_circuits() => {
                        call.map_children(|child| self.share(child, is_filter, shared))
                    }
                    _ => Ok(Transformed::no(call)),
                }
            }
            other => Ok(Transformed::no(other)),
        }
    }

    /// The subquery that makes the call that `expr` is, if it is an embedding that reads no row.
    fn shared(&mut self, expr: &Expr, shared: &mut Vec<(Call, Subquery)>) -> Result<Option<Subquery>> {
        let Some(call) = Call::of(expr)? else { return Ok(None) };
        let is_constant = |arg: &Expr| {
            !has_call(arg)
                && !has_subquery(arg)
                && !arg.is_volatile()
                && !arg.contains_outer()
                && !arg.any_column_refs()
        };
        if call.function != AiFunction::Embed || !call.args.iter().all(is_constant) {
            return Ok(None);
        }
        if let Some((_, known)) = shared.iter().find(|(other, _)| *other == call) {
            return Ok(Some(known.clone()));
        }
        let field = expr.to_field(&DFSchema::empty())?.1;
        let output = Arc::new(field.as_ref().clone().with_name(self.names.next()).with_nullable(true));
        let made = GuardedCall {
            guard: None,
            function: call.function,
            options: call.options.clone(),
            args: call.args.clone(),
            output,
        };
        self.check(&made)?;
        let one_row = Arc::new(LogicalPlanBuilder::empty(true).build()?);
        let node = GenerateNode::try_new(one_row, vec![made], None)?.into_plan();
        let subquery = Subquery { subquery: Arc::new(node), outer_ref_columns: Vec::new(), spans: Spans::new() };
        shared.push((call, subquery.clone()));
        Ok(Some(subquery))
    }
}
