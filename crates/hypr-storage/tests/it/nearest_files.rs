//! Nearest rows by indexes on disk: found, exact, right about what a snapshot sees, and replaceable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypr_storage::ann::{Effort, FileKind, FileParams, IndexMethod, Metric, RowSet, SearchPath, VectorIndexDefinition};
use hypr_storage::{Database, NearestRequest, ScanRequest, StorageOptions, Table, check};

use crate::nearest::{columns, delete, exact_ids, ids_of, nearest_ids, recall, row_ids, rows, vector};
use crate::support::{copy_of, definition, read};

const ROWS: i64 = 1600;

/// No memory for an index of more than a few rows, and upkeep when the test says so.
fn options() -> StorageOptions {
    StorageOptions {
        background_flush: false,
        background_index: false,
        vector_index_rows: 400,
        vector_index_memory_bytes: 10_000,
        compaction_fan_in: 3,
        ..StorageOptions::default()
    }
}

async fn open(dir: &Path) -> (Database, Arc<Table>) {
    let db = Database::open(dir, options()).await.unwrap();
    db.create_table(definition("t", columns(), &[]), true).await.unwrap();
    let table = db.table("public", "t").unwrap();
    (db, table)
}

/// Codes that are learnt soon, also by code that is not optimised.
const SMALL: FileParams = FileParams {
    kind: Some(FileKind::IvfPq),
    num_partitions: Some(12),
    num_sub_vectors: Some(8),
    num_bits: Some(4),
    m: None,
    ef_construction: None,
    ef_search: None,
    nprobes: None,
    refine_factor: None,
};

/// A table with an index on disk.
async fn indexed(dir: &Path) -> (Database, Arc<Table>) {
    let (db, table) = open(dir).await;
    table.insert(vec![rows(0..ROWS)]).await.unwrap();
    db.flush().await.unwrap();
    declare(&db, SMALL).await;
    assert_eq!(path(&table, Metric::L2).await, SearchPath::Building);
    db.settle_vector_indexes().await.unwrap();
    (db, table)
}

async fn path(table: &Table, metric: Metric) -> SearchPath {
    table.pin().search_path(1, metric).await.unwrap()
}

/// Rows in the index and rows that are newer.
async fn counts(table: &Table, metric: Metric) -> (usize, usize) {
    match path(table, metric).await {
        SearchPath::Files(stats) => (stats.indexed_rows, stats.new_rows),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_without_memory_for_a_graph_is_searched_on_disk_and_nearly_all_neighbours_are_found() {
    for metric in [Metric::L2, Metric::Cosine] {
        let dir = tempfile::tempdir().unwrap();
        let (db, table) = open(dir.path()).await;
        table.insert(vec![rows(0..ROWS)]).await.unwrap();
        db.flush().await.unwrap();
        assert_eq!(path(&table, metric).await, SearchPath::Building);
        db.settle_vector_indexes().await.unwrap();
        assert_eq!(counts(&table, metric).await, (ROWS as usize, 0));
        assert!(path(&table, metric).await.to_string().contains("index: ivf_pq, rows=1600"));
        let found = recall(&table, metric).await;
        assert!(found >= 0.95, "{metric:?}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_can_be_declared_and_tuned_and_is_gone_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = open(dir.path()).await;
    table.insert(vec![rows(0..ROWS)]).await.unwrap();
    db.flush().await.unwrap();
    for kind in [FileKind::IvfRq, FileKind::IvfHnswSq, FileKind::IvfPq] {
        let own = if kind == FileKind::IvfPq { SMALL } else { FileParams::default() };
        declare(&db, FileParams { kind: Some(kind), num_partitions: Some(12), ..own }).await;
        db.settle_vector_indexes().await.unwrap();
        let SearchPath::Files(stats) = path(&table, Metric::L2).await else { panic!("{kind:?} is not there") };
        assert_eq!((stats.kind, stats.indexed_rows), (kind, ROWS as usize));
        let found = recall(&table, Metric::L2).await;
        assert!(found >= 0.95, "{kind:?}: {found}");
        assert!(db.drop_vector_index("public", "i", false).await.unwrap());
        assert_eq!(lance_indexes(&table).await, [] as [String; 0], "{kind:?}");
    }
    // Looking at less finds less; what is looked at is compared exactly.
    declare(&db, FileParams { num_partitions: Some(40), nprobes: Some(1), refine_factor: Some(1), ..SMALL }).await;
    db.settle_vector_indexes().await.unwrap();
    let little = recall(&table, Metric::L2).await;
    let wide = Effort { nprobes: Some(60), refine_factor: Some(100), ..Effort::default() };
    let mut all = 0;
    for at in 0..20 {
        let mut request = NearestRequest::new(1, Metric::L2, vector(5_000_000 + at), 10);
        request.effort = wide;
        let pinned = table.pin();
        let found = pinned.nearest(&request).await.unwrap();
        assert!(found.is_sorted_by(|a, b| a.distance <= b.distance));
        let ids = ids_of(&pinned.take_rows(&row_ids(&found), &[0]).await.unwrap());
        all += usize::from(ids == exact_ids(&table, Metric::L2, &request.query, 10).await);
    }
    assert!(all == 20 && little < 0.95, "{all} of 20 with everything, recall {little} with little");
}

async fn declare(db: &Database, params: FileParams) {
    let index = VectorIndexDefinition {
        schema_name: "public".to_owned(),
        name: "i".to_owned(),
        table: "t".to_owned(),
        column: "v".to_owned(),
        metric: Metric::L2,
        method: IndexMethod::Files(params),
    };
    assert!(db.create_vector_index(index, false).await.unwrap());
}

/// The names of the indexes that the newest Lance version names.
async fn lance_indexes(table: &Table) -> Vec<String> {
    table.lance_indexes().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_and_deleted_rows_count_at_once_and_moved_ones_stay_found() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = indexed(dir.path()).await;
    let before = table.pin();
    let near = vector(50_000);
    table.insert(vec![rows(50_000..50_050)]).await.unwrap();
    assert_eq!(nearest_ids(&table, Metric::L2, near.clone(), 1).await, [50_000]);
    assert_eq!(counts(&table, Metric::L2).await, (ROWS as usize, 50));
    // Deleted in the tail, in Lance, and rows of the index that are in neither any more.
    let gone = |id: i64| id % 5 < 2;
    delete(&table, gone).await;
    for step in 0..4 {
        let query = vector(30 + step);
        let found = nearest_ids(&table, Metric::L2, query.clone(), 20).await;
        assert!(found.iter().all(|id| !gone(*id)), "step {step}: {found:?}");
        let share = recall(&table, Metric::L2).await;
        assert!(share >= 0.95, "step {step}: {share}");
        match step {
            0 => db.flush().await.unwrap(),
            1 => {
                // Small fragments are joined: their rows move.
                for piece in 0..4 {
                    table.insert(vec![rows(60_000 + piece * 50..60_050 + piece * 50)]).await.unwrap();
                    db.flush().await.unwrap();
                }
            }
            _ => db.settle_vector_indexes().await.unwrap(),
        }
    }
    assert_eq!(counts(&table, Metric::L2).await.1, 0, "the index was built anew: more than a third was gone");
    // A reader that began before still sees what it saw.
    let old = before.nearest(&NearestRequest::new(1, Metric::L2, vector(30), 1)).await.unwrap();
    assert_eq!(ids_of(&before.take_rows(&row_ids(&old), &[0]).await.unwrap()), [30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_chosen_before_the_search_and_not_after() {
    let dir = tempfile::tempdir().unwrap();
    let (_db, table) = indexed(dir.path()).await;
    let request = ScanRequest { projection: Some(vec![0]), with_row_id: true, ..ScanRequest::default() };
    let scanned = read(&table, request).await;
    let keep = |wanted: &dyn Fn(i64) -> bool| -> RowSet {
        let pairs =
            scanned.iter().flat_map(|batch| ids_of(batch).into_iter().zip(crate::nearest::row_id_column(batch)));
        pairs.filter(|(id, _)| wanted(*id)).map(|(_, row)| row).collect()
    };
    for (wanted, what) in [
        (&(|id: i64| id % 2 == 0) as &dyn Fn(i64) -> bool, "half"),
        (&|id| id % 20 == 7, "one centre"),
        (&|id| id % 200 == 1, "a few"),
        (&|id| id < 0, "none"),
    ] {
        let allowed = Arc::new(keep(wanted));
        let (mut hits, mut all) = (0, 0);
        for at in 0..15 {
            let mut request = NearestRequest::new(1, Metric::L2, vector(6_000_000 + at), 10);
            request.allowed = Some(Arc::clone(&allowed));
            let pinned = table.pin();
            let found = pinned.nearest(&request).await.unwrap();
            let found = ids_of(&pinned.take_rows(&row_ids(&found), &[0]).await.unwrap());
            assert!(found.iter().all(|id| wanted(*id)), "{what}: {found:?}");
            let exact = exact_ids(&table, Metric::L2, &request.query, ROWS as usize).await;
            let exact: Vec<i64> = exact.into_iter().filter(|id| wanted(*id)).take(10).collect();
            (hits, all) = (hits + exact.iter().filter(|id| found.contains(id)).count(), all + exact.len());
        }
        assert!(hits as f64 >= 0.95 * f64::from(all as u32), "{what}: {hits} of {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_added_and_joined_and_their_number_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = indexed(dir.path()).await;
    let mut most = 0;
    for step in 0..6 {
        let first = 100_000 + step * 500;
        table.insert(vec![rows(first..first + 500)]).await.unwrap();
        db.flush().await.unwrap();
        db.settle_vector_indexes().await.unwrap();
        let (indexed, new) = counts(&table, Metric::L2).await;
        assert_eq!((indexed, new), (ROWS as usize + (step as usize + 1) * 500, 0), "step {step}");
        most = most.max(lance_indexes(&table).await.len());
    }
    assert!((2..=4).contains(&most), "{most}");
    let share = recall(&table, Metric::L2).await;
    assert!(share >= 0.95, "{share}");
}

/// The files of indexes in a directory.
fn index_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.join("tables")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_str().unwrap().contains("/_indices/") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_outlives_a_crash_and_a_damaged_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (db, table) = indexed(dir.path()).await;
    table.insert(vec![rows(70_000..70_010)]).await.unwrap();
    let copy = copy_of(dir.path());
    drop((db, table));
    let report = check(copy.path(), &options()).await.unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    let (db, table) = open(copy.path()).await;
    assert_eq!(counts(&table, Metric::L2).await, (ROWS as usize, 10), "nothing is built again");
    assert_eq!(nearest_ids(&table, Metric::L2, vector(70_003), 1).await, [70_003]);
    drop((db, table));
    let files = index_files(copy.path());
    assert!(files.len() >= 2, "{files:?}");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage; 2] = [
        ("a changed byte", &|file| {
            let mut bytes = std::fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
            std::fs::write(file, bytes).unwrap();
        }),
        ("a lost file", &|file| std::fs::remove_file(file).unwrap()),
    ];
    for (what, damage) in damages {
        let broken = copy_of(copy.path());
        index_files(broken.path()).iter().for_each(|file| damage(file));
        let report = check(broken.path(), &options()).await.unwrap();
        let named = report
            .findings
            .iter()
            .any(|finding| finding.path.as_ref().is_some_and(|path| path.to_str().unwrap().contains("_indices")));
        assert!(named && !report.is_sound(), "{what}: {:?}", report.findings);
        let (db, table) = open(broken.path()).await;
        for query in (0..5).map(|at| vector(7_000_000 + at)) {
            let exact = exact_ids(&table, Metric::L2, &query, 10).await;
            assert_eq!(nearest_ids(&table, Metric::L2, query, 10).await, exact, "{what}");
        }
        assert_eq!(path(&table, Metric::L2).await, SearchPath::Building, "{what}");
        db.settle_vector_indexes().await.unwrap();
        assert_eq!(counts(&table, Metric::L2).await.0, ROWS as usize, "{what}");
        let share = recall(&table, Metric::L2).await;
        assert!(share >= 0.95, "{what}: {share}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_kept_keep_their_index_and_a_restore_brings_rows_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = StorageOptions { version_limit: 2, ..options() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..ROWS)]).await.unwrap();
    db.flush().await.unwrap();
    declare(&db, SMALL).await;
    db.settle_vector_indexes().await.unwrap();
    let old = index_files(dir.path());
    // Half of the rows go: the index is built again; the files of the first go with its versions.
    delete(&table, |id| id % 2 == 0).await;
    for at in 0..24 {
        table.insert(vec![rows(80_000 + at..80_001 + at)]).await.unwrap();
        db.flush().await.unwrap();
        db.settle_vector_indexes().await.unwrap();
    }
    db.flush().await.unwrap();
    let now = index_files(dir.path());
    assert!(!old.iter().any(|file| now.contains(file)), "{now:?}");
    let share = recall(&table, Metric::L2).await;
    assert!(share >= 0.95, "{share}");
    let report = {
        db.close().await.unwrap();
        drop((table, db));
        check(dir.path(), &StorageOptions::default()).await.unwrap()
    };
    assert!(report.is_sound(), "{:?}", report.findings);
}
