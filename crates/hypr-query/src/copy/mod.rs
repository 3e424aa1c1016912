//! `COPY` between tables and files: Parquet, CSV, JSON (an object a line) and Arrow IPC, in directories or in an
//! object store.
//!
//! `COPY .. FROM` reads as a stream, names file and line of a row that does not fit, and stores all rows of all its
//! files or none ([`hypr_storage::Database::load`]). `COPY .. TO` writes as a stream; a file appears when it is
//! complete.
//!
//! Invariant: a statement reaches no file but those that [`CopyAccess`] lists.
//! Deliberately absent: compression of text files that are written, partitioned output, and `STDIN`/`STDOUT`:
//! clients send and receive Arrow.

pub(crate) mod grammar;
mod location;
mod options;
mod read;
mod read_arrow;
mod read_csv;
mod read_json;
mod source;
mod target;
mod write;

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Query, Statement as Sql};
use futures::StreamExt;
use futures::stream::BoxStream;
use hypr_common::{Error, Result};

use crate::dialect::ddl;
use crate::dialect::procedure::{Procedure, text};
use crate::rules::Rules;
use crate::{DEFAULT_SCHEMA, Outcome, Session, TableRef, session};
use grammar::{COPY_FROM, COPY_TO};
use location::Location;
use target::Target;

pub use location::CopyAccess;
pub use options::{FileFormat, FileOptions};
pub use source::BytesRead;
pub use write::{nested_as_json, text_of_nested};

/// A `COPY`. Names have their schema.
#[derive(Clone, Debug)]
pub(crate) enum CopyStatement {
    From { table: TableRef, columns: Vec<String>, source: String, options: FileOptions },
    To { query: Box<Query>, target: String, options: FileOptions },
}

impl CopyStatement {
    /// The statement that `procedure` stands for; `None` when it is none of these.
    pub(crate) fn of(procedure: &Procedure) -> Result<Option<Self>> {
        let options = || -> Result<FileOptions> {
            let mut options = FileOptions::default();
            for (name, value) in &procedure.options {
                let value = text(value).ok_or_else(|| Error::invalid(format!("option {name} takes a value")))?;
                options.set(name, &value)?;
            }
            Ok(options)
        };
        match procedure.name.as_str() {
            COPY_FROM => {
                let mut table = ddl::table_ref(&procedure.name_at(0)?)?;
                table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
                let columns = match procedure.args.get(2) {
                    Some(Expr::Tuple(columns)) => columns.iter().filter_map(column_name).collect(),
                    _ => Vec::new(),
                };
                Ok(Some(Self::From { table, columns, source: procedure.text_at(1)?, options: options()? }))
            }
            COPY_TO => match procedure.args.first() {
                Some(Expr::Subquery(query)) => {
                    Ok(Some(Self::To { query: query.clone(), target: procedure.text_at(1)?, options: options()? }))
                }
                _ => Err(Error::invalid("COPY TO takes a table or a query in parentheses")),
            },
            _ => Ok(None),
        }
    }
}

fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(ddl::normalize(ident)),
        _ => None,
    }
}

/// Runs a `COPY`; it affects the rows that it moves.
pub(crate) async fn run(session: &Session, statement: &CopyStatement) -> Result<Outcome> {
    match statement {
        CopyStatement::From { table, columns, source, options } => {
            let stored = session.catalog().stored(table)?;
            let target = Target {
                table: table.name.clone(),
                schema: stored.schema(),
                listed: (!columns.is_empty()).then(|| columns.clone()),
                rules: Arc::new(Rules::of(session, &session.statement_state(), &stored)?),
            };
            let location = Location::resolve(source, session.engine().copy_access(), false)?;
            let files = location.files().await?;
            let rows = read::rows(files, options.clone(), target, BytesRead::default());
            session.engine().database().load(&stored, rows).await.map(Outcome::Affected)
        }
        CopyStatement::To { query, target, options } => {
            let location = Location::resolve(target, session.engine().copy_access(), true)?;
            let state = session.statement_state();
            let statement = Statement::Statement(Box::new(Sql::Query(query.clone())));
            let plan = session.planner(&state).plan(statement, None, &[]).await?;
            let schema = crate::shape::result_schema(&state, &plan)?;
            let rows = crate::shape::conform(session::start(&state, &plan).await?, schema);
            write::write(rows, location, options).await.map(Outcome::Affected)
        }
    }
}

/// Rows of local files, read by a client.
pub struct FileRows {
    /// The columns, with the logical types that a table made for them has.
    pub schema: SchemaRef,
    /// The rows.
    pub rows: BoxStream<'static, Result<RecordBatch>>,
    /// Bytes of all files together.
    pub bytes: u64,
}

impl std::fmt::Debug for FileRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileRows").field("schema", &self.schema).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Opens files, whose columns must be alike. With `schema` text is parsed as its types; without, the types are those of
/// the first file, which of text are made out from its first 10,000 rows. `read` counts bytes as they are read.
///
/// # Errors
/// `NotFound` for a missing file, `InvalidInput` for one of another format.
pub async fn open_files(
    paths: &[String],
    options: &FileOptions,
    schema: Option<SchemaRef>,
    read: BytesRead,
) -> Result<FileRows> {
    let access = CopyAccess::unrestricted();
    let mut files = Vec::new();
    for path in paths {
        files.extend(Location::resolve(path, &access, false)?.files().await?);
    }
    let first = files.first().ok_or_else(|| Error::invalid("no file is named"))?;
    let schema = match schema {
        Some(schema) => schema,
        None => read::infer(first, options).await?,
    };
    let bytes = files.iter().map(|file| file.bytes).sum();
    let target =
        Target { table: first.shown.clone(), schema: Arc::clone(&schema), listed: None, rules: Arc::default() };
    let rows = read::rows(files, options.clone(), target, read).boxed();
    Ok(FileRows { schema, rows, bytes })
}
