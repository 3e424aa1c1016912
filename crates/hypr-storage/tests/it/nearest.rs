//! Nearest rows of a table: exact for small tables, with an index for large ones, and right about what a snapshot sees.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use hypr_common::ErrorKind;
use hypr_common::types::vector_field;
use hypr_storage::ann::{Metric, Neighbor, RowSet, SearchPath};
use hypr_storage::{Database, NearestRequest, ScanRequest, StorageOptions, Table};

use crate::support::{crash, definition, read};

const DIMS: usize = 16;

pub fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), vector_field("v", DIMS as i32, true)]))
}

/// Values that depend on `id` alone, around one of 20 centres.
pub fn vector(id: i64) -> Vec<f32> {
    let noise = |seed: i64| {
        let bits = (seed as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..DIMS as i64).map(|at| noise(id % 20 * 1000 + at) * 3.0 + noise(id * 37 + at + 1_000_000)).collect()
}

/// Every row whose id is a multiple of 101 has no vector.
pub fn rows(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let values: ArrayRef = Arc::new(Float32Array::from_iter_values(ids.iter().flat_map(|id| vector(*id))));
    let nulls = ids.iter().map(|id| id % 101 != 0).collect::<Vec<_>>().into();
    let schema = columns();
    let DataType::FixedSizeList(item, width) = schema.field(1).data_type() else { unreachable!() };
    let list = FixedSizeListArray::new(Arc::clone(item), *width, values, Some(nulls));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(ids)), Arc::new(list)]).unwrap()
}

/// Indexes are kept when the test says so.
fn options(graph_rows: usize) -> StorageOptions {
    StorageOptions {
        background_flush: false,
        background_index: false,
        vector_index_rows: graph_rows,
        ..StorageOptions::default()
    }
}

async fn table(dir: &Path, graph_rows: usize) -> (Database, Arc<Table>) {
    let db = Database::open(dir, options(graph_rows)).await.unwrap();
    db.create_table(definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    (db, table)
}

pub async fn nearest_ids(table: &Table, metric: Metric, query: Vec<f32>, k: usize) -> Vec<i64> {
    let pinned = table.pin();
    let found = pinned.nearest(&NearestRequest::new(1, metric, query, k)).await.unwrap();
    ids_of(&pinned.take_rows(&row_ids(&found), &[0]).await.unwrap())
}

pub fn row_ids(found: &[Neighbor]) -> Vec<u64> {
    found.iter().map(|neighbor| neighbor.row_id).collect()
}

pub fn ids_of(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

/// The row ids that a scan gave in its last column.
pub fn row_id_column(batch: &RecordBatch) -> Vec<u64> {
    batch.columns().last().unwrap().as_primitive::<arrow_array::types::UInt64Type>().values().to_vec()
}

/// The nearest of what a scan gives, in f64.
pub async fn exact_ids(table: &Table, metric: Metric, query: &[f32], k: usize) -> Vec<i64> {
    let mut all = Vec::new();
    for batch in read(table, ScanRequest::default()).await {
        let (ids, vectors) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_fixed_size_list());
        for row in (0..batch.num_rows()).filter(|row| arrow_array::Array::is_valid(vectors, *row)) {
            let vector = vectors.value(row);
            let pairs = || {
                vector
                    .as_primitive::<Float32Type>()
                    .values()
                    .iter()
                    .zip(query)
                    .map(|(a, b)| (f64::from(*a), f64::from(*b)))
            };
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let norms: f64 = pairs().map(|(a, _)| a * a).sum::<f64>() * pairs().map(|(_, b)| b * b).sum::<f64>();
            let distance = match metric {
                Metric::L2 => pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt(),
                Metric::InnerProduct => -dot,
                Metric::Cosine => 1.0 - dot / norms.sqrt(),
            };
            all.push((distance, ids.value(row)));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().take(k).map(|(_, id)| id).collect()
}

pub async fn recall(table: &Table, metric: Metric) -> f64 {
    let mut hits = 0;
    for query in (0..40).map(|at| vector(5_000_000 + at)) {
        let found = nearest_ids(table, metric, query.clone(), 10).await;
        hits += exact_ids(table, metric, &query, 10).await.iter().filter(|id| found.contains(id)).count();
    }
    hits as f64 / 400.0
}

pub async fn delete(table: &Table, gone: impl Fn(i64) -> bool) {
    let mutation = table.begin_mutation().await;
    let request = ScanRequest { projection: Some(vec![0]), with_row_id: true, ..ScanRequest::default() };
    let mut ids = Vec::new();
    for batch in read(table, request).await {
        let keys = batch.column(0).as_primitive::<Int64Type>();
        let rows = batch.column(1).as_primitive::<arrow_array::types::UInt64Type>();
        ids.extend((0..batch.num_rows()).filter(|row| gone(keys.value(*row))).map(|row| rows.value(row)));
    }
    mutation.delete(ids).await.unwrap();
}

#[tokio::test]
async fn small_tables_give_the_exact_answer_wherever_rows_lie() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = table(dir.path(), 2000).await;
    for metric in Metric::ALL {
        assert_eq!(nearest_ids(&table, metric, vector(1), 3).await, [] as [i64; 0]);
    }
    table.insert(vec![rows(0..300)]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(300..500)]).await.unwrap();
    delete(&table, |id| id % 7 == 3).await;
    for metric in Metric::ALL {
        for query in (0..10).map(|at| vector(9_000 + at)) {
            let found = nearest_ids(&table, metric, query.clone(), 10).await;
            assert_eq!(found, exact_ids(&table, metric, &query, 10).await, "{metric:?}");
        }
        assert_eq!(
            nearest_ids(&table, metric, vector(1), 9999).await.len(),
            exact_ids(&table, metric, &vector(1), 9999).await.len()
        );
    }
    db.flush().await.unwrap();
    assert_eq!(
        nearest_ids(&table, Metric::L2, vector(2), 10).await,
        exact_ids(&table, Metric::L2, &vector(2), 10).await
    );
}

#[tokio::test]
async fn a_large_table_keeps_its_recall_under_churn_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = table(dir.path(), 1000).await;
    table.insert(vec![rows(0..4000)]).await.unwrap();
    db.flush().await.unwrap();
    assert!(recall(&table, Metric::Cosine).await >= 0.95);
    let path = table.pin().search_path(1, Metric::Cosine).await.unwrap();
    assert!(matches!(path, SearchPath::Index(stats) if stats.graph_rows == 3960), "{path:?}");
    // A tenth deleted, a tenth replaced, a tenth added.
    delete(&table, |id| id % 10 == 1).await;
    delete(&table, |id| id % 10 == 2).await;
    table.insert(vec![rows((0..4000).filter(|id| id % 10 == 2).map(|id| id + 10_000))]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(20_000..20_400)]).await.unwrap();
    assert!(recall(&table, Metric::Cosine).await >= 0.95);
    table.settle_indexes().await.unwrap();
    assert!(recall(&table, Metric::Cosine).await >= 0.95);
    delete(&table, |id| id % 10 > 5).await;
    // The first tells the index of the deletions, the second makes the graph anew.
    table.settle_indexes().await.unwrap();
    table.settle_indexes().await.unwrap();
    let path = table.pin().search_path(1, Metric::Cosine).await.unwrap();
    assert!(matches!(path, SearchPath::Index(stats) if stats.dead_rows == 0), "{path:?}");
    assert!(recall(&table, Metric::Cosine).await >= 0.95);
    let (_copy, reopened) = crash(dir.path()).await;
    let table = reopened.table("public", "t").unwrap();
    assert!(recall(&table, Metric::Cosine).await >= 0.95);
}

#[tokio::test]
async fn a_statement_sees_its_snapshot_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = table(dir.path(), 500).await;
    table.insert(vec![rows(1..1000)]).await.unwrap();
    let request = |id| NearestRequest::new(1, Metric::L2, vector(id), 1);
    let exact = async |pinned: &hypr_storage::PinnedTable, id| {
        let found = pinned.nearest(&request(id)).await.unwrap();
        ids_of(&pinned.take_rows(&row_ids(&found), &[0]).await.unwrap())
    };
    assert_eq!(exact(&table.pin(), 77).await, [77]);
    let before = table.pin();
    delete(&table, |id| id == 77).await;
    table.insert(vec![rows([5000])]).await.unwrap();
    assert_eq!(exact(&before, 77).await, [77], "the old snapshot still has the row");
    assert_ne!(exact(&before, 5000).await, [5000], "and not the new one");
    assert_ne!(exact(&table.pin(), 77).await, [77]);
    assert_eq!(exact(&table.pin(), 5000).await, [5000]);
    db.flush().await.unwrap();
    table.settle_indexes().await.unwrap();
    assert_ne!(exact(&table.pin(), 77).await, [77]);
    assert_eq!(exact(&table.pin(), 5000).await, [5000]);
}

#[tokio::test]
async fn only_allowed_rows_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let (_db, table) = table(dir.path(), 500).await;
    table.insert(vec![rows(1..2000)]).await.unwrap();
    let all = table.nearest(&NearestRequest::new(1, Metric::L2, vector(3), 2000)).await.unwrap();
    let allowed: Arc<RowSet> = Arc::new(row_ids(&all).into_iter().filter(|id| id % 50 == 0).collect());
    let mut request = NearestRequest::new(1, Metric::L2, vector(3), 8);
    request.allowed = Some(Arc::clone(&allowed));
    let wanted: Vec<Neighbor> = all.iter().filter(|n| allowed.contains(n.row_id)).take(8).copied().collect();
    assert_eq!(table.nearest(&request).await.unwrap(), wanted);
}

#[tokio::test]
async fn bad_questions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_db, table) = table(dir.path(), 500).await;
    let refused = async |column, query: Vec<f32>| {
        let error = table.nearest(&NearestRequest::new(column, Metric::Cosine, query, 1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.message().to_owned()
    };
    assert!(refused(1, vec![1.0]).await.contains("16 dimensions, the query has 1"));
    assert!(refused(1, vec![0.0; DIMS]).await.contains("length 0"));
    assert!(refused(0, vec![1.0; DIMS]).await.contains("column \"id\" is BIGINT"));
    assert!(refused(9, vec![1.0; DIMS]).await.contains("2 columns"));
    let missing = table.pin().take_rows(&[12345], &[0]).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn without_memory_every_row_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let db =
        Database::open(dir.path(), StorageOptions { vector_index_memory_bytes: 1000, ..options(10) }).await.unwrap();
    db.create_table(definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..700)]).await.unwrap();
    assert_eq!(table.pin().search_path(1, Metric::L2).await.unwrap(), SearchPath::Building);
    assert_eq!(
        nearest_ids(&table, Metric::L2, vector(2), 10).await,
        exact_ids(&table, Metric::L2, &vector(2), 10).await
    );
}
