//! Prepared statements and their parameters.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int32Array, Int64Array, ListArray, NullArray, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Float64Type};
use hypr_common::ErrorKind;
use hypr_query::{Outcome, StatementKind};

use crate::harness::{Fixture, collect, lines};

fn params(columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_from_iter(columns.into_iter().enumerate().map(|(index, column)| (format!("{index}"), column)))
        .unwrap()
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn vectors(rows: Vec<Vec<f64>>) -> ArrayRef {
    let rows = rows.into_iter().map(|row| Some(row.into_iter().map(Some).collect::<Vec<_>>()));
    Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(rows))
}

async fn affected(fixture: &Fixture, sql: &str, params: &RecordBatch) -> hypr_common::Result<u64> {
    let prepared = fixture.session.prepare(sql).await?;
    assert_eq!(prepared.kind, StatementKind::Update);
    match fixture.session.execute_prepared(&prepared, params).await? {
        Outcome::Affected(rows) => Ok(rows),
        Outcome::Rows(_) => panic!("{sql} gave rows"),
    }
}

async fn query(fixture: &Fixture, sql: &str, params: &RecordBatch) -> Vec<String> {
    let prepared = fixture.session.prepare(sql).await.unwrap();
    assert_eq!(prepared.kind, StatementKind::Query);
    lines(&collect(fixture.session.execute_prepared(&prepared, params).await.unwrap()).await.unwrap())
}

const IMAGES: &str = "CREATE TABLE images (id TEXT PRIMARY KEY, embedding VECTOR(3), data BLOB, metadata JSONB)";

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_of_vectors_blobs_and_json_are_one_insert() {
    let fixture = Fixture::new().await;
    fixture.affected(IMAGES).await;
    let sql = "INSERT INTO images (id, embedding, data, metadata) VALUES (?, ?, ?, ?)";
    let rows = 10_000;
    let ids: Vec<String> = (0..rows).map(|row| format!("img_{row}")).collect();
    let batch = params(vec![
        Arc::new(StringArray::from(ids)),
        vectors((0..rows).map(|row| vec![f64::from(row), 0.5, 1.0]).collect()),
        Arc::new(BinaryArray::from_iter_values((0..rows).map(|row| vec![row as u8; 3]))),
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{{\"page\": {row}}}")))),
    ]);
    assert_eq!(affected(&fixture, sql, &batch).await.unwrap(), 10_000);
    let found = fixture
        .lines("SELECT count(*), max(metadata->>'page'), sum(octet_length(data)) FROM images WHERE vector_dims(embedding) = 3")
        .await;
    assert_eq!(found, ["10000|9999|30000"]);
    assert_eq!(fixture.lines("SELECT embedding FROM images WHERE id = 'img_7'").await, ["[7.0, 0.5, 1.0]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_with_an_expression_is_one_plan_over_all_rows() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE events (name TEXT, at TIMESTAMP, v VECTOR(2))").await;
    let sql = "INSERT INTO events (v, name, at) VALUES (?, upper(?), CURRENT_TIMESTAMP)";
    let batch = params(vec![vectors(vec![vec![1.0, 2.0], vec![3.0, 4.0]]), texts(&["a", "b"])]);
    assert_eq!(affected(&fixture, sql, &batch).await.unwrap(), 2);
    assert_eq!(
        fixture.lines("SELECT name, v FROM events WHERE at IS NOT NULL ORDER BY name").await,
        ["A|[1.0, 2.0]", "B|[3.0, 4.0]"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_fails_the_whole_insert() {
    let fixture = Fixture::new().await;
    fixture.affected(IMAGES).await;
    let sql = "INSERT INTO images (id, embedding) VALUES (?, ?)";
    let batch = params(vec![texts(&["a", "b"]), vectors(vec![vec![1.0; 3], vec![1.0; 2]])]);
    let error = affected(&fixture, sql, &batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.message(), "column \"embedding\" is VECTOR(3), and row 2 has a vector of 2 dimensions");
    assert_eq!(fixture.lines("SELECT count(*) FROM images").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_have_inferred_types_and_take_others() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (n INT, name TEXT, v VECTOR(2))").await;
    fixture.affected("INSERT INTO t VALUES (1, 'a', ARRAY[1, 0]), (2, 'b', ARRAY[0, 1])").await;
    let sql = "SELECT name FROM t WHERE n >= $1 AND name <> $2 AND cosine_similarity(v, $3) > 0.9";
    let prepared = fixture.session.prepare(sql).await.unwrap();
    let types: Vec<&DataType> = prepared.parameter_schema.fields().iter().map(|field| field.data_type()).collect();
    assert_eq!(types[..2], [&DataType::Int32, &DataType::Utf8]);
    assert!(matches!(types[2], DataType::FixedSizeList(_, 2)), "{:?}", types[2]);
    assert_eq!(prepared.result_schema.field(0).name(), "name");
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.5]));
    assert_eq!(query(&fixture, sql, &params(vec![doubles, texts(&["a"]), vectors(vec![vec![0.0, 2.0]])])).await, ["b"]);
    let null: ArrayRef = Arc::new(NullArray::new(1));
    assert!(query(&fixture, sql, &params(vec![null, texts(&["a"]), vectors(vec![vec![0.0, 2.0]])])).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_mark_is_an_operator_before_a_string() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id INT, metadata JSONB)").await;
    fixture.affected("INSERT INTO t VALUES (1, '{\"book\": 1}'), (2, '{\"film\": 1}')").await;
    let one: ArrayRef = Arc::new(Int64Array::from(vec![0]));
    let sql = "SELECT id FROM t WHERE metadata ? 'book' AND id > ?";
    assert_eq!(query(&fixture, sql, &params(vec![one])).await, ["1"]);
    let sql = "SELECT id FROM t WHERE metadata->>'film' = ?";
    assert_eq!(query(&fixture, sql, &params(vec![texts(&["1"])])).await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_and_deletes_run_for_each_row() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await;
    fixture.affected("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    let ids: ArrayRef = Arc::new(Int32Array::from(vec![1, 3]));
    let batch = params(vec![texts(&["x", "y"]), Arc::clone(&ids)]);
    assert_eq!(affected(&fixture, "UPDATE t SET name = ? WHERE id = ?", &batch).await.unwrap(), 2);
    assert_eq!(fixture.lines("SELECT * FROM t ORDER BY id").await, ["1|x", "2|b", "3|y"]);
    assert_eq!(affected(&fixture, "DELETE FROM t WHERE id = ?", &params(vec![ids])).await.unwrap(), 2);
    assert_eq!(fixture.lines("SELECT * FROM t").await, ["2|b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_parameters_is_checked() {
    let fixture = Fixture::new().await;
    let prepared = fixture.session.prepare("SELECT 1 WHERE 1 = ? OR 2 = ?").await.unwrap();
    let error = fixture.session.execute_prepared(&prepared, &params(vec![texts(&["1"])])).await.unwrap_err();
    assert_eq!(error.message(), "the statement takes 2 parameters and 1 were bound");
    let error = fixture.error("SELECT 1 WHERE 1 = ?").await;
    assert_eq!(error.message(), "the statement takes 1 parameters and 0 were bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_sees_the_catalog_as_it_is_when_it_runs() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (a INT)").await;
    let prepared = fixture.session.prepare("SELECT count(*) FROM t").await.unwrap();
    fixture.affected("DROP TABLE t").await;
    let error = fixture.session.execute_prepared(&prepared, &params(vec![texts(&[])])).await.err();
    assert!(error.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn results_have_the_schema_that_prepare_announced() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id INT PRIMARY KEY, name TEXT, v VECTOR(2), j JSONB)").await;
    fixture.affected("INSERT INTO t VALUES (1, 'a', ARRAY[1, 0], '{}')").await;
    for sql in [
        "SELECT * FROM t",
        "SELECT j->'a', j->>'a', substr(name, 1), id + 1, now() FROM t",
        "SELECT a.id, b.name FROM t a LEFT JOIN t b ON a.id = b.id + 1",
        "SELECT name, count(*) FROM t GROUP BY name",
        "SELECT id, j FROM t UNION SELECT id, j FROM t",
        "SHOW TABLES",
        "DESCRIBE t",
        "EXPLAIN SELECT 1",
    ] {
        let prepared = fixture.session.prepare(sql).await.unwrap();
        let outcome = fixture.run(sql).await.unwrap();
        let Outcome::Rows(stream) = outcome else { panic!("{sql}") };
        assert_eq!(stream.schema(), prepared.result_schema, "{sql}");
        collect(Outcome::Rows(stream)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_has_the_types_of_what_is_bound() {
    let fixture = Fixture::new().await;
    let one = |value: f64| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
    for (sql, announced, bound, expected) in [
        ("SELECT $1 AS v", DataType::Utf8, texts(&["x"]), "x"),
        ("SELECT $1 AS v", DataType::Utf8, one(1.5), "1.5"),
        ("SELECT $1 + 1 AS v", DataType::Int64, one(1.5), "2.5"),
        ("SELECT $1 + 1 AS v", DataType::Int64, Arc::new(Int32Array::from(vec![1])), "2"),
    ] {
        let prepared = fixture.session.prepare(sql).await.unwrap();
        assert_eq!(prepared.result_schema.field(0).data_type(), &announced, "{sql}");
        let params = params(vec![bound]);
        let schema = fixture.session.result_schema(&prepared, &params).await.unwrap();
        let outcome = fixture.session.execute_prepared(&prepared, &params).await.unwrap();
        let Outcome::Rows(stream) = outcome else { panic!("{sql}") };
        assert_eq!(stream.schema(), schema, "{sql}");
        assert_eq!(lines(&collect(Outcome::Rows(stream)).await.unwrap()), [expected], "{sql}");
    }
}
