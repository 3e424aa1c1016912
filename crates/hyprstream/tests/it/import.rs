//! `hyprstream import`, and `COPY` by `hyprstream sql`.

use std::fs;

use tempfile::tempdir;

use crate::process::{hyprstream, run, sql, stderr, stdout};

#[test]
fn files_become_a_table_and_are_appended_to_it() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let data_dir = data.to_str().unwrap();
    let (one, two, lines) = (dir.path().join("a_1.csv"), dir.path().join("a_2.csv"), dir.path().join("b.jsonl"));
    fs::write(&one, "id,name,score\n1,one,1.5\n2,\"two, or\nso\",\n").unwrap();
    fs::write(&two, "name,id\nthree,3\n").unwrap();
    fs::write(&lines, "{\"id\": 4, \"score\": 0.25}\n\n{\"id\": 5, \"name\": \"five\"}\n").unwrap();
    let pattern = dir.path().join("a_?.csv");
    let missing = run(&["import", "--data-dir", data_dir, "--table", "t", one.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("add --create"), "{}", stderr(&missing));
    let files = run(&["import", "--data-dir", data_dir, "--table", "t", "--create", pattern.to_str().unwrap()]);
    assert_eq!(stdout(&files), "3 rows into t\n");
    let appended = run(&["import", "--data-dir", data_dir, "--table", "t", lines.to_str().unwrap()]);
    assert_eq!(stdout(&appended), "2 rows into t\n");
    let found = sql(&data, &["--format", "csv", "SELECT id, name, score FROM t ORDER BY id"]);
    assert_eq!(stdout(&found), "id,name,score\n1,one,1.5\n2,\"two, or\nso\",\n3,three,\n4,,0.25\n5,five,\n");
    let replaced = run(&["import", "--data-dir", data_dir, "--table", "t", "--replace", two.to_str().unwrap()]);
    assert_eq!(stdout(&replaced), "1 rows into t\n");
    assert_eq!(stdout(&sql(&data, &["--format", "csv", "SELECT * FROM t"])), "name,id\nthree,3\n");
}

#[test]
fn a_row_that_does_not_fit_is_named_by_file_and_line() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let file = dir.path().join("bad.csv");
    fs::write(&file, "id,name\n1,\"two\nlines\"\n\nx,bad\n").unwrap();
    stdout(&sql(&data, &["CREATE TABLE t (id INT, name TEXT)"]));
    let args = ["import", "--data-dir", data.to_str().unwrap(), "--table", "t", file.to_str().unwrap()];
    let refused = run(&args);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("bad.csv, line 5: column \"id\" is INT"), "{}", stderr(&refused));
    let copied = sql(&data, &[&format!("COPY t FROM '{}'", file.display())]);
    assert!(stderr(&copied).contains("bad.csv, line 5: column \"id\" is INT"), "{}", stderr(&copied));
    let usage = run(&["import", "--table", "t", "--format", "orc", file.to_str().unwrap()]);
    assert_eq!(usage.status.code(), Some(2), "{}", stderr(&usage));
}

#[test]
fn sql_on_a_directory_copies_any_file_of_its_user_unless_configured() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let file = dir.path().join("out.csv");
    let copy = format!("COPY (SELECT 1 AS a) TO '{}'", file.display());
    stdout(&sql(&data, &[&copy]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "a\n1\n");
    let inside = sql(&data, &[&format!("COPY (SELECT 1 AS a) TO '{}/x.csv'", data.display())]);
    assert!(stderr(&inside).contains("data directory"), "{}", stderr(&inside));
    let mut limited = hyprstream();
    limited.env("HYPRSTREAM_COPY_ALLOWED_PATHS", "/nowhere").arg("sql").arg("--data-dir").arg(&data).arg(&copy);
    let limited = limited.output().unwrap();
    assert_eq!(limited.status.code(), Some(1));
    assert!(stderr(&limited).contains("copy.allowed_paths"), "{}", stderr(&limited));
}
