//! Transactions that clients begin by an action: the registry of open ones, and the four actions.
//!
//! A transaction is named by a UUID in every command that belongs to it, a savepoint by that UUID and a number.
//! One that its client leaves without a statement for a while is rolled back, unless no statement ever ran in it:
//! drivers without autocommit begin the next one as soon as one ends, and such a transaction holds nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionResult, ActionEndSavepointRequest,
    ActionEndTransactionRequest, EndTransaction,
};
use bytes::Bytes;
use hypr_common::{Error, ErrorKind, Result};
use hypr_query::Session;
use hypr_storage::{SavepointRef, Transaction};
use parking_lot::Mutex;
use tonic::Status;
use uuid::Uuid;

use super::HyprFlightSql;
use super::sessions::Client;
use crate::error::to_status;
use crate::http::ConnectionId;

/// `ActionEndSavepointRequest.EndSavepoint` (FlightSql.proto), which arrow-flight does not export.
const END_SAVEPOINT_RELEASE: i32 = 1;
const END_SAVEPOINT_ROLLBACK: i32 = 2;
/// Transactions open at once, over all clients.
const MAX_OPEN: usize = 4096;
/// Ended transactions whose successor is remembered.
const MAX_ENDED: usize = 4096;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Transactions {
    idle_limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Bytes, Entry>,
    /// The transaction that a connection ended last, until it calls for anything but the next one.
    ended_last: HashMap<ConnectionId, Bytes>,
    /// Which transaction a connection began right after it ended another.
    successors: HashMap<Bytes, Bytes>,
}

#[derive(Debug)]
struct Entry {
    transaction: Arc<Transaction>,
    used_at: Instant,
}

impl Transactions {
    pub(super) fn new(idle_limit: Duration) -> Self {
        Self { idle_limit, state: Mutex::default() }
    }

    pub(super) fn idle_limit(&self) -> Duration {
        self.idle_limit
    }

    fn insert(&self, transaction: Transaction, connection: Option<ConnectionId>, now: Instant) -> Result<Bytes> {
        let mut state = self.state.lock();
        if state.open.len() >= MAX_OPEN && !state.drop_oldest_unused() {
            let message = format!("{MAX_OPEN} transactions are open; end some");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let id = Bytes::copy_from_slice(Uuid::now_v7().as_bytes());
        state.open.insert(id.clone(), Entry { transaction: Arc::new(transaction), used_at: now });
        if let Some(before) = connection.and_then(|connection| state.ended_last.remove(&connection)) {
            if state.successors.len() >= MAX_ENDED {
                state.successors.clear();
            }
            state.successors.insert(before, id.clone());
        }
        Ok(id)
    }

    fn get(&self, id: &Bytes) -> Result<Arc<Transaction>> {
        let mut state = self.state.lock();
        let entry = state.open.get_mut(id).ok_or_else(|| self.unknown())?;
        entry.used_at = Instant::now();
        Ok(Arc::clone(&entry.transaction))
    }

    fn remove(&self, id: &Bytes, connection: Option<ConnectionId>) -> Result<Arc<Transaction>> {
        let mut state = self.state.lock();
        let entry = state.open.remove(id);
        if let Some(connection) = connection {
            if state.ended_last.len() >= MAX_ENDED {
                state.ended_last.clear();
            }
            state.ended_last.insert(connection, id.clone());
        }
        Ok(entry.ok_or_else(|| self.unknown())?.transaction)
    }

    /// The transaction that a statement prepared in `id` runs in now: `id` while it is open, then the one that
    /// the same connection began next. ADBC keeps a prepared statement over a commit, and Flight SQL has no way to say so.
    pub(super) fn follow(&self, id: &Bytes) -> Bytes {
        let state = self.state.lock();
        let mut current = id;
        while !state.open.contains_key(current)
            && let Some(next) = state.successors.get(current)
        {
            current = next;
        }
        current.clone()
    }

    /// Notes that `connection` called for something else than the begin of a transaction.
    pub(super) fn called(&self, connection: ConnectionId) {
        self.state.lock().ended_last.remove(&connection);
    }

    /// Rolls back what was left alone for too long.
    pub(super) fn expire(&self, now: Instant) {
        let mut expired = Vec::new();
        let mut state = self.state.lock();
        state.open.retain(|_, entry| {
            let idle = now.saturating_duration_since(entry.used_at) > self.idle_limit;
            // A second owner is a statement that runs.
            let keep = !idle || Arc::strong_count(&entry.transaction) > 1 || !entry.transaction.is_used();
            if !keep {
                expired.push(Arc::clone(&entry.transaction));
            }
            keep
        });
        drop(state);
        for transaction in expired {
            tracing::warn!(idle_s = self.idle_limit.as_secs(), "rolled back a transaction that its client left");
            transaction.rollback();
        }
    }

    fn unknown(&self) -> Error {
        Error::not_found(format!(
            "this transaction does not exist, has ended, or was rolled back after {} s without a statement \
             (server.transaction_idle_s)",
            self.idle_limit.as_secs()
        ))
    }
}

impl State {
    fn drop_oldest_unused(&mut self) -> bool {
        let unused = self.open.iter().filter(|(_, entry)| !entry.transaction.is_used());
        let oldest = unused.min_by_key(|(_, entry)| entry.used_at).map(|(id, _)| id.clone());
        oldest.is_some_and(|id| self.open.remove(&id).is_some())
    }
}

impl HyprFlightSql {
    /// The session that a command runs in: inside its transaction if it names one.
    pub(super) fn session_for(&self, client: &Client, transaction_id: Option<&Bytes>) -> Result<Session, Status> {
        match transaction_id.filter(|id| !id.is_empty()) {
            Some(id) => Ok(client.session().inside(self.transactions.get(id).map_err(to_status)?)),
            None => Ok(client.session()),
        }
    }

    pub(super) fn begin_transaction(&self, client: &Client) -> Result<ActionBeginTransactionResult, Status> {
        let transaction = self.engine.database().begin(false);
        let id = self.transactions.insert(transaction, client.connection(), Instant::now()).map_err(to_status)?;
        Ok(ActionBeginTransactionResult { transaction_id: id })
    }

    pub(super) async fn end_transaction(
        &self,
        client: &Client,
        request: ActionEndTransactionRequest,
    ) -> Result<(), Status> {
        let action = request.action();
        if action == EndTransaction::Unspecified {
            return Err(Status::invalid_argument("the end of a transaction is COMMIT or ROLLBACK"));
        }
        let ended = self.transactions.remove(&request.transaction_id, client.connection());
        if action == EndTransaction::Rollback {
            // Whatever is not open any more has been rolled back already, or was committed by this client.
            if let Ok(transaction) = ended {
                let _turn = transaction.turn().await;
                transaction.rollback();
            }
            return Ok(());
        }
        let transaction = ended.map_err(to_status)?;
        let commit = async move {
            let _turn = transaction.turn().await;
            transaction.commit().await
        };
        // On its own, so that it is not a matter of luck what a client that hangs up now leaves behind.
        let committed = tokio::spawn(commit).await;
        let committed = committed.unwrap_or_else(|_| Err(Error::internal("the commit failed; the log says why")));
        committed.map_err(to_status)
    }

    pub(super) async fn begin_savepoint(
        &self,
        request: ActionBeginSavepointRequest,
    ) -> Result<ActionBeginSavepointResult, Status> {
        let transaction = self.transactions.get(&request.transaction_id).map_err(to_status)?;
        let _turn = transaction.turn().await;
        let number = transaction.savepoint(&request.name).map_err(to_status)?;
        let id = [&request.transaction_id[..], &number.to_be_bytes()[..]].concat();
        Ok(ActionBeginSavepointResult { savepoint_id: id.into() })
    }

    pub(super) async fn end_savepoint(&self, request: ActionEndSavepointRequest) -> Result<(), Status> {
        let id = &request.savepoint_id;
        let Some((transaction_id, number)) = id.split_last_chunk::<8>() else {
            return Err(Status::not_found("this savepoint does not exist"));
        };
        let transaction = self.transactions.get(&id.slice_ref(transaction_id)).map_err(to_status)?;
        let savepoint = SavepointRef::Id(u64::from_be_bytes(*number));
        let _turn = transaction.turn().await;
        let ended = match request.action {
            END_SAVEPOINT_RELEASE => transaction.release(savepoint),
            END_SAVEPOINT_ROLLBACK => transaction.rollback_to(savepoint),
            _ => Err(Error::invalid("the end of a savepoint is RELEASE or ROLLBACK")),
        };
        ended.map_err(to_status)
    }
}
