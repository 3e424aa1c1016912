//! Indexes that a user declared: what they are called and how they are built. The definition is durable, the index is
//! built again from the rows when the directory is opened.

use std::sync::Arc;

use hypr_ann::{Index, Metric, Params};
use hypr_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::files::is_of_column;
use super::method::{FileParams, IndexMethod};
use super::upkeep;
use super::vectors::width;
use crate::database::Database;
use crate::objects::{CatalogObject, Replace};
use crate::table::Table;

/// The kind of the catalog objects that hold definitions.
const KIND: &str = "vector_index";

/// What `CREATE INDEX` says of a vector index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorIndexDefinition {
    /// The schema of its table, and its own.
    pub schema_name: String,
    /// Its name; unique among the vector indexes of the schema.
    pub name: String,
    /// The table.
    pub table: String,
    /// A `VECTOR(n)` column of it.
    pub column: String,
    /// What it orders by. A column has one declared index for each metric.
    pub metric: Metric,
    /// How it is built and searched.
    pub method: IndexMethod,
}

/// The definition as the catalog keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    table: String,
    /// Tells a table from another one of the same name that came later.
    table_id: u32,
    column: String,
    metric: String,
    #[serde(flatten)]
    method: StoredMethod,
}

/// [`IndexMethod`] as the catalog keeps it; a definition with `files` is of an index on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum StoredMethod {
    Files { files: FileParams },
    Hnsw { m: usize, ef_construction: usize, ef_search: usize },
}

impl From<IndexMethod> for StoredMethod {
    fn from(method: IndexMethod) -> Self {
        match method {
            IndexMethod::Hnsw(Params { m, ef_construction, ef_search }) => Self::Hnsw { m, ef_construction, ef_search },
            IndexMethod::Files(files) => Self::Files { files },
        }
    }
}

impl From<StoredMethod> for IndexMethod {
    fn from(stored: StoredMethod) -> Self {
        match stored {
            StoredMethod::Hnsw { m, ef_construction, ef_search } => {
                Self::Hnsw(Params { m, ef_construction, ef_search })
            }
            StoredMethod::Files { files } => Self::Files(files),
        }
    }
}

impl VectorIndexDefinition {
    fn store(&self, table_id: u32) -> Result<CatalogObject> {
        let stored = Stored {
            table: self.table.clone(),
            table_id,
            column: self.column.clone(),
            metric: self.metric.name().to_owned(),
            method: self.method.into(),
        };
        let definition = serde_json::to_value(stored)
            .map_err(|e| Error::internal("encoding an index definition failed").with_source(e))?;
        let (schema_name, name) = (self.schema_name.clone(), self.name.clone());
        Ok(CatalogObject { kind: KIND.to_owned(), schema_name, name, definition })
    }

    fn load(object: CatalogObject) -> Result<(Self, u32)> {
        let CatalogObject { schema_name, name, definition, .. } = object;
        let stored: Stored = serde_json::from_value(definition).map_err(|e| {
            Error::corrupted(format!("the definition of index {schema_name}.{name} is not understood: {e}"))
        })?;
        let (table, column, metric) = (stored.table, stored.column, Metric::parse(&stored.metric)?);
        Ok((Self { schema_name, name, table, column, metric, method: stored.method.into() }, stored.table_id))
    }
}

impl Database {
    /// Declares an index, durable when this returns, and starts building it. False when one of the name is there and
    /// `if_not_exists` allows that.
    ///
    /// # Errors
    /// `NotFound` for the table or column, `InvalidInput` for a column that is no `VECTOR(n)` or parameters out of
    /// bounds, `AlreadyExists` for the name or the column and metric, `ResourceExhausted` when it would take more
    /// memory than is allowed.
    pub async fn create_vector_index(&self, definition: VectorIndexDefinition, if_not_exists: bool) -> Result<bool> {
        let (schema_name, name) = (&definition.schema_name, &definition.name);
        let table = self
            .table(schema_name, &definition.table)
            .ok_or_else(|| Error::not_found(format!("table {schema_name}.{} does not exist", definition.table)))?;
        let column = position(&table, &definition.column)?;
        let dims = width(table.schema().field(column))?;
        definition.method.check(definition.metric, dims)?;
        refuse_too_large(&table, dims, definition.method)?;
        let same = self.vector_indexes()?.into_iter().find(|other| {
            (&other.schema_name, &other.table, &other.column, other.metric)
                == (schema_name, &definition.table, &definition.column, definition.metric)
        });
        if let Some(same) = same {
            if if_not_exists {
                return Ok(false);
            }
            let message = format!(
                "column \"{}\" has the index {schema_name}.{} for {} already; drop it first",
                definition.column,
                same.name,
                definition.metric.name()
            );
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        let replace = if if_not_exists { Replace::KeepExisting } else { Replace::Never };
        if self.object(KIND, schema_name, name).is_some() && !if_not_exists {
            let message = format!("index {schema_name}.{name} exists already; drop it first or use IF NOT EXISTS");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        if !self.put_object(definition.store(table.shared.stored.id)?, replace).await? {
            return Ok(false);
        }
        table.shared.vectors.define(column, definition.metric, definition.method);
        upkeep::ensure(&table.shared, column, definition.metric, table.limits.index).await?;
        Ok(true)
    }

    /// Removes a declared index, durable when this returns; the column may get one by itself again when it is
    /// searched. False when there is none and `if_exists` allows that.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn drop_vector_index(&self, schema: &str, name: &str, if_exists: bool) -> Result<bool> {
        let Some(object) = self.object(KIND, schema, name) else {
            if if_exists {
                return Ok(false);
            }
            return Err(Error::not_found(format!("index {schema}.{name} does not exist; use IF EXISTS to allow that")));
        };
        let (definition, _) = VectorIndexDefinition::load(object)?;
        self.drop_object(KIND, schema, name, if_exists).await?;
        if let Some(table) = self.table(schema, &definition.table)
            && let Ok(column) = position(&table, &definition.column)
        {
            table.shared.vectors.undefine(column, definition.metric);
            let column_id = table.shared.layout.ids[column];
            let is_its = |name: &str| is_of_column(name, column_id, definition.metric);
            self.inner().remove_vector_files(&table.shared, is_its).await?;
        }
        Ok(true)
    }

    /// The declared indexes of tables that exist, by schema and name.
    ///
    /// # Errors
    /// `Corrupted` for a definition that cannot be read.
    pub fn vector_indexes(&self) -> Result<Vec<VectorIndexDefinition>> {
        let mut found = Vec::new();
        for object in self.objects(KIND) {
            let (definition, table_id) = VectorIndexDefinition::load(object)?;
            let table = self.table(&definition.schema_name, &definition.table);
            if table.is_some_and(|table| table.shared.stored.id == table_id) {
                found.push(definition);
            }
        }
        Ok(found)
    }

    /// Removes the declared indexes of a table that was dropped.
    ///
    /// # Errors
    /// As [`Database::drop_vector_index`].
    pub async fn drop_vector_indexes_of(&self, schema: &str, table: &str) -> Result<()> {
        for object in self.objects(KIND).into_iter().filter(|object| object.schema_name == schema) {
            let name = object.name.clone();
            if VectorIndexDefinition::load(object)?.0.table == table {
                self.drop_vector_index(schema, &name, true).await?;
            }
        }
        Ok(())
    }

    /// Starts the declared indexes of a directory that was opened.
    pub(crate) fn start_vector_indexes(&self) -> Result<()> {
        for definition in self.vector_indexes()? {
            let Some(table) = self.table(&definition.schema_name, &definition.table) else { continue };
            let Ok(column) = position(&table, &definition.column) else { continue };
            table.shared.vectors.define(column, definition.metric, definition.method);
            if table.limits.index.background {
                tokio::spawn(start(table, column, definition.metric));
            }
        }
        Ok(())
    }
}

/// Refuses a graph that would take more memory than is allowed.
fn refuse_too_large(table: &Table, dims: usize, method: IndexMethod) -> Result<()> {
    let IndexMethod::Hnsw(params) = method else { return Ok(()) };
    let limit = table.limits.index.memory_bytes;
    let rows = table.approximate_rows().unwrap_or(0);
    let bytes = Index::estimated_bytes(dims, rows, &params);
    if bytes <= limit {
        return Ok(());
    }
    let message = format!(
        "an index of {rows} rows takes about {bytes} bytes, more than vector_index_memory_bytes = {limit}; build one on \
         disk, USING IVF_PQ, IVF_RQ or IVF_HNSW_SQ"
    );
    Err(Error::new(ErrorKind::ResourceExhausted, message))
}

async fn start(table: Arc<Table>, column: usize, metric: Metric) {
    if let Err(error) = upkeep::ensure(&table.shared, column, metric, table.limits.index).await {
        tracing::error!(table = %table.definition().qualified_name(), %error, "a vector index could not be started");
    }
}

fn position(table: &Table, column: &str) -> Result<usize> {
    table.schema().index_of(column).map_err(|_| {
        Error::not_found(format!("table {} has no column \"{column}\"", table.definition().qualified_name()))
    })
}
