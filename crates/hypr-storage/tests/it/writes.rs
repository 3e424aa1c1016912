//! Inserts, updates, deletes, keys, validation, DDL.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch, StringArray, types::Float64Type,
};
use arrow_schema::{DataType, Field, Schema};
use datafusion::prelude::{col, lit};
use hypr_common::ErrorKind;
use hypr_common::types::{json_field, vector_field};
use hypr_storage::{Database, ScanRequest};
use tempfile::tempdir;

use crate::support::{
    columns, contents, definition, delete, expected, keyed, mutate, open, read, replace, row_ids, rows, uncached,
};

#[tokio::test]
async fn an_acknowledged_row_is_visible_and_survives() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    assert_eq!(table.insert(vec![rows(0..3, "a"), rows(3..5, "a")]).await.unwrap(), 5);
    assert_eq!(contents(&table).await, expected(0..5, "a"));
    drop((db, table));
    let db = open(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    assert_eq!(contents(&table).await, expected(0..5, "a"));
    assert_eq!(table.approximate_rows(), Some(5));
    assert_eq!(table.definition().primary_key, ["id"]);
}

#[tokio::test]
async fn a_duplicate_key_is_refused_wherever_the_first_row_lies() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..10, "a")]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(10..20, "a")]).await.unwrap();
    for taken in [3, 13] {
        let error = table.insert(vec![rows([100, taken], "b")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.message().contains(&format!("(id) = ({taken})")), "{error}");
    }
    let error = table.insert(vec![rows([50, 51, 50], "b")]).await.unwrap_err();
    assert!(error.message().contains("twice"), "{error}");
    // A refused statement leaves no key behind.
    table.insert(vec![rows([100, 50, 51], "a")]).await.unwrap();
    drop((db, table));
    let db = open(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    for taken in [3, 13, 100] {
        assert_eq!(table.insert(vec![rows([taken], "b")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
    assert_eq!(contents(&table).await.len(), 23);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_writers_of_one_key_exactly_one_wins() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    for key in 0..20 {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let table = Arc::clone(&table);
                tokio::spawn(async move { table.insert(vec![rows([key], &format!("w{writer}-"))]).await })
            })
            .collect();
        let mut won = 0;
        for writer in writers {
            match writer.await.unwrap() {
                Ok(rows) => won += rows,
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
            }
        }
        assert_eq!(won, 1);
    }
    assert_eq!(contents(&table).await.len(), 20);
}

#[tokio::test]
async fn updates_and_deletes_reach_rows_before_and_after_a_flush() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..10, "a")]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(10..20, "a")]).await.unwrap();
    assert_eq!(delete(&table, &[1, 11]).await, 2);
    assert_eq!(replace(&table, &[2, 12], "b").await, 2);
    let mut wanted = expected((0..20).filter(|id| ![1, 11, 2, 12].contains(id)), "a");
    wanted.extend(expected([2, 12], "b"));
    wanted.sort();
    assert_eq!(contents(&table).await, wanted);
    db.flush().await.unwrap();
    assert_eq!(contents(&table).await, wanted);
    // The keys of deleted rows are free, those of replaced rows are not.
    table.insert(vec![rows([1, 11], "c")]).await.unwrap();
    assert_eq!(table.insert(vec![rows([2], "c")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    wanted.extend(expected([1, 11], "c"));
    wanted.sort();
    drop((db, table));
    let db = open(dir.path()).await;
    assert_eq!(contents(&db.table("public", "t").unwrap()).await, wanted);
}

#[tokio::test]
async fn an_update_may_not_take_the_key_of_another_row() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..3, "a")]).await.unwrap();
    let (mutation, ids) = mutate(&table, &[0]).await;
    let error = mutation.replace(ids, vec![rows([1], "b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    // A swap of keys within one statement is fine.
    let (mutation, ids) = mutate(&table, &[0, 1]).await;
    mutation.replace(ids, vec![rows([1, 0], "c")]).await.unwrap();
    assert_eq!(contents(&table).await, [expected([0, 1], "c"), expected([2], "a")].concat());
}

#[tokio::test]
async fn a_reader_keeps_its_snapshot() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(5..8, "a")]).await.unwrap();
    let context = datafusion::prelude::SessionContext::new();
    let before = table.scan(&context.state(), ScanRequest::default()).await.unwrap();
    delete(&table, &[0, 6]).await;
    table.insert(vec![rows(20..30, "a")]).await.unwrap();
    db.flush().await.unwrap();
    db.drop_table("public", "t", false).await.unwrap();
    drop(table);
    let batches = datafusion::physical_plan::collect(before, context.task_ctx()).await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 8);
}

async fn vectors(dir: &std::path::Path) -> (Database, Arc<hypr_storage::Table>) {
    let columns = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        vector_field("embedding", 4, true),
        json_field("meta", true),
    ]));
    let db = open(dir).await;
    db.create_table(definition("v", columns, &[]), false).await.unwrap();
    let table = db.table("public", "v").unwrap();
    (db, table)
}

fn with_columns(id: i64, vector: ArrayRef, meta: Option<&str>) -> RecordBatch {
    let id: ArrayRef = Arc::new(Int64Array::from(vec![id]));
    let meta: ArrayRef = Arc::new(StringArray::from(vec![meta]));
    RecordBatch::try_from_iter_with_nullable([("a", id, true), ("b", vector, true), ("c", meta, true)]).unwrap()
}

fn list(values: &[f64]) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>([Some(values.iter().map(|v| Some(*v)))]))
}

#[tokio::test]
async fn errors_name_the_column_and_the_row() {
    let dir = tempdir().unwrap();
    let (_db, table) = vectors(dir.path()).await;
    let good = with_columns(1, list(&[1.0, 2.0, 3.0, 4.0]), Some(r#"{"a": [1]}"#));
    let cases = [
        (with_columns(2, list(&[1.0; 7]), None), "column embedding is VECTOR(4), got 7 values in row 3"),
        (with_columns(2, list(&[1.0; 4]), Some("{nope")), "column meta is JSONB, got invalid JSON in row 3"),
        (with_columns(2, Arc::new(StringArray::from(vec!["x"])), None), "column embedding is VECTOR(4), got TEXT"),
    ];
    for (bad, message) in cases {
        let error = table.insert(vec![good.clone(), good.clone(), bad]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(message), "{error}");
    }
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values: ArrayRef = Arc::new(Float32Array::from(vec![0.5; 8]));
    let vector: ArrayRef = Arc::new(FixedSizeListArray::try_new(item, 4, values, None).unwrap());
    let meta: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>, None]));
    let batch = RecordBatch::try_from_iter_with_nullable([("a", ids, true), ("b", vector, true), ("c", meta, true)]);
    let error = table.insert(vec![batch.unwrap()]).await.unwrap_err();
    assert!(error.message().contains("column id is NOT NULL, got NULL in row 2"), "{error}");
    assert_eq!(table.approximate_rows(), Some(0), "a refused statement stores nothing");
}

#[tokio::test]
async fn vectors_and_json_come_back_with_their_types() {
    let dir = tempdir().unwrap();
    let (db, table) = vectors(dir.path()).await;
    table.insert(vec![with_columns(1, list(&[1.0, 2.0, 3.0, 4.0]), Some(r#"{"a":1}"#))]).await.unwrap();
    let before = read(&table, ScanRequest::default()).await;
    db.flush().await.unwrap();
    let after = read(&table, ScanRequest::default()).await;
    assert_eq!(before, after);
    assert_eq!(after[0].schema(), table.schema());
}

#[tokio::test]
async fn projections_filters_limits_and_row_ids() {
    let dir = tempdir().unwrap();
    let db = Database::open(dir.path(), uncached()).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..1000, "a")]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(1000..1100, "a")]).await.unwrap();
    let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();

    let none = read(&table, ScanRequest { projection: Some(vec![]), ..Default::default() }).await;
    assert_eq!((count(&none), none[0].num_columns()), (1100, 0));

    let filter = col("id").lt(lit(10_i64));
    assert_ne!(table.supports_filter(&filter), datafusion::logical_expr::TableProviderFilterPushDown::Unsupported);
    let filtered = read(&table, ScanRequest { filters: vec![filter], ..Default::default() }).await;
    assert_eq!(count(&filtered), 110, "10 of Lance, and the tail for the caller to filter");

    let limited = read(&table, ScanRequest { limit: Some(7), ..Default::default() }).await;
    assert!((7..=14).contains(&count(&limited)), "at most the limit of each partition");

    let ids = row_ids(&table, &(0..1100).collect::<Vec<_>>()).await;
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 1100);
}

#[tokio::test]
async fn tables_are_created_and_dropped_once() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    let again = definition("t", table.schema(), &[]);
    assert_eq!(db.create_table(again.clone(), false).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(!db.create_table(again, true).await.unwrap());
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    db.flush().await.unwrap();
    assert!(db.drop_table("public", "t", false).await.unwrap());
    assert!(!db.drop_table("public", "t", true).await.unwrap());
    assert_eq!(db.drop_table("public", "t", false).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(table.insert(vec![rows(7..8, "a")]).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The name is free for another table, which does not see the rows of the first.
    db.create_table(definition("t", table.schema(), &[]), false).await.unwrap();
    drop(table);
    let fresh = db.table("public", "t").unwrap();
    fresh.insert(vec![rows(1..2, "n")]).await.unwrap();
    drop((db, fresh));
    let db = open(dir.path()).await;
    assert_eq!(contents(&db.table("public", "t").unwrap()).await, expected(1..2, "n"));
    assert_eq!(std::fs::read_dir(dir.path().join("tables")).unwrap().count(), 0, "old files are gone");
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempdir().unwrap();
    let db = open(dir.path()).await;
    std::fs::write(dir.path().join("server.json"), r#"{"pid": 77, "url": "http://127.0.0.1:9"}"#).unwrap();
    let error = Database::open(dir.path(), crate::support::manual()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("77") && error.message().contains("http://127.0.0.1:9"), "{error}");
    drop(db);
    open(dir.path()).await;
}

#[tokio::test]
async fn a_closed_database_refuses_writes_and_keeps_rows() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    db.close().await.unwrap();
    assert_eq!(table.insert(vec![rows(5..6, "a")]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(contents(&table).await, expected(0..5, "a"));
}
