//! Time series: buckets of time, windows, gaps, the first and the last value.
//!
//! - [`bucket`] is the arithmetic of buckets, [`time_bucket`] its SQL functions.
//! - `time_bucket_gapfill`, `hop` and `session` in `GROUP BY`, `locf` and `interpolate` beside them are [`markers`]
//!   that [`group`], an analyzer rule, turns into plans; [`gapfill`] is the node that adds the missing rows.
//! - [`extremum`] has the aggregates `first` and `last`.
//!
//! Invariant: what a query answers does not depend on the order or the number of batches its rows come in.

mod bucket;
mod extremum;
mod gapfill;
mod group;
mod markers;
mod session;
mod time_bucket;
mod times;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{Result, internal_err};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};

use crate::extensions::Extension;

/// Adds the rules and the planner of relations. The session's query planner needs [`extension_planner`].
pub(crate) fn install(builder: SessionStateBuilder) -> SessionStateBuilder {
    builder.with_analyzer_rule(Arc::new(group::SeriesGroups))
}

/// Adds the functions.
pub(crate) fn register(state: &mut SessionState) -> Result<()> {
    let mut functions = markers::all();
    functions.extend([time_bucket::time_bucket(), time_bucket::tumble(), time_bucket::hop_starts()]);
    for function in functions {
        state.register_udf(function)?;
    }
    for aggregate in extremum::all() {
        state.register_udaf(aggregate)?;
    }
    state.register_udwf(session::session_start())?;
    Ok(())
}

/// The planner of [`install`]'s plan nodes.
pub(crate) fn extension_planner() -> Extension {
    Arc::new(SeriesPlanner)
}

struct SeriesPlanner;

#[async_trait]
impl ExtensionPlanner for SeriesPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(fill) = node.as_any().downcast_ref::<gapfill::GapFillNode>() {
            let [input] = inputs else {
                return internal_err!("GapFill takes one input");
            };
            return gapfill::plan(planner, fill, input, state).map(Some);
        }
        Ok(None)
    }
}
