//! Flight itself, around Flight SQL: who is asking, and the verbs that `arrow-flight`'s Flight SQL leaves out,
//! `GetSchema`, `PollFlightInfo` and the actions on sessions.

use std::sync::Arc;
use std::time::Instant;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    Any, Command, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementQuery,
    CommandStatementUpdate,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, PollInfo,
    Result as ActionResult, SchemaResult, Ticket,
};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::stream;
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::cancel::CANCEL_FLIGHT_INFO;
use super::partitions::RENEW_FLIGHT_ENDPOINT;
use super::results::wire_schema;
use super::session_options::{
    CLOSE_SESSION, CloseSessionResult, CloseStatus, GET_SESSION_OPTIONS, GetSessionOptionsResult, SET_SESSION_OPTIONS,
    SetSessionOptionsError, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use super::sessions::{Client, offer};
use super::{Answer, HyprFlightSql};
use crate::error::to_status;

/// The Flight service; see the module documentation.
pub struct HyprFlight(Arc<HyprFlightSql>);

type Inner = HyprFlightSql;
/// The body of what an action on a session answers, and the session's cookie if that is new.
type ActionAnswer = Result<(Vec<u8>, Option<String>), Status>;

impl HyprFlight {
    /// Flight around Flight SQL. Looks after transactions and results that clients left, as long as it lives.
    pub fn new(sql: HyprFlightSql) -> Self {
        let sql = Arc::new(sql);
        let watched = Arc::downgrade(&sql);
        tokio::spawn(async move {
            let tick = super::UPKEEP_INTERVAL;
            loop {
                tokio::time::sleep(tick).await;
                let Some(sql) = watched.upgrade() else { return };
                sql.expire(Instant::now());
            }
        });
        Self(sql)
    }

    /// Notes who asks. The successor of a transaction is begun by the connection's very next call.
    fn enter<T>(&self, request: &mut Request<T>, begins: bool) -> Result<Arc<Client>, Status> {
        let client = self.0.enter(request)?;
        if let Some(connection) = client.connection().filter(|_| !begins) {
            self.0.transactions.called(connection);
        }
        Ok(client)
    }

    async fn schema_of(&self, client: &Client, request: Request<FlightDescriptor>) -> Result<Bytes, Status> {
        let any = Any::decode(&*request.get_ref().cmd)
            .map_err(|_| Status::invalid_argument("the descriptor holds no Flight SQL command"))?;
        let sql = match Command::try_from(any).map_err(|error| Status::invalid_argument(error.to_string()))? {
            Command::CommandStatementQuery(CommandStatementQuery { query, transaction_id })
            | Command::CommandStatementUpdate(CommandStatementUpdate { query, transaction_id }) => {
                let session = self.0.session_for(client, transaction_id.as_ref())?;
                session.prepare(&query).await.map_err(to_status)?.result_schema
            }
            Command::CommandPreparedStatementQuery(CommandPreparedStatementQuery { prepared_statement_handle })
            | Command::CommandPreparedStatementUpdate(CommandPreparedStatementUpdate { prepared_statement_handle }) => {
                self.0.prepared_schema(&prepared_statement_handle)?
            }
            // What remains is metadata, which is planned and not run here.
            _ => return Ok(FlightService::get_flight_info(&*self.0, request).await?.into_inner().schema),
        };
        schema_bytes(&wire_schema(&sql))
    }

    fn session_action(&self, client: &Client, action: &Action) -> Option<ActionAnswer> {
        match action.r#type.as_str() {
            SET_SESSION_OPTIONS => Some(self.set_options(client, action)),
            GET_SESSION_OPTIONS => {
                let session_options = self.0.session_options(client);
                Some(Ok((GetSessionOptionsResult { session_options }.encode_to_vec(), None)))
            }
            CLOSE_SESSION => {
                let closed = self.0.close_session(client);
                let status = if closed { CloseStatus::Closed } else { CloseStatus::NotCloseable };
                Some(Ok((CloseSessionResult { status: status.into() }.encode_to_vec(), None)))
            }
            _ => None,
        }
    }

    fn set_options(&self, client: &Client, action: &Action) -> ActionAnswer {
        let request = SetSessionOptionsRequest::decode(action.body.clone())
            .map_err(|error| Status::invalid_argument(format!("SetSessionOptions is malformed: {error}")))?;
        let (failed, cookie) = self.0.set_session_options(client, &request.session_options).map_err(to_status)?;
        let errors =
            failed.into_iter().map(|(name, error)| (name, SetSessionOptionsError { value: error.into() })).collect();
        Ok((SetSessionOptionsResult { errors }.encode_to_vec(), Some(cookie)))
    }
}

fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let info = FlightInfo::new().try_with_schema(schema).map_err(|error| to_status(error.into()))?;
    Ok(info.schema)
}

impl Drop for HyprFlight {
    fn drop(&mut self) {
        // What is polled runs without its client, and would go on without the server.
        self.0.polls.stop();
    }
}

#[tonic::async_trait]
impl FlightService for HyprFlight {
    type HandshakeStream = <Inner as FlightService>::HandshakeStream;
    type ListFlightsStream = <Inner as FlightService>::ListFlightsStream;
    type DoGetStream = <Inner as FlightService>::DoGetStream;
    type DoPutStream = <Inner as FlightService>::DoPutStream;
    type DoActionStream = <Inner as FlightService>::DoActionStream;
    type ListActionsStream = <Inner as FlightService>::ListActionsStream;
    type DoExchangeStream = <Inner as FlightService>::DoExchangeStream;

    async fn handshake(
        &self,
        mut request: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<<Self as FlightService>::HandshakeStream> {
        let client = self.enter(&mut request, false)?;
        let answer = FlightService::handshake(&*self.0, request).await;
        self.0.leave(&client, answer)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<<Self as FlightService>::ListFlightsStream> {
        FlightService::list_flights(&*self.0, request).await
    }

    async fn get_flight_info(&self, mut request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let client = self.enter(&mut request, false)?;
        let answer = FlightService::get_flight_info(&*self.0, request).await;
        self.0.leave(&client, answer)
    }

    async fn poll_flight_info(&self, mut request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        let client = self.enter(&mut request, false)?;
        let answer = HyprFlightSql::poll(&self.0, request).await.map(Response::new);
        self.0.leave(&client, answer)
    }

    async fn get_schema(&self, mut request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let client = self.enter(&mut request, false)?;
        let answer = self.schema_of(&client, request).await.map(|schema| Response::new(SchemaResult { schema }));
        self.0.leave(&client, answer)
    }

    async fn do_get(&self, mut request: Request<Ticket>) -> Answer<<Self as FlightService>::DoGetStream> {
        let client = self.enter(&mut request, false)?;
        let answer = FlightService::do_get(&*self.0, request).await;
        self.0.leave(&client, answer)
    }

    async fn do_put(
        &self,
        mut request: Request<Streaming<FlightData>>,
    ) -> Answer<<Self as FlightService>::DoPutStream> {
        let client = self.enter(&mut request, false)?;
        let answer = FlightService::do_put(&*self.0, request).await;
        self.0.leave(&client, answer)
    }

    async fn do_action(&self, mut request: Request<Action>) -> Answer<<Self as FlightService>::DoActionStream> {
        let begins = request.get_ref().r#type == "BeginTransaction";
        let closes = request.get_ref().r#type == CLOSE_SESSION;
        let client = self.enter(&mut request, begins)?;
        match self.session_action(&client, request.get_ref()) {
            Some(done) => {
                let (body, cookie) = done?;
                let result = stream::iter([Ok(ActionResult { body: body.into() })]);
                let mut response: Response<Self::DoActionStream> = Response::new(Box::pin(result));
                match cookie {
                    Some(cookie) => {
                        offer(response.metadata_mut(), &cookie);
                        Ok(response)
                    }
                    // Leaving would keep the closed session once more.
                    None if closes => Ok(response),
                    None => self.0.leave(&client, Ok(response)),
                }
            }
            None => {
                let answer = FlightService::do_action(&*self.0, request).await;
                self.0.leave(&client, answer)
            }
        }
    }

    async fn list_actions(&self, request: Request<Empty>) -> Answer<<Self as FlightService>::ListActionsStream> {
        FlightService::list_actions(&*self.0, request).await
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Answer<<Self as FlightService>::DoExchangeStream> {
        FlightService::do_exchange(&*self.0, request).await
    }
}

/// Actions that `arrow-flight` does not list.
pub(super) fn more_actions() -> Vec<ActionType> {
    let action =
        |name: &str, description: &str| ActionType { r#type: name.to_owned(), description: description.to_owned() };
    vec![
        action(
            CANCEL_FLIGHT_INFO,
            "Cancels a running query.\nRequest: CancelFlightInfoRequest\nResponse: CancelFlightInfoResult",
        ),
        action(
            RENEW_FLIGHT_ENDPOINT,
            "Keeps an endpoint for longer.\nRequest: RenewFlightEndpointRequest\nResponse: FlightEndpoint",
        ),
        action(
            SET_SESSION_OPTIONS,
            "Sets options of the session: catalog, schema, time_zone, statement_timeout_s.\nRequest: \
             SetSessionOptionsRequest\nResponse: SetSessionOptionsResult",
        ),
        action(
            GET_SESSION_OPTIONS,
            "Tells the options of the session.\nRequest: GetSessionOptionsRequest\nResponse: GetSessionOptionsResult",
        ),
        action(
            CLOSE_SESSION,
            "Closes the session and rolls its transaction back.\nRequest: CloseSessionRequest\nResponse: CloseSessionResult",
        ),
    ]
}
