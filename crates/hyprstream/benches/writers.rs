//! Durable single-row inserts in this process: the rate of 1, 8 and 32 writers together, each row a statement
//! of its own, acknowledged after its sync.
//!
//! `cargo bench -p hyprstream --bench writers -- [SECONDS]` prints one JSON object; `bench/rates.py` sets it beside
//! SQLite and DuckDB. The directory is made under `TMPDIR`: point that at the disk to measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use hypr_common::principal::Principal;
use hypr_inference::{EngineOptions, engine};
use hypr_query::{Outcome, QueryEngine, QueryOptions, Session};
use hypr_storage::{Database, StorageOptions};

const WRITERS: [usize; 3] = [1, 8, 32];

fn row(id: i64) -> RecordBatch {
    let columns: [(&str, ArrayRef); 4] = [
        ("$1", Arc::new(Int64Array::from(vec![id]))),
        ("$2", Arc::new(StringArray::from(vec![format!("sensor-{}", id % 1000)]))),
        ("$3", Arc::new(Float64Array::from(vec![id as f64 * 0.25]))),
        ("$4", Arc::new(StringArray::from(vec![format!("row {id}")]))),
    ];
    RecordBatch::try_from_iter(columns).expect("the columns have one row each")
}

async fn rate(session: &Session, writers: usize, seconds: f64, next: &Arc<AtomicI64>) -> f64 {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let rows = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (session, next, rows) = (session.clone(), Arc::clone(next), Arc::clone(&rows));
            tokio::spawn(async move {
                let insert = session.prepare("INSERT INTO t VALUES (?, ?, ?, ?)").await.expect("the table exists");
                while Instant::now() < until {
                    let row = row(next.fetch_add(1, Ordering::Relaxed));
                    let outcome = session.execute_prepared(&insert, &row).await.expect("the key is new");
                    assert!(matches!(outcome, Outcome::Affected(1)), "one row is stored");
                    rows.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a writer does not panic");
    }
    rows.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3.0);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Database::open(dir.path(), StorageOptions::default()).await.expect("an empty directory opens");
    let (inference, _service) = engine(database.models(), EngineOptions::default());
    let engine = QueryEngine::new(database.clone(), Arc::new(inference), QueryOptions::default()).expect("an engine");
    let session = engine.session(Principal::anonymous_local());
    let create = "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)";
    session.execute(create).await.expect("the table is new");
    let next = Arc::new(AtomicI64::new(0));
    let mut rates = Vec::new();
    for writers in WRITERS {
        let rate = rate(&session, writers, seconds, &next).await;
        rates.push(format!("\"{writers}\": {rate:.0}"));
    }
    println!("{{\"rows_per_s_by_writers\": {{{}}}}}", rates.join(", "));
    database.close().await.expect("the database closes");
}
