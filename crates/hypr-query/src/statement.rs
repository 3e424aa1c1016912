//! What a caller gives to and gets from a [`Session`](crate::Session): plain data, no behaviour.

use std::fmt;

use arrow_schema::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;

/// What running a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// Returns rows.
    Query,
    /// Changes rows and returns how many.
    Update,
    /// Changes the catalog, or the session's transaction; returns no rows.
    Ddl,
}

/// A statement that was parsed and planned, and not run.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The text as it was given.
    pub sql: String,
    /// What running it does.
    pub kind: StatementKind,
    /// True when running it changes rows or the catalog, also where it returns rows (`RETURNING`): it must then
    /// run once, however often its result is asked for.
    pub changes_data: bool,
    /// Columns of the result; empty unless `kind` is [`StatementKind::Query`].
    pub result_schema: SchemaRef,
    /// One field a parameter, in order, named `$1`, `$2`, ..; text where the type cannot be inferred, in
    /// which case values of any type are accepted.
    pub parameter_schema: SchemaRef,
    /// About how many bytes the result has, if it is rows of one table as they lie there, in no order. Such a
    /// result can be read in parts, see [`Session::partitions`](crate::Session::partitions).
    pub scanned_bytes: Option<u64>,
    pub(crate) plan: crate::prepared::PreparedPlan,
}

/// What running a statement gave.
pub enum Outcome {
    /// Rows, produced as they are read; dropping the stream stops the statement.
    Rows(SendableRecordBatchStream),
    /// The number of rows inserted, changed or deleted; 0 for a catalog change.
    Affected(u64),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Rows(stream) => f.debug_tuple("Rows").field(&stream.schema()).finish(),
            Outcome::Affected(rows) => f.debug_tuple("Affected").field(rows).finish(),
        }
    }
}

/// The name of a table, as a client gives it: not folded to lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// The schema, `public` if none.
    pub schema: Option<String>,
    /// The table.
    pub name: String,
}

impl TableRef {
    /// A table of the default schema.
    pub fn bare(name: impl Into<String>) -> Self {
        Self { schema: None, name: name.into() }
    }

    /// The schema, given or default.
    pub fn schema_name(&self) -> &str {
        self.schema.as_deref().unwrap_or(crate::DEFAULT_SCHEMA)
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.schema.as_deref().filter(|schema| *schema != crate::DEFAULT_SCHEMA) {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What bulk ingest does about the target table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngestMode {
    /// Create it from the Arrow schema; an existing one is an error.
    Create,
    /// Add to it by column name; a missing one is an error.
    Append,
    /// Create it if it is missing, then add.
    CreateAppend,
    /// Drop it if it exists, then create it from the Arrow schema.
    Replace,
}

/// A table as catalogs show it.
#[derive(Clone, Debug)]
pub struct TableInfo {
    /// Its schema.
    pub schema_name: String,
    /// Its name.
    pub name: String,
    /// `TABLE`, `VIEW` or `SYSTEM TABLE`.
    pub table_type: &'static str,
    /// Its columns, with logical types in field metadata (see `hypr_common::types`).
    pub columns: SchemaRef,
    /// The key columns in order; empty when there is no primary key.
    pub primary_key: Vec<String>,
}
