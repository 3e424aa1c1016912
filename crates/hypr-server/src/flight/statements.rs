//! Plain statements: SQL in, a ticket or a count out.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_flight::sql::{CommandStatementQuery, CommandStatementUpdate, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hypr_common::Error;
use hypr_query::{Outcome, Prepared, Session, StatementKind, from_datafusion};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use uuid::Uuid;

use super::partitions::with_endpoints;
use super::results::{stream_rows, wire_schema};
use super::sessions::Client;
use super::{Answer, FlightStream, HyprFlightSql};
use crate::error::to_status;

/// What the handle in a statement's ticket holds: everything `DoGet` needs, but bound parameters.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StatementTicket {
    /// The statement.
    #[prost(string, tag = "1")]
    pub(super) sql: String,
    /// A UUID, by which the running query can be cancelled.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) query_id: Bytes,
    /// The prepared statement whose bound parameters to use; empty for none.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) prepared: Bytes,
    /// The transaction to run in; empty for none.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) transaction: Bytes,
    /// The split result that the rows are a part of; empty for none.
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) result: Bytes,
    /// Which part.
    #[prost(uint32, tag = "6")]
    pub(super) part: u32,
}

impl StatementTicket {
    pub(super) fn from_handle(handle: &Bytes) -> Result<Self, Status> {
        Self::decode(handle.clone()).map_err(|_| Status::invalid_argument("this ticket was not issued by this server"))
    }

    pub(super) fn query_id(&self) -> Result<Uuid, Status> {
        Uuid::from_slice(&self.query_id)
            .map_err(|_| Status::invalid_argument("this ticket was not issued by this server"))
    }
}

/// Parameters of a statement that has none: no column, one execution.
pub(super) fn no_parameters() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::empty()))
}

impl HyprFlightSql {
    /// Plans a query and answers with its schema and ticket, or runs a statement that has no result.
    pub(super) async fn info_of_statement(
        &self,
        client: &Client,
        query: CommandStatementQuery,
        descriptor: FlightDescriptor,
    ) -> Answer<FlightInfo> {
        let session = self.session_for(client, query.transaction_id.as_ref())?;
        let prepared = Arc::new(session.prepare(&query.query).await.map_err(to_status)?);
        let run = Run { session, client, transaction: query.transaction_id.unwrap_or_default(), handle: Bytes::new() };
        self.plan_or_run(run, &prepared, &no_parameters(), descriptor).await
    }

    /// See the module documentation of [`super`] for why an update runs here.
    pub(super) async fn plan_or_run(
        &self,
        run: Run<'_>,
        prepared: &Arc<Prepared>,
        parameters: &RecordBatch,
        descriptor: FlightDescriptor,
    ) -> Answer<FlightInfo> {
        let with_schema = |schema: &Schema| {
            let info = FlightInfo::new().with_descriptor(descriptor).with_ordered(true);
            info.try_with_schema(schema).map_err(|error| to_status(error.into()))
        };
        if prepared.kind != StatementKind::Query {
            let affected = run_update(&run.session, run.client, prepared, parameters).await?;
            return Ok(Response::new(with_schema(&Schema::empty())?.with_total_records(affected)));
        }
        let schema = run.session.result_schema(prepared, parameters).await.map_err(to_status)?;
        let info = with_schema(&wire_schema(&schema))?;
        let query_id = Uuid::now_v7();
        if prepared.changes_data {
            self.once.issue(query_id);
        }
        if run.handle.is_empty() {
            self.planned.keep(query_id, prepared);
        }
        let ticket = StatementTicket {
            sql: prepared.sql.clone(),
            query_id: Bytes::copy_from_slice(query_id.as_bytes()),
            prepared: run.handle,
            transaction: run.transaction,
            result: Bytes::new(),
            part: 0,
        };
        if prepared.scanned_bytes.is_some_and(|bytes| bytes >= self.split_bytes)
            && let Some(partitions) = run.session.partitions(prepared, parameters).await.map_err(to_status)?
            && let Some(endpoints) = self.split(prepared, partitions, &ticket)
        {
            return Ok(Response::new(with_endpoints(info, endpoints)));
        }
        let endpoint = FlightEndpoint::new().with_ticket(ticket.flight_ticket());
        Ok(Response::new(info.with_endpoint(endpoint)))
    }

    /// Runs the query of a ticket.
    pub(super) async fn read_statement(&self, client: &Client, ticket: TicketStatementQuery) -> Answer<FlightStream> {
        let ticket = StatementTicket::from_handle(&ticket.statement_handle)?;
        let query_id = ticket.query_id()?;
        if !ticket.result.is_empty() {
            return self.read_part(client, &ticket);
        }
        if !ticket.prepared.is_empty() {
            return self.read_prepared(client, &ticket.prepared, query_id).await;
        }
        let session = self.session_for(client, Some(&ticket.transaction))?;
        let prepared = match self.planned.take(query_id) {
            Some(prepared) => prepared,
            None => Arc::new(session.prepare(&ticket.sql).await.map_err(to_status)?),
        };
        self.read(&session, client, &prepared, &no_parameters(), query_id).await
    }

    /// Starts a query and streams its rows.
    pub(super) async fn read(
        &self,
        session: &Session,
        client: &Client,
        prepared: &Prepared,
        parameters: &RecordBatch,
        query_id: Uuid,
    ) -> Answer<FlightStream> {
        if prepared.kind != StatementKind::Query {
            return Err(to_status(Error::invalid("this statement returns no rows; run it as an update")));
        }
        if prepared.changes_data {
            self.once.take(query_id).map_err(to_status)?;
        }
        let schema = session.result_schema(prepared, parameters).await.map_err(to_status)?;
        let running = self.running.enter(query_id);
        let cancelled = running.token();
        let limit = client.statement_timeout();
        let started = tokio::select! {
            started = session.execute_prepared(prepared, parameters) => started.map_err(to_status)?,
            () = cancelled.cancelled() => return Err(Status::cancelled("the query was cancelled")),
            () = passed(limit) => return Err(too_late()),
        };
        match started {
            Outcome::Rows(rows) => {
                let stream = stream_rows(wire_schema(&schema), rows, running);
                Ok(Response::new(in_time(stream, limit)))
            }
            Outcome::Affected(_) => Err(to_status(Error::internal("a query returned a count instead of rows"))),
        }
    }

    /// `DoPut` of an update: runs it and answers with the number of rows it changed.
    pub(super) async fn update(&self, client: &Client, command: CommandStatementUpdate) -> Result<i64, Status> {
        let session = self.session_for(client, command.transaction_id.as_ref())?;
        let prepared = session.prepare(&command.query).await.map_err(to_status)?;
        run_update(&session, client, &prepared, &no_parameters()).await
    }
}

/// Where a statement runs, and what its ticket must say for `DoGet` to run there, too.
pub(super) struct Run<'a> {
    pub(super) session: Session,
    pub(super) client: &'a Client,
    /// Empty for none.
    pub(super) transaction: Bytes,
    /// The prepared statement; empty for none.
    pub(super) handle: Bytes,
}

async fn passed(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded("the statement took longer than the session's statement_timeout_s allows")
}

/// `messages`, ended by an error when they take longer than `limit`.
pub(super) fn in_time(messages: FlightStream, limit: Option<Duration>) -> FlightStream {
    let Some(limit) = limit else { return messages };
    let (timer_passed, passed) = {
        let token = CancellationToken::new();
        (token.clone(), token)
    };
    let timer = async move {
        tokio::time::sleep(limit).await;
        timer_passed.cancel();
    };
    let verdict = stream::once(async move { passed.is_cancelled().then(|| Err(too_late())) });
    Box::pin(messages.take_until(timer).chain(verdict.filter_map(std::future::ready)))
}

/// Runs a statement whose rows nobody wants, once for each row of `parameters`.
pub(super) async fn run_update(
    session: &Session,
    client: &Client,
    prepared: &Prepared,
    parameters: &RecordBatch,
) -> Result<i64, Status> {
    if prepared.kind == StatementKind::Query && !prepared.changes_data {
        return Err(to_status(Error::invalid("this statement returns rows; run it as a query")));
    }
    let done = tokio::select! {
        done = session.execute_prepared(prepared, parameters) => done.map_err(to_status)?,
        () = passed(client.statement_timeout()) => return Err(too_late()),
    };
    match done {
        Outcome::Affected(rows) => Ok(i64::try_from(rows).unwrap_or(i64::MAX)),
        // The caller wants the count: `RETURNING` has a row for each row changed.
        Outcome::Rows(rows) => {
            let count = rows.try_fold(0, |count, batch| async move { Ok(count + batch.num_rows() as i64) }).await;
            count.map_err(|error| to_status(from_datafusion(error)))
        }
    }
}
