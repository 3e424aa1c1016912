//! Tickets of statements that change data and return rows (`RETURNING`).
//!
//! Such a statement runs when the first `DoGet` asks for its rows, never at `GetFlightInfo`, which clients also call
//! for the schema. Its ticket is good for one `DoGet`: a second one, a ticket from before a restart or one that was
//! forgotten is refused, so that no retry can apply the change again.

use hypr_common::{Error, ErrorKind, Result};
use uuid::Uuid;

use super::recent::Recent;

/// Tickets remembered at once; the oldest is forgotten first.
const MAX_ISSUED: usize = 65_536;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct OnceTickets(Recent<()>);

impl Default for OnceTickets {
    fn default() -> Self {
        Self(Recent::new(MAX_ISSUED))
    }
}

impl OnceTickets {
    /// Remembers a ticket.
    pub(super) fn issue(&self, id: Uuid) {
        self.0.put(id, ());
    }

    /// Uses a ticket up.
    ///
    /// # Errors
    /// `Conflict` for one that was used, forgotten or never issued.
    pub(super) fn take(&self, id: Uuid) -> Result<()> {
        self.0.take(id).ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                "this statement changes data and its ticket was used already or is too old; look at the table, then \
                 execute the statement anew if it did not run",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_one_use() {
        let tickets = OnceTickets::default();
        let id = Uuid::now_v7();
        assert_eq!(tickets.take(id).unwrap_err().kind(), ErrorKind::Conflict);
        tickets.issue(id);
        tickets.take(id).unwrap();
        assert_eq!(tickets.take(id).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn the_oldest_tickets_are_forgotten_first() {
        let tickets = OnceTickets::default();
        let ids: Vec<Uuid> = (0..=MAX_ISSUED).map(|_| Uuid::now_v7()).collect();
        ids.iter().for_each(|id| tickets.issue(*id));
        assert!(tickets.take(ids[0]).is_err());
        tickets.take(ids[1]).unwrap();
        tickets.take(ids[MAX_ISSUED]).unwrap();
    }
}
