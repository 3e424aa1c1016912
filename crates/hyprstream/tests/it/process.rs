//! Runs the binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longer than anything takes on a loaded machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary with none of the caller's settings.
pub fn hyprstream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HYPRSTREAM_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    hyprstream().args(args).output().unwrap()
}

/// `sql` on a directory.
pub fn sql(dir: &Path, args: &[&str]) -> Output {
    hyprstream().arg("sql").arg("--data-dir").arg(dir).args(args).output().unwrap()
}

/// `sql` on a directory, with statements from standard input.
pub fn sql_stdin(dir: &Path, args: &[&str], script: &str) -> Output {
    let mut command = hyprstream();
    command.arg("sql").arg("--data-dir").arg(dir).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Standard output of a run that must have succeeded.
pub fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a run said on standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    pub url: String,
}

impl Server {
    /// Starts a server on `dir` with settings from the environment, and waits for its ready line.
    pub fn start(dir: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = hyprstream();
        command.arg("serve").arg("--data-dir").arg(dir).args(["--listen", "127.0.0.1:0"]);
        command.envs(environment.iter().copied()).env("HYPRSTREAM_LOG", "warn");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            sender.send((line, stdout)).unwrap();
        });
        let (line, stdout) = receiver.recv_timeout(PATIENCE).expect("no ready line");
        let url = line.strip_prefix("hyprstream ready on ").and_then(|rest| rest.strip_suffix('\n'));
        let url = url.unwrap_or_else(|| panic!("ready line is {line:?}")).to_owned();
        Self { child, stdout: Some(stdout), url }
    }

    /// Sends a signal such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Kills the process at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end; returns the exit status and what followed the ready line on standard output.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already in most cases.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
