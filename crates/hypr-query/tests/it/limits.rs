//! Bounds of memory and disk.

use hypr_common::ErrorKind;
use hypr_query::QueryOptions;

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
