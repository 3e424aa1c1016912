//! `ALTER TABLE`: a change of the catalog, in log order with the rows around it.
//!
//! An alteration waits until no statement is changing rows of the table, no commit of it is under way and no flush of
//! it runs, and lets none begin until it is applied. The table then continues as a new handle with the new
//! columns over the same files and the same unflushed rows, brought to the new columns. Handles from before
//! finish what they read, and refuse to write.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef};
use arrow_schema::{Field, Schema};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_common::types::sql_type_name;
use hypr_common::{Error, ErrorKind, Result};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockWriteGuard};

use crate::catalog::{CatalogChange, StoredTable, TableDefinition};
use crate::constraints::Constraints;
use crate::database::{CatalogEdit, Database};
use crate::evolution::{Layout, encode_fill, is_wider};
use crate::scan;
use crate::schema::{check_columns, check_key};
use crate::table::{KeyIndexes, Table};

/// One step of an `ALTER TABLE`.
#[derive(Clone, Debug)]
pub enum TableChange {
    /// A new last column. Rows that are there get `fill`, an array of one value, or NULL.
    AddColumn {
        /// Name, type and nullability.
        field: Field,
        /// The value, of the column's type.
        fill: Option<ArrayRef>,
    },
    /// A column goes, with its values.
    DropColumn(String),
    /// A column gets another name.
    RenameColumn {
        /// The name until now.
        from: String,
        /// The name from now on.
        to: String,
    },
    /// A column gets a type that holds all its values. Only the type of the field counts, and its metadata.
    WidenColumn {
        /// The column.
        name: String,
        /// What it becomes.
        field: Field,
    },
    /// A column takes NULL, or does not any more.
    SetNullable {
        /// The column.
        name: String,
        /// Whether it takes NULL.
        nullable: bool,
    },
    /// The table gets another name.
    Rename {
        /// The schema from now on.
        schema_name: String,
        /// The name from now on.
        name: String,
    },
    /// The table's options become these.
    SetOptions(BTreeMap<String, String>),
}

/// The right to alter a table. Rows of it do not change until this is used or dropped.
pub struct Alteration {
    database: Database,
    table: Arc<Table>,
    still: Still,
    _catalog: OwnedMutexGuard<()>,
}

/// What keeps a table as it is.
pub(crate) struct Still {
    pub(crate) keys: OwnedRwLockWriteGuard<Option<KeyIndexes>>,
    _flushing: OwnedMutexGuard<()>,
    _mutation: OwnedRwLockWriteGuard<()>,
}

impl std::fmt::Debug for Alteration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alteration").field("table", &self.table.definition().name).finish_non_exhaustive()
    }
}

impl Database {
    /// Waits until nothing changes in a table, to alter it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn begin_alteration(&self, schema: &str, name: &str) -> Result<Alteration> {
        let catalog = self.lock_catalog().await;
        let table = self
            .table(schema, name)
            .ok_or_else(|| Error::not_found(format!("table {schema}.{name} does not exist")))?;
        table.refuse_retired()?;
        let mutation = Arc::clone(&table.mutation).write_owned().await;
        let keys = Arc::clone(&table.keys).write_owned().await;
        let flushing = Arc::clone(&table.shared.flushing).lock_owned().await;
        let still = Still { keys, _flushing: flushing, _mutation: mutation };
        Ok(Alteration { database: self.clone(), table, still, _catalog: catalog })
    }
}

impl Alteration {
    /// The table as it is.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Makes all changes, in order, in one commit, durable when this returns.
    ///
    /// # Errors
    /// `InvalidInput` and `Unsupported` say which change does not fit, `AlreadyExists` which name or key is taken.
    /// Then nothing is changed.
    pub async fn commit(self, changes: &[TableChange]) -> Result<()> {
        let Self { database, table, still, _catalog } = self;
        let before = &table.shared.stored;
        let stored = changes.iter().try_fold(before.clone(), apply)?;
        let definition = stored.definition();
        check(&definition)?;
        let moved = (definition.schema_name.as_str(), definition.name.as_str());
        if moved != (table.definition().schema_name.as_str(), table.definition().name.as_str())
            && database.table(moved.0, moved.1).is_some()
        {
            let message = format!("table {} exists already", definition.qualified_name());
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        Box::pin(refuse_nulls(&table, &stored.layout()?)).await?;
        let altered = Table::altered(&table, stored.clone())?;
        // Keys that stay where they are keep their indexes; others are built now, which finds duplicates.
        let keys = match same_keys(&table, &altered) {
            true => still.keys.clone(),
            false => Some(Box::pin(altered.build_indexes()).await?),
        };
        *altered.keys.write().await = keys;
        let change = CatalogChange::AlterTable { before: Box::new(before.clone()), table: Box::new(stored) };
        let edit = CatalogEdit::Alter { before: table, after: Arc::new(altered), _still: still };
        database.log_change(&change, edit).await
    }
}

fn apply(stored: StoredTable, change: &TableChange) -> Result<StoredTable> {
    let mut definition = stored.definition();
    let mut fields: Vec<Field> = definition.columns.fields().iter().map(|field| field.as_ref().clone()).collect();
    let (mut ids, mut next, mut fills) = (stored.column_ids(), stored.next_column_id(), stored.fills.clone());
    let qualified = definition.qualified_name();
    let position = |name: &String| {
        definition.columns.index_of(name).map_err(|_| Error::invalid(format!("table {qualified} has no column {name}")))
    };
    match change {
        TableChange::AddColumn { field, fill } => {
            if let Some(fill) = fill {
                fills.insert(next.to_string(), encode_fill(fill)?);
            }
            fields.push(field.clone());
            ids.push(next);
            next += 1;
        }
        TableChange::DropColumn(name) => {
            let at = position(name)?;
            if definition.primary_key.contains(name) {
                return Err(Error::invalid(format!("column {name} is part of the PRIMARY KEY and cannot be dropped")));
            }
            fields.remove(at);
            fills.remove(&ids.remove(at).to_string());
        }
        TableChange::RenameColumn { from, to } => {
            let at = position(from)?;
            fields[at] = fields[at].clone().with_name(to);
            definition.primary_key.iter_mut().filter(|key| *key == from).for_each(|key| key.clone_from(to));
        }
        TableChange::WidenColumn { name, field } => {
            let at = position(name)?;
            fields[at] = widened(&fields[at], field)?;
        }
        TableChange::SetNullable { name, nullable } => {
            let at = position(name)?;
            if *nullable && definition.primary_key.contains(name) {
                return Err(Error::invalid(format!("column {name} is part of the PRIMARY KEY and takes no NULL")));
            }
            fields[at] = fields[at].clone().with_nullable(*nullable);
        }
        TableChange::Rename { schema_name, name } => {
            definition.schema_name.clone_from(schema_name);
            definition.name.clone_from(name);
        }
        TableChange::SetOptions(options) => definition.options.clone_from(options),
    }
    definition.columns = Arc::new(Schema::new(fields));
    StoredTable::altered(&stored, &definition, ids, next, fills)
}

fn widened(from: &Field, to: &Field) -> Result<Field> {
    let became = to.clone().with_name(from.name()).with_nullable(from.is_nullable());
    if from.data_type() == to.data_type() || is_wider(from.data_type(), to.data_type()) {
        return Ok(became);
    }
    Err(Error::invalid(format!(
        "column {} is {} and {} does not hold all its values; add a column and UPDATE it",
        from.name(),
        sql_type_name(from),
        sql_type_name(to)
    )))
}

fn check(definition: &TableDefinition) -> Result<()> {
    let name = definition.qualified_name();
    check_columns(&name, &definition.columns, &definition.primary_key)?;
    for unique in &Constraints::of(definition)?.unique {
        check_key(&name, &definition.columns, "UNIQUE", &unique.columns)?;
    }
    Ok(())
}

/// Refuses NULLs in columns that take none from now on.
async fn refuse_nulls(table: &Table, after: &Layout) -> Result<()> {
    let (layout, mut projection, mut lacking) = (&table.shared.layout, Vec::new(), None);
    for (at, id) in after.ids.iter().enumerate().filter(|(at, _)| !after.columns.field(*at).is_nullable()) {
        match layout.ids.iter().position(|before| before == id) {
            Some(before) if layout.columns.field(before).is_nullable() => projection.push(before),
            None if !after.has_fill(at) => lacking = Some(after.columns.field(at).name()),
            _ => {}
        }
    }
    if projection.is_empty() && lacking.is_none() {
        return Ok(());
    }
    let context = SessionContext::new();
    let plan = scan::plan_nullable(&table.shared, &context.state(), projection).await?;
    let failed =
        |error| Error::internal(format!("looking for NULL in {}: {error}", table.definition().qualified_name()));
    let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
    while let Some(batch) = rows.try_next().await.map_err(failed)? {
        let schema = batch.schema();
        let null = schema.fields().iter().zip(batch.columns()).find(|(_, column)| column.null_count() > 0);
        let null = null.map(|(field, _)| field.name()).or(lacking.filter(|_| batch.num_rows() > 0));
        if let Some(column) = null {
            return Err(Error::invalid(format!(
                "column {column} holds NULL and cannot be NOT NULL; UPDATE those rows first, or give a DEFAULT"
            )));
        }
    }
    Ok(())
}

/// True when each key has its columns where they were.
fn same_keys(before: &Table, after: &Table) -> bool {
    let keys = |table: &Table| {
        let definition = table.definition();
        let unique = table.constraints().unique.iter().map(|unique| (unique.name.clone(), unique.columns.clone()));
        let all = std::iter::once((String::new(), definition.primary_key.clone())).chain(unique);
        all.map(|(name, columns)| {
            let at = |column: &String| {
                let at = definition.columns.index_of(column).ok()?;
                Some((at, column.clone(), definition.columns.field(at).data_type().clone()))
            };
            (name, columns.iter().map(at).collect::<Vec<_>>())
        })
        .collect::<Vec<_>>()
    };
    keys(before) == keys(after) && before.definition().qualified_name() == after.definition().qualified_name()
}
