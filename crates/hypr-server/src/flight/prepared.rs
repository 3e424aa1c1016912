//! Prepared statements: planned once, bound and run any number of times.
//!
//! The registry is bounded. A statement is forgotten when its client closes it; those of clients that went away
//! without closing are forgotten when room is needed and they were idle for a while, never before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::sql::server::PeekableFlightDataStream;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, DoPutPreparedStatementResult,
};
use arrow_flight::{FlightDescriptor, FlightInfo, IpcMessage, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hypr_common::{Error, ErrorKind, Result};
use hypr_query::Prepared;
use parking_lot::Mutex;
use tonic::Status;
use uuid::Uuid;

use super::results::wire_schema;
use super::sessions::Client;
use super::statements::{Run, no_parameters, run_update};
use super::{Answer, FlightStream, HyprFlightSql};
use crate::error::{from_incoming, to_status};

/// Statements remembered at once, over all clients.
const MAX_PREPARED: usize = 16_384;
/// An idle statement may be forgotten after this, when there is no room.
const IDLE_AFTER: Duration = Duration::from_secs(600);
/// Most bytes of parameters bound to one statement.
const MAX_PARAMETER_BYTES: usize = 512 << 20;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct PreparedStatements(Mutex<HashMap<Bytes, Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    statement: Arc<Prepared>,
    parameters: Option<RecordBatch>,
    /// The transaction it was prepared in; empty for none.
    transaction: Bytes,
    used_at: Instant,
}

impl PreparedStatements {
    fn insert(&self, statement: Prepared, transaction: Bytes, now: Instant) -> Result<Bytes> {
        let mut statements = self.0.lock();
        if statements.len() >= MAX_PREPARED {
            statements.retain(|_, entry| now.duration_since(entry.used_at) < IDLE_AFTER);
        }
        if statements.len() >= MAX_PREPARED {
            let message = format!("{MAX_PREPARED} prepared statements are open; close those that are done");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let handle = Bytes::copy_from_slice(Uuid::now_v7().as_bytes());
        let entry = Entry { statement: Arc::new(statement), parameters: None, transaction, used_at: now };
        statements.insert(handle.clone(), entry);
        Ok(handle)
    }

    fn get(&self, handle: &Bytes) -> Result<Entry> {
        let mut statements = self.0.lock();
        let entry = statements.get_mut(handle).ok_or_else(unknown)?;
        entry.used_at = Instant::now();
        Ok(entry.clone())
    }

    fn bind(&self, handle: &Bytes, parameters: Option<RecordBatch>) -> Result<()> {
        let mut statements = self.0.lock();
        statements.get_mut(handle).ok_or_else(unknown)?.parameters = parameters;
        Ok(())
    }

    fn close(&self, handle: &Bytes) {
        self.0.lock().remove(handle);
    }
}

fn unknown() -> Error {
    Error::not_found("this prepared statement does not exist, was closed, or was idle for too long; prepare it again")
}

impl Entry {
    fn parameters(&self) -> RecordBatch {
        self.parameters.clone().unwrap_or_else(no_parameters)
    }
}

impl HyprFlightSql {
    /// Plans a statement and remembers it.
    pub(super) async fn create_prepared(
        &self,
        client: &Client,
        request: ActionCreatePreparedStatementRequest,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let session = self.session_for(client, request.transaction_id.as_ref())?;
        let prepared = session.prepare(&request.query).await.map_err(to_status)?;
        // Clients take an empty dataset schema as the sign of an update.
        let dataset_schema = encode_schema(&wire_schema(&prepared.result_schema)).map_err(to_status)?;
        let parameter_schema = encode_schema(&prepared.parameter_schema).map_err(to_status)?;
        let handle = self.prepared.insert(prepared, request.transaction_id.unwrap_or_default(), Instant::now());
        let handle = handle.map_err(to_status)?;
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle: handle, dataset_schema, parameter_schema })
    }

    /// Forgets a statement; closing twice is no error.
    pub(super) fn close_prepared(&self, request: &ActionClosePreparedStatementRequest) {
        self.prepared.close(&request.prepared_statement_handle);
    }

    /// `GetFlightInfo` of a prepared statement, with the parameters bound last.
    pub(super) async fn info_of_prepared(
        &self,
        client: &Client,
        query: CommandPreparedStatementQuery,
        descriptor: FlightDescriptor,
    ) -> Answer<FlightInfo> {
        let handle = query.prepared_statement_handle;
        let entry = self.prepared.get(&handle).map_err(to_status)?;
        let transaction = self.transactions.follow(&entry.transaction);
        let session = self.session_for(client, Some(&transaction))?;
        let run = Run { session, client, transaction, handle };
        self.plan_or_run(run, &entry.statement, &entry.parameters(), descriptor).await
    }

    /// The columns of a prepared statement's result.
    pub(super) fn prepared_schema(&self, handle: &Bytes) -> Result<SchemaRef, Status> {
        Ok(Arc::clone(&self.prepared.get(handle).map_err(to_status)?.statement.result_schema))
    }

    /// `DoGet` of a prepared statement.
    pub(super) async fn read_prepared(&self, client: &Client, handle: &Bytes, query_id: Uuid) -> Answer<FlightStream> {
        let entry = self.prepared.get(handle).map_err(to_status)?;
        let session = self.session_for(client, Some(&self.transactions.follow(&entry.transaction)))?;
        self.read(&session, client, &entry.statement, &entry.parameters(), query_id).await
    }

    /// `DoPut` that binds the parameters of the next execution.
    pub(super) async fn bind_prepared(
        &self,
        query: CommandPreparedStatementQuery,
        stream: PeekableFlightDataStream,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = query.prepared_statement_handle;
        self.prepared.get(&handle).map_err(to_status)?;
        let parameters = read_parameters(stream).await.map_err(to_status)?;
        self.prepared.bind(&handle, parameters).map_err(to_status)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    /// `DoPut` that runs an update for each row of the parameters it carries, or of those bound before.
    pub(super) async fn update_prepared(
        &self,
        client: &Client,
        command: CommandPreparedStatementUpdate,
        stream: PeekableFlightDataStream,
    ) -> Result<i64, Status> {
        let entry = self.prepared.get(&command.prepared_statement_handle).map_err(to_status)?;
        let parameters = read_parameters(stream).await.map_err(to_status)?.unwrap_or_else(|| entry.parameters());
        let session = self.session_for(client, Some(&self.transactions.follow(&entry.transaction)))?;
        run_update(&session, client, &entry.statement, &parameters).await
    }
}

/// The rows of an upload as one batch; `None` when it carries no column, as clients without parameters send.
async fn read_parameters(stream: PeekableFlightDataStream) -> Result<Option<RecordBatch>> {
    // A client with nothing to bind sends the descriptor alone, which is no Arrow message.
    let messages = stream.map_err(Into::into).try_filter(|data| std::future::ready(!data.data_header.is_empty()));
    let mut decoder = FlightDataDecoder::new(messages);
    let (mut schema, mut batches, mut bytes) = (None, Vec::new(), 0);
    while let Some(message) = decoder.next().await {
        match message.map_err(from_incoming)?.payload {
            DecodedPayload::Schema(sent) => schema = Some(sent),
            DecodedPayload::RecordBatch(batch) => {
                bytes += batch.get_array_memory_size();
                if bytes > MAX_PARAMETER_BYTES {
                    let message = format!(
                        "the bound parameters exceed {} MiB; bind fewer rows at a time, or use bulk ingest",
                        MAX_PARAMETER_BYTES >> 20
                    );
                    return Err(Error::new(ErrorKind::ResourceExhausted, message));
                }
                batches.push(batch);
            }
            DecodedPayload::None => {}
        }
    }
    match schema {
        Some(schema) if !schema.fields().is_empty() => match batches.as_slice() {
            [batch] => Ok(Some(batch.clone())),
            several => Ok(Some(concat_batches(&schema, several)?)),
        },
        _ => Ok(None),
    }
}

fn encode_schema(schema: &Schema) -> Result<Bytes> {
    if schema.fields().is_empty() {
        return Ok(Bytes::new());
    }
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into().map_err(Error::from)?;
    Ok(bytes)
}
