//! Queries that `GetFlightInfo` planned, kept for the `DoGet` that follows it.
//!
//! The ticket says everything that `DoGet` needs; what is kept here only saves planning the text again, and is bounded:
//! the oldest are forgotten first, and a ticket that comes again is planned again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hypr_query::Prepared;
use parking_lot::Mutex;
use uuid::Uuid;

/// Queries kept at once.
const MAX_KEPT: usize = 256;
/// Longer texts are planned again rather than kept.
const MAX_SQL_BYTES: usize = 64 << 10;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct PlannedQueries(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    queries: HashMap<Uuid, Arc<Prepared>>,
    /// In the order they came, also those that were taken.
    order: VecDeque<Uuid>,
}

impl PlannedQueries {
    /// Keeps the query of a ticket.
    pub(super) fn keep(&self, id: Uuid, query: &Arc<Prepared>) {
        if query.sql.len() > MAX_SQL_BYTES {
            return;
        }
        let mut kept = self.0.lock();
        kept.queries.insert(id, Arc::clone(query));
        kept.order.push_back(id);
        while kept.order.len() > MAX_KEPT {
            if let Some(oldest) = kept.order.pop_front() {
                kept.queries.remove(&oldest);
            }
        }
    }

    /// The query of a ticket, which is forgotten.
    pub(super) fn take(&self, id: Uuid) -> Option<Arc<Prepared>> {
        self.0.lock().queries.remove(&id)
    }
}
