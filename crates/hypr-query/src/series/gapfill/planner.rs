//! From the logical to the physical node: constants are computed, columns get positions.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::Schema;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_datafusion_err, plan_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{ColumnarValue, Expr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::PhysicalPlanner;

use super::exec::GapFillExec;
use super::node::GapFillNode;
use super::series::{Buckets, Spec};
use crate::series::time_bucket::bucketing;
use crate::series::times::{instant, unit_ns};

/// Plans `node` over `input`.
pub(in crate::series) fn plan(
    planner: &dyn PhysicalPlanner,
    node: &GapFillNode,
    input: &Arc<dyn ExecutionPlan>,
    state: &SessionState,
) -> Result<Arc<dyn ExecutionPlan>> {
    let constant = |expr: &Expr| constant(planner, expr, state);
    let position = |expr: &Expr| {
        let column = expr.try_as_col().and_then(|column| node.input.schema().maybe_index_of_column(column));
        column.ok_or_else(|| internal_datafusion_err!("GapFill reads {expr}, which is no column of its input"))
    };
    let time = position(&node.time)?;
    let Some(unit) = unit_ns(input.schema().field(time).data_type()) else {
        return plan_err!("time_bucket_gapfill takes a timestamp or a date");
    };
    let mut args = vec![ColumnarValue::Scalar(constant(&node.width)?), ColumnarValue::Scalar(ScalarValue::Null)];
    if let Some(zone) = &node.zone {
        args.push(ColumnarValue::Scalar(constant(zone)?));
    }
    let Some(grid) = bucketing("time_bucket_gapfill", &args)? else {
        return plan_err!("time_bucket_gapfill: the width must not be NULL");
    };
    let bound = |expr: &Expr| match instant(&constant(expr)?)? {
        Some(instant) => Ok(instant),
        None => plan_err!("time_bucket_gapfill: a bound of the range is NULL"),
    };
    let lower = node.range.lower.iter().map(bound).collect::<Result<Vec<_>>>()?.into_iter().max();
    let upper = node
        .range
        .upper
        .iter()
        .map(|(expr, with)| Ok(bound(expr)? - if *with { 0 } else { unit }))
        .collect::<Result<Vec<_>>>()?;
    let (Some(lower), Some(upper)) = (lower, upper.into_iter().min()) else {
        return plan_err!("time_bucket_gapfill has no range");
    };
    let buckets = Buckets { first: grid.floor(lower), last: grid.floor(upper), grid, unit };
    let spec = Spec {
        buckets,
        series: node.series.iter().map(position).collect::<Result<_>>()?,
        time,
        fills: node.fills.iter().map(|(fill, expr)| Ok((*fill, position(expr)?))).collect::<Result<_>>()?,
    };
    let schema = node_schema(node);
    Ok(Arc::new(GapFillExec::try_new(Arc::clone(input), Arc::new(spec), schema)?))
}

fn node_schema(node: &GapFillNode) -> Arc<Schema> {
    let schema = datafusion::logical_expr::UserDefinedLogicalNodeCore::schema(node);
    Arc::clone(schema.inner())
}

/// The value of an expression without columns.
pub(in crate::series) fn constant(
    planner: &dyn PhysicalPlanner,
    expr: &Expr,
    state: &SessionState,
) -> Result<ScalarValue> {
    let physical = planner.create_physical_expr(expr, &DFSchema::empty(), state)?;
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    match physical.evaluate(&row)? {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0),
    }
}
