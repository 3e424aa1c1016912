//! The `hyprstream` command: `serve`, `sql`, `import`, `model` and `check`.
//!
//! A thin front: `serve` hands its configuration to `hypr-server`; `sql` is a Flight SQL client, also of
//! itself, since for a directory that nobody serves it starts the server inside its own process; `import` reads files
//! and sends their rows the same way; `model` fetches files and hands them to the library; `check` prints what the
//! store finds. Results go to standard output, everything else to standard error.
//!
//! Invariant: the exit code is 0 when everything asked for was done, 1 when it failed, 2 when the command
//! line or the configuration is wrong.

mod check;
mod cli;
mod import;
mod library;
mod models;
mod serve;
mod sql;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use hypr_common::Error;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

/// A statement makes thousands of small allocations on several threads; the system's allocator takes a tenth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Environment variable with a `tracing` filter such as `info` or `hypr_storage=debug`; `RUST_LOG` counts too.
const LOG_VARIABLE: &str = "HYPRSTREAM_LOG";

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line or the configuration is wrong.
    Usage(Error),
    /// The operation failed.
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(&cli.command);
    let (error, code) = match run(cli.command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => (error, 1),
        Err(Failure::Usage(error)) => (error, 2),
    };
    tracing::debug!(?error, "failed");
    eprintln!("error: {error}");
    ExitCode::from(code)
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime =
        Runtime::new().map_err(|error| Error::internal("the async runtime cannot be started").with_source(error))?;
    runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(args).await,
            Command::Sql(args) => sql::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Model(args) => models::run(args).await,
            Command::Check(args) => check::run(args).await,
        }
    })
}

/// A server says what it does; the other commands speak up only when something is wrong.
fn log_to_stderr(command: &Command) {
    let default = match command {
        Command::Serve(_) => "info",
        // Its findings are its output.
        Command::Check(_) => "off",
        _ => "warn",
    };
    let filter = std::env::var(LOG_VARIABLE).or_else(|_| std::env::var(EnvFilter::DEFAULT_ENV));
    let filter = filter.unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        eprintln!("warning: {LOG_VARIABLE}={filter} is no log filter ({error}); using {default}");
        EnvFilter::new(default)
    });
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}
