//! Starting, stopping, refusing; configuration; exit codes.

use std::fs;

use crate::process::{Server, hyprstream, run, sql, sql_stdin, stderr, stdout};

#[test]
fn a_terminated_server_exits_0_and_has_kept_everything() {
    let dir = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let server = Server::start(dir.path(), &[]);
        let table = signal.to_lowercase();
        let script = format!("CREATE TABLE {table} (id INT PRIMARY KEY); INSERT INTO {table} VALUES (1), (2), (3)");
        stdout(&sql(dir.path(), &[&script]));
        server.signal(signal);
        let (status, rest) = server.wait();
        assert_eq!(status.code(), Some(0));
        assert_eq!(rest, "", "standard output has the ready line alone");
        assert!(!dir.path().join("server.json").exists());
    }
    let counts = "SELECT (SELECT count(*) FROM term) AS a, (SELECT count(*) FROM int) AS b";
    assert_eq!(stdout(&sql(dir.path(), &["--format", "csv", counts])), "a,b\n3,3\n");
}

#[test]
fn a_second_server_on_a_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut second = hyprstream();
    second.arg("serve").arg("--data-dir").arg(dir.path()).args(["--listen", "127.0.0.1:0"]);
    let refused = second.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    assert!(stderr(&refused).contains(&server.url), "{}", stderr(&refused));
    // The first is none the worse for it, and `sql` on the directory goes to it.
    let session = sql(dir.path(), &["--format", "csv", "SELECT 1 AS one"]);
    assert_eq!(stdout(&session), "one\n1\n");
    let asked = run(&["sql", "--server", &server.url, "--format", "csv", "SELECT 2 AS two"]);
    assert_eq!(stdout(&asked), "two\n2\n");
}

#[test]
fn a_killed_server_leaves_the_directory_usable_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    stdout(&sql(dir.path(), &["CREATE TABLE t (id INT); INSERT INTO t VALUES (7)"]));
    server.kill();
    assert!(dir.path().join("server.json").exists(), "it had no chance to tidy up");
    assert_eq!(stdout(&sql(dir.path(), &["--format", "csv", "SELECT id FROM t"])), "id\n7\n");
}

#[test]
fn exit_codes_tell_failure_from_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("bad.toml");
    fs::write(&config, "[server]\nprot = 1\n").unwrap();
    let config = config.to_str().unwrap();
    let data = dir.path().to_str().unwrap();
    for (args, code, said) in [
        (vec!["sql", "--data-dir", data, "SELECT no_such_column"], 1, "no_such_column"),
        (vec!["sql", "--server", "http://127.0.0.1:1", "SELECT 1"], 1, "127.0.0.1:1"),
        (vec!["model", "remove", "nobody", "--data-dir", data], 1, "nobody"),
        (vec!["model", "import", "--name", "x", "/nonexistent.gguf", "--data-dir", data], 1, "/nonexistent.gguf"),
        (vec!["model", "pull", "unheard-of", "--data-dir", data], 2, "smollm2-135m-instruct"),
        (vec!["serve", "--listen", "nonsense"], 2, "HOST:PORT"),
        (vec!["serve", "--config", config], 2, "server.port"),
        (vec!["serve", "--config", "/nonexistent.toml"], 2, "/nonexistent.toml"),
        (vec!["sql", "--format", "yaml", "SELECT 1"], 2, "csv"),
        (vec!["sql", "--server", "http://h:1", "--data-dir", data, "SELECT 1"], 2, "--data-dir"),
        (vec!["no-such-command"], 2, "no-such-command"),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn file_environment_and_flags_win_in_this_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let config = path("hyprstream.toml");
    fs::write(&config, format!("[storage]\ndata_dir = \"{}\"\n", path("file").display())).unwrap();
    let list = |environment: bool, flag: bool| {
        let mut command = hyprstream();
        command.args(["model", "list", "--config"]).arg(&config);
        if environment {
            command.env("HYPRSTREAM_STORAGE_DATA_DIR", path("environment"));
        }
        if flag {
            command.arg("--data-dir").arg(path("flag"));
        }
        stdout(&command.output().unwrap());
        let found: Vec<&str> = ["file", "environment", "flag"].into_iter().filter(|name| path(name).exists()).collect();
        found.iter().for_each(|name| fs::remove_dir_all(path(name)).unwrap());
        found
    };
    assert_eq!(list(false, false), ["file"]);
    assert_eq!(list(true, false), ["environment"]);
    assert_eq!(list(true, true), ["flag"]);

    let mut misspelt = hyprstream();
    misspelt.args(["model", "list"]).env("HYPRSTREAM_STORAGE_DATADIR", "x");
    let output = misspelt.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HYPRSTREAM_STORAGE_DATA_DIR"), "{}", stderr(&output));
}

#[test]
fn the_default_directory_is_below_the_current_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = hyprstream();
    let output = command.current_dir(dir.path()).args(["sql", "--format", "csv", "SELECT 1 AS one"]).output().unwrap();
    assert_eq!(stdout(&output), "one\n1\n");
    assert!(dir.path().join("hyprstream-data").is_dir());
}

#[test]
fn help_and_version_are_there_for_every_command() {
    for command in [vec![], vec!["serve"], vec!["sql"], vec!["model"], vec!["model", "pull"], vec!["model", "import"]] {
        let mut args = command.clone();
        args.push("--help");
        assert!(stdout(&run(&args)).contains("Usage: hyprstream"), "{command:?}");
        args.pop();
        args.push("--version");
        assert!(stdout(&run(&args)).contains(env!("CARGO_PKG_VERSION")), "{command:?}");
    }
}

#[test]
fn a_script_stops_at_the_first_failure_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let script = "CREATE TABLE t (id INT PRIMARY KEY);\nINSERT INTO t VALUES (1);\n\n-- a remark; not a statement\n\
                  INSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2)";
    let output = sql_stdin(dir.path(), &[], script);
    assert_eq!(output.status.code(), Some(1));
    // A comment before a statement belongs to it.
    assert!(stderr(&output).contains("line 4") || stderr(&output).contains("line 5"), "{}", stderr(&output));
    assert_eq!(stdout(&sql(dir.path(), &["--format", "csv", "SELECT id FROM t"])), "id\n1\n");
    assert_eq!(stdout(&sql_stdin(dir.path(), &[], " -- nothing\n")), "");
}
