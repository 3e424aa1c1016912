//! Plain statements: SQL in, a ticket or a count out.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::sql::{CommandStatementQuery, CommandStatementUpdate, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::TryStreamExt;
use hypr_common::{Error, Result};
use hypr_query::{Outcome, Prepared, Session, StatementKind, from_datafusion};
use prost::Message;
use tonic::{Response, Status};
use uuid::Uuid;

use super::results::{stream_rows, wire_schema};
use super::{Answer, FlightStream, HyprFlightSql};
use crate::error::to_status;

/// What the handle in a statement's ticket holds: everything `DoGet` needs, but bound parameters.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StatementTicket {
    /// The statement.
    #[prost(string, tag = "1")]
    sql: String,
    /// A UUID, by which the running query can be cancelled.
    #[prost(bytes = "bytes", tag = "2")]
    query_id: Bytes,
    /// The prepared statement whose bound parameters to use; empty for none.
    #[prost(bytes = "bytes", tag = "3")]
    prepared: Bytes,
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

/// Statements commit on their own; a client that believes otherwise must hear so before anything runs.
pub(super) fn reject_transaction(transaction_id: Option<&Bytes>) -> Result<(), Status> {
    match transaction_id {
        Some(id) if !id.is_empty() => Err(Status::unimplemented(
            "transactions are not supported; every statement commits on its own (autocommit)",
        )),
        _ => Ok(()),
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
        query: CommandStatementQuery,
        descriptor: FlightDescriptor,
    ) -> Answer<FlightInfo> {
        reject_transaction(query.transaction_id.as_ref())?;
        let session = self.session();
        let prepared = session.prepare(&query.query).await.map_err(to_status)?;
        self.plan_or_run(&session, &prepared, &no_parameters(), Bytes::new(), descriptor).await.map_err(to_status)
    }

    /// See the module documentation of [`super`] for why an update runs here.
    pub(super) async fn plan_or_run(
        &self,
        session: &Session,
        prepared: &Prepared,
        parameters: &RecordBatch,
        handle: Bytes,
        descriptor: FlightDescriptor,
    ) -> Result<Response<FlightInfo>> {
        let info = FlightInfo::new().with_descriptor(descriptor).with_ordered(true);
        if prepared.kind != StatementKind::Query {
            let affected = run_update(session, prepared, parameters).await?;
            let info = info.try_with_schema(&Schema::empty())?.with_total_records(affected);
            return Ok(Response::new(info));
        }
        let query_id = Uuid::now_v7();
        if prepared.changes_data {
            self.once.issue(query_id);
        }
        let ticket = StatementTicket {
            sql: prepared.sql.clone(),
            query_id: Bytes::copy_from_slice(query_id.as_bytes()),
            prepared: handle,
        };
        let ticket = TicketStatementQuery { statement_handle: ticket.encode_to_vec().into() };
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
        Ok(Response::new(info.try_with_schema(&wire_schema(&prepared.result_schema))?.with_endpoint(endpoint)))
    }

    /// Runs the query of a ticket.
    pub(super) async fn read_statement(&self, ticket: TicketStatementQuery) -> Answer<FlightStream> {
        let ticket = StatementTicket::from_handle(&ticket.statement_handle)?;
        let query_id = ticket.query_id()?;
        if !ticket.prepared.is_empty() {
            return self.read_prepared(&ticket.prepared, query_id).await;
        }
        let session = self.session();
        let prepared = session.prepare(&ticket.sql).await.map_err(to_status)?;
        self.read(&session, &prepared, &no_parameters(), query_id).await
    }

    /// Starts a query and streams its rows.
    pub(super) async fn read(
        &self,
        session: &Session,
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
        let running = self.running.enter(query_id);
        let cancelled = running.token();
        let started = tokio::select! {
            started = session.execute_prepared(prepared, parameters) => started.map_err(to_status)?,
            () = cancelled.cancelled() => return Err(Status::cancelled("the query was cancelled")),
        };
        match started {
            Outcome::Rows(rows) => Ok(Response::new(stream_rows(wire_schema(&prepared.result_schema), rows, running))),
            Outcome::Affected(_) => Err(to_status(Error::internal("a query returned a count instead of rows"))),
        }
    }

    /// `DoPut` of an update: runs it and answers with the number of rows it changed.
    pub(super) async fn update(&self, command: CommandStatementUpdate) -> Result<i64, Status> {
        reject_transaction(command.transaction_id.as_ref())?;
        let session = self.session();
        let prepared = session.prepare(&command.query).await.map_err(to_status)?;
        run_update(&session, &prepared, &no_parameters()).await.map_err(to_status)
    }
}

/// Runs a statement whose rows nobody wants, once for each row of `parameters`.
pub(super) async fn run_update(session: &Session, prepared: &Prepared, parameters: &RecordBatch) -> Result<i64> {
    if prepared.kind == StatementKind::Query && !prepared.changes_data {
        return Err(Error::invalid("this statement returns rows; run it as a query"));
    }
    match session.execute_prepared(prepared, parameters).await? {
        Outcome::Affected(rows) => Ok(i64::try_from(rows).unwrap_or(i64::MAX)),
        // The caller wants the count: `RETURNING` has a row for each row changed.
        Outcome::Rows(rows) => {
            let count = rows.try_fold(0, |count, batch| async move { Ok(count + batch.num_rows() as i64) }).await;
            count.map_err(from_datafusion)
        }
    }
}
