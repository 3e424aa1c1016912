use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionEndSavepointRequest, Any, CommandStatementIngest,
    EndTransaction, ProstMessageExt, SqlInfo, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{Action, FlightInfo};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use prost::Message;
use std::sync::Arc;
use tonic::{Code, Status};

use arrow_array::{Int64Array, RecordBatch};

use crate::support::{Server, Sql, config, query, read, rows, scalar, status, update};

async fn inside(sql: &mut Sql, statement: &str, transaction: &Bytes) -> Result<i64, Status> {
    sql.execute_update(statement.to_owned(), Some(transaction.clone())).await.map_err(status)
}

async fn count(sql: &mut Sql, transaction: Option<&Bytes>) -> String {
    let info = sql.execute("SELECT count(*) FROM t".to_owned(), transaction.cloned()).await.unwrap();
    let batches = read(sql, info).await.unwrap();
    arrow_cast::display::array_value_to_string(batches[0].column(0), 0).unwrap()
}

async fn action(sql: &mut Sql, name: &str, body: impl ProstMessageExt) -> Result<Vec<Bytes>, Status> {
    let action = Action { r#type: name.to_owned(), body: body.as_any().encode_to_vec().into() };
    let results = sql.inner_mut().do_action(action).await?.into_inner();
    results.map_ok(|result| result.body).try_collect().await
}

async fn savepoint(sql: &mut Sql, transaction: &Bytes) -> Bytes {
    let request = ActionBeginSavepointRequest { transaction_id: transaction.clone(), name: "a".to_owned() };
    let body = action(sql, "BeginSavepoint", request).await.unwrap().remove(0);
    let result: ActionBeginSavepointResult = Any::decode(body).unwrap().unpack().unwrap().unwrap();
    result.savepoint_id
}

/// `ActionEndSavepointRequest.EndSavepoint`.
const RELEASE: i32 = 1;
const ROLLBACK: i32 = 2;

async fn end_savepoint(sql: &mut Sql, savepoint: &Bytes, end: i32) -> Result<(), Status> {
    let request = ActionEndSavepointRequest { savepoint_id: savepoint.clone(), action: end };
    action(sql, "EndSavepoint", request).await.map(drop)
}

async fn with_table(server: &Server) -> Sql {
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)").await;
    update(&mut sql, "INSERT INTO t VALUES (1, 0), (2, 0)").await;
    sql
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_every_kind_run_in_their_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = with_table(&server).await;
    let transaction = sql.begin_transaction().await.unwrap();
    assert_eq!(inside(&mut sql, "INSERT INTO t VALUES (3, 0)", &transaction).await.unwrap(), 1);
    let mut insert = sql.prepare("INSERT INTO t VALUES ($1, 0)".to_owned(), Some(transaction.clone())).await.unwrap();
    let ids: RecordBatch = RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![4, 5])) as _)]).unwrap();
    insert.set_parameters(ids).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 2);
    let upload = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![6])) as _)]).unwrap();
    let command = CommandStatementIngest {
        table: "t".to_owned(),
        transaction_id: Some(transaction.clone()),
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        ..Default::default()
    };
    assert_eq!(sql.execute_ingest(command, stream::iter([Ok(upload)])).await.unwrap(), 1);
    // A statement without a result through GetFlightInfo, as ADBC runs it.
    let info = sql.execute("DELETE FROM t WHERE id = 1".to_owned(), Some(transaction.clone())).await.unwrap();
    assert_eq!(info.total_records, 1);

    assert_eq!(count(&mut sql, Some(&transaction)).await, "5");
    assert_eq!(count(&mut sql, None).await, "2");
    sql.end_transaction(transaction.clone(), EndTransaction::Commit).await.unwrap();
    assert_eq!(count(&mut sql, None).await, "5");
    for statement in ["SELECT 1", "DELETE FROM t"] {
        let ended = sql.execute(statement.to_owned(), Some(transaction.clone())).await.unwrap_err();
        assert_eq!(status(ended).code(), Code::NotFound);
    }
    assert_eq!(count(&mut sql, None).await, "5", "a statement of an ended transaction must not run");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_leaves_nothing_and_a_conflict_aborts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = with_table(&server).await;
    let gone = sql.begin_transaction().await.unwrap();
    inside(&mut sql, "CREATE TABLE other AS SELECT * FROM t", &gone).await.unwrap();
    inside(&mut sql, "TRUNCATE t", &gone).await.unwrap();
    sql.end_transaction(gone.clone(), EndTransaction::Rollback).await.unwrap();
    sql.end_transaction(gone.clone(), EndTransaction::Rollback).await.unwrap();
    assert_eq!(count(&mut sql, None).await, "2");
    assert!(sql.execute("SELECT * FROM other".to_owned(), None).await.is_err());

    let (one, two) = (sql.begin_transaction().await.unwrap(), sql.begin_transaction().await.unwrap());
    for transaction in [&one, &two] {
        inside(&mut sql, "UPDATE t SET n = n + 1 WHERE id = 1", transaction).await.unwrap();
    }
    sql.end_transaction(two, EndTransaction::Commit).await.unwrap();
    let lost = status(sql.end_transaction(one.clone(), EndTransaction::Commit).await.unwrap_err());
    assert_eq!(lost.code(), Code::Aborted);
    assert!(lost.message().contains("40001"), "{}", lost.message());
    assert_eq!(scalar(&mut sql, "SELECT n FROM t WHERE id = 1").await, "1");
    let unspecified = sql.end_transaction(one, EndTransaction::Unspecified).await.unwrap_err();
    assert_eq!(status(unspecified).code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_by_action() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = with_table(&server).await;
    let transaction = sql.begin_transaction().await.unwrap();
    inside(&mut sql, "INSERT INTO t VALUES (3, 0)", &transaction).await.unwrap();
    let first = savepoint(&mut sql, &transaction).await;
    inside(&mut sql, "DELETE FROM t", &transaction).await.unwrap();
    let second = savepoint(&mut sql, &transaction).await;
    end_savepoint(&mut sql, &second, RELEASE).await.unwrap();
    assert_eq!(end_savepoint(&mut sql, &second, ROLLBACK).await.unwrap_err().code(), Code::NotFound);
    end_savepoint(&mut sql, &first, ROLLBACK).await.unwrap();
    assert_eq!(count(&mut sql, Some(&transaction)).await, "3");
    assert_eq!(end_savepoint(&mut sql, &"x".into(), RELEASE).await.unwrap_err().code(), Code::NotFound);
    sql.end_transaction(transaction, EndTransaction::Commit).await.unwrap();
    assert_eq!(count(&mut sql, None).await, "3");
    server.stop().await;
}

/// ADBC prepares once and commits in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_follows_its_connection_into_the_next_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = with_table(&server).await;
    let one = sql.begin_transaction().await.unwrap();
    let mut change = sql.prepare("UPDATE t SET n = n + 1 WHERE id = 1".to_owned(), Some(one.clone())).await.unwrap();
    change.execute_update().await.unwrap();
    sql.end_transaction(one, EndTransaction::Commit).await.unwrap();
    let two = sql.begin_transaction().await.unwrap();
    change.execute_update().await.unwrap();
    assert_eq!(scalar(&mut sql, "SELECT n FROM t WHERE id = 1").await, "1");
    sql.end_transaction(two, EndTransaction::Rollback).await.unwrap();
    assert_eq!(scalar(&mut sql, "SELECT n FROM t WHERE id = 1").await, "1");
    // The begin of another transaction that does not follow at once is none of its business.
    let three = sql.begin_transaction().await.unwrap();
    assert_eq!(status(change.execute_update().await.unwrap_err()).code(), Code::NotFound);
    sql.end_transaction(three, EndTransaction::Rollback).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_transaction_is_rolled_back_and_an_unused_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.transaction_idle_s = 1;
    let server = Server::start_with(config).await;
    let mut sql = with_table(&server).await;
    let (unused, used) = (sql.begin_transaction().await.unwrap(), sql.begin_transaction().await.unwrap());
    inside(&mut sql, "DELETE FROM t", &used).await.unwrap();
    let mut attempts = 0;
    let gone = loop {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        match inside(&mut sql, "DELETE FROM t WHERE id = 1", &used).await {
            Err(gone) => break gone,
            Ok(_) => attempts += 1,
        }
        assert!(attempts < 60, "the transaction was never given up");
    };
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("server.transaction_idle_s"), "{}", gone.message());
    assert_eq!(count(&mut sql, None).await, "2");
    assert_eq!(count(&mut sql, Some(&unused)).await, "2");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_does_not_hold_up_a_shutdown_and_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = with_table(&server).await;
    let transaction = sql.begin_transaction().await.unwrap();
    inside(&mut sql, "DELETE FROM t", &transaction).await.unwrap();
    drop(sql);
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    assert_eq!(count(&mut sql, None).await, "2");
    let unknown = sql.execute("SELECT 1".to_owned(), Some(transaction)).await.unwrap_err();
    assert_eq!(status(unknown).code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_that_it_has_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let asked = vec![SqlInfo::FlightSqlServerTransaction, SqlInfo::SqlSavepointsSupported];
    let info: FlightInfo = sql.get_sql_info(asked).await.unwrap();
    let batches = read(&mut sql, info).await.unwrap();
    let shown = arrow_cast::pretty::pretty_format_batches(&batches).unwrap().to_string();
    assert!(shown.contains("=2}") && shown.contains("=true}"), "{shown}");
    assert_eq!(rows(&query(&mut sql, "SELECT 1").await), 1);
    server.stop().await;
}
