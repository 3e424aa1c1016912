//! A database on a temporary directory, and ways to crash it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use hypr_storage::{Database, Mutation, ScanRequest, StorageOptions, Table, TableDefinition};
use tempfile::TempDir;

/// Options without a background flush: the test decides.
pub fn manual() -> StorageOptions {
    StorageOptions { background_flush: false, ..Default::default() }
}

/// Those, and every scan is one of Lance.
pub fn uncached() -> StorageOptions {
    StorageOptions { column_cache_bytes: 0, ..manual() }
}

pub fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("body", DataType::Utf8, true)]))
}

pub fn definition(name: &str, columns: SchemaRef, key: &[&str]) -> TableDefinition {
    TableDefinition {
        schema_name: "public".to_owned(),
        name: name.to_owned(),
        columns,
        primary_key: key.iter().map(ToString::to_string).collect(),
        options: BTreeMap::new(),
    }
}

/// `id` and `body = "<prefix><id>"` for each id.
pub fn rows(ids: impl IntoIterator<Item = i64>, prefix: &str) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let body: ArrayRef = Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("{prefix}{id}"))));
    RecordBatch::try_new(columns(), vec![Arc::new(Int64Array::from(ids)), body]).unwrap()
}

pub async fn open(dir: &Path) -> Database {
    Database::open(dir, manual()).await.unwrap()
}

/// A database with an empty keyed table `t`.
pub async fn keyed(dir: &Path) -> (Database, Arc<Table>) {
    let db = open(dir).await;
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    (db, table)
}

/// What a process that dies now leaves behind: a copy of the directory, opened anew.
pub async fn crash(dir: &Path) -> (TempDir, Database) {
    let copy = copy_of(dir);
    let db = open(copy.path()).await;
    (copy, db)
}

pub fn copy_of(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    copy
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub async fn read(table: &Table, request: ScanRequest) -> Vec<RecordBatch> {
    let context = SessionContext::new();
    let plan = table.scan(&context.state(), request).await.unwrap();
    datafusion::physical_plan::collect(plan, context.task_ctx()).await.unwrap()
}

/// `(id, body)` of every row, sorted; doubled rows show twice.
pub async fn contents(table: &Table) -> Vec<(i64, String)> {
    collect_rows(read(table, ScanRequest::default()).await)
}

/// `(id, body)` of every row, sorted.
pub fn collect_rows(batches: Vec<RecordBatch>) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    for batch in batches {
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let bodies = batch.column(1).as_string::<i32>();
        found.extend((0..batch.num_rows()).map(|row| (ids.value(row), bodies.value(row).to_owned())));
    }
    found.sort();
    found
}

pub fn expected(ids: impl IntoIterator<Item = i64>, prefix: &str) -> Vec<(i64, String)> {
    ids.into_iter().map(|id| (id, format!("{prefix}{id}"))).collect()
}

/// Row ids by `id`, for a mutation.
pub async fn row_ids(table: &Table, wanted: &[i64]) -> Vec<u64> {
    let request = ScanRequest { projection: Some(vec![0]), with_row_id: true, ..Default::default() };
    let mut found = Vec::new();
    for batch in read(table, request).await {
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let rows = batch.column(1).as_primitive::<UInt64Type>();
        found.extend((0..batch.num_rows()).filter(|&row| wanted.contains(&ids.value(row))).map(|row| rows.value(row)));
    }
    found
}

pub async fn mutate(table: &Table, wanted: &[i64]) -> (Mutation, Vec<u64>) {
    let mutation = table.begin_mutation().await;
    let ids = row_ids(table, wanted).await;
    (mutation, ids)
}

pub async fn delete(table: &Table, ids: &[i64]) -> u64 {
    let (mutation, rows) = mutate(table, ids).await;
    mutation.delete(rows).await.unwrap()
}

pub async fn replace(table: &Table, ids: &[i64], prefix: &str) -> u64 {
    let (mutation, found) = mutate(table, ids).await;
    mutation.replace(found, vec![rows(ids.iter().copied(), prefix)]).await.unwrap()
}
