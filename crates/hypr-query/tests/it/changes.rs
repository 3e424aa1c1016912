//! Changes under concurrency, over many executions, and across a reopening.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use hypr_common::ErrorKind;
use hypr_query::{Outcome, StatementKind};

use crate::harness::{Fixture, collect, lines};

fn params(columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_from_iter(columns.into_iter().enumerate().map(|(at, column)| (format!("{at}"), column))).unwrap()
}

fn numbers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

async fn affected(fixture: &Fixture, sql: &str, params: &RecordBatch) -> u64 {
    let prepared = fixture.session.prepare(sql).await.unwrap();
    match fixture.session.execute_prepared(&prepared, params).await.unwrap() {
        Outcome::Affected(rows) => rows,
        Outcome::Rows(_) => panic!("{sql} gave rows"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_upserts_of_one_key_lose_no_update() {
    const WRITERS: i64 = 8;
    const EACH: i64 = 10;
    let fixture = Arc::new(Fixture::new().await);
    fixture.affected("CREATE TABLE counters (name TEXT PRIMARY KEY, n BIGINT)").await;
    let writers = (0..WRITERS).map(|writer| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move {
            for round in 0..EACH {
                // One key of everybody, one of the writer's own, and now and then an update by a scan.
                let sql = "INSERT INTO counters VALUES ('all', 1) ON CONFLICT (name) DO UPDATE SET n = n + EXCLUDED.n";
                assert_eq!(fixture.affected(sql).await, 1);
                let own = format!(
                    "INSERT INTO counters VALUES ('w{writer}', 1) ON CONFLICT (name) DO UPDATE SET n = counters.n + 1"
                );
                assert_eq!(fixture.affected(&own).await, 1);
                if round % 5 == 0 {
                    fixture.affected("UPDATE counters SET n = n + 1000 WHERE name = 'all'").await;
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let updates = WRITERS * (EACH / 5) * 1000;
    assert_eq!(
        fixture.lines("SELECT n FROM counters WHERE name = 'all'").await,
        [(WRITERS * EACH + updates).to_string()]
    );
    assert_eq!(
        fixture.lines("SELECT count(*), min(n), max(n) FROM counters WHERE name <> 'all'").await,
        [format!("{WRITERS}|{EACH}|{EACH}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_that_find_one_row_by_different_keys_lose_no_update() {
    const WRITERS: usize = 8;
    const EACH: usize = 20;
    let fixture = Arc::new(Fixture::new().await);
    fixture.affected("CREATE TABLE places (id BIGINT PRIMARY KEY, code TEXT UNIQUE, n BIGINT)").await;
    let writers = (0..WRITERS).map(|writer| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move {
            let key = if writer % 2 == 0 { "id" } else { "code" };
            let sql =
                format!("INSERT INTO places VALUES (1, 'a', 1) ON CONFLICT ({key}) DO UPDATE SET n = places.n + 1");
            for _ in 0..EACH {
                assert_eq!(fixture.affected(&sql).await, 1);
            }
        })
    });
    fixture.affected("INSERT INTO places VALUES (1, 'a', 0)").await;
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(fixture.lines("SELECT n, count(*) FROM places GROUP BY n").await, [format!("{}|1", WRITERS * EACH)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_and_upserts_of_one_key_leave_one_row() {
    let fixture = Arc::new(Fixture::new().await);
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)").await;
    for id in 0..20 {
        let tasks = (0..6).map(|task| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                let insert = format!("INSERT INTO t VALUES ({id}, 1)");
                let upsert = format!("{insert} ON CONFLICT (id) DO UPDATE SET n = n + 1");
                let nothing = format!("{insert} ON CONFLICT DO NOTHING");
                match task % 3 {
                    // A plain insert fails when another one came first.
                    0 => u64::from(fixture.run(&insert).await.is_ok()),
                    1 => fixture.affected(&upsert).await,
                    _ => fixture.affected(&nothing).await,
                }
            })
        });
        let mut changes = 0;
        for task in tasks.collect::<Vec<_>>() {
            changes += task.await.unwrap();
        }
        let rows = fixture.lines(&format!("SELECT n FROM t WHERE id = {id}")).await;
        assert_eq!(rows, [changes.to_string()], "every change that was acknowledged counts once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_upserts_are_one_statement_and_repeat_keys_in_order() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, name TEXT)").await;
    let sql =
        "INSERT INTO t VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET n = t.n + EXCLUDED.n, name = EXCLUDED.name";
    let rows = 20_000;
    let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("r{row}"))));
    let batch = params(vec![numbers(0..rows), numbers((0..rows).map(|_| 1)), Arc::clone(&names)]);
    assert_eq!(affected(&fixture, sql, &batch).await, rows as u64);
    assert_eq!(affected(&fixture, sql, &batch).await, rows as u64);
    assert_eq!(fixture.lines("SELECT count(*), sum(n) FROM t").await, [format!("{rows}|{}", 2 * rows)]);
    // Executions after one another: a key that comes again meets the row of the one before.
    let again = params(vec![
        numbers([5, 5, rows, rows, 5]),
        numbers([10, 20, 1, 1, 30]),
        Arc::new(StringArray::from(vec!["a", "b", "c", "d", "e"])),
    ]);
    assert_eq!(affected(&fixture, sql, &again).await, 5);
    assert_eq!(
        fixture.lines(&format!("SELECT id, n, name FROM t WHERE id IN (5, {rows}) ORDER BY id")).await,
        ["5|62|e".to_owned(), format!("{rows}|2|d")]
    );
    let nothing = "INSERT INTO t (id, n) VALUES (?, ?) ON CONFLICT DO NOTHING";
    assert_eq!(affected(&fixture, nothing, &params(vec![numbers([1, -1, -1]), numbers([0, 7, 8])])).await, 1);
    assert_eq!(fixture.lines("SELECT n FROM t WHERE id = -1").await, ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_stand_anywhere_in_a_change() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, name TEXT)").await;
    let sql = "INSERT INTO t (id, n) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = t.n + $3, name = $4";
    let prepared = fixture.session.prepare(sql).await.unwrap();
    let types: Vec<String> =
        prepared.parameter_schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Int64", "Int32", "Int32", "Utf8"]);
    let texts = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let batch = params(vec![numbers([1, 1]), numbers([10, 20]), numbers([1, 2]), texts(&["x", "y"])]);
    assert_eq!(affected(&fixture, sql, &batch).await, 2);
    assert_eq!(fixture.lines("SELECT * FROM t").await, ["1|12|y"]);
    let returning = "UPDATE t SET n = n * ? WHERE id = ? RETURNING n + ? AS shifted";
    let prepared = fixture.session.prepare(returning).await.unwrap();
    assert_eq!(prepared.kind, StatementKind::Query);
    assert!(prepared.changes_data);
    assert_eq!(prepared.result_schema.field(0).name(), "shifted");
    let outcome = fixture
        .session
        .execute_prepared(&prepared, &params(vec![numbers([2]), numbers([1]), numbers([100])]))
        .await
        .unwrap();
    assert_eq!(lines(&collect(outcome).await.unwrap()), ["124"]);
    let merge = "MERGE INTO t USING (SELECT CAST(? AS BIGINT) AS id) AS s ON t.id = s.id \
                 WHEN MATCHED THEN UPDATE SET name = ? WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, ?)";
    let batch = params(vec![numbers([1, 2]), texts(&["m", "m"]), texts(&["i", "i"])]);
    assert_eq!(affected(&fixture, merge, &batch).await, 2);
    assert_eq!(fixture.lines("SELECT id, name FROM t ORDER BY id").await, ["1|m", "2|i"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_updates_and_deletes_are_one_scan_unless_they_touch_one_row() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)").await;
    let rows = 5_000;
    let batch = params(vec![numbers(0..rows), numbers((0..rows).map(|_| 0))]);
    affected(&fixture, "INSERT INTO t VALUES (?, ?)", &batch).await;
    let update = "UPDATE t SET n = n + ? WHERE id = ?";
    let each = params(vec![numbers(0..rows), numbers(0..rows)]);
    assert_eq!(affected(&fixture, update, &each).await, rows as u64);
    assert_eq!(fixture.lines("SELECT count(*) FROM t WHERE n = id").await, [rows.to_string()]);
    let same = params(vec![numbers([1, 1, 1]), numbers([7, 7, 8])]);
    assert_eq!(affected(&fixture, update, &same).await, 3);
    assert_eq!(fixture.lines("SELECT n FROM t WHERE id IN (7, 8) ORDER BY id").await, ["9", "9"]);
    // What one execution writes decides what the next one finds.
    let chain = "UPDATE t SET n = ? WHERE n = ?";
    assert_eq!(affected(&fixture, chain, &params(vec![numbers([-1, -2]), numbers([100, -1])])).await, 2);
    assert_eq!(fixture.lines("SELECT n FROM t WHERE id = 100").await, ["-2"]);
    let gone = params(vec![numbers((0..rows).filter(|id| id % 2 == 0))]);
    assert_eq!(affected(&fixture, "DELETE FROM t WHERE id = ?", &gone).await, rows as u64 / 2);
    assert_eq!(fixture.lines("SELECT count(*), min(id) FROM t").await, [format!("{}|1", rows / 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_ingest_obeys_defaults_and_checks() {
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    let fixture = Fixture::new().await;
    fixture
        .affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT CHECK (n > 0), tag TEXT NOT NULL DEFAULT 'x')")
        .await;
    let ingest = |ids: ArrayRef, n: ArrayRef| {
        let batch = RecordBatch::try_from_iter([("id", ids), ("n", n)]).unwrap();
        let stream = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
        fixture.session.ingest(hypr_query::TableRef::bare("t"), hypr_query::IngestMode::Append, Box::pin(stream))
    };
    assert_eq!(ingest(numbers([1, 2]), numbers([5, 6])).await.unwrap(), 2);
    let error = ingest(numbers([3, 4]), numbers([5, 0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("row 2 violates CHECK (n > 0)"), "{error}");
    assert_eq!(fixture.lines("SELECT * FROM t ORDER BY id").await, ["1|5|x", "2|6|x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_written_in_sql_and_old_columns_survive_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::at(dir.path()).await;
    for sql in [
        "CREATE TABLE t (id INT PRIMARY KEY, meta JSONB, w INT)",
        "INSERT INTO t VALUES (1, '{\"a\": 1}', 1), (2, NULL, 3)",
        "ALTER TABLE t CREATE TAG before",
        "ALTER TABLE t DROP COLUMN meta",
        "ALTER TABLE t RENAME COLUMN w TO weight",
        "CREATE AGGREGATE FUNCTION wavg(x DOUBLE, w DOUBLE, unit DOUBLE DEFAULT 1) RETURNS DOUBLE \
         LANGUAGE SQL STRICT AS $$ SELECT sum(x * w) / sum(w) / unit $$",
    ] {
        fixture.affected(sql).await;
    }
    let asked = "SELECT wavg(id, weight), wavg(id, weight, unit => 2) FROM t";
    let then = "SELECT id, meta ->> 'a', w FROM t FOR VERSION AS OF before ORDER BY id";
    assert_eq!(fixture.lines(asked).await, ["1.75|0.875"]);
    assert_eq!(fixture.lines(then).await, ["1|1|1", "2|NULL|3"]);
    fixture.database.close().await.unwrap();
    drop(fixture);
    let fixture = Fixture::at(dir.path()).await;
    assert_eq!(fixture.lines(asked).await, ["1.75|0.875"]);
    assert_eq!(fixture.lines(then).await, ["1|1|1", "2|NULL|3"]);
    assert!(fixture.session.engine().function_names().contains(&"wavg".to_owned()));
    fixture.database.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_found_without_a_scan_once_its_index_is_built() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id INT PRIMARY KEY, n BIGINT)").await;
    fixture.affected("INSERT INTO t SELECT value, value * 10 FROM generate_series(1, 1000)").await;
    let plan = fixture.lines("EXPLAIN SELECT n FROM t WHERE id = 7").await.join("\n");
    assert!(plan.contains("KeyLookupExec: table=public.t, key=(id), projection=[id, n], rows=1"), "{plan}");
    let plan = fixture.lines("EXPLAIN UPDATE t SET n = 0 WHERE id = 5000").await.join("\n");
    assert!(plan.contains("rows=0"), "{plan}");
    let plan = fixture.lines("EXPLAIN SELECT n FROM t WHERE id > 7").await.join("\n");
    assert!(!plan.contains("KeyLookupExec"), "{plan}");
    // A bound value has the type of the client, here not that of the column.
    let prepared = fixture.session.prepare("SELECT n FROM t WHERE id = ?").await.unwrap();
    for id in [7, 8, 5000] {
        let outcome = fixture.session.execute_prepared(&prepared, &params(vec![numbers([id])])).await.unwrap();
        let expected: Vec<String> = if id <= 1000 { vec![(id * 10).to_string()] } else { Vec::new() };
        assert_eq!(lines(&collect(outcome).await.unwrap()), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_by_key_see_every_row_once_while_it_changes() {
    const ROUNDS: i64 = 150;
    let fixture = Arc::new(Fixture::new().await);
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)").await;
    fixture.affected("INSERT INTO t VALUES (1, 0), (2, 0)").await;
    let done = Arc::new(AtomicBool::new(false));
    let readers = (0..3).map(|_| {
        let (fixture, done) = (Arc::clone(&fixture), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut last, mut reads) = (0, 0);
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let seen = fixture.lines("SELECT n FROM t WHERE id = 1").await;
                let [n] = seen.as_slice() else { panic!("the row was seen {} times", seen.len()) };
                let n: i64 = n.parse().unwrap();
                assert!(n >= last, "{n} after {last}");
                // Key 2 comes and goes; key 3 never was there.
                assert!(fixture.lines("SELECT n FROM t WHERE id = 2").await.len() < 2);
                assert!(fixture.lines("SELECT n FROM t WHERE id = 3").await.is_empty());
                (last, reads) = (n, reads + 1);
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for round in 1..=ROUNDS {
        assert_eq!(fixture.affected("UPDATE t SET n = n + 1 WHERE id = 1").await, 1);
        let (change, left) = match round % 2 {
            1 => ("DELETE FROM t WHERE id = 2", Vec::new()),
            _ => ("INSERT INTO t VALUES (2, 5)", vec!["5".to_owned()]),
        };
        assert_eq!(fixture.affected(change).await, 1);
        // What was acknowledged is seen.
        assert_eq!(fixture.lines("SELECT n FROM t WHERE id = 2").await, left);
        assert_eq!(fixture.lines("SELECT n FROM t WHERE id = 1").await, [round.to_string()]);
        if round % 50 == 0 {
            fixture.database.flush().await.unwrap();
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}
