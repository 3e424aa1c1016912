//! Columns that are kept in memory: the same rows, and no more bytes than are allowed.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use hypr_storage::{Database, ScanRequest, StorageOptions, Table};
use tempfile::tempdir;

use crate::support::{
    collect_rows, columns, contents, definition, delete, expected, manual, read, replace, row_ids, rows,
};

/// Three fragments of a thousand rows, of which some are deleted and some replaced.
async fn filled(dir: &Path, column_cache_bytes: usize) -> (Database, Arc<Table>) {
    let options = StorageOptions { column_cache_bytes, compaction_fan_in: 100, ..manual() };
    let db = Database::open(dir, options).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    for from in [0, 1000, 2000] {
        table.insert(vec![rows(from..from + 1000, "a")]).await.unwrap();
        db.flush().await.unwrap();
    }
    contents(&table).await;
    delete(&table, &[0, 999, 1500]).await;
    replace(&table, &[5, 2500], "b").await;
    db.flush().await.unwrap();
    delete(&table, &[7]).await;
    (db, table)
}

fn wanted() -> Vec<(i64, String)> {
    let gone = [0, 999, 1500, 7];
    let body = |id| if [5, 2500].contains(&id) { format!("b{id}") } else { format!("a{id}") };
    (0..3000).filter(|id| !gone.contains(id)).map(|id| (id, body(id))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_same_whatever_is_kept() {
    for bytes in [0, 20_000, 100_000, 1 << 30] {
        let dir = tempdir().unwrap();
        let (db, table) = filled(dir.path(), bytes).await;
        for _ in 0..3 {
            assert_eq!(contents(&table).await, wanted(), "{bytes}");
            let few = ScanRequest { limit: Some(10), ..Default::default() };
            let few = collect_rows(read(&table, few).await);
            // Each partition gives enough.
            assert!((10..100).contains(&few.len()), "{bytes}");
            assert!(few.iter().all(|row| wanted().contains(row)), "{bytes}");
        }
        let kept = db.column_cache_bytes();
        assert!(kept <= bytes, "{kept} of {bytes}");
        // Two columns and the row id.
        assert_eq!(kept > 3000 * (8 + 8 + 8), bytes == 1 << 30, "{kept} of {bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_asked_for_again_and_again_come_from_memory() {
    let dir = tempdir().unwrap();
    let (db, _) = filled(dir.path(), 1 << 30).await;
    db.close().await.unwrap();
    drop(db);
    let db = Database::open(dir.path(), StorageOptions { compaction_fan_in: 100, ..manual() }).await.unwrap();
    let table = db.table("public", "t").unwrap();
    let ids = [2500, 1, 5, 1999, 3];
    let mut row_ids_of = Vec::new();
    for id in ids {
        row_ids_of.extend(row_ids(&table, &[id]).await);
    }
    let before = db.column_cache_bytes();
    for asked in 0..40 {
        let batch = table.pin().take_rows(&row_ids_of, &[1, 0]).await.unwrap();
        let found: Vec<_> = batch.column(1).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(found, ids);
        let bodies: Vec<_> = batch.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(bodies, ["b2500", "a1", "b5", "a1999", "a3"]);
        let kept = db.column_cache_bytes();
        assert!(asked != 0 || kept == before, "a single question is no reason to read whole columns");
        assert!(asked != 39 || kept > before, "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_longest_ago_makes_room() {
    let dir = tempdir().unwrap();
    let limit = 60_000;
    let db = Database::open(dir.path(), StorageOptions { column_cache_bytes: limit, ..manual() }).await.unwrap();
    let mut kept = Vec::new();
    for number in 0..8 {
        let name = format!("t{number}");
        db.create_table(definition(&name, columns(), &["id"]), false).await.unwrap();
        db.table("public", &name).unwrap().insert(vec![rows(0..500, &name)]).await.unwrap();
        db.flush().await.unwrap();
    }
    for number in (0..8).chain(0..8) {
        let name = format!("t{number}");
        let found = contents(&db.table("public", &name).unwrap()).await;
        assert_eq!(found, expected(0..500, &name));
        kept.push(db.column_cache_bytes());
    }
    assert!(kept.iter().all(|kept| *kept <= limit), "{kept:?}");
    assert!(kept[3..].iter().all(|kept| *kept > limit / 2), "{kept:?}");
}
