//! Time series against what DuckDB and pandas answer, and continuous aggregates under every kind of change.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit};
use hypr_common::clock::ManualClock;
use hypr_common::principal::Principal;
use hypr_inference::{EngineOptions, engine};
use hypr_query::{IngestMode, Outcome, QueryEngine, QueryOptions, Session, TableRef, start_series_service};
use hypr_storage::{Database, StorageOptions};
use serde_json::Value;

use crate::harness::{Fixture, collect, crate_dir, lines};

fn fixture_file(name: &str) -> Value {
    let path = crate_dir().join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A column of the fixture; whole numbers of a column named `ts` are microseconds.
fn column(name: &str, values: &[Value]) -> ArrayRef {
    let microseconds = DataType::Timestamp(TimeUnit::Microsecond, None);
    match &values[0] {
        Value::String(_) => Arc::new(values.iter().map(Value::as_str).collect::<StringArray>()),
        _ if name == "ts" => {
            let steps: ArrayRef = Arc::new(values.iter().map(Value::as_i64).collect::<Int64Array>());
            cast(&steps, &microseconds).unwrap()
        }
        Value::Number(number) if number.is_i64() => Arc::new(values.iter().map(Value::as_i64).collect::<Int64Array>()),
        _ => Arc::new(values.iter().map(Value::as_f64).collect::<Float64Array>()),
    }
}

async fn load(fixture: &Fixture, tables: &Value) {
    for (table, columns) in tables.as_object().unwrap() {
        let columns = columns.as_object().unwrap().iter();
        let batch =
            RecordBatch::try_from_iter(columns.map(|(name, values)| (name, column(name, values.as_array().unwrap()))));
        let batch = batch.unwrap();
        let schema = batch.schema();
        // Several commits, so that scans have several batches.
        let pieces = (0..batch.num_rows()).step_by(100).map(|at| batch.slice(at, 100.min(batch.num_rows() - at)));
        for (at, piece) in pieces.enumerate() {
            let rows = futures::stream::iter([Ok(piece)]);
            let rows = datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(Arc::clone(&schema), rows);
            let mode = if at == 0 { IngestMode::Create } else { IngestMode::Append };
            fixture.session.ingest(TableRef::bare(table), mode, Box::pin(rows)).await.unwrap();
        }
    }
}

fn same(found: &ArrayRef, row: usize, expected: &Value) -> bool {
    if found.is_null(row) || expected.is_null() {
        return found.is_null(row) == expected.is_null();
    }
    match found.data_type() {
        DataType::Timestamp(..) => {
            let found = cast(found, &DataType::Timestamp(TimeUnit::Microsecond, None)).unwrap();
            let found = cast(&found, &DataType::Int64).unwrap();
            Some(found.as_primitive::<Int64Type>().value(row)) == expected.as_i64()
        }
        DataType::Utf8 => Some(found.as_string::<i32>().value(row)) == expected.as_str(),
        _ => {
            let found = cast(found, &DataType::Float64).unwrap().as_primitive::<Float64Type>().value(row);
            let expected = expected.as_f64().unwrap();
            (found - expected).abs() <= 1e-9 * expected.abs().max(1.0)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_duckdb_and_pandas() {
    answers_are_those_of("series.json", 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_about_real_sensors_are_those_of_duckdb_pandas_and_the_algorithm() {
    answers_are_those_of("sensors.json", 20).await;
}

/// Runs the checks of a fixture, of which there are more than `least`.
async fn answers_are_those_of(file: &str, least: usize) {
    let file = fixture_file(file);
    let fixture = Fixture::new().await;
    load(&fixture, &file["tables"]).await;
    let checks = file["checks"].as_array().unwrap();
    assert!(checks.len() > least, "the fixture has {} checks", checks.len());
    let mut failures = Vec::new();
    for check in checks {
        let (sql, source) = (check["sql"].as_str().unwrap(), check["source"].as_str().unwrap());
        let batch = fixture.query(sql).await;
        let expected = check["columns"].as_array().unwrap();
        let rows = expected[0].as_array().unwrap().len();
        if (batch.num_columns(), batch.num_rows()) != (expected.len(), rows) {
            failures.push(format!("{sql}\n  {} rows, {source} has {rows}", batch.num_rows()));
            continue;
        }
        let wrong =
            (0..rows).find(|row| (0..expected.len()).any(|at| !same(batch.column(at), *row, &expected[at][*row])));
        if let Some(row) = wrong {
            let theirs: Vec<&Value> = expected.iter().map(|column| &column[row]).collect();
            failures.push(format!("{sql}\n  row {row}: {} where {source} has {theirs:?}", lines(&batch)[row]));
        }
    }
    assert!(failures.is_empty(), "{} of {} differ\n{}", failures.len(), checks.len(), failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_on_a_bucket_is_a_range_of_the_column() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE m (ts TIMESTAMP, v INT)").await;
    let plan = fixture
        .lines("EXPLAIN SELECT v FROM m WHERE time_bucket('1 month', ts, 'Europe/Berlin') = TIMESTAMP '2024-02-29 23:00:00'")
        .await
        .join("\n");
    // March 2024 in Berlin, in nanoseconds.
    let range =
        "ts >= TimestampNanosecond(1709247600000000000, None), ts < TimestampNanosecond(1711922400000000000, None)";
    assert!(plan.contains(range), "{plan}");
}

/// A database whose clock and directory the test holds.
struct Held {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    database: Database,
    engine: Arc<QueryEngine>,
    session: Session,
}

const DAY_US: i64 = 86_400_000_000;
/// 2024-01-01.
const START_US: i64 = 19_723 * DAY_US;

impl Held {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), Arc::new(ManualClock::new(START_US))).await
    }

    async fn open(dir: tempfile::TempDir, clock: Arc<ManualClock>) -> Self {
        let options =
            StorageOptions { clock: Arc::clone(&clock) as _, background_flush: false, ..StorageOptions::default() };
        let database = Database::open(dir.path(), options).await.unwrap();
        let (inference, service) = engine(database.models(), EngineOptions { threads: 1, ..EngineOptions::default() });
        std::thread::spawn(move || service.run());
        let engine = QueryEngine::new(database.clone(), Arc::new(inference), QueryOptions::default()).unwrap();
        let session = engine.session(Principal::anonymous_local());
        Self { dir, clock, database, engine, session }
    }

    /// Ends without the last flush, as a crash would.
    async fn crash(self) -> Self {
        let Self { dir, clock, database, engine, session } = self;
        drop((session, engine, database));
        Self::open_when_free(dir, clock).await
    }

    async fn open_when_free(dir: tempfile::TempDir, clock: Arc<ManualClock>) -> Self {
        Self::open(dir, clock).await
    }

    async fn affected(&self, sql: &str) -> u64 {
        match self.session.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")) {
            Outcome::Affected(rows) => rows,
            Outcome::Rows(_) => panic!("{sql} gave rows"),
        }
    }

    async fn lines(&self, sql: &str) -> Vec<String> {
        lines(&collect(self.session.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))).await.unwrap())
    }

    async fn error(&self, sql: &str) -> String {
        self.session.execute(sql).await.map(|_| ()).unwrap_err().to_string()
    }
}

const HOURLY: &str = "SELECT time_bucket('1 hour', ts, 'Europe/Berlin') AS hour, k, count(*) AS n, sum(v) AS total, \
     max(v) AS most FROM m WHERE v >= 0 GROUP BY hour, k HAVING count(*) > 1";

async fn assert_right(held: &Held, after: &str) {
    let order = "ORDER BY hour NULLS FIRST, k NULLS FIRST";
    let view = held.lines(&format!("SELECT * FROM hourly {order}")).await;
    let query = held.lines(&format!("SELECT * FROM ({HOURLY}) {order}")).await;
    assert_eq!(view, query, "after {after}");
}

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn change(held: &Held, random: &mut Random) -> String {
    let hour = random.below(12);
    let sql = match random.below(12) {
        0..=4 => {
            let rows = (0..=random.below(6)).map(|_| {
                let (minute, v, k) = (random.below(12 * 60), random.below(90) as i64 - 5, random.below(3));
                let ts = match random.below(25) {
                    0 => "NULL".to_owned(),
                    _ => format!("'2024-01-01 {:02}:{:02}:00'", minute / 60, minute % 60),
                };
                format!("({ts}, 'k{k}', {v})")
            });
            format!("INSERT INTO m VALUES {}", rows.collect::<Vec<_>>().join(", "))
        }
        5 => format!("DELETE FROM m WHERE ts >= '2024-01-01 {hour:02}:10:00' AND ts < '2024-01-01 {hour:02}:40:00'"),
        6 => format!("UPDATE m SET v = v + 1 WHERE ts >= '2024-01-01 {hour:02}:00:00' AND k = 'k1'"),
        7 => format!("UPDATE m SET ts = ts + INTERVAL '1 hour' WHERE ts < '2024-01-01 {hour:02}:00:00' AND k = 'k2'"),
        8 if random.below(6) == 0 => "TRUNCATE m".to_owned(),
        8 => format!("DELETE FROM m WHERE ts IS NULL OR v = {hour}"),
        9 => "CALL refresh_continuous_aggregate('hourly')".to_owned(),
        _ => {
            held.database.flush().await.unwrap();
            return "a flush".to_owned();
        }
    };
    held.affected(&sql).await;
    sql
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuous_aggregate_is_its_query_whatever_happens() {
    for seed in 1..=2 {
        let mut held = Held::new().await;
        held.affected("CREATE TABLE m (ts TIMESTAMP, k TEXT, v INT)").await;
        held.affected(&format!("CREATE MATERIALIZED VIEW hourly WITH (continuous) AS {HOURLY}")).await;
        let mut random = Random(seed);
        for step in 0..30 {
            let what = change(&held, &mut random).await;
            assert_right(&held, &format!("step {step} of seed {seed}: {what}")).await;
            if step % 10 == 9 {
                held = held.crash().await;
                assert_right(&held, &format!("opening again after step {step} of seed {seed}")).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_computed_again() {
    let held = Held::new().await;
    held.affected("CREATE TABLE m (ts TIMESTAMP, k TEXT, v INT)").await;
    let rows = (0..24).flat_map(|hour| (0..3).map(move |v| format!("('2024-01-01 {hour:02}:0{v}:00', 'a', {v})")));
    held.affected(&format!("INSERT INTO m VALUES {}", rows.collect::<Vec<_>>().join(", "))).await;
    held.affected(&format!("CREATE MATERIALIZED VIEW hourly WITH (continuous) AS {HOURLY}")).await;
    let refresh = "CALL refresh_continuous_aggregate('hourly')";
    assert_eq!(held.affected(refresh).await, 1, "the newest hour was still filling");
    assert_eq!(held.affected(refresh).await, 0);
    held.database.flush().await.unwrap();
    assert_eq!(held.affected(refresh).await, 0, "a flush changes no rows");
    held.affected("INSERT INTO m VALUES ('2024-01-01 03:30:00', 'late', 9)").await;
    held.affected("DELETE FROM m WHERE ts = '2024-01-01 07:01:00'").await;
    held.affected("UPDATE m SET v = 50 WHERE ts = '2024-01-01 09:01:00'").await;
    assert_right(&held, "late rows, a deletion and an update").await;
    assert_eq!(held.affected(refresh).await, 3);
    let held = held.crash().await;
    assert_eq!(held.affected(refresh).await, 0, "what was materialised is still right after a crash");
    // With nothing to compute, the base table is not read for rows.
    let plan = held.lines("EXPLAIN SELECT * FROM hourly WHERE k = 'a'").await.join("\n");
    assert!(plan.contains("table=_hypr_continuous") && !plan.contains("table=public.m"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keeps_what_was_made_of_the_rows() {
    let held = Held::new().await;
    held.affected("CREATE TABLE m (ts TIMESTAMP, k TEXT, v INT) WITH (retention = '2 days')").await;
    let rows = (0..96).map(|hour| {
        let ts = format!("2024-01-{:02} {:02}", 1 + hour / 24, hour % 24);
        format!("('{ts}:00:00', 'a', 1), ('{ts}:30:00', 'a', 2)")
    });
    held.affected(&format!("INSERT INTO m VALUES {}", rows.collect::<Vec<_>>().join(", "))).await;
    held.affected(&format!("CREATE MATERIALIZED VIEW hourly WITH (continuous) AS {HOURLY}")).await;
    let before = held.lines("SELECT * FROM hourly ORDER BY hour").await;
    assert_eq!(before.len(), 96);
    held.affected("INSERT INTO m VALUES ('2024-01-01 05:45:00', 'a', 7)").await;
    held.clock.advance_us(4 * DAY_US + 30 * 60_000_000);
    assert_eq!(held.affected("CALL apply_retention('m')").await, 97, "the rows of two days, in whole hours");
    assert_eq!(held.lines("SELECT count(*), min(ts) FROM m").await, ["96|2024-01-03T00:00:00"]);
    let after = held.lines("SELECT * FROM hourly ORDER BY hour").await;
    assert_eq!(after.len(), 96);
    assert_eq!(after[5], "2024-01-01T05:00:00|a|3|10|7", "a late row counts until its hour is final");
    assert_eq!(after[6..], before[6..]);
    // What comes later for a final hour is not counted, and goes with the next round.
    held.affected("INSERT INTO m VALUES ('2024-01-01 05:50:00', 'a', 1000)").await;
    assert_eq!(held.lines("SELECT * FROM hourly ORDER BY hour").await, after);
    let held = held.crash().await;
    assert_eq!(held.affected("CALL apply_retention('m')").await, 1);
    assert_eq!(held.lines("SELECT * FROM hourly ORDER BY hour").await, after);
    // Rows that are kept still change their hours.
    held.affected("DELETE FROM m WHERE ts < '2024-01-03 01:00:00'").await;
    let shorter = held.lines("SELECT * FROM hourly ORDER BY hour").await;
    assert_eq!((shorter.len(), &shorter[..48]), (95, &after[..48]));
    held.affected("ALTER TABLE m SET (retention = NULL)").await;
    held.clock.advance_us(1_000 * DAY_US);
    assert_eq!(held.affected("CALL apply_retention('m')").await, 0);
    held.affected("ALTER TABLE m SET (retention = '30 days')").await;
    assert_eq!(held.affected("CALL apply_retention('m')").await, 94);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_materialises_and_applies_retention_until_it_is_stopped() {
    let held = Held::new().await;
    held.affected("CREATE TABLE m (ts TIMESTAMP, k TEXT, v INT) WITH (retention = '2 days')").await;
    held.affected(&format!("CREATE MATERIALIZED VIEW hourly WITH (continuous) AS {HOURLY}")).await;
    let rows = (0..48).map(|hour| format!("('2024-01-{:02} {:02}:00:00', 'a', 1)", 1 + hour / 24, hour % 24));
    let rows = rows.collect::<Vec<_>>().join(", ");
    held.affected(&format!("INSERT INTO m VALUES {rows}, {}", rows.replace("'a', 1", "'a', 2"))).await;
    let service = start_series_service(&held.engine, Duration::from_millis(5));
    held.clock.advance_us(3 * DAY_US);
    while held.lines("SELECT count(*) FROM m").await != ["48"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.stop().await;
    assert_eq!(held.lines("SELECT count(*), min(n) FROM hourly").await, ["48|2"]);
    assert_eq!(
        held.affected("CALL refresh_continuous_aggregate('hourly')").await,
        1,
        "all but the newest hour is done"
    );
    held.database.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused() {
    let held = Held::new().await;
    held.affected("CREATE TABLE m (ts TIMESTAMP, k TEXT, v INT)").await;
    held.affected("CREATE TABLE other (ts TIMESTAMP, made TIMESTAMP, k TEXT)").await;
    let view = |query: &str| format!("CREATE MATERIALIZED VIEW hourly WITH (continuous) AS {query}");
    for (query, why) in [
        ("SELECT k, count(*) FROM m GROUP BY k", "groups by time_bucket"),
        ("SELECT time_bucket('1 hour', ts) AS h, now() FROM m GROUP BY h", "cannot call now"),
        ("SELECT time_bucket('1 hour', m.ts) AS h, count(*) FROM m JOIN other USING (k) GROUP BY h", "reads one table"),
        ("SELECT time_bucket('1 hour', ts) AS h, count(*) FROM m GROUP BY h ORDER BY h", "is one SELECT with GROUP BY"),
        ("SELECT k, count(*) FROM m GROUP BY time_bucket('1 hour', ts), k", "selects its time_bucket"),
        (
            "SELECT time_bucket('1 hour', ts) AS h FROM m WHERE v > (SELECT avg(v) FROM m) GROUP BY h",
            "has no sub-queries",
        ),
        ("SELECT time_bucket('1 hour', ts + INTERVAL '1 day') AS h FROM m GROUP BY h", "puts a column"),
    ] {
        let error = held.error(&view(query)).await;
        assert!(error.contains(why), "{query}: {error}");
    }
    held.affected(&view("SELECT time_bucket('1 hour', ts) AS h, count(*) AS n FROM m GROUP BY h")).await;
    for (sql, why) in [
        (view("SELECT time_bucket('1 hour', ts) AS h FROM m GROUP BY h"), "exists already"),
        ("DROP TABLE m".to_owned(), "is read by the continuous aggregate hourly"),
        ("INSERT INTO hourly VALUES ('2024-01-01', 1)".to_owned(), "is a continuous aggregate"),
        ("CREATE TABLE hourly (a INT)".to_owned(), "is a continuous aggregate"),
        ("CREATE MATERIALIZED VIEW other WITH (continuous) AS SELECT time_bucket('1 hour', ts) AS h FROM m GROUP BY h".to_owned(), "exists already"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1".to_owned(), "WITH (continuous)"),
        ("DELETE FROM _hypr_continuous.\"public.hourly\"".to_owned(), "does not exist"),
        ("CALL refresh_continuous_aggregate('nothing')".to_owned(), "does not exist"),
        ("ALTER TABLE m SET (retention = 'soon')".to_owned(), "is no positive interval"),
        ("ALTER TABLE other SET (retention = '1 day')".to_owned(), "does not know which column is the time"),
        ("CREATE TABLE r (a INT) WITH (retention = '1 day')".to_owned(), "does not know which column is the time"),
    ] {
        let error = held.error(&sql).await;
        assert!(error.contains(why), "{sql}: {error}");
    }
    assert!(held.lines("SHOW TABLES").await.iter().all(|line| !line.contains("_hypr_continuous")));
    let shown =
        held.lines("SELECT table_name, table_type FROM information_schema.tables WHERE table_name = 'hourly'").await;
    assert_eq!(shown, ["hourly|VIEW"]);
    held.affected("DROP MATERIALIZED VIEW hourly").await;
    held.affected("DROP MATERIALIZED VIEW IF EXISTS hourly").await;
    assert!(held.error("SELECT * FROM hourly").await.contains("does not exist"));
    held.affected("DROP TABLE m").await;
}
