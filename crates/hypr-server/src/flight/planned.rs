//! Queries that `GetFlightInfo` planned, kept for the `DoGet` that follows it.
//!
//! The ticket says everything that `DoGet` needs; what is kept here only saves planning the text again, and is bounded:
//! the oldest are forgotten first, and a ticket that comes again is planned again.

use std::sync::Arc;

use hypr_query::Prepared;
use uuid::Uuid;

use super::recent::Recent;

/// Queries kept at once.
const MAX_KEPT: usize = 256;
/// Longer texts are planned again rather than kept.
const MAX_SQL_BYTES: usize = 64 << 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PlannedQueries(Recent<Arc<Prepared>>);

impl Default for PlannedQueries {
    fn default() -> Self {
        Self(Recent::new(MAX_KEPT))
    }
}

impl PlannedQueries {
    /// Keeps the query of a ticket.
    pub(super) fn keep(&self, id: Uuid, query: &Arc<Prepared>) {
        if query.sql.len() <= MAX_SQL_BYTES {
            self.0.put(id, Arc::clone(query));
        }
    }

    /// The query of a ticket, which is forgotten.
    pub(super) fn take(&self, id: Uuid) -> Option<Arc<Prepared>> {
        self.0.take(id)
    }
}
