//! What `sql` prints.

use std::io::Read;
use std::process::Stdio;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Float32Type, Int32Type};
use arrow::ipc::reader::StreamReader;

use crate::process::{hyprstream, sql, stderr, stdout};

const TABLE: &str = "CREATE TABLE t (id INT PRIMARY KEY, body TEXT, v VECTOR(2), b BLOB, j JSONB)";
const ROWS: &str = "INSERT INTO t VALUES (1, 'plain', ARRAY[0.5, -1.0], X'00ff', '{\"a\": [1, null]}'), \
                    (2, 'a, \"quoted\"\nline', NULL, NULL, NULL)";
const SELECT: &str = "SELECT id, body, v, b, j FROM t ORDER BY id";

fn table() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    stdout(&sql(dir.path(), &[&format!("{TABLE}; {ROWS};")]));
    dir
}

#[test]
fn csv_is_exact() {
    let dir = table();
    let expected =
        "id,body,v,b,j\n1,plain,\"[0.5,-1.0]\",00ff,\"{\"\"a\"\": [1, null]}\"\n2,\"a, \"\"quoted\"\"\nline\",,,\n";
    let output = sql(dir.path(), &["--format", "csv", SELECT]);
    assert_eq!(stdout(&output), expected);
    assert_eq!(stderr(&output), "");
    let nothing = sql(dir.path(), &["--format", "csv", "SELECT id, v FROM t WHERE id > 5"]);
    assert_eq!(stdout(&nothing), "id,v\n", "the header stands there without rows too");
}

#[test]
fn json_is_one_object_a_line() {
    let dir = table();
    let text = stdout(&sql(dir.path(), &["--format", "json", SELECT]));
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = serde_json::json!({"id": 1, "body": "plain", "v": [0.5, -1.0], "b": "00ff", "j": "{\"a\": [1, null]}"});
    let second = serde_json::json!({"id": 2, "body": "a, \"quoted\"\nline", "v": null, "b": null, "j": null});
    assert_eq!(rows, [first, second]);
    assert_eq!(stdout(&sql(dir.path(), &["--format", "json", "SELECT id FROM t WHERE id > 5"])), "");
}

#[test]
fn arrow_is_a_stream_with_the_types_of_the_table() {
    let dir = table();
    let output = sql(dir.path(), &["--format", "arrow", SELECT]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let reader = StreamReader::try_new(output.stdout.as_slice(), None).unwrap();
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let rows = concat_batches(&schema, &batches).unwrap();
    assert_eq!(rows.column(0).as_primitive::<Int32Type>().values(), &[1, 2]);
    assert_eq!(schema.field(2).data_type(), &hypr_common::types::vector_type(2));
    assert_eq!(schema.field(3).data_type(), &DataType::LargeBinary);
    let vector = rows.column(2).as_fixed_size_list().value(0);
    assert_eq!(vector.as_primitive::<Float32Type>().values(), &[0.5, -1.0]);
    assert_eq!(rows.column(3).as_binary::<i64>().value(0), [0, 255]);
    assert!(rows.column(3).is_null(1));
}

#[test]
fn tables_are_for_people_and_remarks_go_to_standard_error() {
    let dir = table();
    let output = sql(dir.path(), &["--max-width", "6", "SELECT id, 'a long value' AS long FROM t ORDER BY id"]);
    let expected =
        "+----+--------+\n| id | long   |\n+----+--------+\n| 1  | a lon… |\n| 2  | a lon… |\n+----+--------+\n";
    assert_eq!(stdout(&output), expected);
    assert!(stderr(&output).starts_with("(2 rows, "), "{}", stderr(&output));
    let output = sql(dir.path(), &["SELECT 'a long value' AS long, CAST(NULL AS INT) AS nothing"]);
    assert!(stdout(&output).contains("a long value") && stdout(&output).contains("NULL"), "uncut without a terminal");
    assert!(stderr(&output).starts_with("(1 row, "), "{}", stderr(&output));
    let output = sql(dir.path(), &["DELETE FROM t"]);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).starts_with("(2 rows affected, "), "{}", stderr(&output));
}

#[test]
fn several_statements_answer_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let script = "SELECT 1 AS a; SELECT ';' AS b; SELECT 3 AS c;";
    assert_eq!(stdout(&sql(dir.path(), &["--format", "csv", script])), "a\n1\nb\n;\nc\n3\n");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = hyprstream();
    command.arg("sql").arg("--data-dir").arg(dir.path());
    command.args(["--format", "csv", "SELECT value FROM generate_series(1, 3000000)"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"value\n1\n2\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}
