//! The state that every statement clones, kept small.
//!
//! DataFusion's `SessionState` holds its functions by name, and the task context of every statement copies the maps
//! once more: some hundreds of names, which would be most of the cost of a small statement. So an engine has one state
//! with all functions, which is only read, and a lean one that statements clone and that leads to it.
//!
//! Invariant: names of functions are resolved by [`full`]; a lean state has none but those that the optimizer asks it
//! for.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState};
use hypr_common::Result;
use hypr_common::principal::Principal;

use crate::{error, functions};

/// Aggregates that optimizer rules look up in the state they run with (`DISTINCT ON`).
const ASKED_BY_RULES: [&str; 1] = ["first_value"];

/// The state that all functions are registered with; an extension of the lean states made from it.
#[derive(Debug)]
struct Functions(Arc<SessionState>);

/// Who a statement runs as; an extension of session states.
#[derive(Debug)]
pub(crate) struct RunsAs(pub Principal);

/// The state that has the functions of a statement with `state`.
pub(crate) fn full(state: &SessionState) -> Arc<SessionState> {
    match state.config().get_extension::<Functions>() {
        Some(functions) => Arc::clone(&functions.0),
        None => Arc::new(state.clone()),
    }
}

/// True for the name of a function that every session has.
pub(crate) fn is_built_in(state: &SessionState, name: &str) -> bool {
    let full = full(state);
    name == functions::CURRENT_USER
        || full.udf(name).is_ok()
        || full.udaf(name).is_ok()
        || full.udwf(name).is_ok()
        || full.table_functions().contains_key(name)
}

/// A lean state that leads to the functions of `full`.
pub(crate) fn lean(full: SessionState) -> SessionState {
    let asked = ASKED_BY_RULES.iter().filter_map(|name| full.aggregate_functions().get(*name).cloned()).collect();
    let mut state = SessionStateBuilder::new_from_existing(full.clone())
        .with_scalar_functions(Vec::new())
        .with_higher_order_functions(Vec::new())
        .with_aggregate_functions(asked)
        .with_window_functions(Vec::new())
        .with_table_functions(HashMap::new())
        .with_table_factories(HashMap::new())
        .with_file_formats(Vec::new())
        .build();
    state.config_mut().set_extension(Arc::new(Functions(Arc::new(full))));
    state
}

/// `state` with times of day in `zone`; UTC if none.
///
/// # Errors
/// When a function does not take the zone.
pub(crate) fn in_time_zone(state: &SessionState, zone: Option<&str>) -> Result<SessionState> {
    let mut state = state.clone();
    state.config_mut().options_mut().execution.time_zone = zone.map(str::to_owned);
    let mut full = (*full(&state)).clone();
    let config = Arc::clone(state.config_options());
    let all: Vec<_> = full.scalar_functions().values().cloned().collect();
    for function in all {
        if let Some(updated) = function.inner().with_updated_config(&config) {
            full.register_udf(Arc::new(updated)).map_err(error::from_datafusion)?;
        }
    }
    state.config_mut().set_extension(Arc::new(Functions(Arc::new(full))));
    Ok(state)
}
