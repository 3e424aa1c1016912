//! `hyprstream import`: files into a table.
//!
//! The files are read here, by the command, and their rows are sent as Arrow; the server, in this process or
//! elsewhere, needs no access to them.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use hypr_common::{Error, ErrorKind, Result};
use hypr_query::copy::{BytesRead, FileOptions, open_files};
use hypr_query::{IngestMode, TableRef};
use hypr_server::ClientOutcome;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;
use crate::cli::ImportArgs;
use crate::sql::connection::Connection;

/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Reads the files and stores their rows; prints how many.
pub async fn run(args: ImportArgs) -> Result<(), Failure> {
    let options = options(&args).map_err(Failure::Usage)?;
    let table = table(&args.table).map_err(Failure::Usage)?;
    let mut connection = match &args.server {
        Some(url) => Connection::server(url).await?,
        None => Connection::directory(args.directory.load(Vec::new())?).await?,
    };
    let stored = import(&mut connection, &args, &table, &options).await;
    let closed = connection.close().await;
    let rows = stored?;
    closed?;
    let mut out = std::io::stdout();
    writeln!(out, "{rows} rows into {table}").map_err(|error| Error::io("standard output cannot be written", error))?;
    Ok(())
}

async fn import(
    connection: &mut Connection,
    args: &ImportArgs,
    table: &TableRef,
    options: &FileOptions,
) -> Result<i64> {
    let existing = if args.replace { None } else { columns(connection, table).await? };
    let mode = match (args.replace, args.create) {
        (true, _) => IngestMode::Replace,
        (_, true) => IngestMode::CreateAppend,
        _ => IngestMode::Append,
    };
    if existing.is_none() && mode == IngestMode::Append {
        return Err(Error::not_found(format!("table {table} does not exist; add --create to make it from the files")));
    }
    let read = BytesRead::default();
    let files = open_files(&args.files, options, existing, Arc::clone(&read)).await?;
    let bar = progress(files.bytes);
    let moving = {
        let (bar, read) = (bar.clone(), Arc::clone(&read));
        tokio::spawn(async move {
            loop {
                bar.set_position(read.load(Ordering::Relaxed));
                tokio::time::sleep(TICK).await;
            }
        })
    };
    let (failed, rows) = keep_error(files.rows);
    let stored = connection.client().ingest(table, mode, rows).await;
    moving.abort();
    bar.finish_and_clear();
    // The server sees only that the rows ended; what is wrong with the file is known here.
    match failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => stored,
    }
}

type Rows = futures::stream::BoxStream<'static, Result<arrow::array::RecordBatch>>;
type Kept = Arc<std::sync::Mutex<Option<Error>>>;

/// The rows up to the first error, and that error when they have ended.
fn keep_error(rows: Rows) -> (Kept, Rows) {
    let kept = Kept::default();
    let keep = Arc::clone(&kept);
    let rows = rows.map(move |batch| {
        batch.map_err(|error| {
            let copy = Error::new(error.kind(), error.message());
            keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            copy
        })
    });
    (kept, rows.boxed())
}

/// The columns of the table; none when it does not exist.
async fn columns(connection: &mut Connection, table: &TableRef) -> Result<Option<SchemaRef>> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let sql = format!("SELECT * FROM {}.{} LIMIT 0", quoted(table.schema_name()), quoted(&table.name));
    match connection.execute(&sql).await {
        Ok(ClientOutcome::Rows { schema, .. }) => Ok(Some(schema)),
        Ok(ClientOutcome::Affected(_)) => Err(Error::internal("a query answered with a count")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn options(args: &ImportArgs) -> Result<FileOptions> {
    let mut options = FileOptions { header: !args.no_header, ..FileOptions::default() };
    let given = [("format", &args.format), ("delimiter", &args.delimiter), ("null", &args.null)];
    for (name, value) in given {
        if let Some(value) = value {
            options.set(name, value)?;
        }
    }
    Ok(options)
}

fn table(name: &str) -> Result<TableRef> {
    match name.split('.').collect::<Vec<_>>().as_slice() {
        [table] if !table.is_empty() => Ok(TableRef::bare(*table)),
        [schema, table] if !schema.is_empty() && !table.is_empty() => {
            Ok(TableRef { schema: Some((*schema).to_owned()), name: (*table).to_owned() })
        }
        _ => Err(Error::invalid(format!("`{name}` is no table name; write TABLE or SCHEMA.TABLE"))),
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{bar:40} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_a_name_or_two() {
        assert_eq!(table("a.b").unwrap(), TableRef { schema: Some("a".to_owned()), name: "b".to_owned() });
        assert_eq!(table("a").unwrap(), TableRef::bare("a"));
        for wrong in ["", ".", "a.", "a.b.c"] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
    }
}
