//! What a view's query must look like, and the parts of it that materialising needs.

use std::sync::Arc;

use arrow_array::Int64Array;
use arrow_schema::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, TableScan, Volatility, in_list, lit,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use hypr_common::{Error, Result};
use hypr_storage::{PinnedTable, Table};

use super::provider::PinnedProvider;
use crate::planner::table_ref;
use crate::series::bucket::Bucketing;
use crate::series::time_bucket::bucketing;
use crate::series::times::{INTERVAL, from_steps, to_steps, unit_ns};
use crate::{TableRef, error};

/// More ranges of time than this are covered by one and a list of buckets.
const MAX_RANGES: usize = 64;

/// A bucket, in steps of the column of time; `None` holds the rows without a time.
pub(super) type Bucket = Option<i64>;

/// A view's query, understood.
#[derive(Clone, Debug)]
pub(in crate::series) struct Shape {
    /// The query as it was planned.
    pub plan: LogicalPlan,
    pub base: TableRef,
    /// The base table's column of time.
    pub time: String,
    pub time_type: DataType,
    /// Nanoseconds in a step of it.
    pub unit: i128,
    pub grid: Bucketing,
    /// The position of the bucket among the query's columns.
    pub bucket_at: usize,
    /// The call of `time_bucket`, over the scan's columns.
    bucket: Expr,
}

impl Shape {
    /// # Errors
    /// `Unsupported`, saying what a continuous aggregate cannot have.
    pub fn of(plan: LogicalPlan, state: &SessionState) -> Result<Self> {
        refuse_changing(&plan)?;
        let LogicalPlan::Projection(projection) = &plan else {
            return Err(unsupported("is one SELECT with GROUP BY, without ORDER BY, LIMIT, DISTINCT or UNION"));
        };
        let aggregate = aggregate_below(&projection.input)?;
        let scan = scan_below(&aggregate.input)?;
        let (at, bucket) = bucket_group(aggregate)?;
        let output = aggregate.schema.columns()[at].clone();
        let bucket_at = projection.expr.iter().position(|expr| expr.clone().unalias() == Expr::Column(output.clone()));
        let Some(bucket_at) = bucket_at else {
            return Err(unsupported("selects its time_bucket as a column"));
        };
        let Expr::ScalarFunction(call) = &bucket else {
            return Err(Error::internal("a bucket is not a call"));
        };
        let time_at = usize::from(call.func.name() == "time_bucket");
        let Expr::Column(time) = &call.args[time_at] else {
            return Err(unsupported("puts a column of its table into buckets, not an expression"));
        };
        let name = time.name.clone();
        let time_type = match scan.source.schema().field_with_name(&name) {
            Ok(field) => field.data_type().clone(),
            Err(_) => return Err(unsupported("puts a column of its table into buckets")),
        };
        let Some(unit) = unit_ns(&time_type) else {
            return Err(unsupported(&format!("has buckets of a timestamp or a date, not of {time_type}")));
        };
        let grid = grid(&call.args, time_at, state)?;
        let time = Expr::Column(Column::new(Some(scan.table_name.clone()), name.clone()));
        let mut args = call.args.clone();
        args[time_at] = time;
        let bucket = call.func.call(args);
        let base = table_ref(&scan.table_name);
        Ok(Self { base, time: name, time_type, unit, grid, bucket_at, bucket, plan })
    }

    /// The query over `base`, for the rows of `buckets` only.
    ///
    /// # Errors
    /// Those of planning.
    pub fn over(&self, table: &Arc<Table>, base: &PinnedTable, buckets: &[Bucket]) -> Result<LogicalPlan> {
        let provider = provider_as_source(Arc::new(PinnedProvider::new(Arc::clone(table), base.clone())));
        let plan = self.plan.clone().transform_up(|node| match node {
            LogicalPlan::TableScan(scan) => {
                let time = Expr::Column(Column::new(Some(scan.table_name.clone()), self.time.clone()));
                let condition = self.condition(&time, buckets).map_err(error::to_datafusion)?;
                let plan = LogicalPlanBuilder::scan(scan.table_name, Arc::clone(&provider), None)?.filter(condition)?;
                Ok(Transformed::yes(plan.build()?))
            }
            node => Ok(Transformed::no(node)),
        });
        plan.map(|plan| plan.data).map_err(error::from_datafusion)
    }

    /// True for the rows of `buckets`.
    fn condition(&self, time: &Expr, buckets: &[Bucket]) -> Result<Expr> {
        let mut starts: Vec<i64> = buckets.iter().filter_map(|bucket| *bucket).collect();
        starts.sort_unstable();
        let mut ranges: Vec<(i64, Option<i64>)> = Vec::new();
        for start in &starts {
            let end = to_steps(self.next(*start), self.unit).ok();
            match ranges.last_mut() {
                Some((_, last)) if *last == Some(*start) => *last = end,
                _ => ranges.push((*start, end)),
            }
        }
        let mut condition = if ranges.len() > MAX_RANGES {
            let (first, last) = (ranges[0].0, ranges[ranges.len() - 1].1);
            let values = starts.iter().map(|start| Ok(lit(self.literal(*start)?))).collect::<Result<Vec<_>>>()?;
            Some(self.range(time, first, last)?.and(in_list(self.bucket.clone(), values, false)))
        } else {
            let mut any: Option<Expr> = None;
            for (start, end) in ranges {
                let range = self.range(time, start, end)?;
                any = Some(match any {
                    Some(any) => any.or(range),
                    None => range,
                });
            }
            any
        };
        if buckets.contains(&None) {
            let without = time.clone().is_null();
            condition = Some(match condition {
                Some(condition) => condition.or(without),
                None => without,
            });
        }
        Ok(condition.unwrap_or(lit(false)))
    }

    fn range(&self, time: &Expr, start: i64, end: Option<i64>) -> Result<Expr> {
        let from = time.clone().gt_eq(lit(self.literal(start)?));
        Ok(match end {
            Some(end) => from.and(time.clone().lt(lit(self.literal(end)?))),
            None => from,
        })
    }

    /// The instant after a bucket.
    pub fn next(&self, bucket: i64) -> i128 {
        self.grid.next(i128::from(bucket) * self.unit)
    }

    /// A value of the column of time.
    pub fn literal(&self, steps: i64) -> Result<ScalarValue> {
        let array = from_steps(Int64Array::from(vec![steps]), &self.time_type).map_err(error::from_datafusion)?;
        ScalarValue::try_from_array(&array, 0).map_err(error::from_datafusion)
    }
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!("a continuous aggregate {what}"))
}

/// Refuses what can have another answer over the same rows of one bucket.
fn refuse_changing(plan: &LogicalPlan) -> Result<()> {
    let mut refused = None;
    let walk = plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match expr {
                    Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                        refused.get_or_insert(format!("cannot call {}, whose answer changes", call.func.name()));
                    }
                    Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => {
                        refused.get_or_insert("has no sub-queries".to_owned());
                    }
                    Expr::Placeholder(_) => {
                        refused.get_or_insert("takes no parameters".to_owned());
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    walk.map_err(error::from_datafusion)?;
    refused.map_or(Ok(()), |what| Err(unsupported(&what)))
}

/// The aggregate, below a `HAVING` perhaps.
fn aggregate_below(plan: &LogicalPlan) -> Result<&Aggregate> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => Ok(aggregate),
        LogicalPlan::Filter(filter) => aggregate_below(&filter.input),
        _ => Err(unsupported("is one SELECT with GROUP BY time_bucket(..), without window functions")),
    }
}

/// The scan, below conditions and an alias perhaps.
fn scan_below(plan: &LogicalPlan) -> Result<&TableScan> {
    match plan {
        LogicalPlan::TableScan(scan) => Ok(scan),
        LogicalPlan::Filter(filter) => scan_below(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => scan_below(&alias.input),
        _ => Err(unsupported("reads one table, without joins and sub-queries")),
    }
}

/// The one group that is a bucket, and its place.
fn bucket_group(aggregate: &Aggregate) -> Result<(usize, Expr)> {
    let is_bucket = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => matches!(call.func.name(), "time_bucket" | "tumble"),
        _ => false,
    };
    let groups = aggregate.group_expr.iter().map(|expr| expr.clone().unalias()).enumerate();
    let mut buckets = groups.filter(|(_, expr)| is_bucket(expr));
    match (buckets.next(), buckets.next()) {
        (Some(bucket), None) => Ok(bucket),
        (None, _) => Err(unsupported("groups by time_bucket(..)")),
        (Some(_), Some(_)) => Err(unsupported("groups by one time_bucket(..)")),
    }
}

/// The grid that the constants of the call describe.
fn grid(args: &[Expr], time_at: usize, state: &SessionState) -> Result<Bucketing> {
    let context = SimplifyContext::builder().with_config_options(Arc::clone(state.config_options())).build();
    let simplifier = ExprSimplifier::new(context);
    let mut values = Vec::with_capacity(args.len());
    for (at, arg) in args.iter().enumerate() {
        if at == time_at {
            values.push(ColumnarValue::Scalar(ScalarValue::Null));
            continue;
        }
        let Expr::Literal(value, _) = simplifier.simplify(arg.clone()).map_err(error::from_datafusion)? else {
            return Err(unsupported(&format!("has buckets of a constant width, not of {arg}")));
        };
        let is_width = at == 1 - time_at;
        let value = if is_width { value.cast_to(&INTERVAL).map_err(error::from_datafusion)? } else { value };
        values.push(ColumnarValue::Scalar(value));
    }
    values.swap(0, 1 - time_at);
    match bucketing("time_bucket", &values).map_err(error::from_datafusion)? {
        Some(grid) => Ok(grid),
        None => Err(unsupported("has buckets of a width that is not NULL")),
    }
}
