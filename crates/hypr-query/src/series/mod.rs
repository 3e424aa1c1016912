//! Time series: buckets of time, windows, gaps, ASOF joins, the first and the last value.
//!
//! - [`bucket`] is the arithmetic of buckets, [`time_bucket`] its SQL functions.
//! - `time_bucket_gapfill`, `hop` and `session` in `GROUP BY`, `locf` and `interpolate` beside them are [`markers`]
//!   that [`group`], an analyzer rule, turns into plans; [`gapfill`] is the node that adds the missing rows.
//! - [`extremum`] has the aggregates `first` and `last`, [`lttb`] the one that thins a series out.
//! - [`asof`] joins each row with the nearest in time.
//! - [`continuous`] keeps aggregates of buckets, [`retention`] lets old rows go, and [`service`] does both in the
//!   background; [`statement`] has their SQL.
//!
//! Invariant: what a query answers does not depend on the order or the number of batches its rows come in.

pub(crate) mod asof;
mod bucket;
pub(crate) mod continuous;
mod extremum;
mod gapfill;
mod group;
mod lttb;
mod markers;
pub(crate) mod retention;
mod service;
mod session;
pub(crate) mod statement;
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
use crate::{Session, TableRef};

pub use service::{SERIES_TICK, SeriesHandle, start_series_service};

/// Brings a continuous aggregate up to date and returns the number of buckets computed.
///
/// # Errors
/// `NotFound` for a view that is not there; those of reading and writing.
async fn refresh_view(session: &Session, name: &TableRef, scope: continuous::Scope) -> hypr_common::Result<u64> {
    let listing = continuous::listings(session.catalog())
        .into_iter()
        .find(|view| view.schema_name == name.schema_name() && view.name == name.name);
    let Some(listing) = listing else {
        return Err(hypr_common::Error::not_found(format!("continuous aggregate \"{name}\" does not exist")));
    };
    let state = session.statement_state();
    let view = continuous::View::open(session.catalog(), &state, &listing).await?;
    continuous::refresh(&view, &state, scope).await
}

/// Adds the rules and the planner of relations. The session's query planner needs [`extension_planner`].
pub(crate) fn install(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut builder = builder
        .with_analyzer_rule(Arc::new(asof::PlanAsofJoins))
        .with_analyzer_rule(Arc::new(group::SeriesGroups))
        .with_optimizer_rule(Arc::new(asof::PushFiltersIntoAsof));
    builder.relation_planners().get_or_insert_default().insert(0, Arc::new(asof::AsofRelations));
    builder
}

/// Adds the functions.
pub(crate) fn register(state: &mut SessionState) -> Result<()> {
    let mut functions = markers::all();
    functions.extend([time_bucket::time_bucket(), time_bucket::tumble(), time_bucket::hop_starts()]);
    for function in functions {
        state.register_udf(function)?;
    }
    for aggregate in extremum::all().into_iter().chain([lttb::lttb()]) {
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
        if let Some(join) = node.as_any().downcast_ref::<asof::AsofJoinNode>() {
            let [left, right] = inputs else {
                return internal_err!("an ASOF join takes two inputs");
            };
            return asof::plan(planner, join, left, right, state).map(Some);
        }
        Ok(None)
    }
}
