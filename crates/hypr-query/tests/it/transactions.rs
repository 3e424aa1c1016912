//! Transactions between sessions: isolation, conflicts, and what a client is told.

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};
use hypr_common::principal::Principal;
use hypr_common::{ErrorKind, Result};
use hypr_query::{IngestMode, Outcome, Session, Settings, TableRef};

use crate::harness::{Fixture, collect, lines};

fn another(fixture: &Fixture) -> Session {
    fixture.session.engine().session(Principal::anonymous_local())
}

async fn query(session: &Session, sql: &str) -> Vec<String> {
    lines(&collect(session.execute(sql).await.unwrap()).await.unwrap())
}

async fn run(session: &Session, sql: &str) -> Result<Outcome> {
    session.execute(sql).await
}

async fn counters() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.run("CREATE TABLE counters (id INT PRIMARY KEY, n BIGINT)").await.unwrap();
    fixture.run("INSERT INTO counters VALUES (1, 0), (2, 0)").await.unwrap();
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_reads_one_state_and_shows_nothing_before_its_commit() {
    let fixture = counters().await;
    let (one, two) = (another(&fixture), another(&fixture));
    run(&one, "BEGIN").await.unwrap();
    // The snapshot is that of the first statement, not of BEGIN.
    run(&two, "UPDATE counters SET n = 5 WHERE id = 1").await.unwrap();
    assert_eq!(query(&one, "SELECT n FROM counters ORDER BY id").await, ["5", "0"]);
    run(&two, "UPDATE counters SET n = 6 WHERE id = 1").await.unwrap();
    run(&two, "CREATE TABLE later (a INT)").await.unwrap();
    assert_eq!(query(&one, "SELECT n FROM counters ORDER BY id").await, ["5", "0"]);
    assert_eq!(run(&one, "SELECT * FROM later").await.unwrap_err().kind(), ErrorKind::NotFound);
    run(&one, "UPDATE counters SET n = 7 WHERE id = 2").await.unwrap();
    assert_eq!(query(&two, "SELECT n FROM counters ORDER BY id").await, ["6", "0"]);
    run(&one, "COMMIT").await.unwrap();
    assert_eq!(query(&two, "SELECT n FROM counters ORDER BY id").await, ["6", "7"]);
    assert_eq!(query(&one, "SELECT count(*) FROM later").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_committer_is_told_to_run_again() {
    let fixture = counters().await;
    let (one, two) = (another(&fixture), another(&fixture));
    for session in [&one, &two] {
        run(session, "BEGIN").await.unwrap();
        run(session, "UPDATE counters SET n = n + 1 WHERE id = 1").await.unwrap();
    }
    run(&two, "COMMIT").await.unwrap();
    let lost = run(&one, "COMMIT").await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Conflict);
    assert!(lost.message().contains("SQLSTATE 40001"), "{lost}");
    // The transaction is over: the next statement stands alone again.
    assert!(one.transaction().is_none());
    run(&one, "UPDATE counters SET n = n + 1 WHERE id = 1").await.unwrap();
    assert_eq!(query(&one, "SELECT n FROM counters WHERE id = 1").await, ["2"]);
}

/// Lost updates would show as a smaller sum.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_increment_is_lost_between_statements_that_stand_alone() {
    let fixture = counters().await;
    let writers = (0..8).map(|_| {
        let session = another(&fixture);
        tokio::spawn(async move {
            for _ in 0..15 {
                run(&session, "UPDATE counters SET n = n + 1 WHERE id = 1").await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(query(&fixture.session, "SELECT n FROM counters WHERE id = 1").await, ["120"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_increment_is_lost_between_transactions_and_statements() {
    let fixture = counters().await;
    let writers = (0..6).map(|writer| {
        let session = another(&fixture);
        tokio::spawn(async move {
            let mut conflicts = 0;
            for _ in 0..10 {
                if writer % 3 == 0 {
                    run(&session, "UPDATE counters SET n = n + 1 WHERE id = 1").await.unwrap();
                    continue;
                }
                loop {
                    run(&session, "BEGIN").await.unwrap();
                    let n = query(&session, "SELECT n FROM counters WHERE id = 1").await.remove(0);
                    let n = n.parse::<i64>().unwrap() + 1;
                    let changed = run(&session, &format!("UPDATE counters SET n = {n} WHERE id = 1")).await;
                    let end = if changed.is_ok() { "COMMIT" } else { "ROLLBACK" };
                    match changed.and(run(&session, end).await) {
                        Ok(_) => break,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                    }
                    conflicts += 1;
                }
            }
            conflicts
        })
    });
    let mut conflicts = 0;
    for writer in writers.collect::<Vec<_>>() {
        conflicts += writer.await.unwrap();
    }
    assert_eq!(query(&fixture.session, "SELECT n FROM counters WHERE id = 1").await, ["60"]);
    println!("{conflicts} conflicts");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_uploads_run_in_the_open_transaction() {
    let fixture = counters().await;
    let (one, two) = (another(&fixture), another(&fixture));
    let insert = one.prepare("INSERT INTO counters VALUES ($1, $2)").await.unwrap();
    run(&one, "BEGIN").await.unwrap();
    let column = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as _;
    let rows = RecordBatch::try_from_iter([("a", column(vec![3, 4])), ("b", column(vec![0, 0]))]).unwrap();
    one.execute_prepared(&insert, &rows).await.unwrap();
    let upload = RecordBatch::try_from_iter([("id", column(vec![5])), ("n", column(vec![9]))]).unwrap();
    for (table, mode) in [("counters", IngestMode::Append), ("fresh", IngestMode::Create)] {
        let rows = stream::iter([Ok(upload.clone())]);
        let rows = Box::pin(RecordBatchStreamAdapter::new(upload.schema(), rows));
        assert_eq!(one.ingest(TableRef::bare(table), mode, rows).await.unwrap(), 1);
    }
    assert_eq!(query(&one, "SELECT count(*) FROM counters").await, ["5"]);
    assert_eq!(query(&two, "SELECT count(*) FROM counters").await, ["2"]);
    run(&one, "ROLLBACK").await.unwrap();
    assert_eq!(query(&one, "SELECT count(*) FROM counters").await, ["2"]);
    assert_eq!(run(&one, "SELECT * FROM fresh").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_keeps_nothing_cannot_begin_and_one_that_began_ends_it_itself() {
    let fixture = counters().await;
    let refused = run(&another(&fixture).for_one_statement(), "BEGIN").await.unwrap_err();
    assert!(refused.message().contains("with_cookie_middleware"), "{refused}");
    let transaction = Arc::new(fixture.database.begin(false));
    let inside = another(&fixture).inside(Arc::clone(&transaction));
    run(&inside, "DELETE FROM counters").await.unwrap();
    run(&inside, "SAVEPOINT a").await.unwrap();
    assert!(run(&inside, "COMMIT").await.is_err());
    transaction.commit().await.unwrap();
    assert_eq!(run(&inside, "SELECT 1").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(query(&fixture.session, "SELECT count(*) FROM counters").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_session() {
    let fixture = counters().await;
    let settings =
        Settings { schema: "sales".to_owned(), time_zone: Some("Europe/Vienna".to_owned()), ..Settings::default() };
    let session = another(&fixture).with_settings(&settings).unwrap();
    run(&session, "CREATE TABLE orders (id INT)").await.unwrap();
    run(&session, "INSERT INTO orders VALUES (1)").await.unwrap();
    run(&session, "CREATE TABLE counters AS SELECT id, 42 AS n FROM counters").await.unwrap();
    assert_eq!(query(&session, "WITH orders AS (SELECT 7 AS id) SELECT id FROM orders").await, ["7"]);
    assert_eq!(query(&session, "SELECT o.id, n FROM orders o JOIN counters c ON c.id = o.id").await, ["1|42"]);
    assert_eq!(query(&session, "SELECT count(*) FROM model_metadata").await, ["0"]);
    assert_eq!(query(&fixture.session, "SELECT id FROM sales.orders").await, ["1"]);
    assert_eq!(query(&fixture.session, "SELECT n FROM counters WHERE id = 1").await, ["0"]);
    let zone = query(&session, "SELECT arrow_typeof(now())").await;
    assert!(zone[0].contains("Europe/Vienna"), "{zone:?}");
    run(&session, "DROP TABLE counters").await.unwrap();
    assert_eq!(query(&session, "SELECT n FROM counters WHERE id = 1").await, ["0"], "public's is seen again");
    let unknown = Settings { time_zone: Some("Mars/Base".to_owned()), ..Settings::default() };
    assert!(another(&fixture).with_settings(&unknown).unwrap_err().message().contains("Mars/Base"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_result_are_its_rows_at_one_time() {
    let fixture = counters().await;
    fixture.run("CREATE TABLE big (id BIGINT, name TEXT)").await.unwrap();
    for part in 0..2 {
        fixture
            .run(&format!("INSERT INTO big SELECT value + {part} * 1000, 'x' FROM generate_series(1, 1000)"))
            .await
            .unwrap();
        if part == 0 {
            fixture.database.flush().await.unwrap();
        }
    }
    let none = RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty()));
    let session = &fixture.session;
    let prepared = session.prepare("SELECT id FROM big WHERE id > 10").await.unwrap();
    assert_eq!(prepared.scanned_bytes, Some(16_000));
    let parts = session.partitions(&prepared, &none).await.unwrap().unwrap();
    assert!(parts.count() >= 2);
    fixture.run("DELETE FROM big").await.unwrap();
    let mut ids = Vec::new();
    for part in 0..parts.count() {
        let batches: Vec<RecordBatch> = parts.read(part).unwrap().try_collect().await.unwrap();
        let rows = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec());
        ids.push(rows.collect::<Vec<_>>());
    }
    let mut all = ids.concat();
    all.sort_unstable();
    assert_eq!(all, (11..=2000).collect::<Vec<i64>>());
    assert_eq!(parts.read(0).unwrap_err_kind(), ErrorKind::Conflict, "never an empty part instead");
    assert_eq!(parts.read(parts.count()).unwrap_err_kind(), ErrorKind::NotFound);
    for sql in ["SELECT id FROM big ORDER BY id", "SELECT count(*) FROM big", "SELECT id FROM big LIMIT 5", "SELECT 1"]
    {
        let prepared = session.prepare(sql).await.unwrap();
        assert_eq!(prepared.scanned_bytes, None, "{sql}");
        assert!(session.partitions(&prepared, &none).await.unwrap().is_none());
    }
}

trait ErrKind {
    fn unwrap_err_kind(self) -> ErrorKind;
}

impl<T> ErrKind for Result<T> {
    fn unwrap_err_kind(self) -> ErrorKind {
        self.err().unwrap().kind()
    }
}
