//! `hyprstream check` as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::process::{Server, hyprstream, stderr, stdout};

fn check(dir: &Path, more: &[&str]) -> Output {
    hyprstream().arg("check").args(more).arg(dir).output().unwrap()
}

fn sql(dir: &Path, statement: &str) -> Output {
    hyprstream().args(["sql", "--format", "csv", "--data-dir"]).arg(dir).arg(statement).output().unwrap()
}

/// Two tables, flushed by the orderly end of the command.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (table, rows) in [("one", "(1, 'a'), (2, 'b')"), ("two", "(3, 'c')")] {
        stdout(&sql(dir.path(), &format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, body TEXT)")));
        stdout(&sql(dir.path(), &format!("INSERT INTO {table} VALUES {rows}")));
    }
    dir
}

fn data_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for table in std::fs::read_dir(dir.join("tables")).unwrap() {
        let data = std::fs::read_dir(table.unwrap().path().join("data")).unwrap();
        found.extend(data.map(|file| file.unwrap().path()));
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

#[test]
fn a_sound_directory_is_called_so() {
    let dir = directory();
    let text = stdout(&check(dir.path(), &[]));
    assert!(text.starts_with("sound: ") && text.contains("2 tables, 3 rows"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&stdout(&check(dir.path(), &["--format", "json"]))).unwrap();
    assert_eq!((&report["verdict"], &report["rows"]), (&"sound".into(), &3.into()), "{report}");
    assert_eq!(report["findings"], serde_json::json!([]));
    assert!(report["files"].as_u64().unwrap() > 4, "{report}");
}

#[test]
fn a_damaged_file_is_named_by_check_and_by_the_statement_and_the_rest_is_served() {
    let dir = directory();
    let file = data_files(dir.path()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::write(&file, bytes).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();

    let output = check(dir.path(), &["--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "damaged");
    let finding = &report["findings"][0];
    assert_eq!(finding["severity"], "damage");
    assert!(finding["path"].as_str().unwrap().ends_with(name), "{report}");
    assert!(String::from_utf8(check(dir.path(), &[]).stdout).unwrap().starts_with("damage  table public."));

    let outputs = [sql(dir.path(), "SELECT body FROM one"), sql(dir.path(), "SELECT body FROM two")];
    let failed: Vec<_> = outputs.iter().filter(|output| output.status.code() != Some(0)).collect();
    assert_eq!(failed.len(), 1, "one table is damaged and one is not: {outputs:?}");
    assert!(stderr(failed[0]).contains(name), "{}", stderr(failed[0]));
}

#[test]
fn a_directory_in_use_and_one_that_is_none_are_refused() {
    let dir = directory();
    let server = Server::start(dir.path(), &[]);
    let output = check(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&server.url), "{}", stderr(&output));
    drop(server);
    stdout(&check(dir.path(), &[]));

    let empty = tempfile::tempdir().unwrap();
    let output = check(empty.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no data directory"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "a check creates nothing");
}

#[test]
fn what_a_server_says_of_itself_is_not_needed() {
    let dir = directory();
    let file = dir.path().join("server.json");
    for content in [&b"{\"url\": 7"[..], b"\xff\xfe", b"{}", b"{\"url\": \"nonsense\", \"pid\": -1}"] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(stdout(&sql(dir.path(), "SELECT count(*) AS n FROM one")).trim(), "n\n2");
    }
}
