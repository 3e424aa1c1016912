use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder};
use arrow_array::{ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_flight::Ticket;
use arrow_flight::sql::{CommandPreparedStatementQuery, ProstMessageExt};
use prost::Message;
use tonic::Code;

use crate::support::{Server, read, rows, scalar, status, update};

fn row(columns: Vec<ArrayRef>) -> RecordBatch {
    let names: Vec<String> = (0..columns.len()).map(|index| index.to_string()).collect();
    RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_every_kind_are_stored_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT, v VECTOR(3), image BLOB, meta JSONB)").await;

    let mut insert = sql.prepare("INSERT INTO t VALUES (?, ?, ?, ?, ?)".to_owned(), None).await.unwrap();
    assert!(insert.dataset_schema().unwrap().fields().is_empty());
    assert_eq!(insert.parameter_schema().unwrap().fields().len(), 5);
    let mut vectors = FixedSizeListBuilder::new(Float32Builder::new(), 3);
    for row in 0..2 {
        vectors.values().append_slice(&[row as f32, 1.0, 2.0]);
        vectors.append(true);
    }
    insert
        .set_parameters(row(vec![
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(StringArray::from(vec!["a", "b"])),
            Arc::new(vectors.finish()),
            Arc::new(BinaryArray::from_vec(vec![b"\x00\x01", b"\xff"])),
            Arc::new(StringArray::from(vec![r#"{"k": 1}"#, r#"{"k": 2}"#])),
        ]))
        .unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 2);
    insert.close().await.unwrap();

    let mut select = sql.prepare("SELECT name FROM t WHERE id = $1".to_owned(), None).await.unwrap();
    assert_eq!(select.dataset_schema().unwrap().field(0).name(), "name");
    for (id, found) in [(1, 1), (7, 0), (2, 1)] {
        select.set_parameters(row(vec![Arc::new(Int32Array::from(vec![id]))])).unwrap();
        let info = select.execute().await.unwrap();
        assert_eq!(rows(&read(&mut sql, info).await.unwrap()), found);
    }
    assert_eq!(scalar(&mut sql, "SELECT encode(image, 'hex') FROM t WHERE id = 1").await, "0001");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_statement_is_gone_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let mut kept = sql.prepare("SELECT 1".to_owned(), None).await.unwrap();
    let closed = kept.clone();
    closed.close().await.unwrap();
    let gone = status(kept.execute().await.unwrap_err());
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("prepare it again"), "{}", gone.message());

    let unknown = CommandPreparedStatementQuery { prepared_statement_handle: "nothing".into() };
    let refused = sql.do_get(Ticket::new(unknown.as_any().encode_to_vec())).await.unwrap_err();
    assert_eq!(status(refused).code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_parameters_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let mut select = sql.prepare("SELECT $1 + $2".to_owned(), None).await.unwrap();
    select.set_parameters(row(vec![Arc::new(Int32Array::from(vec![1]))])).unwrap();
    let outcome = match select.execute().await {
        Ok(info) => read(&mut sql, info).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(status(outcome.unwrap_err()).code(), Code::InvalidArgument);
    server.stop().await;
}
