//! `ORDER BY <distance>(column, constant) LIMIT k` as a search for nearest rows.
//!
//! [`rule::NearestRule`], an optimizer rule, finds a sort with a limit whose first key is a distance between a
//! `VECTOR(n)` column and a constant, and puts [`provider::NearestTable`] in the place of the table: a scan that gives
//! the nearest rows and their distance as one more column. The sort stays above it, so the order of the result and of
//! ties is that of any other statement. [`exec::NearestExec`] searches, fetches the columns of the rows it found, and
//! gives every row to the sort where the search cannot decide (rows without a distance that come first, or too few
//! rows with one).
//!
//! Deliberately absent: indexes themselves (`hypr_storage::ann`).

pub(crate) mod ddl;
mod exec;
mod pattern;
mod provider;
mod rule;
pub(crate) mod settings;

use datafusion::execution::session_state::SessionStateBuilder;
use std::sync::Arc;

/// Adds the rule to a session.
pub(crate) fn install(builder: SessionStateBuilder) -> SessionStateBuilder {
    builder.with_optimizer_rule(Arc::new(rule::NearestRule))
}

/// The column that a [`provider::NearestTable`] adds; no user writes it.
const DISTANCE_COLUMN: &str = "__distance";
/// Limits above this are not searches for neighbours.
const MAX_K: usize = 10_000;
