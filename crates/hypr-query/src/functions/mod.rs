//! SQL functions that are ours. Each is deterministic, takes NULL to NULL, and names itself in its errors.
//!
//! Deliberately absent: functions that call a model; see [`crate::ai`].

mod json_contains;
mod metrics;
mod octet_length;
mod session_info;
pub(crate) mod vector;
mod vector_arithmetic;
mod vector_cast;
mod vector_scalar;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;
use hypr_common::principal::Principal;

pub(crate) use json_contains::json_contains;
pub(crate) use metrics::is_metric;
pub(crate) use vector_arithmetic::VectorOperators;
pub(crate) use vector_cast::VectorCast;

/// The functions every session has.
pub(crate) fn all() -> Vec<Arc<ScalarUDF>> {
    let mut functions = metrics::all();
    functions.extend(vector_arithmetic::all());
    functions.extend(vector_scalar::all());
    functions.push(json_contains());
    functions.push(octet_length::octet_length());
    functions.push(session_info::version());
    functions
}

/// The function of [`of_principal`].
pub(crate) const CURRENT_USER: &str = session_info::CURRENT_USER;

/// The function that depends on who asks.
pub(crate) fn of_principal(principal: &Principal) -> Arc<ScalarUDF> {
    session_info::current_user(principal)
}
