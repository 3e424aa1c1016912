//! Which tables and other named objects exist. Changes go through the log, so that their order against inserts is total, and are
//! checkpointed into `DIR/catalog.json` before the log is cut.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_schema::SchemaRef;
use hypr_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{self, Disk};
use crate::evolution::{Layout, decode_fills};
use crate::objects::CatalogObject;
use crate::schema::{self, StoredColumn};

pub(crate) const FILE: &str = "catalog.json";
/// Written before [`FILE`] with the same content, and read when that is damaged.
pub(crate) const COPY: &str = "catalog.copy.json";
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
    /// The number of each column, see [`crate::evolution`]; none when each has its position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    column_ids: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_column_id: Option<u32>,
    /// By number, what rows hold that were written before the column was there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) fills: BTreeMap<String, String>,
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
            column_ids: Vec::new(),
            next_column_id: None,
            fills: BTreeMap::new(),
        })
    }

    /// The same table after an `ALTER`.
    pub(crate) fn altered(
        &self,
        definition: &TableDefinition,
        column_ids: Vec<u32>,
        next_column_id: u32,
        fills: BTreeMap<String, String>,
    ) -> Result<Self> {
        let next_column_id = Some(next_column_id);
        Ok(Self { column_ids, next_column_id, fills, ..Self::new(self.id, self.uuid, definition)? })
    }

    pub(crate) fn column_ids(&self) -> Vec<u32> {
        if self.column_ids.is_empty() { (0..self.columns.len() as u32).collect() } else { self.column_ids.clone() }
    }

    /// The number of the next column that is added.
    pub(crate) fn next_column_id(&self) -> u32 {
        self.next_column_id.unwrap_or(self.columns.len() as u32)
    }

    pub(crate) fn layout(&self) -> Result<Layout> {
        let fills = decode_fills(&self.fills)?;
        Ok(Layout { columns: schema::load(&self.columns), ids: self.column_ids(), fills })
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
    CreateTable {
        table: StoredTable,
    },
    DropTable {
        id: u32,
    },
    /// `before` says what the rows before this change look like.
    AlterTable {
        before: Box<StoredTable>,
        table: Box<StoredTable>,
    },
    PutObject {
        object: CatalogObject,
    },
    DropObject {
        kind: String,
        schema_name: String,
        name: String,
    },
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
    /// As `lsn`, but 0 when the file must be written anew.
    #[serde(skip)]
    pub(crate) lsn_on_disk: u64,
    pub(crate) next_table_id: u32,
    pub(crate) tables: Vec<StoredTable>,
    #[serde(default)]
    pub(crate) objects: Vec<CatalogObject>,
}

impl Checkpoint {
    pub(crate) fn new(lsn: u64, next_table_id: u32, tables: Vec<StoredTable>, objects: Vec<CatalogObject>) -> Self {
        Self { format_version: FORMAT_VERSION, lsn, lsn_on_disk: 0, next_table_id, tables, objects }
    }

    /// Reads the checkpoint of `dir`; an empty one when there is none. A damaged one is replaced by its copy.
    ///
    /// # Errors
    /// `Corrupted` when both are damaged, naming the first; `Unsupported` for a newer format.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self> {
        let damaged = match Self::read_file(disk, &dir.join(FILE)) {
            Ok(Some(checkpoint)) => return Ok(checkpoint),
            Ok(None) => None,
            Err(error) if error.kind() == ErrorKind::Corrupted => Some(error),
            Err(error) => return Err(error),
        };
        match (Self::read_file(disk, &dir.join(COPY)), damaged) {
            (Ok(Some(checkpoint)), damaged) => {
                let why = damaged.map_or_else(|| format!("{FILE} is missing"), |error| error.message().to_owned());
                tracing::warn!(copy = COPY, "the copy of the catalog is used: {why}");
                Ok(Self { lsn_on_disk: 0, ..checkpoint })
            }
            (_, Some(error)) => Err(error),
            (Err(error), None) if error.kind() != ErrorKind::Corrupted => Err(error),
            (_, None) => Ok(Self::new(0, 1, Vec::new(), Vec::new())),
        }
    }

    /// One file of the checkpoint, `None` where there is none.
    pub(crate) fn read_file(disk: &dyn Disk, path: &Path) -> Result<Option<Self>> {
        let bytes = disk::read_if_exists(disk, path).map_err(|e| Error::io(path.display(), e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let damaged =
            |why: String| Error::corrupted(format!("{} is damaged: {why}; restore it from a backup", path.display()));
        let checkpoint: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if checkpoint.format_version > FORMAT_VERSION {
            return Err(Error::unsupported(format!(
                "{} has format {}, this version reads up to {FORMAT_VERSION}; use a newer hyprstream",
                path.display(),
                checkpoint.format_version
            )));
        }
        match unsealed(&bytes) {
            Some((content, crc)) if crc32c::crc32c(content) != crc => {
                Err(damaged("its content does not match its checksum".to_owned()))
            }
            _ => Ok(Some(Self { lsn_on_disk: checkpoint.lsn, ..checkpoint })),
        }
    }

    /// Replaces the checkpoint of `dir` and its copy, each atomically and durably.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal("encoding the catalog failed").with_source(e))?;
        let bytes = sealed(bytes);
        for path in [dir.join(COPY), dir.join(FILE)] {
            disk::replace(disk, &path, &bytes).map_err(|e| Error::io(path.display(), e))?;
        }
        Ok(())
    }
}

/// What stands between the content of a checkpoint and its checksum.
const SEAL: &[u8] = b",\n  \"crc32c\": \"";

/// A pretty-printed JSON object with one more member, last: the checksum of the bytes before it.
fn sealed(mut object: Vec<u8>) -> Vec<u8> {
    object.truncate(object.len() - b"\n}".len());
    let crc = crc32c::crc32c(&object);
    object.extend_from_slice(SEAL);
    object.extend_from_slice(format!("{crc:08x}\"\n}}\n").as_bytes());
    object
}

/// The sealed bytes and their recorded checksum; `None` for a file from before there was one.
fn unsealed(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let at = bytes.windows(SEAL.len()).rposition(|window| window == SEAL)?;
    let crc = bytes.get(at + SEAL.len()..at + SEAL.len() + 8)?;
    // A checksum that is no number is as wrong as one that differs.
    let crc = std::str::from_utf8(crc).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let content = &bytes[..at];
    Some((content, crc.unwrap_or_else(|| !crc32c::crc32c(content))))
}
