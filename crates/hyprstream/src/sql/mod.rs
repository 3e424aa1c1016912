//! `hyprstream sql`: statements from the command line, from standard input or from a prompt.

pub(crate) mod connection;
mod output;
mod prompt;

use std::io::{self, IsTerminal, Read};
use std::time::Instant;

use hypr_common::Error;
use hypr_query::split_statements;

use crate::Failure;
use crate::cli::{Format, SqlArgs};
use connection::Connection;
use output::Printer;

/// Longest value in a table on a terminal, in characters.
const TERMINAL_MAX_WIDTH: usize = 80;

/// Runs the statements; the first that fails ends the run.
pub async fn run(args: SqlArgs) -> Result<(), Failure> {
    let on_terminal = io::stdout().is_terminal();
    let max_width = args.max_width.unwrap_or(if on_terminal { TERMINAL_MAX_WIDTH } else { 0 });
    let max_width = Some(max_width).filter(|width| *width > 0);
    if args.format == Format::Arrow && on_terminal {
        let message = "Arrow streams are binary: send standard output to a file or another program";
        return Err(Failure::Usage(Error::invalid(message)));
    }
    let script = match args.sql {
        None if io::stdin().is_terminal() => None,
        None => Some(read_stdin()?),
        given => given,
    };
    let mut connection = match &args.server {
        Some(url) => Connection::server(url).await?,
        None => Connection::directory(args.directory.load(Vec::new())?).await?,
    };
    let mut printer = Printer::new(args.format, max_width);
    let done = match script {
        Some(script) => run_script(&mut connection, &mut printer, &script).await,
        None => prompt::run(&mut connection, &mut printer).await,
    };
    let closed = connection.close().await;
    match done {
        // Whoever read the output has enough, as `head` does.
        Err(_) if printer.pipe_closed() => Ok(closed?),
        done => Ok(done.and(closed)?),
    }
}

fn read_stdin() -> Result<String, Error> {
    let mut script = String::new();
    io::stdin().read_to_string(&mut script).map_err(|error| Error::io("standard input cannot be read", error))?;
    Ok(script)
}

async fn run_script(connection: &mut Connection, printer: &mut Printer, script: &str) -> Result<(), Error> {
    let statements = split_statements(script);
    let several = statements.len() > 1;
    for statement in statements {
        let started = Instant::now();
        let done = match connection.execute(&statement.sql).await {
            Ok(outcome) => printer.print(outcome, started).await,
            Err(error) => Err(error),
        };
        done.map_err(|error| if several { at_line(error, statement.line) } else { error })?;
    }
    Ok(())
}

/// Says where in the script the statement is that failed.
fn at_line(error: Error, line: usize) -> Error {
    Error::new(error.kind(), format!("statement at line {line}: {error}")).with_source(error)
}
