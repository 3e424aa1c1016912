use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_flight::sql::{Any, ProstMessageExt};
use arrow_flight::{Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus};
use futures::{StreamExt, TryStreamExt};
use hypr_server::{Client, ClientOutcome};
use prost::Message;
use tonic::Code;

use crate::support::{Server, query, read, refused, rows, scalar, status, update};

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_runs_once_whichever_verb_carries_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    assert_eq!(update(&mut sql, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await, 0);
    assert_eq!(update(&mut sql, "INSERT INTO t VALUES (1, 'a'), (2, 'b')").await, 2);

    // A client that does not know the kind of a statement asks for a FlightInfo: an update has run by then.
    let info = sql.execute("INSERT INTO t VALUES (3, 'c')".to_owned(), None).await.unwrap();
    assert_eq!((info.total_records, info.endpoint.len()), (1, 0));
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "3");

    assert_eq!(update(&mut sql, "UPDATE t SET name = 'z' WHERE id >= 2").await, 2);
    assert_eq!(update(&mut sql, "DELETE FROM t WHERE name = 'z'").await, 2);
    assert_eq!(scalar(&mut sql, "SELECT name FROM t").await, "a");

    let wrong_verb = status(sql.execute_update("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(wrong_verb.code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_returns_rows_runs_at_the_first_reading_and_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await;
    let insert = "INSERT INTO t VALUES (1, 'a'), (2, 'b') RETURNING upper(name) AS name";
    let info = sql.execute(insert.to_owned(), None).await.unwrap();
    assert_eq!(info.clone().try_decode_schema().unwrap().field(0).name(), "name");
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "0", "it does not run for its FlightInfo");
    assert_eq!(rows(&read(&mut sql, info.clone()).await.unwrap()), 2);
    update(&mut sql, "DELETE FROM t").await;
    let again = status(read(&mut sql, info).await.unwrap_err());
    assert_eq!(again.code(), Code::Aborted, "{again}");
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "0", "the second reading inserted rows");

    // A ticket that is never read changes nothing; a prepared statement runs once for each FlightInfo.
    sql.execute(insert.to_owned(), None).await.unwrap();
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "0");
    let mut prepared = sql.prepare(insert.to_owned(), None).await.unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(rows(&read(&mut sql, info.clone()).await.unwrap()), 2);
    assert_eq!(status(read(&mut sql, info).await.unwrap_err()).code(), Code::Aborted);
    let upsert =
        "INSERT INTO t VALUES (1, 'z'), (3, 'c') ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name RETURNING id";
    assert_eq!(update(&mut sql, upsert).await, 2, "as an update it counts");
    assert_eq!(scalar(&mut sql, "SELECT string_agg(name, '' ORDER BY id) FROM t").await, "zbc");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_planned_before_and_run_at_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE t (id INT)").await;
    let info = sql.execute("SELECT id AS n FROM t".to_owned(), None).await.unwrap();
    assert_eq!(info.clone().try_decode_schema().unwrap().field(0).name(), "n");
    update(&mut sql, "INSERT INTO t VALUES (1)").await;
    // The ticket needs no memory of who asked for it.
    let batches = read(&mut server.client().await, info.clone()).await.unwrap();
    assert_eq!(rows(&batches), 1);
    let announced = info.try_decode_schema().unwrap();
    assert_eq!(announced.fields(), batches[0].schema().fields());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_rows_stream_in_bounded_messages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let info = sql
        .execute("SELECT value, CAST(value AS TEXT) AS text FROM generate_series(1, 1000000)".to_owned(), None)
        .await
        .unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let (mut count, mut sum) = (0, 0);
    while let Some(batch) = stream.try_next().await.unwrap() {
        count += batch.num_rows();
        sum += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    assert_eq!((count, sum), (1_000_000, 500_000_500_000));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_batch_of_many_large_values_fits_a_stock_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    // Decodes at most 16 MiB a message, as the stock ADBC driver does.
    let mut sql = server.client().await;
    let batches = query(&mut sql, "SELECT repeat('x', 3000000) AS text FROM generate_series(1, 20)").await;
    assert_eq!(rows(&batches), 20);
    assert!(batches.iter().all(|batch| batch.num_rows() == 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_is_wrong_with_the_right_code() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let (code, message) = refused(&mut sql, "SELEC 1").await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("line 1"), "{message}");

    let (code, message) = refused(&mut sql, "SELECT * FROM nowhere").await;
    assert_eq!(code, Code::NotFound);
    assert!(message.contains("nowhere"), "{message}");

    update(&mut sql, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let (code, message) = refused(&mut sql, "CREATE TABLE t (id INT)").await;
    assert_eq!(code, Code::AlreadyExists);
    assert!(message.contains('t'), "{message}");
    update(&mut sql, "INSERT INTO t VALUES (1)").await;
    let (code, _) = refused(&mut sql, "INSERT INTO t VALUES (1)").await;
    assert_eq!(code, Code::AlreadyExists);

    // An error in the middle of a stream reaches the client, too.
    let info = sql.execute("SELECT 1 / (500000 - value) FROM generate_series(1, 1000000)".to_owned(), None).await;
    let failed = status(read(&mut sql, info.unwrap()).await.unwrap_err());
    assert_eq!(failed.code(), Code::InvalidArgument);
    assert!(failed.message().contains("zero"), "{}", failed.message());

    // And the server lives.
    assert_eq!(scalar(&mut sql, "SELECT 1").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_never_began_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let inside = sql.execute_update("CREATE TABLE t (id INT)".to_owned(), Some("tx".into())).await;
    assert_eq!(status(inside.unwrap_err()).code(), Code::NotFound);
    let (code, _) = crate::support::refused(&mut sql, "SELECT * FROM t").await;
    assert_eq!(code, Code::NotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_query_can_be_cancelled_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let endless = "SELECT a.value FROM generate_series(1, 100000000) a";
    let info = sql.execute(endless.to_owned(), None).await.unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    stream.next().await.unwrap().unwrap();

    let cancel = |info| Action {
        r#type: "CancelFlightInfo".to_owned(),
        body: CancelFlightInfoRequest::new(info).encode_to_vec().into(),
    };
    let mut other = server.client().await;
    let mut answer = other.do_action(cancel(info.clone())).await.unwrap();
    let result = CancelFlightInfoResult::decode(answer.message().await.unwrap().unwrap().body).unwrap();
    assert_eq!(result.status(), CancelStatus::Cancelled);
    let ended = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break status(error),
            None => panic!("the stream ended as if it were complete"),
        }
    };
    assert_eq!(ended.code(), Code::Cancelled);
    drop(stream);

    let mut answer = other.do_action(cancel(info)).await.unwrap();
    let result = CancelFlightInfoResult::decode(answer.message().await.unwrap().unwrap().body).unwrap();
    assert_eq!(result.status(), CancelStatus::NotCancellable);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_from_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let forged = arrow_flight::sql::TicketStatementQuery { statement_handle: "??".into() };
    let forged: Any = forged.as_any();
    let refused = sql.do_get(arrow_flight::Ticket::new(forged.encode_to_vec())).await.unwrap_err();
    assert_eq!(status(refused).code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lines_client_tells_rows_from_counts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut client = Client::connect(&server.address.to_string()).await.unwrap();
    assert!(matches!(client.execute("CREATE TABLE t (id INT)").await.unwrap(), ClientOutcome::Affected(0)));
    assert!(matches!(client.execute("INSERT INTO t VALUES (1), (2);").await.unwrap(), ClientOutcome::Affected(2)));
    let ClientOutcome::Rows { schema, stream } = client.execute("SELECT id FROM t").await.unwrap() else {
        panic!("a query gave no rows");
    };
    assert_eq!(schema.field(0).name(), "id");
    assert_eq!(rows(&stream.try_collect::<Vec<_>>().await.unwrap()), 2);
    let error = client.execute("SELECT nothing FROM t").await.unwrap_err();
    assert_eq!(error.kind(), hypr_common::ErrorKind::InvalidInput);
    assert!(error.message().contains("nothing"), "{error}");
    drop(client);
    server.stop().await;

    let gone = Client::connect("127.0.0.1:1").await.unwrap_err();
    assert_eq!(gone.kind(), hypr_common::ErrorKind::Unavailable);
}
