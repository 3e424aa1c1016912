//! Flushing, cutting the log, compaction, and a crash at each step between.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hypr_common::clock::ManualClock;
use hypr_common::{Error, Result};
use hypr_storage::{Database, FlushHook, FlushStep, StorageOptions};
use parking_lot::Mutex;
use tempfile::tempdir;

use crate::support::{
    columns, contents, copy_of, crash, definition, delete, expected, keyed, manual, open, replace, rows,
};

fn segments(dir: &Path) -> usize {
    fs::read_dir(dir.join("wal")).unwrap().count()
}

/// Stops flushes at one step, as a crash would.
#[derive(Debug)]
struct StopAt(Mutex<Option<FlushStep>>);

impl FlushHook for StopAt {
    fn reached(&self, step: FlushStep) -> Result<()> {
        if *self.0.lock() == Some(step) {
            return Err(Error::internal(format!("stopped at {step:?}")));
        }
        Ok(())
    }
}

const STEPS: [FlushStep; 6] = [
    FlushStep::Frozen,
    FlushStep::Written,
    FlushStep::Committed,
    FlushStep::Installed,
    FlushStep::Checkpointed,
    FlushStep::Cut,
];

#[tokio::test]
async fn a_crash_at_any_step_of_a_flush_neither_loses_nor_doubles_rows() {
    for first_flush in [true, false] {
        for step in STEPS {
            let dir = tempdir().unwrap();
            let hook = Arc::new(StopAt(Mutex::new(None)));
            let options = StorageOptions { flush_hook: Some(hook.clone()), segment_bytes: 512, ..manual() };
            let db = Database::open(dir.path(), options).await.unwrap();
            db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
            let table = db.table("public", "t").unwrap();
            if !first_flush {
                table.insert(vec![rows(0..10, "a")]).await.unwrap();
                db.flush().await.unwrap();
            }
            table.insert(vec![rows(10..20, "a")]).await.unwrap();
            if !first_flush {
                delete(&table, &[0, 10]).await;
                replace(&table, &[1, 11], "b").await;
            }
            let wanted = contents(&table).await;
            *hook.0.lock() = Some(step);
            db.flush().await.unwrap_err();
            assert_eq!(contents(&table).await, wanted, "readers see no step: {step:?}");

            let (copy, reopened) = crash(dir.path()).await;
            let again = reopened.table("public", "t").unwrap();
            assert_eq!(contents(&again).await, wanted, "after a crash at {step:?}, first flush: {first_flush}");
            reopened.flush().await.unwrap();
            assert_eq!(contents(&again).await, wanted, "flushed after a crash at {step:?}");
            again.insert(vec![rows(100..101, "n")]).await.unwrap();
            drop((reopened, again));
            let reopened = open(copy.path()).await;
            let mut more = wanted.clone();
            more.extend(expected(100..101, "n"));
            more.sort();
            assert_eq!(contents(&reopened.table("public", "t").unwrap()).await, more, "step {step:?}");

            // Without a crash, the next flush picks up where the failed one stopped.
            *hook.0.lock() = None;
            table.insert(vec![rows(200..201, "a")]).await.unwrap();
            db.flush().await.unwrap();
            let mut more = wanted.clone();
            more.extend(expected(200..201, "a"));
            more.sort();
            assert_eq!(contents(&table).await, more, "retried after {step:?}");
            let (_copy, reopened) = crash(dir.path()).await;
            assert_eq!(contents(&reopened.table("public", "t").unwrap()).await, more, "retried after {step:?}");
        }
    }
}

#[tokio::test]
async fn deleting_everything_survives_flush_and_reopen() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..10, "a")]).await.unwrap();
    delete(&table, &(0..10).collect::<Vec<_>>()).await;
    db.flush().await.unwrap();
    table.insert(vec![rows(0..5, "b")]).await.unwrap();
    db.flush().await.unwrap();
    delete(&table, &(0..5).collect::<Vec<_>>()).await;
    db.flush().await.unwrap();
    assert_eq!(contents(&table).await, []);
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..5, "c")]).await.unwrap();
    assert_eq!(contents(&table).await, expected(0..5, "c"), "new rows do not get ids of dead ones");
}

#[tokio::test]
async fn a_flush_cuts_the_log() {
    let dir = tempdir().unwrap();
    let options = StorageOptions { segment_bytes: 4096, ..manual() };
    let db = Database::open(dir.path(), options).await.unwrap();
    for name in ["t", "other"] {
        db.create_table(definition(name, columns(), &[]), false).await.unwrap();
    }
    let table = db.table("public", "t").unwrap();
    for id in 0..100 {
        table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
    }
    assert!(segments(dir.path()) > 5);
    db.flush().await.unwrap();
    assert_eq!(segments(dir.path()), 1);
    let (_copy, reopened) = crash(dir.path()).await;
    assert_eq!(contents(&reopened.table("public", "t").unwrap()).await, expected(0..100, "a"));
    assert!(reopened.table("public", "other").is_some(), "the catalog no longer needs the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_are_flushed_without_being_asked() {
    let dir = tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let options = StorageOptions { clock: clock.clone(), flush_age: Duration::from_millis(40), ..Default::default() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..10, "a")]).await.unwrap();
    let versions = || fs::read_dir(dir.path().join("tables")).unwrap().count();
    assert_eq!(versions(), 0);
    clock.advance_us(50_000);
    while versions() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(contents(&table).await, expected(0..10, "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_wait_for_the_flush_and_readers_never_see_a_gap() {
    let dir = tempdir().unwrap();
    let options =
        StorageOptions { flush_bytes: 4 << 10, tail_limit_bytes: 8 << 10, compaction_fan_in: 4, ..Default::default() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (table, acknowledged) = (Arc::clone(&table), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                for i in 0..25 {
                    let start = writer * 1000 + i * 10;
                    table.insert(vec![rows(start..start + 10, "a")]).await.unwrap();
                    acknowledged.fetch_add(10, Ordering::SeqCst);
                }
            })
        })
        .collect();
    loop {
        let least = acknowledged.load(Ordering::SeqCst);
        let seen = contents(&table).await;
        assert!(seen.len() >= least, "{} of {least} acknowledged rows", seen.len());
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "a row is doubled");
        if least == 1000 {
            break;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    db.close().await.unwrap();
    assert_eq!(contents(&table).await.len(), 1000);
}

#[tokio::test]
async fn compaction_bounds_the_number_of_fragments() {
    let dir = tempdir().unwrap();
    let options = StorageOptions { compaction_fan_in: 4, version_retention: Duration::ZERO, ..manual() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    for id in 0..40 {
        table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
        if id % 5 == 4 {
            delete(&table, &[id - 1]).await;
        }
        db.flush().await.unwrap();
    }
    let wanted = expected((0..40).filter(|id| id % 5 != 3), "a");
    assert_eq!(contents(&table).await, wanted);
    let dataset = fs::read_dir(dir.path().join("tables")).unwrap().next().unwrap().unwrap().path();
    let files = fs::read_dir(dataset.join("data")).unwrap().count();
    assert!(files <= 16, "{files} data files after 40 flushes");
    let (_copy, reopened) = crash(dir.path()).await;
    let table = reopened.table("public", "t").unwrap();
    assert_eq!(contents(&table).await, wanted, "a compaction carries the log position on");
}

#[tokio::test]
async fn the_copy_of_a_running_database_opens() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..10, "a")]).await.unwrap();
    let copy = copy_of(dir.path());
    std::mem::forget((db, table));
    let db = open(copy.path()).await;
    assert_eq!(contents(&db.table("public", "t").unwrap()).await, expected(0..10, "a"));
}
