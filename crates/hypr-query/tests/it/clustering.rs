//! Clustered and partitioned tables: which files a query needs, counted by taking files away.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypr_common::principal::Principal;
use hypr_inference::{EngineOptions, engine};
use hypr_query::{Outcome, QueryEngine, QueryOptions, Session};
use hypr_storage::{Database, StorageOptions};
use tempfile::TempDir;

use crate::harness::{collect, lines};

struct Opened {
    database: Database,
    session: Session,
}

async fn open(dir: &Path) -> Opened {
    let options = StorageOptions { background_flush: false, clustered_fragment_rows: 100, ..Default::default() };
    let database = Database::open(dir, options).await.unwrap();
    let (inference, service) = engine(database.models(), EngineOptions { threads: 1, ..EngineOptions::default() });
    std::thread::spawn(move || service.run());
    let engine = QueryEngine::new(database.clone(), Arc::new(inference), QueryOptions::default()).unwrap();
    Opened { database, session: engine.session(Principal::anonymous_local()) }
}

impl Opened {
    async fn run(&self, sql: &str) -> hypr_common::Result<Vec<String>> {
        match self.session.execute(sql).await? {
            Outcome::Affected(rows) => Ok(vec![rows.to_string()]),
            rows => Ok(lines(&collect(rows).await?)),
        }
    }

    async fn scan(&self, sql: &str) -> String {
        let plan = self.run(&format!("EXPLAIN {sql}")).await.unwrap().join("\n");
        let scan = plan.lines().find(|line| line.contains("TableScanExec")).unwrap();
        scan[scan.find("fragments_total").unwrap()..].to_owned()
    }
}

/// Rows of twelve hours, a hundred an hour, in no order of time; then a flush.
async fn filled(clauses: &str, after: &str) -> (TempDir, Opened) {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path()).await;
    let create = format!("CREATE TABLE t (id BIGINT PRIMARY KEY, ts TIMESTAMP, v DOUBLE{clauses}) {after}");
    opened.run(&create).await.unwrap();
    let fill = "INSERT INTO t SELECT value, to_timestamp(1704067200 + (value * 7 % 1200) * 36), value % 10 \
                FROM generate_series(0, 1199)";
    assert_eq!(opened.run(fill).await.unwrap(), ["1200"]);
    opened.database.flush().await.unwrap();
    (dir, opened)
}

fn data_files(dir: &Path) -> Vec<PathBuf> {
    let tables = std::fs::read_dir(dir.join("tables")).unwrap().map(|entry| entry.unwrap().path().join("data"));
    let mut files: Vec<PathBuf> =
        tables.flat_map(|data| std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path())).collect();
    files.sort();
    files
}

/// How many data files a query cannot do without.
async fn files_needed(dir: &Path, sql: &str) -> usize {
    let mut needed = 0;
    for file in data_files(dir) {
        let hidden = file.with_extension("hidden");
        std::fs::rename(&file, &hidden).unwrap();
        let opened = open(dir).await;
        needed += usize::from(opened.run(sql).await.is_err());
        drop(opened);
        std::fs::rename(&hidden, &file).unwrap();
    }
    needed
}

const HOURS_3_AND_4: &str = "SELECT count(*), min(ts), max(ts) FROM t WHERE ts >= TIMESTAMP '2024-01-01 03:00:00' AND ts < TIMESTAMP '2024-01-01 05:00:00'";
const THEIR_ROWS: [&str; 1] = ["200|2024-01-01T03:00:00|2024-01-01T04:59:24"];

#[tokio::test(flavor = "multi_thread")]
async fn a_clustered_table_reads_the_files_of_the_range_and_no_other() {
    let (dir, opened) = filled(", TIMESERIES KEY (ts), CLUSTER BY time_bucket('1 hour', ts)", "").await;
    assert_eq!(opened.run(HOURS_3_AND_4).await.unwrap(), THEIR_ROWS);
    let read = "fragments_total=12, fragments_read=2, tail_batches_total=0, tail_batches_read=0";
    assert_eq!(opened.scan(HOURS_3_AND_4).await, read);
    let analyzed = opened.run(&format!("EXPLAIN ANALYZE {HOURS_3_AND_4}")).await.unwrap().join("\n");
    assert!(analyzed.contains("fragments_total=12, fragments_read=2"), "{analyzed}");
    assert_eq!(opened.run("SELECT count(v) FROM t WHERE ts = TIMESTAMP '2030-01-01'").await.unwrap(), ["0"]);
    opened.database.close().await.unwrap();
    drop(opened);
    assert_eq!(data_files(dir.path()).len(), 12);
    assert_eq!(files_needed(dir.path(), HOURS_3_AND_4).await, 2);
    assert_eq!(files_needed(dir.path(), "SELECT sum(v) FROM t").await, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_by_range_are_days_and_numbers_are_ranges() {
    let (_dir, opened) = filled("", "PARTITION BY RANGE (id)").await;
    let plan = opened.scan("SELECT v FROM t WHERE id IN (5, 1190)").await;
    assert!(plan.starts_with("fragments_total=12, fragments_read=2,"), "{plan}");
    let (_dir, opened) = filled("", "PARTITION BY RANGE (ts)").await;
    // All rows are of one day, sorted by time within it.
    let plan = opened.scan("SELECT v FROM t WHERE ts < TIMESTAMP '2024-01-01 00:30:00'").await;
    assert!(plan.starts_with("fragments_total=12, fragments_read=1,"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_that_are_gone_or_damaged_are_learned_again() {
    let (dir, opened) = filled(", CLUSTER BY time_bucket('1 hour', ts)", "").await;
    opened.database.close().await.unwrap();
    drop(opened);
    let table = std::fs::read_dir(dir.path().join("tables")).unwrap().next().unwrap().unwrap().path();
    let zones = table.join("_zones.arrow");
    for damage in [None, Some("no Arrow file")] {
        match damage {
            Some(bytes) => std::fs::write(&zones, bytes).unwrap(),
            None => std::fs::remove_file(&zones).unwrap(),
        }
        let opened = open(dir.path()).await;
        assert!(opened.scan(HOURS_3_AND_4).await.contains("fragments_read=2"), "{damage:?}");
        assert_eq!(opened.run(HOURS_3_AND_4).await.unwrap(), THEIR_ROWS);
        opened.database.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_rows_are_found_where_they_are_now() {
    let (_dir, opened) = filled(", CLUSTER BY time_bucket('1 hour', ts)", "").await;
    opened.run("UPDATE t SET ts = TIMESTAMP '2024-01-01 03:30:00' WHERE id < 10").await.unwrap();
    opened
        .run("DELETE FROM t WHERE ts >= TIMESTAMP '2024-01-01 04:00:00' AND ts < TIMESTAMP '2024-01-01 05:00:00'")
        .await
        .unwrap();
    let count =
        "SELECT count(*) FROM t WHERE ts >= TIMESTAMP '2024-01-01 03:00:00' AND ts < TIMESTAMP '2024-01-01 05:00:00'";
    // The sum over an expression cannot be left out by zones.
    let all = "SELECT count(*) FROM t WHERE date_trunc('day', ts) = TIMESTAMP '2024-01-01' AND date_part('hour', ts) IN (3, 4)";
    for step in ["in the tail", "flushed"] {
        let (pruned, whole) = (opened.run(count).await.unwrap(), opened.run(all).await.unwrap());
        assert_eq!(pruned, whole, "{step}");
        assert!(pruned[0].parse::<usize>().unwrap() >= 109, "{pruned:?}");
        opened.database.flush().await.unwrap();
    }
    opened.run("INSERT INTO t VALUES (5000, NULL, 1)").await.unwrap();
    assert_eq!(opened.run("SELECT id FROM t WHERE ts IS NULL").await.unwrap(), ["5000"]);
}
