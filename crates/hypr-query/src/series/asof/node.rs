//! The logical node, the rule that makes it, and the rule that moves conditions below it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow_schema::Field;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType, Result, ScalarValue, internal_err, plan_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Extension, Filter, Join, LogicalPlan, UserDefinedLogicalNodeCore, Volatility};
use datafusion::optimizer::{AnalyzerRule, ApplyOrder, OptimizerConfig, OptimizerRule};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::PhysicalPlanner;

use super::exec::{AsofExec, Match, Tolerance};
use super::relation::AsofMatch;
use crate::series::bucket::fixed_ns;
use crate::series::times::unit_ns;

/// Which right row is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd)]
pub(super) struct Direction {
    /// The right row is at or after the left one, not at or before it.
    pub forward: bool,
    /// A right row at the same time does not count.
    pub strict: bool,
}

/// See [`super`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::series) struct AsofJoinNode {
    left: Arc<LogicalPlan>,
    right: Arc<LogicalPlan>,
    on: Vec<(Expr, Expr)>,
    times: (Expr, Expr),
    direction: Direction,
    /// A constant; with true, a distance of just that much is too far.
    tolerance: Option<(Expr, bool)>,
    /// Left rows without a match are dropped.
    inner: bool,
    schema: DFSchemaRef,
}

impl AsofJoinNode {
    fn of(plan: &LogicalPlan) -> Option<&Self> {
        match plan {
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The node for a join that [`super::relation`] has marked.
    fn from_join(join: Join, args: &[Expr]) -> Result<Self> {
        let [left_time, right_time, op, strict, tolerance @ ..] = args else {
            return internal_err!("the marker of an ASOF join has lost arguments");
        };
        let (Expr::Literal(op, _), Expr::Literal(ScalarValue::Boolean(Some(strict)), _)) = (op, strict) else {
            return internal_err!("the marker of an ASOF join is not understood");
        };
        let direction = match op.try_as_str().flatten() {
            Some(">=") => Direction { forward: false, strict: false },
            Some(">") => Direction { forward: false, strict: true },
            Some("<=") => Direction { forward: true, strict: false },
            Some("<") => Direction { forward: true, strict: true },
            _ => return internal_err!("an ASOF join compares by {op}"),
        };
        Ok(Self {
            left: join.left,
            right: join.right,
            on: join.on,
            times: (left_time.clone(), right_time.clone()),
            direction,
            tolerance: tolerance.first().map(|tolerance| (tolerance.clone(), *strict)),
            inner: join.join_type == JoinType::Inner,
            schema: join.schema,
        })
    }

    fn with_inputs(mut self, left: LogicalPlan, right: LogicalPlan) -> Result<Self> {
        let nullable = !self.inner;
        let right_fields = right.schema().iter().map(|(qualifier, field)| {
            let field = if nullable { Arc::new(Field::clone(field).with_nullable(true)) } else { Arc::clone(field) };
            (qualifier.cloned(), field)
        });
        let fields = left.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)));
        let schema = DFSchema::new_with_metadata(fields.chain(right_fields).collect(), self.schema.metadata().clone())?;
        (self.left, self.right, self.schema) = (Arc::new(left), Arc::new(right), Arc::new(schema));
        Ok(self)
    }

    fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl PartialOrd for AsofJoinNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let order = self.left.partial_cmp(&other.left)?.then(self.right.partial_cmp(&other.right)?);
        (order != Ordering::Equal || self == other).then_some(order)
    }
}

impl UserDefinedLogicalNodeCore for AsofJoinNode {
    fn name(&self) -> &str {
        "AsofJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let keys = self.on.iter().flat_map(|(left, right)| [left, right]);
        let tolerance = self.tolerance.iter().map(|(tolerance, _)| tolerance);
        [&self.times.0, &self.times.1].into_iter().chain(keys).chain(tolerance).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.inner { "Inner" } else { "Left" };
        let op = match (self.direction.forward, self.direction.strict) {
            (false, false) => ">=",
            (false, true) => ">",
            (true, false) => "<=",
            (true, true) => "<",
        };
        write!(f, "AsofJoin: {kind}, {} {op} {}", self.times.0, self.times.1)?;
        for (left, right) in &self.on {
            write!(f, ", {left} = {right}")?;
        }
        match &self.tolerance {
            Some((tolerance, strict)) => write!(f, ", within {}{tolerance}", if *strict { "less than " } else { "" }),
            None => Ok(()),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Ok([left, right]) = <[LogicalPlan; 2]>::try_from(inputs) else {
            return internal_err!("an ASOF join takes two inputs");
        };
        let mut exprs = exprs.into_iter();
        let mut next = || match exprs.next() {
            Some(expr) => Ok(expr),
            None => internal_err!("an ASOF join has lost expressions"),
        };
        let mut node = self.clone();
        node.times = (next()?, next()?);
        for pair in &mut node.on {
            *pair = (next()?, next()?);
        }
        if let Some((tolerance, _)) = &mut node.tolerance {
            *tolerance = next()?;
        }
        node.with_inputs(left, right)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let (left, right) = (self.left.schema(), self.right.schema());
        let width = left.fields().len();
        let of = |columns: Vec<usize>, exprs: Vec<&Expr>, schema: &DFSchema| {
            let mut needed = columns;
            for column in exprs.iter().flat_map(|expr| expr.column_refs()) {
                needed.push(schema.maybe_index_of_column(column)?);
            }
            needed.sort_unstable();
            needed.dedup();
            Some(needed)
        };
        let mut left_exprs = vec![&self.times.0];
        let mut right_exprs = vec![&self.times.1];
        for (a, b) in &self.on {
            left_exprs.push(a);
            right_exprs.push(b);
        }
        let left_columns = output_columns.iter().copied().filter(|at| *at < width).collect();
        let right_columns = output_columns.iter().filter_map(|at| at.checked_sub(width)).collect();
        Some(vec![of(left_columns, left_exprs, left)?, of(right_columns, right_exprs, right)?])
    }
}

/// The analyzer rule: joins with the marker become [`AsofJoinNode`]s, once types are known.
#[derive(Debug)]
pub(in crate::series) struct PlanAsofJoins;

impl AnalyzerRule for PlanAsofJoins {
    fn name(&self) -> &str {
        "plan_asof_joins"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let rewrite = |node: LogicalPlan| match node {
            LogicalPlan::Join(join) => {
                let args = join.filter.as_ref().and_then(AsofMatch::of).map(<[Expr]>::to_vec);
                match args {
                    Some(args) => AsofJoinNode::from_join(join, &args).map(|node| Transformed::yes(node.into_plan())),
                    None => Ok(Transformed::no(LogicalPlan::Join(join))),
                }
            }
            node => Ok(Transformed::no(node)),
        };
        plan.transform_up_with_subqueries(rewrite).map(|done| done.data)
    }
}

/// The optimizer rule: conditions on the left side filter it before the join; those on the keys of both sides filter
/// the right side too, which cannot change what the remaining left rows match.
#[derive(Debug)]
pub(in crate::series) struct PushFiltersIntoAsof;

impl OptimizerRule for PushFiltersIntoAsof {
    fn name(&self) -> &str {
        "push_filters_into_asof"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else {
            return Ok(Transformed::no(plan));
        };
        let Some(node) = AsofJoinNode::of(&filter.input) else {
            return Ok(Transformed::no(LogicalPlan::Filter(filter)));
        };
        let movable = |expr: &Expr| {
            let columns = expr.column_refs();
            !columns.is_empty()
                && columns.iter().all(|column| node.left.schema().has_column(column))
                && !is_volatile(expr)
                && !expr.exists(|expr| Ok(matches!(expr, Expr::ScalarSubquery(_)))).unwrap_or(true)
        };
        let (left, kept): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(filter.predicate.clone()).into_iter().partition(movable);
        if left.is_empty() {
            return Ok(Transformed::no(LogicalPlan::Filter(filter)));
        }
        let right: Vec<Expr> = left.iter().filter_map(|expr| on_right_keys(expr, &node.on)).collect();
        let node = node.clone().with_inputs(filtered(&node.left, left)?, filtered(&node.right, right)?)?;
        filtered(&Arc::new(node.into_plan()), kept).map(Transformed::yes)
    }
}

fn filtered(input: &Arc<LogicalPlan>, conditions: Vec<Expr>) -> Result<LogicalPlan> {
    match conjunction(conditions) {
        Some(condition) => Filter::try_new(condition, Arc::clone(input)).map(LogicalPlan::Filter),
        None => Ok(LogicalPlan::clone(input)),
    }
}

fn is_volatile(expr: &Expr) -> bool {
    let volatile = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Volatile,
        _ => false,
    };
    expr.exists(|expr| Ok(volatile(expr))).unwrap_or(true)
}

/// The same condition on the right side's keys, if it is one on the left side's.
fn on_right_keys(expr: &Expr, on: &[(Expr, Expr)]) -> Option<Expr> {
    let keys: HashMap<&Column, &Column> =
        on.iter().filter_map(|(left, right)| Some((left.try_as_col()?, right.try_as_col()?))).collect();
    if !expr.column_refs().iter().all(|column| keys.contains_key(column)) {
        return None;
    }
    let replaced = expr.clone().transform(|expr| match &expr {
        Expr::Column(column) => match keys.get(column) {
            Some(right) => Ok(Transformed::yes(Expr::Column((*right).clone()))),
            None => Ok(Transformed::no(expr)),
        },
        _ => Ok(Transformed::no(expr)),
    });
    replaced.ok().map(|replaced| replaced.data)
}

/// Plans `node` over its inputs.
pub(in crate::series) fn plan(
    planner: &dyn PhysicalPlanner,
    node: &AsofJoinNode,
    left: &Arc<dyn ExecutionPlan>,
    right: &Arc<dyn ExecutionPlan>,
    state: &SessionState,
) -> Result<Arc<dyn ExecutionPlan>> {
    let on_left = |expr: &Expr| planner.create_physical_expr(expr, node.left.schema(), state);
    let on_right = |expr: &Expr| planner.create_physical_expr(expr, node.right.schema(), state);
    let time = on_left(&node.times.0)?;
    let tolerance = match &node.tolerance {
        None => None,
        Some((expr, strict)) => {
            let value = crate::series::gapfill::constant(planner, expr, state)?;
            let limit = tolerance(&value, &time.data_type(&left.schema())?)?;
            Some((limit, *strict))
        }
    };
    let how = Match {
        left_keys: node.on.iter().map(|(left, _)| on_left(left)).collect::<Result<_>>()?,
        right_keys: node.on.iter().map(|(_, right)| on_right(right)).collect::<Result<_>>()?,
        left_time: time,
        right_time: on_right(&node.times.1)?,
        direction: node.direction,
        tolerance,
        inner: node.inner,
    };
    let schema = Arc::clone(node.schema.inner());
    Ok(Arc::new(AsofExec::try_new(Arc::clone(left), Arc::clone(right), Arc::new(how), schema)?))
}

/// How far apart times of `time` may be.
fn tolerance(value: &ScalarValue, time: &arrow_schema::DataType) -> Result<Tolerance> {
    if value.is_null() {
        return plan_err!("the tolerance of an ASOF join must not be NULL");
    }
    match (value, unit_ns(time)) {
        (ScalarValue::IntervalMonthDayNano(Some(interval)), Some(unit)) => match fixed_ns(*interval) {
            Some(limit) => Ok(Tolerance::Nanoseconds { limit, unit }),
            None => plan_err!("a tolerance is of days and shorter units; months differ in length"),
        },
        (number, None) if time.is_integer() => match number.cast_to(&arrow_schema::DataType::Int64)? {
            ScalarValue::Int64(Some(limit)) => Ok(Tolerance::Nanoseconds { limit: i128::from(limit), unit: 1 }),
            _ => plan_err!("{number} is no tolerance for {time}"),
        },
        (number, None) => match number.cast_to(&arrow_schema::DataType::Float64)? {
            ScalarValue::Float64(Some(limit)) => Ok(Tolerance::Number(limit)),
            _ => plan_err!("{number} is no tolerance for {time}"),
        },
        _ => plan_err!("{value} is no tolerance for {time}; use an interval such as INTERVAL '5 seconds'"),
    }
}
