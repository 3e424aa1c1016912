//! The Flight SQL client of the command line: one statement in, rows or a count out.
//!
//! It relies on how this server answers `GetFlightInfo`: a query has endpoints to read, and a statement
//! without a result has run already and has none, so the kind of a statement needs no extra round trip.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandStatementIngest, CommandStatementQuery, ProstMessageExt, TableDefinitionOptions, TableExistsOption,
    TableNotExistOption,
};
use arrow_flight::{FlightDescriptor, FlightInfo};
use arrow_schema::SchemaRef;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use hypr_common::{Error, ErrorKind, Result};
use hypr_query::{IngestMode, TableRef};
use prost::Message;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::error::{from_flight, from_status};
use crate::http::TOKEN_HEADER;

/// A connection to a running server. Cheap to clone; clones share the connection and the session.
#[derive(Clone, Debug)]
pub struct Client {
    flight: FlightSqlServiceClient<Channel>,
    /// Names the session, as the server gave it.
    cookie: Option<String>,
    /// What a server asks for that serves its own command only.
    token: Option<String>,
}

/// What one statement answered.
pub enum ClientOutcome {
    /// A result set. Dropping the stream cancels the statement on the server.
    Rows {
        /// The columns of every batch.
        schema: SchemaRef,
        /// The batches, in the order the statement defines.
        stream: BoxStream<'static, Result<RecordBatch>>,
    },
    /// Rows changed by a statement without a result; 0 for DDL.
    Affected(i64),
}

impl fmt::Debug for ClientOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows { schema, .. } => f.debug_struct("Rows").field("schema", schema).finish_non_exhaustive(),
            Self::Affected(rows) => f.debug_tuple("Affected").field(rows).finish(),
        }
    }
}

impl Client {
    /// Connects to `url`, such as `http://127.0.0.1:8080` (`grpc://` and a bare `host:port` mean the same).
    ///
    /// # Errors
    /// `InvalidInput` for a malformed address, `Unavailable` when nothing answers there.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::dial(url, None).await
    }

    /// As [`Client::connect`], to a server that serves only those who send `token`.
    ///
    /// # Errors
    /// As for [`Client::connect`].
    pub async fn connect_with_token(url: &str, token: &str) -> Result<Self> {
        Self::dial(url, Some(token)).await
    }

    async fn dial(url: &str, token: Option<&str>) -> Result<Self> {
        let address = normalise(url);
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| Error::invalid(format!("`{url}` is not a server address")).with_source(error))?
            .tcp_nodelay(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .user_agent(concat!("hyprstream/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Error::internal("the user agent is malformed").with_source(error))?;
        let channel = endpoint.connect().await.map_err(|error| {
            let message = format!("no hyprstream server answers at {address}; start one with `hyprstream serve`");
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        })?;
        let flight = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut client = Self { flight: FlightSqlServiceClient::new_from_inner(flight), cookie: None, token: None };
        if let Some(token) = token {
            client.flight.set_header(TOKEN_HEADER, token);
            client.token = Some(token.to_owned());
        }
        client.begin_session().await?;
        Ok(client)
    }

    /// Gets a cookie, so that the first statement may be `BEGIN`.
    async fn begin_session(&mut self) -> Result<()> {
        let request = self.request(stream::empty());
        let shaken = self.flight.inner_mut().handshake(request).await.map_err(from_status)?;
        self.keep_cookie(shaken.metadata());
        Ok(())
    }

    /// A call that goes past [`FlightSqlServiceClient`], which adds its headers to its own calls only.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in [("cookie", &self.cookie), (TOKEN_HEADER, &self.token)] {
            if let Some(value) = value.as_deref().and_then(|value| value.parse().ok()) {
                request.metadata_mut().insert(name, value);
            }
        }
        request
    }

    fn keep_cookie(&mut self, metadata: &MetadataMap) {
        let offered = metadata.get("set-cookie").and_then(|cookie| cookie.to_str().ok());
        let Some(pair) = offered.and_then(|cookie| cookie.split(';').next()) else { return };
        self.cookie = Some(pair.to_owned());
        self.flight.set_header("cookie", pair);
    }

    /// Runs one statement. `BEGIN` opens a transaction for this client and its clones.
    ///
    /// # Errors
    /// The server's error with its kind and message; `Unavailable` when the connection breaks.
    pub async fn execute(&mut self, sql: &str) -> Result<ClientOutcome> {
        let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
        let request = self.request(FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
        let info = match self.flight.inner_mut().get_flight_info(request).await {
            Ok(response) => {
                self.keep_cookie(response.metadata());
                response.into_inner()
            }
            Err(status) => {
                self.keep_cookie(status.metadata());
                return Err(from_status(status));
            }
        };
        if info.endpoint.is_empty() {
            return Ok(ClientOutcome::Affected(info.total_records));
        }
        self.open(info).await
    }

    /// Streams `batches` into `table`, which is created from `schema` when it does not exist. Returns the rows stored.
    ///
    /// # Errors
    /// The server's error. The store commits every 64 MiB, so what was committed before it stays.
    pub async fn append(&mut self, table: &str, batches: BoxStream<'static, Result<RecordBatch>>) -> Result<i64> {
        self.ingest(&TableRef::bare(table), IngestMode::CreateAppend, batches).await
    }

    /// Streams `batches` into `table` by the rules of `mode`. Returns the rows stored.
    ///
    /// # Errors
    /// As for [`Client::append`], and what `mode` forbids.
    pub async fn ingest(
        &mut self,
        table: &TableRef,
        mode: IngestMode,
        batches: BoxStream<'static, Result<RecordBatch>>,
    ) -> Result<i64> {
        let (missing, existing) = match mode {
            IngestMode::Create => (TableNotExistOption::Create, TableExistsOption::Fail),
            IngestMode::Append => (TableNotExistOption::Fail, TableExistsOption::Append),
            IngestMode::CreateAppend => (TableNotExistOption::Create, TableExistsOption::Append),
            IngestMode::Replace => (TableNotExistOption::Create, TableExistsOption::Replace),
        };
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: missing.into(),
                if_exists: existing.into(),
            }),
            schema: table.schema.clone(),
            table: table.name.clone(),
            ..Default::default()
        };
        let stream = batches.map_err(|error| FlightError::ExternalError(Box::new(error)));
        self.flight.execute_ingest(command, stream).await.map_err(from_flight)
    }

    async fn open(&mut self, info: FlightInfo) -> Result<ClientOutcome> {
        let schema = info.clone().try_decode_schema().map_err(Error::from)?;
        let mut parts = Vec::with_capacity(info.endpoint.len());
        for endpoint in info.endpoint {
            let ticket =
                endpoint.ticket.ok_or_else(|| Error::internal("the server sent an endpoint without a ticket"))?;
            parts.push(self.flight.do_get(ticket).await.map_err(from_flight)?);
        }
        let stream = stream::iter(parts).flatten().map_err(from_flight).boxed();
        Ok(ClientOutcome::Rows { schema: schema.into(), stream })
    }
}

/// gRPC schemes are spelled `http` by the transport.
fn normalise(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    for scheme in ["grpc+tcp://", "grpc://"] {
        if let Some(rest) = url.strip_prefix(scheme) {
            return format!("http://{rest}");
        }
    }
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_of_an_address_is_understood() {
        for url in ["http://h:1", "http://h:1/", "grpc://h:1", "grpc+tcp://h:1", "h:1", " h:1 "] {
            assert_eq!(normalise(url), "http://h:1");
        }
    }
}
