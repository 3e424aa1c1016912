//! Bounds of memory and disk.

use hypr_common::ErrorKind;
use hypr_query::{Limits, QueryOptions};

use crate::harness::Fixture;

const SORT: &str = "SELECT count(*) FROM (SELECT id, row_number() OVER (ORDER BY name) AS n FROM big) WHERE n > 0";

async fn with_rows(options: QueryOptions) -> Fixture {
    let fixture = Fixture::with_options(options).await;
    let sql = "CREATE TABLE big AS SELECT value AS id, md5(value::TEXT) AS name FROM generate_series(1, 300000)";
    assert_eq!(fixture.affected(sql).await, 300_000);
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sort_larger_than_the_memory_limit_spills() {
    let fixture = with_rows(QueryOptions { memory_limit_bytes: 24 << 20, ..QueryOptions::default() }).await;
    assert_eq!(fixture.lines(SORT).await, ["300000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_neither_memory_nor_disk_is_refused_and_the_engine_lives() {
    let options = QueryOptions { memory_limit_bytes: 16 << 20, temp_limit_bytes: 1 << 20, ..QueryOptions::default() };
    let fixture = with_rows(options).await;
    let error = fixture.error(SORT).await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert_eq!(fixture.lines("SELECT count(*) FROM big").await, ["300000"]);
}

fn limited(limits: Limits) -> QueryOptions {
    QueryOptions { limits, ..QueryOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_has_at_most_the_rows_and_bytes_that_are_configured() {
    let limits = Limits { result_rows: Some(1000), result_bytes: Some(4 << 20), ..Limits::default() };
    let fixture = Fixture::with_options(limited(limits)).await;
    assert_eq!(fixture.query("SELECT * FROM generate_series(1, 1000)").await.num_rows(), 1000);
    let error = fixture.error("SELECT * FROM generate_series(1, 1001)").await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.message().contains("query.max_result_rows = 1000"), "{error}");
    let error = fixture.error("SELECT repeat('x', 10000) FROM generate_series(1, 900)").await;
    assert!(error.message().contains("query.max_result_mb = 4"), "{error}");
    // What is not sent to a client is not a result.
    assert_eq!(fixture.affected("CREATE TABLE t AS SELECT value FROM generate_series(1, 5000)").await, 5000);
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["5000"]);
    // What is sent counts, not the column that it is a part of.
    let wide = "CREATE TABLE w AS SELECT value, repeat('y', 1500) AS body FROM generate_series(1, 20000)";
    assert_eq!(fixture.affected(wide).await, 20_000);
    fixture.database.flush().await.unwrap();
    assert_eq!(fixture.lines("SELECT count(*), count(body) FROM w").await, ["20000|20000"]);
    assert_eq!(fixture.query("SELECT * FROM w LIMIT 10").await.num_rows(), 10);
    assert_eq!(fixture.query("SELECT * FROM w WHERE value % 100 = 7").await.num_rows(), 200);
}

const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 100000000000) a";

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_runs_too_long_is_stopped() {
    let limits = Limits { timeout: Some(std::time::Duration::from_millis(200)), ..Limits::default() };
    let fixture = Fixture::with_options(limited(limits)).await;
    for sql in [ENDLESS, &format!("CREATE TABLE t AS {ENDLESS}")] {
        let error = fixture.error(sql).await;
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        assert!(error.message().contains("query.statement_timeout_ms = 200"), "{error}");
    }
    assert!(fixture.database.table("public", "t").is_none());
    assert_eq!(fixture.lines("SELECT 1").await, ["1"]);
}

/// A window over everything keeps all of its input, and does not ask the memory pool.
const HOARDER: &str = "SELECT max(s) FROM (SELECT sum(value) OVER () AS s FROM generate_series(1, 400000000))";

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_no_pool_knows_of_stops_the_statement_that_holds_it() {
    let limits = Limits { process_memory_bytes: Some(512 << 20), ..Limits::default() };
    let fixture = Fixture::with_options(limited(limits)).await;
    let error = fixture.error(HOARDER).await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.message().contains("query.process_memory_limit_mb = 512"), "{error}");
    assert_eq!(fixture.lines("SELECT sum(value) FROM generate_series(1, 1000)").await, ["500500"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_has_at_most_the_bytes_that_are_configured() {
    let fixture = Fixture::with_options(limited(Limits { statement_bytes: 2048, ..Limits::default() })).await;
    let error = fixture.error(&format!("SELECT '{}'", "x".repeat(2048))).await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.message().contains("query.max_statement_kb = 2 "), "{error}");
}
