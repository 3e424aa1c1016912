//! How fast rows become durable: single-row inserts from 1, 8 and 32 tasks, and bulk inserts.
//!
//! `cargo bench -p hypr-storage --bench ingest`; throughput is in rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hypr_storage::{Database, StorageOptions, Table, TableDefinition};
use tokio::runtime::Runtime;

const ROWS_PER_TASK: i64 = 64;
const BULK_ROWS: i64 = 100_000;

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("body", DataType::Utf8, true)]))
}

fn rows(from: i64, count: i64) -> RecordBatch {
    let body: ArrayRef = Arc::new(StringArray::from_iter_values((from..from + count).map(|id| format!("row {id}"))));
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + count));
    RecordBatch::try_new(columns(), vec![ids, body]).expect("columns match the schema")
}

async fn table(dir: &std::path::Path, primary_key: Vec<String>) -> (Database, Arc<Table>) {
    let db = Database::open(dir, StorageOptions::default()).await.expect("an empty directory opens");
    let definition = TableDefinition {
        schema_name: "public".to_owned(),
        name: "t".to_owned(),
        columns: columns(),
        primary_key,
        options: BTreeMap::new(),
    };
    db.create_table(definition, false).await.expect("the table is new");
    let table = db.table("public", "t").expect("it was just created");
    (db, table)
}

async fn insert_from(tasks: i64, table: &Arc<Table>, next: &AtomicI64) {
    let writers: Vec<_> = (0..tasks)
        .map(|_| {
            let table = Arc::clone(table);
            let first = next.fetch_add(ROWS_PER_TASK, Ordering::Relaxed);
            tokio::spawn(async move {
                for id in first..first + ROWS_PER_TASK {
                    table.insert(vec![rows(id, 1)]).await.expect("the key is new");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
}

fn ingest(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("durable_inserts");
    group.sample_size(10);
    for (name, key) in [("plain", vec![]), ("keyed", vec!["id".to_owned()])] {
        for tasks in [1, 8, 32] {
            let (_db, table) = runtime.block_on(table(&dir.path().join(format!("{name}-{tasks}")), key.clone()));
            let next = AtomicI64::new(0);
            group.throughput(Throughput::Elements((tasks * ROWS_PER_TASK) as u64));
            group.bench_function(format!("{name}/single_row/{tasks}_tasks"), |bencher| {
                bencher.iter(|| runtime.block_on(insert_from(tasks, &table, &next)));
            });
        }
        let (_db, table) = runtime.block_on(table(&dir.path().join(format!("{name}-bulk")), key));
        let next = AtomicI64::new(0);
        group.throughput(Throughput::Elements(BULK_ROWS as u64));
        group.bench_function(format!("{name}/bulk"), |bencher| {
            bencher.iter(|| {
                let batch = rows(next.fetch_add(BULK_ROWS, Ordering::Relaxed), BULK_ROWS);
                runtime.block_on(table.insert(vec![batch])).expect("the keys are new")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ingest);
criterion_main!(benches);
