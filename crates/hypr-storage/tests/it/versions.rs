//! Versions: pinned reads, tags, retention and restore, and loads that bypass the log.

use std::sync::Arc;
use std::time::Duration;

use datafusion::prelude::SessionContext;
use hypr_common::{Error, ErrorKind};
use hypr_storage::{
    Database, FlushHook, FlushStep, ScanRequest, StorageOptions, TableAtVersion, TagExists, VersionName,
};
use parking_lot::Mutex;
use tempfile::tempdir;

use crate::support::{
    collect_rows, columns, contents, crash, definition, delete, expected, keyed, manual, open, replace, rows,
};

async fn pinned(table: &TableAtVersion) -> Vec<(i64, String)> {
    let context = SessionContext::new();
    let plan = table.scan(&context.state(), ScanRequest::default()).await.unwrap();
    collect_rows(datafusion::physical_plan::collect(plan, context.task_ctx()).await.unwrap())
}

#[tokio::test]
async fn a_version_shows_what_was_acknowledged_and_nothing_later() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    let first = db.current_version(&table).await.unwrap();
    replace(&table, &[1], "b").await;
    delete(&table, &[0]).await;
    table.insert(vec![rows(10..12, "a")]).await.unwrap();
    let then = db.at_version(&table, &VersionName::Number(first)).await.unwrap();
    assert_eq!(pinned(&then).await, expected(0..5, "a"));
    let now = db.at_version(&table, &VersionName::AsOf(i64::MAX)).await.unwrap();
    assert_eq!(pinned(&now).await, contents(&table).await, "the current version holds everything acknowledged");
    let listed = db.versions(&table).await.unwrap();
    assert_eq!(listed.iter().map(|version| version.rows).collect::<Vec<_>>(), [5, 6]);
    let error = db.at_version(&table, &VersionName::Number(99)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("table_versions('t')"), "{error}");
    let error = db.at_version(&table, &VersionName::AsOf(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_time_names_the_version_that_was_current_then() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    for id in 0..3 {
        table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
        db.current_version(&table).await.unwrap();
    }
    let listed = db.versions(&table).await.unwrap();
    for version in &listed {
        let at = db.at_version(&table, &VersionName::AsOf(version.committed_us)).await.unwrap();
        assert_eq!(at.version(), version.version);
        let before = db.at_version(&table, &VersionName::AsOf(version.committed_us - 1)).await;
        assert!(before.map_or(0, |at| at.version()) < version.version);
    }
}

#[tokio::test]
async fn a_tag_holds_everything_acknowledged_survives_a_crash_and_can_be_moved() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    let empty = db.create_tag(&table, "empty", None, TagExists::Fail).await.unwrap();
    table.insert(vec![rows(0..3, "a")]).await.unwrap();
    let tagged = db.create_tag(&table, "v1.0", None, TagExists::Fail).await.unwrap();
    assert!(tagged > empty);
    delete(&table, &[0, 1, 2]).await;
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    let of = |tag: &str| VersionName::Tag(tag.to_owned());
    assert_eq!(pinned(&db.at_version(&table, &of("v1.0")).await.unwrap()).await, expected(0..3, "a"));
    assert_eq!(pinned(&db.at_version(&table, &of("empty")).await.unwrap()).await, []);
    assert_eq!(contents(&table).await, []);
    let error = db.create_tag(&table, "v1.0", None, TagExists::Fail).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let kept = db.create_tag(&table, "v1.0", None, TagExists::Keep).await.unwrap();
    assert_eq!(kept, tagged);
    let moved = db.create_tag(&table, "v1.0", Some(&VersionName::Number(empty)), TagExists::Move).await.unwrap();
    assert_eq!(moved, empty);
    assert!(db.drop_tag(&table, "v1.0", false).await.unwrap());
    let error = db.drop_tag(&table, "v1.0", false).await.unwrap_err();
    assert!(error.message().contains("it has empty"), "{error}");
    assert!(!db.drop_tag(&table, "v1.0", true).await.unwrap());
    let error = db.create_tag(&table, "no name", None, TagExists::Fail).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn clean_up_keeps_tags_and_the_retention_also_after_a_restart() {
    let dir = tempdir().unwrap();
    let brief = StorageOptions { compaction_fan_in: 4, version_retention: Duration::ZERO, ..manual() };
    let db = Database::open(dir.path(), brief.clone()).await.unwrap();
    let mut kept = definition("kept", columns(), &[]);
    kept.options.insert("version_retention".to_owned(), "7 days".to_owned());
    db.create_table(kept, false).await.unwrap();
    db.create_table(definition("brief", columns(), &[]), false).await.unwrap();
    for name in ["kept", "brief"] {
        let table = db.table("public", name).unwrap();
        table.insert(vec![rows(0..1, "a")]).await.unwrap();
    }
    let table = db.table("public", "brief").unwrap();
    let tagged = db.create_tag(&table, "first", None, TagExists::Fail).await.unwrap();
    db.close().await.unwrap();
    drop((db, table));
    let db = Database::open(dir.path(), brief).await.unwrap();
    for name in ["kept", "brief"] {
        let table = db.table("public", name).unwrap();
        for id in 1..9 {
            table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
            db.flush().await.unwrap();
        }
        let versions: Vec<u64> = db.versions(&table).await.unwrap().iter().map(|version| version.version).collect();
        match name {
            "kept" => assert!(versions.len() > 8 && versions[0] == 1, "{versions:?}"),
            _ => assert!(versions.len() < 6 && versions[0] == tagged, "{versions:?}"),
        }
    }
    let table = db.table("public", "brief").unwrap();
    let then = db.at_version(&table, &VersionName::Tag("first".to_owned())).await.unwrap();
    assert_eq!(pinned(&then).await, expected(0..1, "a"), "the files of a tagged version stay");
    let mut wrong = definition("wrong", columns(), &[]);
    wrong.options.insert("version_retention".to_owned(), "soon".to_owned());
    assert_eq!(db.create_table(wrong, false).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_restore_is_one_commit_that_survives_a_crash_and_can_itself_be_undone() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..6, "a")]).await.unwrap();
    let before = db.current_version(&table).await.unwrap();
    replace(&table, &[1, 2], "b").await;
    delete(&table, &[0]).await;
    table.insert(vec![rows(10..13, "a")]).await.unwrap();
    let later = contents(&table).await;
    let undo = db.current_version(&table).await.unwrap();
    // Not flushed when the restore begins: they go with it.
    table.insert(vec![rows(20..21, "a")]).await.unwrap();
    let restored = db.restore(&table, &VersionName::Number(before)).await.unwrap();
    assert_eq!((restored.removed, restored.added), (6, 3));
    assert_eq!(contents(&table).await, expected(0..6, "a"));
    let (_copy, again) = crash(dir.path()).await;
    let reopened = again.table("public", "t").unwrap();
    assert_eq!(contents(&reopened).await, expected(0..6, "a"));
    // Keys follow: those that came back are taken, those that went are free.
    let taken = reopened.insert(vec![rows(0..1, "x")]).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    reopened.insert(vec![rows(10..11, "x")]).await.unwrap();
    // Rows that came back have new ids: to restore the same version again is to exchange those, and only those.
    let again = db.restore(&table, &VersionName::Number(before)).await.unwrap();
    assert_eq!((again.removed, again.added), (3, 3));
    assert_eq!(contents(&table).await, expected(0..6, "a"));
    db.restore(&table, &VersionName::Number(undo)).await.unwrap();
    assert_eq!(contents(&table).await, later);
}

fn batches(from: i64, count: i64, width: usize) -> Vec<hypr_common::Result<arrow_array::RecordBatch>> {
    let prefix = "x".repeat(width);
    (0..count).map(|at| Ok(rows(from + at * 1000..from + (at + 1) * 1000, &prefix))).collect()
}

/// Text that makes a thousand rows about 6 MB, so that twelve batches are more than goes through the log.
const WIDE: usize = 6_000;

#[tokio::test]
async fn a_large_load_is_all_or_nothing() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(-5..0, "a")]).await.unwrap();
    // A duplicate in the last batch, a bad stream, and a key that the table has.
    let mut twice = batches(0, 12, WIDE);
    twice.push(Ok(rows(7..8, "y")));
    let error = db.load(&table, futures::stream::iter(twice)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert!(error.message().contains("holds key (id) = (7) twice"), "{error}");
    let mut known = batches(0, 12, WIDE);
    known.push(Ok(rows(-3..-2, "y")));
    let error = db.load(&table, futures::stream::iter(known)).await.unwrap_err();
    assert!(error.message().contains("a row with key (id) = (-3) exists"), "{error}");
    let mut broken = batches(0, 12, WIDE);
    broken.push(Err(Error::invalid("line 7 is no row")));
    let error = db.load(&table, futures::stream::iter(broken)).await.unwrap_err();
    assert_eq!(error.message(), "line 7 is no row");
    assert_eq!(contents(&table).await, expected(-5..0, "a"), "nothing of a failed load is there");
    let stored = db.load(&table, futures::stream::iter(batches(0, 12, WIDE))).await.unwrap();
    assert_eq!(stored, 12_000, "the keys of the failed loads are free again");
    let segments: u64 =
        std::fs::read_dir(dir.path().join("wal")).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(segments < 1 << 20, "{segments} bytes of log after a load of 72 MB");
    let error = table.insert(vec![rows(11_999..12_000, "b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    assert_eq!(contents(&table).await.len(), 12_005);
    table.insert(vec![rows(50_000..50_001, "b")]).await.unwrap();
    assert_eq!(contents(&table).await.len(), 12_006, "new rows do not get ids of loaded ones");
}

#[derive(Debug, Default)]
struct StopAt(Mutex<Option<FlushStep>>);

impl FlushHook for StopAt {
    fn reached(&self, step: FlushStep) -> hypr_common::Result<()> {
        match *self.0.lock() {
            Some(at) if at == step => Err(Error::internal(format!("stopped at {step:?}"))),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_crash_in_a_load_leaves_all_of_it_or_nothing() {
    for (step, rows_after) in [(FlushStep::Written, 5), (FlushStep::Committed, 12_005)] {
        let dir = tempdir().unwrap();
        let hook = Arc::new(StopAt::default());
        let options = StorageOptions { flush_hook: Some(hook.clone()), ..manual() };
        let db = Database::open(dir.path(), options).await.unwrap();
        db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
        let table = db.table("public", "t").unwrap();
        table.insert(vec![rows(-5..0, "a")]).await.unwrap();
        *hook.0.lock() = Some(step);
        db.load(&table, futures::stream::iter(batches(0, 12, WIDE))).await.unwrap_err();
        let (copy, reopened) = crash(dir.path()).await;
        let table = reopened.table("public", "t").unwrap();
        assert_eq!(contents(&table).await.len(), rows_after, "after a crash at {step:?}");
        reopened.close().await.unwrap();
        drop((reopened, table));
        let reopened = open(copy.path()).await;
        assert_eq!(contents(&reopened.table("public", "t").unwrap()).await.len(), rows_after);
    }
}

#[tokio::test]
async fn a_large_restore_bypasses_the_log_and_is_one_version() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    db.load(&table, futures::stream::iter(batches(0, 12, WIDE))).await.unwrap();
    let before = db.current_version(&table).await.unwrap();
    let all: Vec<i64> = (0..12_000).collect();
    delete(&table, &all).await;
    table.insert(vec![rows(5..8, "new")]).await.unwrap();
    let restored = db.restore(&table, &VersionName::Number(before)).await.unwrap();
    assert_eq!((restored.removed, restored.added), (3, 12_000));
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    let found = contents(&table).await;
    assert_eq!(found.len(), 12_000);
    assert!(found.iter().all(|(_, body)| body.starts_with("xxx")));
    assert_eq!(table.insert(vec![rows(5..6, "b")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
}
