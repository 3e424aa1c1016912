//! Which tables and other named objects exist. Changes go through the log, so that their order against inserts is total, and are
//! checkpointed into `DIR/catalog.json` before the log is cut.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use arrow_schema::SchemaRef;
use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::objects::CatalogObject;
use crate::schema::{self, StoredColumn};

const FILE: &str = "catalog.json";
const FORMAT_VERSION: u32 = 1;

/// What `CREATE TABLE` says.
#[derive(Clone, Debug, PartialEq)]
pub struct TableDefinition {
    /// The schema (namespace), `public` unless named.
    pub schema_name: String,
    /// The table's name within its schema.
    pub name: String,
    /// Columns; logical types are in the field metadata, see [`hypr_common::types`].
    pub columns: SchemaRef,
    /// Names of the key columns, in order; empty without a key.
    pub primary_key: Vec<String>,
    /// Options of the DDL, kept as written.
    pub options: BTreeMap<String, String>,
}

impl TableDefinition {
    /// `schema.name`, for messages.
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.schema_name, self.name)
    }
}

/// A table as the log and the checkpoint keep it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredTable {
    pub(crate) id: u32,
    pub(crate) uuid: Uuid,
    schema_name: String,
    name: String,
    columns: Vec<StoredColumn>,
    primary_key: Vec<String>,
    options: BTreeMap<String, String>,
}

impl StoredTable {
    pub(crate) fn new(id: u32, uuid: Uuid, definition: &TableDefinition) -> Result<Self> {
        Ok(Self {
            id,
            uuid,
            schema_name: definition.schema_name.clone(),
            name: definition.name.clone(),
            columns: schema::store(&definition.columns)?,
            primary_key: definition.primary_key.clone(),
            options: definition.options.clone(),
        })
    }

    pub(crate) fn definition(&self) -> TableDefinition {
        TableDefinition {
            schema_name: self.schema_name.clone(),
            name: self.name.clone(),
            columns: schema::load(&self.columns),
            primary_key: self.primary_key.clone(),
            options: self.options.clone(),
        }
    }
}

/// The payload of a ddl frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(crate) enum CatalogChange {
    CreateTable { table: StoredTable },
    DropTable { id: u32 },
    PutObject { object: CatalogObject },
    DropObject { kind: String, schema_name: String, name: String },
}

impl CatalogChange {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("encoding a catalog change failed").with_source(e))
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self> {
        serde_json::from_slice(payload)
            .map_err(|e| Error::corrupted(format!("a catalog change is not understood: {e}")).with_source(e))
    }
}

/// The content of `catalog.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    format_version: u32,
    /// Changes up to this log position are in it.
    pub(crate) lsn: u64,
    pub(crate) next_table_id: u32,
    pub(crate) tables: Vec<StoredTable>,
    #[serde(default)]
    pub(crate) objects: Vec<CatalogObject>,
}

impl Checkpoint {
    pub(crate) fn new(lsn: u64, next_table_id: u32, tables: Vec<StoredTable>, objects: Vec<CatalogObject>) -> Self {
        Self { format_version: FORMAT_VERSION, lsn, next_table_id, tables, objects }
    }

    /// Reads the checkpoint of `dir`; an empty one when there is none.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::new(0, 1, Vec::new(), Vec::new()));
            }
            Err(error) => return Err(Error::io(path.display(), error)),
        };
        let checkpoint: Self = serde_json::from_slice(&bytes).map_err(|e| {
            Error::corrupted(format!("{} is damaged: {e}; restore it from a backup", path.display())).with_source(e)
        })?;
        if checkpoint.format_version > FORMAT_VERSION {
            return Err(Error::unsupported(format!(
                "{} has format {}, this version reads up to {FORMAT_VERSION}; use a newer hyprstream",
                path.display(),
                checkpoint.format_version
            )));
        }
        Ok(checkpoint)
    }

    /// Replaces the checkpoint of `dir` atomically and durably.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let (path, temporary) = (dir.join(FILE), dir.join("catalog.json.tmp"));
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal("encoding the catalog failed").with_source(e))?;
        let replace = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()
        };
        replace().map_err(|e| Error::io(path.display(), e))
    }
}
