//! The analyzer rule that turns the markers of [`super::markers`] into plans: `hop` into an unnest, `session` into a
//! window function, `time_bucket_gapfill` into [`GapFillNode`] above the aggregate.
//!
//! Every node keeps the names of its columns, so what refers to them from above stays as it is. Runs after type
//! coercion. `HAVING` is applied before gaps are filled.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue, UnnestOptions, plan_err};
use datafusion::logical_expr::expr::{WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, WindowFrame,
    WindowFrameBound, WindowFrameUnits, WindowFunctionDefinition, cast, ident,
};
use datafusion::optimizer::AnalyzerRule;

use super::gapfill::{Fill, GapFillNode, Range};
use super::markers::Marker;
use super::{session, time_bucket};

const HOP_COLUMN: &str = "__hop";

/// The analyzer rule.
#[derive(Debug)]
pub(super) struct SeriesGroups;

impl AnalyzerRule for SeriesGroups {
    fn name(&self) -> &str {
        "series_groups"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let mut pass = Pass { changed: false };
        plan.transform_up_with_subqueries(|node| pass.rewrite(node)).map(|done| done.data)
    }
}

struct Pass {
    /// Filling gaps makes columns nullable, also in the nodes above.
    changed: bool,
}

impl Pass {
    fn rewrite(&mut self, node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let rewritten = match node {
            LogicalPlan::Aggregate(aggregate) if has(&aggregate.group_expr, Marker::groups) => {
                self.changed = true;
                rewrite_aggregate(aggregate)?
            }
            LogicalPlan::Filter(filter) if GapFillNode::of(&filter.input).is_some() => {
                self.changed = true;
                having(filter)?
            }
            node if self.changed && has(&node.expressions(), Marker::fills) => fill(node)?,
            node if self.changed => node.recompute_schema()?,
            node => return Ok(Transformed::no(node)),
        };
        Ok(Transformed::yes(rewritten))
    }
}

/// True when a marker of that kind is anywhere in `exprs`.
fn has(exprs: &[Expr], kind: fn(Marker) -> bool) -> bool {
    let is = |expr: &Expr| matches!(Marker::of(expr), Some((marker, _)) if kind(marker));
    exprs.iter().any(|expr| expr.exists(|expr| Ok(is(expr))).unwrap_or(false))
}

fn rewrite_aggregate(mut aggregate: Aggregate) -> Result<LogicalPlan> {
    let marked: Vec<usize> =
        (0..aggregate.group_expr.len()).filter(|at| Marker::of(&aggregate.group_expr[*at]).is_some()).collect();
    let [at] = marked.as_slice() else {
        return plan_err!(
            "time_bucket_gapfill, hop and session stand alone as one expression of GROUP BY, not inside another or twice"
        );
    };
    let group = aggregate.group_expr[*at].clone();
    let others: Vec<Expr> =
        aggregate.group_expr.iter().enumerate().filter(|(i, _)| i != at).map(|(_, e)| e.clone()).collect();
    if has(&others, Marker::groups) {
        return plan_err!("time_bucket_gapfill, hop and session stand alone as one expression of GROUP BY");
    }
    let name = group.schema_name().to_string();
    let Some((marker, args)) = Marker::of(&group) else {
        return plan_err!("a group is not understood");
    };
    match marker {
        Marker::Hop => {
            let (input, start) = unnest_windows(&aggregate, args)?;
            (aggregate.input, aggregate.group_expr[*at]) = (Arc::new(input), start.alias(name));
            rebuild(aggregate)
        }
        Marker::Session => {
            let (input, start) = mark_sessions(&aggregate, args, others)?;
            (aggregate.input, aggregate.group_expr[*at]) = (Arc::new(input), start.alias(name));
            rebuild(aggregate)
        }
        _ => fill_gaps(aggregate, *at, args.to_vec(), name),
    }
}

fn rebuild(aggregate: Aggregate) -> Result<LogicalPlan> {
    Aggregate::try_new(aggregate.input, aggregate.group_expr, aggregate.aggr_expr).map(LogicalPlan::Aggregate)
}

/// A row for each window that a row is in.
fn unnest_windows(aggregate: &Aggregate, args: &[Expr]) -> Result<(LogicalPlan, Expr)> {
    let mut columns: Vec<Expr> = aggregate.input.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(time_bucket::hop_starts().call(args.to_vec()).alias(HOP_COLUMN));
    let options = UnnestOptions::new().with_preserve_nulls(false);
    let input = LogicalPlanBuilder::from(Arc::clone(&aggregate.input))
        .project(columns)?
        .unnest_column_with_options(HOP_COLUMN, options)?
        .build()?;
    Ok((input, ident(HOP_COLUMN)))
}

/// The input with the beginning of each row's session, within the other groups.
fn mark_sessions(aggregate: &Aggregate, args: &[Expr], others: Vec<Expr>) -> Result<(LogicalPlan, Expr)> {
    let frame = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::CurrentRow,
    );
    let sessions = Expr::WindowFunction(Box::new(WindowFunction {
        fun: WindowFunctionDefinition::WindowUDF(session::session_start()),
        params: WindowFunctionParams {
            args: args.to_vec(),
            partition_by: others.into_iter().map(Expr::unalias).collect(),
            order_by: vec![args[0].clone().sort(true, false)],
            window_frame: frame,
            filter: None,
            null_treatment: None,
            distinct: false,
        },
    }));
    let input = LogicalPlanBuilder::from(Arc::clone(&aggregate.input)).window([sessions])?.build()?;
    match input.schema().columns().pop() {
        Some(start) => Ok((input, Expr::Column(start))),
        None => plan_err!("a window function has no column"),
    }
}

fn fill_gaps(mut aggregate: Aggregate, at: usize, args: Vec<Expr>, name: String) -> Result<LogicalPlan> {
    let (width, time) = (args[0].clone(), args[1].clone());
    let zone = matches!(args.len(), 3 | 5).then(|| args[2].clone());
    let mut range = match args.len() {
        4 | 5 => Range::between(args[args.len() - 2].clone(), args[args.len() - 1].clone()),
        _ => range_of(&aggregate.input, &time)?,
    };
    if range.lower.is_empty() || range.upper.is_empty() {
        let (side, condition) = if range.lower.is_empty() { ("begins", ">=") } else { ("ends", "<") };
        return plan_err!(
            "time_bucket_gapfill does not know where its range {side}: add {time} {condition} .. to WHERE, \
             or call time_bucket_gapfill(width, ts, start, finish)"
        );
    }
    let data_type = time.get_type(aggregate.input.schema())?;
    range.cast_to(&data_type);
    let bucket_args = [vec![width.clone(), time], zone.clone().into_iter().collect()].concat();
    aggregate.group_expr[at] = time_bucket::time_bucket().call(bucket_args).alias(name);
    let groups = aggregate.group_expr.len();
    let plan = rebuild(aggregate)?;
    let columns = plan.schema().columns();
    let time = Expr::Column(columns[at].clone());
    let series = (0..groups).filter(|group| *group != at).map(|group| Expr::Column(columns[group].clone())).collect();
    GapFillNode::try_new(Arc::new(plan), series, time, width, zone, range, Vec::new()).map(GapFillNode::into_plan)
}

/// The bounds that the conditions below say `time` has.
fn range_of(input: &LogicalPlan, time: &Expr) -> Result<Range> {
    let mut range = Range::default();
    let mut node = input;
    while let LogicalPlan::Filter(filter) = node {
        for conjunct in split_conjunction(&filter.predicate) {
            match conjunct {
                Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_time(left, time) && is_constant(right) => {
                    range.bound(*op, right);
                }
                Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_time(right, time) && is_constant(left) => {
                    range.bound(op.swap().unwrap_or(*op), left);
                }
                Expr::Between(between)
                    if !between.negated
                        && is_time(&between.expr, time)
                        && is_constant(&between.low)
                        && is_constant(&between.high) =>
                {
                    range.bound(Operator::GtEq, &between.low);
                    range.bound(Operator::LtEq, &between.high);
                }
                _ => {}
            }
        }
        node = &filter.input;
    }
    Ok(range)
}

fn is_time(expr: &Expr, time: &Expr) -> bool {
    match (expr, time) {
        (expr, time) if expr == time => true,
        (Expr::Cast(cast), time) => is_time(&cast.expr, time),
        (expr, Expr::Cast(cast)) => is_time(expr, &cast.expr),
        _ => false,
    }
}

fn is_constant(expr: &Expr) -> bool {
    expr.column_refs().is_empty() && !expr.exists(|expr| Ok(matches!(expr, Expr::ScalarSubquery(_)))).unwrap_or(true)
}

/// `HAVING` goes below the node that fills.
fn having(filter: datafusion::logical_expr::Filter) -> Result<LogicalPlan> {
    let Some(node) = GapFillNode::of(&filter.input) else {
        return Ok(LogicalPlan::Filter(filter));
    };
    if has(std::slice::from_ref(&filter.predicate), Marker::fills) {
        return plan_err!("HAVING is applied before gaps are filled, so it cannot use locf or interpolate");
    }
    let below = LogicalPlanBuilder::from(Arc::clone(&node.input)).filter(filter.predicate)?.build()?;
    node.clone().with_input(below).map(GapFillNode::into_plan)
}

/// Replaces the calls of `locf` and `interpolate` in `node` by columns that the node below fills.
fn fill(node: LogicalPlan) -> Result<LogicalPlan> {
    if !matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Window(_)) || node.inputs().len() != 1 {
        return plan_err!(
            "locf and interpolate stand in the SELECT list of a query that groups by time_bucket_gapfill"
        );
    }
    let input = node.inputs()[0].clone();
    let mut taken = next_fill(&input);
    let mut fills: Vec<(Fill, Expr, String)> = Vec::new();
    let names = NamePreserver::new(&node);
    let node = node.map_expressions(|expr| {
        let name = names.save(&expr);
        let rewritten = expr.transform_up(|expr| {
            let (fill, args) = match Marker::of(&expr) {
                Some((Marker::Locf, args)) => (Fill::Previous, args),
                Some((Marker::Interpolate, args)) => (Fill::Linear, args),
                _ => return Ok(Transformed::no(expr)),
            };
            let known = fills.iter().find(|(other, arg, _)| *other == fill && *arg == args[0]);
            let column = match known {
                Some((_, _, column)) => column.clone(),
                None => {
                    let column = format!("__fill_{taken}");
                    taken += 1;
                    fills.push((fill, args[0].clone(), column.clone()));
                    column
                }
            };
            Ok(Transformed::yes(ident(column)))
        })?;
        Ok(rewritten.update_data(|expr| name.restore(expr)))
    })?;
    let input = push_fills(input, &fills)?;
    node.data.with_new_exprs(node.data.expressions(), vec![input])
}

/// The number after those of the fills that are there.
fn next_fill(plan: &LogicalPlan) -> usize {
    plan.schema().fields().iter().filter(|field| field.name().starts_with("__fill_")).count()
}

/// Hands fills down to the node that makes them, through nodes that pass its columns on.
fn push_fills(plan: LogicalPlan, fills: &[(Fill, Expr, String)]) -> Result<LogicalPlan> {
    if let Some(node) = GapFillNode::of(&plan) {
        return node.clone().with_fills(fills).map(GapFillNode::into_plan);
    }
    match plan {
        LogicalPlan::Window(_) | LogicalPlan::Filter(_) | LogicalPlan::Sort(_) => {
            let input = push_fills(plan.inputs()[0].clone(), fills)?;
            plan.with_new_exprs(plan.expressions(), vec![input])
        }
        _ => plan_err!("locf and interpolate fill an aggregate of a query that groups by time_bucket_gapfill"),
    }
}

impl Range {
    fn cast_to(&mut self, data_type: &arrow_schema::DataType) {
        for bound in self.lower.iter_mut().chain(self.upper.iter_mut().map(|(bound, _)| bound)) {
            *bound = cast(bound.clone(), data_type.clone());
        }
    }
}
