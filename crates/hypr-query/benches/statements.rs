//! What one small statement costs in this process, by its kind: microseconds to prepare it, and to run it when it is
//! prepared and its rows are read.
//!
//! `cargo bench -p hypr-query --bench statements -- [SECONDS]` prints one JSON object. The rows are few, so this is the
//! cost of parsing, planning and starting, which every statement of a busy server pays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use hypr_common::principal::Principal;
use hypr_inference::{EngineOptions, engine};
use hypr_query::{Outcome, QueryEngine, QueryOptions, Session};
use hypr_storage::{Database, StorageOptions};

const ROWS: i64 = 20_000;
const DIMS: i32 = 64;

type Row = fn(i64) -> Vec<(&'static str, ArrayRef)>;

/// A name, the statement, and the parameters of its n-th run.
const STATEMENTS: [(&str, &str, Row); 6] = [
    ("constant", "SELECT 1", |_| Vec::new()),
    ("point select", "SELECT body FROM items WHERE id = ?", |run| vec![("$1", id(run % ROWS))]),
    ("count", "SELECT count(*) FROM items", |_| Vec::new()),
    ("nearest", "SELECT id FROM items ORDER BY l2_distance(v, ?) LIMIT 10", |run| vec![("$1", vector(run))]),
    ("nearest of some", "SELECT id FROM items WHERE id % 2 = 0 ORDER BY l2_distance(v, ?) LIMIT 10", |run| {
        vec![("$1", vector(run))]
    }),
    ("insert", "INSERT INTO items VALUES (?, ?, ?)", |run| {
        vec![
            ("$1", id(ROWS + run)),
            ("$2", Arc::new(StringArray::from(vec![format!("row {run}")]))),
            ("$3", vector(run)),
        ]
    }),
];

fn id(id: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![id]))
}

/// Pseudo-random, the same in every run (Knuth's multiplicative hash).
fn vector(seed: i64) -> ArrayRef {
    let value = |at: i64| ((seed * 64 + at).wrapping_mul(2_654_435_761) as u32) as f32 / u32::MAX as f32;
    let values = (0..i64::from(DIMS)).map(|at| Some(value(at)));
    Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>([Some(values)], DIMS))
}

fn batch(columns: Vec<(&'static str, ArrayRef)>) -> RecordBatch {
    match columns.is_empty() {
        true => RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty())),
        false => RecordBatch::try_from_iter(columns).expect("the columns have one row each"),
    }
}

async fn run(session: &Session, sql: &str, row: Row, seconds: f64, first: &mut i64) -> (f64, f64) {
    let until = |seconds| Instant::now() + Duration::from_secs_f64(seconds);
    let (end, start, mut prepared) = (until(seconds / 2.0), Instant::now(), 0);
    while Instant::now() < end {
        session.prepare(sql).await.expect("the statement is right");
        prepared += 1;
    }
    let prepare = start.elapsed().as_secs_f64() * 1e6 / f64::from(prepared);
    let statement = session.prepare(sql).await.expect("the statement is right");
    let (end, start, before) = (until(seconds), Instant::now(), *first);
    while Instant::now() < end {
        match session.execute_prepared(&statement, &batch(row(*first))).await.expect("the statement runs") {
            Outcome::Rows(rows) => assert!(!rows.try_collect::<Vec<_>>().await.expect("rows come").is_empty()),
            Outcome::Affected(rows) => assert_eq!(rows, 1),
        }
        *first += 1;
    }
    (prepare, start.elapsed().as_secs_f64() * 1e6 / (*first - before) as f64)
}

async fn fill(session: &Session) {
    session
        .execute(&format!("CREATE TABLE items (id BIGINT PRIMARY KEY, body TEXT, v VECTOR({DIMS}))"))
        .await
        .expect("the table is new");
    let insert = session.prepare("INSERT INTO items VALUES (?, ?, ?)").await.expect("the table exists");
    let rows: Vec<_> = (0..ROWS).map(|at| batch(STATEMENTS[5].2(at - ROWS))).collect();
    let rows = arrow_select::concat::concat_batches(&rows[0].schema(), &rows).expect("the rows are alike");
    session.execute_prepared(&insert, &rows).await.expect("the keys are new");
    session.execute("CREATE INDEX ON items USING HNSW (v) WITH (metric = 'l2')").await.expect("the index is new");
    let explain =
        format!("EXPLAIN {}", STATEMENTS[3].1.replace('?', &format!("make_array({})", "0.5,".repeat(63) + "0.5")));
    session.execute(&explain).await.expect("the search is planned");
    // The graph is built in the background.
    tokio::time::sleep(Duration::from_secs(10)).await;
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2.0);
    let only = std::env::var("ONLY").ok();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Database::open(dir.path(), StorageOptions::default()).await.expect("an empty directory opens");
    let (inference, _service) = engine(database.models(), EngineOptions::default());
    let engine = QueryEngine::new(database.clone(), Arc::new(inference), QueryOptions::default()).expect("an engine");
    let session = engine.session(Principal::anonymous_local());
    fill(&session).await;
    let mut printed = Vec::new();
    let mut runs = 0;
    for (name, sql, row) in STATEMENTS {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let (prepare, execute) = run(&session, sql, row, seconds, &mut runs).await;
        printed.push(format!("\"{name}\": {{\"prepare_us\": {prepare:.0}, \"run_us\": {execute:.0}}}"));
    }
    println!("{{{}}}", printed.join(", "));
    database.close().await.expect("the database closes");
}
