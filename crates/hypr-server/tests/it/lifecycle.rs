use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_array::Array;
use futures::StreamExt;
use hypr_common::ErrorKind;
use hypr_server::Client;
use hypr_storage::ModelStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Server, config, scalar, status, update};

async fn get(server: &Server, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_answers_http_and_grpc_health() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    assert!(get(&server, "/health").await.starts_with("HTTP/1.1 200"));
    assert!(get(&server, "/v1/ready").await.contains("\"ready\":true"));
    assert!(get(&server, "/").await.contains("Flight SQL"));
    assert!(get(&server, "/nothing").await.starts_with("HTTP/1.1 404"));

    let mut health = HealthClient::new(server.channel().await);
    let service = "arrow.flight.protocol.FlightService".to_owned();
    let answer = health.check(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(answer.status, tonic_health::ServingStatus::Serving as i32);
    drop(health);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let server = Server::start(dir.path()).await;
        let mut sql = server.client().await;
        update(&mut sql, "CREATE TABLE IF NOT EXISTS t (id INT PRIMARY KEY)").await;
        assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, (round - 1).to_string());
        update(&mut sql, &format!("INSERT INTO t VALUES ({round})")).await;
        assert!(dir.path().join("server.json").exists());
        server.stop().await;
        assert!(!dir.path().join("server.json").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_running_requests_finish() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let info = sql.execute("SELECT value FROM generate_series(1, 3000000)".to_owned(), None).await.unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut count = stream.next().await.unwrap().unwrap().num_rows();
    let stopping = server.begin_stop();
    while let Some(batch) = stream.next().await {
        count += batch.unwrap().num_rows();
    }
    assert_eq!(count, 3_000_000);
    drop((stream, sql));
    stopping.await.unwrap().unwrap();
}

/// Puts a model of random weights where the server finds it.
fn publish_tiny_model(dir: &Path) {
    let corpus = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../hypr-inference/tests/corpus");
    let files = [
        ("config.json", "config-sound.json"),
        ("model.safetensors", "safetensors-sound.safetensors"),
        ("tokenizer.json", "tokenizer-sound.json"),
    ];
    let files = files.map(|(name, file)| (name.to_owned(), std::fs::read(corpus.join(file)).unwrap().into()));
    let tables = hypr_inference::import::safetensors(&files.into(), "tiny").unwrap();
    ModelStore::open(dir).unwrap().publish(&tables).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_answers_be_written_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    publish_tiny_model(dir.path());
    let mut config = config(dir.path());
    config.server.drain_timeout_s = 120;
    let server = Server::start_with(config).await;
    let mut sql = server.client().await;
    let query = "SELECT generate_response('a b ' || value, max_tokens => 20) FROM generate_series(1, 3000)";
    let info = sql.execute(query.to_owned(), None).await.unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    let stopping = server.begin_stop();
    let (mut count, mut nulls) = (first.num_rows(), first.column(0).null_count());
    while let Some(batch) = stream.next().await {
        let batch = batch.unwrap();
        count += batch.num_rows();
        nulls += batch.column(0).null_count();
    }
    assert_eq!((count, nulls), (3000, 0));
    drop((stream, sql));
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.drain_timeout_s = 1;
    let server = Server::start_with(config).await;
    let mut sql = server.client().await;
    let info = sql.execute("SELECT value FROM generate_series(1, 100000000000)".to_owned(), None).await.unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    server.begin_stop().await.unwrap().unwrap();
    // Nobody reads on: the stream is cut, not completed.
    while let Some(batch) = stream.next().await {
        if batch.is_err() {
            return;
        }
    }
    panic!("a stream that was cut looked complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let second = hypr_server::serve(config(dir.path()), |_| panic!("a second server started"), std::future::ready(()));
    let refused = second.await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains(&std::process::id().to_string()), "{refused}");
    assert!(refused.message().contains(&format!("http://{}", server.address)), "{refused}");
    // The refusal leaves the first one's file alone.
    assert!(dir.path().join("server.json").exists());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_a_clear_error_and_frees_the_directory() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(first.path()).await;
    let mut taken = config(second.path());
    taken.server.port = server.address.port();
    let refused = hypr_server::serve(taken, |_| panic!("started"), std::future::ready(())).await.unwrap_err();
    assert!(refused.message().contains("cannot listen on"), "{refused}");
    Server::start(second.path()).await.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.max_connections = 1;
    let server = Server::start_with(config).await;
    let mut first = server.client().await;
    assert_eq!(scalar(&mut first, "SELECT 1").await, "1");

    let mut second = server.client().await;
    let refused = status(second.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("max_connections"), "{}", refused.message());
    assert!(get(&server, "/health").await.starts_with("HTTP/1.1 503"));

    drop((first, second));
    // The place is free once the server has seen the first client hang up.
    let mut attempts = 0;
    while !get(&server, "/health").await.starts_with("HTTP/1.1 200") {
        attempts += 1;
        assert!(attempts < 500, "the place was never given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_beyond_the_limit_are_refused_and_the_server_lives() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.max_message_mb = 1;
    let server = Server::start_with(config).await;
    let mut client = Client::connect(&format!("http://{}", server.address)).await.unwrap();
    let error = client.execute(&format!("SELECT '{}'", "x".repeat(2 << 20))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    client.execute("SELECT 1").await.unwrap();
    drop(client);
    server.stop().await;
}
