//! What Flight has around Flight SQL: schemas, polling, endpoints, sessions.

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_flight::sql::{CommandGetTableTypes, CommandStatementQuery, CommandStatementUpdate, ProstMessageExt};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor, FlightEndpoint,
    FlightInfo, IpcMessage, PollInfo, RenewFlightEndpointRequest, SchemaResult,
};
use arrow_schema::Schema;
use bytes::Bytes;
use futures::TryStreamExt;
use hypr_server::{Client, ClientOutcome};
use prost::Message;
use tonic::{Code, Request, Response, Status};

use crate::support::{Server, Sql, config, read, rows, scalar, status, update};

fn descriptor(command: impl ProstMessageExt) -> FlightDescriptor {
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

fn statement(sql: &str) -> FlightDescriptor {
    descriptor(CommandStatementQuery { query: sql.to_owned(), transaction_id: None })
}

async fn schema(sql: &mut Sql, descriptor: FlightDescriptor) -> Result<Schema, Status> {
    let SchemaResult { schema } = sql.inner_mut().get_schema(descriptor).await?.into_inner();
    Ok(Schema::try_from(IpcMessage(schema)).unwrap())
}

async fn act(sql: &mut Sql, name: &str, body: Vec<u8>) -> Result<Bytes, Status> {
    let action = Action { r#type: name.to_owned(), body: body.into() };
    let mut results = sql.inner_mut().do_action(action).await?.into_inner();
    Ok(results.try_next().await?.unwrap().body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_told_without_running_anything() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE t (id INT, name TEXT)").await;
    let found = schema(&mut sql, statement("SELECT id, name FROM t")).await.unwrap();
    assert_eq!(found.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["id", "name"]);
    let types = schema(&mut sql, descriptor(CommandGetTableTypes {})).await.unwrap();
    assert_eq!(types.field(0).name(), "table_type");
    for command in ["INSERT INTO t VALUES (1, 'a')", "DROP TABLE t"] {
        let update = CommandStatementUpdate { query: command.to_owned(), transaction_id: None };
        for descriptor in [statement(command), descriptor(update)] {
            assert!(schema(&mut sql, descriptor).await.unwrap().fields().is_empty());
        }
        let prepared = sql.prepare(command.to_owned(), None).await.unwrap();
        assert!(prepared.dataset_schema().unwrap().fields().is_empty());
        prepared.close().await.unwrap();
    }
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "0");
    let wrong = schema(&mut sql, statement("SELECT nothing FROM t")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let nonsense = schema(&mut sql, FlightDescriptor::new_cmd("nonsense")).await.unwrap_err();
    assert_eq!(nonsense.code(), Code::InvalidArgument);
    server.stop().await;
}

async fn poll(sql: &mut Sql, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
    sql.inner_mut().poll_flight_info(descriptor).await.map(Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_can_be_polled_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let done = poll(&mut sql, statement("SELECT 1 AS one")).await.unwrap();
    assert!(done.flight_descriptor.is_none());
    assert_eq!(rows(&read(&mut sql, done.info.unwrap()).await.unwrap()), 1);

    let slow = "CREATE TABLE many AS SELECT value AS id FROM generate_series(1, 3000000)";
    let mut asked = poll(&mut sql, statement(slow)).await.unwrap();
    while let Some(again) = asked.flight_descriptor {
        asked = poll(&mut sql, again).await.unwrap();
    }
    assert_eq!(asked.info.unwrap().total_records, 3_000_000);
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM many").await, "3000000");
    assert_eq!(poll(&mut sql, statement("SELEC 1")).await.unwrap_err().code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polled_statement_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let endless = "CREATE TABLE endless AS SELECT max(value) AS m FROM generate_series(1, 1000000000000)";
    let polled = poll(&mut sql, statement(endless)).await.unwrap();
    let (again, info) = (polled.flight_descriptor.unwrap(), polled.info.unwrap());
    let request = CancelFlightInfoRequest { info: Some(info) };
    let body = act(&mut sql, "CancelFlightInfo", request.encode_to_vec()).await.unwrap();
    assert_eq!(CancelFlightInfoResult::decode(body).unwrap().status(), CancelStatus::Cancelled);
    assert_eq!(poll(&mut sql, again).await.unwrap_err().code(), Code::NotFound);
    assert!(sql.execute("SELECT * FROM endless".to_owned(), None).await.is_err());
    server.stop().await;
}

async fn with_large_table(server: &Server) -> Sql {
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE big (id BIGINT, name TEXT)").await;
    for part in 0..3 {
        let insert = format!("INSERT INTO big SELECT value + {part} * 50000, 'name' FROM generate_series(1, 50000)");
        update(&mut sql, &insert).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sql
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    use arrow_array::cast::AsArray;
    let mut ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    ids
}

/// Flushes happen in the background; the plan has several partitions once rows lie in files and in memory.
async fn split(sql: &mut Sql, query: &str) -> FlightInfo {
    for round in 0..200 {
        let info = sql.execute(query.to_owned(), None).await.unwrap();
        if info.endpoint.len() > 1 {
            return info;
        }
        let insert = format!("INSERT INTO big VALUES ({}, 'more')", 150_001 + round);
        update(sql, &insert).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the result never had several endpoints");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_result_has_several_endpoints_that_show_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.split_result_mb = 1;
    config.storage.flush_rows = Some(60_000);
    let server = Server::start_with(config).await;
    let mut sql = with_large_table(&server).await;
    let info = split(&mut sql, "SELECT id, name FROM big WHERE id <= 150000").await;
    assert!(!info.ordered);
    update(&mut sql, "DELETE FROM big").await;
    // In any order.
    let mut batches = Vec::new();
    for endpoint in info.endpoint.iter().rev() {
        assert!(endpoint.expiration_time.is_some());
        let ticket = endpoint.ticket.clone().unwrap();
        batches.extend(sql.do_get(ticket).await.unwrap().try_collect::<Vec<_>>().await.unwrap());
    }
    assert_eq!(ids(&batches), (1..=150_000).collect::<Vec<i64>>());
    let again = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(status(again).code(), Code::Aborted);
    let request = RenewFlightEndpointRequest::new(info.endpoint[0].clone());
    let renewed = act(&mut sql, "RenewFlightEndpoint", request.encode_to_vec()).await.unwrap();
    let renewed = FlightEndpoint::decode(renewed).unwrap();
    assert_eq!(renewed.ticket, info.endpoint[0].ticket);
    let request = CancelFlightInfoRequest { info: Some(info.clone()) };
    act(&mut sql, "CancelFlightInfo", request.encode_to_vec()).await.unwrap();
    let gone = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(status(gone).code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_result_has_one_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.split_result_mb = 1;
    let server = Server::start_with(config).await;
    let mut sql = with_large_table(&server).await;
    for query in ["SELECT id FROM big ORDER BY id", "SELECT id FROM big LIMIT 100000"] {
        let info = sql.execute(query.to_owned(), None).await.unwrap();
        assert_eq!((info.endpoint.len(), info.ordered), (1, true), "{query}");
    }
    server.stop().await;
}

/// A client that keeps cookies.
struct Browser {
    sql: Sql,
    cookie: Option<String>,
}

impl Browser {
    async fn new(server: &Server) -> Self {
        Self { sql: server.client().await, cookie: None }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(cookie) = &self.cookie {
            request.metadata_mut().insert("cookie", cookie.parse().unwrap());
        }
        request
    }

    fn keep(&mut self, metadata: &tonic::metadata::MetadataMap) {
        if let Some(cookie) = metadata.get("set-cookie") {
            self.cookie = Some(cookie.to_str().unwrap().split(';').next().unwrap().to_owned());
        }
    }

    async fn info(&mut self, sql: &str) -> Result<FlightInfo, Status> {
        let request = self.request(statement(sql));
        match self.sql.inner_mut().get_flight_info(request).await {
            Ok(answer) => {
                self.keep(answer.metadata());
                Ok(answer.into_inner())
            }
            Err(status) => {
                self.keep(status.metadata());
                Err(status)
            }
        }
    }

    async fn act(&mut self, name: &str, body: Vec<u8>) -> Result<Bytes, Status> {
        let request = self.request(Action { r#type: name.to_owned(), body: body.into() });
        let answer = self.sql.inner_mut().do_action(request).await?;
        self.keep(answer.metadata());
        Ok(answer.into_inner().try_next().await?.unwrap().body)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn begin_lasts_as_long_as_the_cookie_and_never_silently_less() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let (mut one, mut two) = (Browser::new(&server).await, Browser::new(&server).await);
    one.info("CREATE TABLE t (id INT)").await.unwrap();
    one.info("BEGIN").await.unwrap();
    assert!(one.cookie.as_deref().unwrap().ends_with(".s"));
    one.info("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(scalar(&mut two.sql, "SELECT count(*) FROM t").await, "0");
    one.info("COMMIT").await.unwrap();
    assert_eq!(scalar(&mut two.sql, "SELECT count(*) FROM t").await, "1");

    // Without a cookie nothing would remember it.
    let refused = two.sql.execute("BEGIN".to_owned(), None).await.unwrap_err();
    assert_eq!(status(refused).code(), Code::Unimplemented);

    one.info("BEGIN").await.unwrap();
    one.info("DELETE FROM t").await.unwrap();
    server.stop().await;
    let server = Server::start(dir.path()).await;
    one.sql = server.client().await;
    let lost = one.info("DELETE FROM t").await.unwrap_err();
    assert_eq!(lost.code(), Code::Unauthenticated);
    assert_eq!(scalar(&mut server.client().await, "SELECT count(*) FROM t").await, "1");
    one.cookie = None;
    one.info("SELECT 1").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut client = Client::connect(&format!("http://{}", server.address)).await.unwrap();
    for sql in ["CREATE TABLE t (id INT)", "BEGIN", "INSERT INTO t VALUES (1)", "SAVEPOINT a", "DELETE FROM t"] {
        assert!(matches!(client.execute(sql).await.unwrap(), ClientOutcome::Affected(_)), "{sql}");
    }
    client.execute("ROLLBACK TO SAVEPOINT a").await.unwrap();
    let ClientOutcome::Rows { stream, .. } = client.execute("SELECT id FROM t").await.unwrap() else { panic!() };
    assert_eq!(rows(&stream.try_collect::<Vec<_>>().await.unwrap()), 1);
    assert_eq!(scalar(&mut server.client().await, "SELECT count(*) FROM t").await, "0");
    client.execute("COMMIT").await.unwrap();
    assert_eq!(scalar(&mut server.client().await, "SELECT count(*) FROM t").await, "1");
    drop(client);
    server.stop().await;
}

/// `map<string, SessionOptionValue>` of one text, as Flight.proto lays it out.
fn options(name: &str, value: &str) -> Vec<u8> {
    let field = |tag: u8, body: &[u8]| [&[tag << 3 | 2, u8::try_from(body.len()).unwrap()][..], body].concat();
    let entry = [field(1, name.as_bytes()), field(2, &field(1, value.as_bytes()))].concat();
    field(1, &entry)
}

#[tokio::test(flavor = "multi_thread")]
async fn session_options_are_set_kept_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut browser = Browser::new(&server).await;
    let no_errors = browser.act("SetSessionOptions", options("schema", "sales")).await.unwrap();
    assert!(no_errors.is_empty());
    browser.info("CREATE TABLE orders (id INT)").await.unwrap();
    assert_eq!(scalar(&mut server.client().await, "SELECT count(*) FROM sales.orders").await, "0");
    let shown = browser.act("GetSessionOptions", Vec::new()).await.unwrap();
    assert!(shown.windows(5).any(|bytes| bytes == b"sales"));
    let failed = browser.act("SetSessionOptions", options("colour", "red")).await.unwrap();
    assert!(failed.windows(6).any(|bytes| bytes == b"colour"));

    browser.act("SetSessionOptions", options("statement_timeout_s", "0.2")).await.unwrap();
    let late = browser.info("CREATE TABLE late AS SELECT max(value) AS m FROM generate_series(1, 1000000000000)").await;
    let late = late.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let info = browser.info("SELECT value FROM generate_series(1, 1000000000000)").await.unwrap();
    let request = browser.request(info.endpoint[0].ticket.clone().unwrap());
    let messages = browser.sql.inner_mut().do_get(request).await.unwrap().into_inner();
    let ended = messages.try_for_each(|_| std::future::ready(Ok(()))).await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);

    browser.info("BEGIN").await.unwrap();
    browser.info("INSERT INTO orders VALUES (1)").await.unwrap();
    browser.act("CloseSession", Vec::new()).await.unwrap();
    assert_eq!(browser.info("SELECT 1").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(scalar(&mut server.client().await, "SELECT count(*) FROM sales.orders").await, "0");
    server.stop().await;
}
