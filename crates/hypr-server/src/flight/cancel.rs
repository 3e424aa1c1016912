//! Queries that stream right now, by the id in their ticket, so that another call can stop them.
//!
//! A client that drops its stream cancels too; this is for tools that hold only the `FlightInfo`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_flight::sql::{ActionCancelQueryRequest, ActionCancelQueryResult};
use arrow_flight::{Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use super::HyprFlightSql;
use super::partitions::statement_of;

/// Name of Flight's own cancel action; arrow-flight dispatches only the older one of Flight SQL.
pub(super) const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";

/// See the module documentation. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct RunningQueries(Arc<Mutex<HashMap<Uuid, CancellationToken>>>);

/// A query's place among the running ones, given up when dropped.
#[derive(Debug)]
pub(super) struct Running {
    queries: RunningQueries,
    id: Uuid,
    token: CancellationToken,
}

impl RunningQueries {
    /// Enters a query. Reading one ticket twice at once gives both the same fate.
    pub(super) fn enter(&self, id: Uuid) -> Running {
        let token = self.0.lock().entry(id).or_default().clone();
        Running { queries: self.clone(), id, token }
    }

    pub(super) fn cancel(&self, id: Uuid) -> bool {
        match self.0.lock().get(&id) {
            Some(token) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}

impl Running {
    /// Completes when someone cancels the query.
    pub(super) fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queries.0.lock().remove(&self.id);
    }
}

impl HyprFlightSql {
    /// Flight SQL's `CancelQuery`.
    pub(super) fn cancel_query(&self, request: ActionCancelQueryRequest) -> Result<ActionCancelQueryResult, Status> {
        let info = FlightInfo::decode(request.info)
            .map_err(|error| Status::invalid_argument(format!("the FlightInfo to cancel is malformed: {error}")))?;
        // Flight SQL's older enumeration has the same numbers, and arrow-flight does not export it.
        Ok(ActionCancelQueryResult { result: self.cancel_info(&info)?.into() })
    }

    /// Flight's `CancelFlightInfo`, as the encoded result.
    pub(super) fn cancel_flight_info(&self, action: &Action) -> Result<Vec<u8>, Status> {
        let request = CancelFlightInfoRequest::decode(action.body.clone())
            .map_err(|error| Status::invalid_argument(format!("CancelFlightInfo is malformed: {error}")))?;
        let info = request.info.ok_or_else(|| Status::invalid_argument("CancelFlightInfo names no FlightInfo"))?;
        Ok(CancelFlightInfoResult::new(self.cancel_info(&info)?).encode_to_vec())
    }

    fn cancel_info(&self, info: &FlightInfo) -> Result<CancelStatus, Status> {
        let mut cancelled = self.polls.cancel(info);
        for ticket in info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
            let Some(statement) = statement_of(ticket)? else { continue };
            cancelled |= self.running.cancel(statement.query_id()?);
            if let Ok(result) = Uuid::from_slice(&statement.result) {
                cancelled |= self.split_results.forget(result);
            }
        }
        Ok(if cancelled { CancelStatus::Cancelled } else { CancelStatus::NotCancellable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_can_be_cancelled_only_while_it_runs() {
        let queries = RunningQueries::default();
        let id = Uuid::now_v7();
        assert!(!queries.cancel(id));
        let running = queries.enter(id);
        assert!(queries.cancel(id));
        assert!(running.token().is_cancelled());
        drop(running);
        assert!(!queries.cancel(id));
    }
}
