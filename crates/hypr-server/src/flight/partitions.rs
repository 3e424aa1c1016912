//! Results in several endpoints: the plans whose parts clients read, each by a ticket of its own.
//!
//! A large result of one table is split; every endpoint is a partition of one plan, so all of them show one
//! snapshot whenever they are read. The plan is kept until its endpoints expire, which `RenewFlightEndpoint` puts off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arrow_flight::sql::{Any, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{Action, FlightEndpoint, FlightInfo, RenewFlightEndpointRequest, Ticket};
use bytes::Bytes;
use hypr_common::{Error, Result};
use hypr_query::{Partitions, Prepared};
use parking_lot::Mutex;
use prost::Message;
use tonic::{Response, Status};
use uuid::Uuid;

use super::results::{stream_rows, wire_schema};
use super::sessions::Client;
use super::statements::{StatementTicket, in_time};
use super::{Answer, FlightStream, HyprFlightSql};
use crate::error::to_status;

/// Name of Flight's action that keeps an endpoint for longer.
pub(super) const RENEW_FLIGHT_ENDPOINT: &str = "RenewFlightEndpoint";
/// How long an endpoint can be read after it was given or renewed.
const LIFETIME: Duration = Duration::from_secs(600);
/// Split results that are kept at once; a further one has a single endpoint.
const MAX_SPLIT: usize = 256;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct SplitResults(Mutex<HashMap<Uuid, Split>>);

#[derive(Debug)]
struct Split {
    partitions: Arc<Partitions>,
    expires_at: Instant,
}

impl SplitResults {
    fn insert(&self, partitions: Partitions, now: Instant) -> Option<Uuid> {
        let mut split = self.0.lock();
        if split.len() >= MAX_SPLIT {
            return None;
        }
        let id = Uuid::now_v7();
        split.insert(id, Split { partitions: Arc::new(partitions), expires_at: now + LIFETIME });
        Some(id)
    }

    fn get(&self, id: Uuid) -> Result<Arc<Partitions>> {
        let split = self.0.lock();
        let split = split.get(&id).filter(|split| split.expires_at > Instant::now()).ok_or_else(expired)?;
        Ok(Arc::clone(&split.partitions))
    }

    fn renew(&self, id: Uuid, now: Instant) -> Result<()> {
        let mut split = self.0.lock();
        split.get_mut(&id).ok_or_else(expired)?.expires_at = now + LIFETIME;
        Ok(())
    }

    pub(super) fn forget(&self, id: Uuid) -> bool {
        self.0.lock().remove(&id).is_some()
    }

    pub(super) fn expire(&self, now: Instant) {
        self.0.lock().retain(|_, split| split.expires_at > now);
    }
}

fn expired() -> Error {
    Error::not_found("this endpoint has expired; run the query again, or renew endpoints in time")
}

impl HyprFlightSql {
    /// The endpoints of a large result; `None` when it is not to be split.
    pub(super) fn split(
        &self,
        prepared: &Prepared,
        partitions: Partitions,
        ticket: &StatementTicket,
    ) -> Option<Vec<FlightEndpoint>> {
        let count = u32::try_from(partitions.count()).ok()?;
        let result = self.split_results.insert(partitions, Instant::now())?;
        tracing::debug!(count, sql = %prepared.sql, "split a result");
        let endpoint = |part: u32| {
            let ticket = StatementTicket {
                query_id: Bytes::copy_from_slice(Uuid::now_v7().as_bytes()),
                result: Bytes::copy_from_slice(result.as_bytes()),
                part,
                ..ticket.clone()
            };
            expiring(ticket.flight_ticket())
        };
        Some((0..count).map(endpoint).collect())
    }

    /// `DoGet` of one endpoint of a split result.
    pub(super) fn read_part(&self, client: &Client, ticket: &StatementTicket) -> Answer<FlightStream> {
        let id = Uuid::from_slice(&ticket.result)
            .map_err(|_| Status::invalid_argument("this ticket was not issued by this server"))?;
        let partitions = self.split_results.get(id).map_err(to_status)?;
        let running = self.running.enter(ticket.query_id()?);
        let rows = partitions.read(ticket.part as usize).map_err(to_status)?;
        let stream = stream_rows(wire_schema(&rows.schema()), rows, running);
        Ok(Response::new(in_time(stream, client.statement_timeout())))
    }

    /// Flight's `RenewFlightEndpoint`, as the encoded endpoint.
    pub(super) fn renew_endpoint(&self, action: &Action) -> Result<Vec<u8>, Status> {
        let request = RenewFlightEndpointRequest::decode(action.body.clone())
            .map_err(|error| Status::invalid_argument(format!("RenewFlightEndpoint is malformed: {error}")))?;
        let ticket = request.endpoint.and_then(|endpoint| endpoint.ticket);
        let ticket = ticket.ok_or_else(|| Status::invalid_argument("RenewFlightEndpoint names no ticket"))?;
        match statement_of(&ticket)? {
            Some(statement) if !statement.result.is_empty() => {
                let id = Uuid::from_slice(&statement.result)
                    .map_err(|_| Status::invalid_argument("this ticket was not issued by this server"))?;
                self.split_results.renew(id, Instant::now()).map_err(to_status)?;
                Ok(expiring(ticket).encode_to_vec())
            }
            // Whatever else we issue does not expire.
            _ => Ok(FlightEndpoint::new().with_ticket(ticket).encode_to_vec()),
        }
    }
}

fn expiring(ticket: Ticket) -> FlightEndpoint {
    FlightEndpoint {
        expiration_time: Some((SystemTime::now() + LIFETIME).into()),
        ..FlightEndpoint::new().with_ticket(ticket)
    }
}

/// What a ticket of a statement holds; `None` for tickets of metadata.
pub(super) fn statement_of(ticket: &Ticket) -> Result<Option<StatementTicket>, Status> {
    let any = Any::decode(ticket.ticket.clone())
        .map_err(|error| Status::invalid_argument(format!("the ticket is malformed: {error}")))?;
    let statement: Option<TicketStatementQuery> =
        any.unpack().map_err(|error| Status::invalid_argument(error.to_string()))?;
    statement.map(|statement| StatementTicket::from_handle(&statement.statement_handle)).transpose()
}

impl StatementTicket {
    pub(super) fn flight_ticket(&self) -> Ticket {
        let ticket = TicketStatementQuery { statement_handle: self.encode_to_vec().into() };
        Ticket::new(ticket.as_any().encode_to_vec())
    }
}

/// `info` with `endpoints`, which may be read in any order.
pub(super) fn with_endpoints(info: FlightInfo, endpoints: Vec<FlightEndpoint>) -> FlightInfo {
    endpoints.into_iter().fold(info.with_ordered(false), FlightInfo::with_endpoint)
}
