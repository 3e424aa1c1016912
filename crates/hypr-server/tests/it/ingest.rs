use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use futures::{StreamExt, stream};
use hypr_server::Client;
use tonic::Code;

use crate::support::{Server, Sql, scalar, status};

fn batch(first: i64, rows: i64) -> RecordBatch {
    let ids: Vec<i64> = (first..first + rows).collect();
    let names: Vec<String> = ids.iter().map(|id| format!("row {id}")).collect();
    RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from(ids)) as ArrayRef),
        ("name", Arc::new(StringArray::from(names)) as ArrayRef),
    ])
    .unwrap()
}

async fn ingest(
    sql: &mut Sql,
    missing: TableNotExistOption,
    exists: TableExistsOption,
    batches: Vec<RecordBatch>,
) -> Result<i64, FlightError> {
    let command = CommandStatementIngest {
        table: "t".to_owned(),
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: missing.into(),
            if_exists: exists.into(),
        }),
        ..Default::default()
    };
    sql.execute_ingest(command, stream::iter(batches.into_iter().map(Ok))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn create_append_and_replace_do_what_they_say() {
    use {TableExistsOption as Exists, TableNotExistOption as Missing};
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;

    let missing = ingest(&mut sql, Missing::Fail, Exists::Append, vec![batch(0, 1)]).await;
    assert_eq!(status(missing.unwrap_err()).code(), Code::NotFound);
    let created = ingest(&mut sql, Missing::Create, Exists::Fail, vec![batch(0, 10), batch(10, 10)]).await;
    assert_eq!(created.unwrap(), 20);
    let again = ingest(&mut sql, Missing::Create, Exists::Fail, vec![batch(0, 1)]).await;
    assert_eq!(status(again.unwrap_err()).code(), Code::AlreadyExists);
    assert_eq!(ingest(&mut sql, Missing::Fail, Exists::Append, vec![batch(20, 5)]).await.unwrap(), 5);
    assert_eq!(ingest(&mut sql, Missing::Create, Exists::Append, vec![batch(25, 5)]).await.unwrap(), 5);
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "30");
    assert_eq!(scalar(&mut sql, "SELECT name FROM t WHERE id = 27").await, "row 27");
    assert_eq!(ingest(&mut sql, Missing::Create, Exists::Replace, vec![batch(0, 3)]).await.unwrap(), 3);
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "3");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_do_not_fit_are_refused_by_name() {
    use {TableExistsOption as Exists, TableNotExistOption as Missing};
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    ingest(&mut sql, Missing::Create, Exists::Fail, vec![batch(0, 1)]).await.unwrap();
    let other = RecordBatch::try_from_iter([("other", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let refused = status(ingest(&mut sql, Missing::Fail, Exists::Append, vec![other]).await.unwrap_err());
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("other"), "{}", refused.message());
    assert_eq!(scalar(&mut sql, "SELECT count(*) FROM t").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lines_client_appends_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut client = Client::connect(&format!("grpc://{}", server.address)).await.unwrap();
    let batches = stream::iter((0..50).map(|part| Ok(batch(part * 1000, 1000)))).boxed();
    assert_eq!(client.append("t", batches).await.unwrap(), 50_000);
    let mut sql = server.client().await;
    assert_eq!(scalar(&mut sql, "SELECT count(DISTINCT id) FROM t").await, "50000");
    server.stop().await;
}
