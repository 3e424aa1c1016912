//! Durable tables of Arrow record batches, and the model files beside them.
//!
//! A write goes to the log (`wal`), is synced together with whatever else waits, and then lands in the
//! table's in-memory tail (`tail`), where the next scan sees it. A background service (`flush`) moves tails
//! into Lance datasets (`lance_store`), every commit of which says which log position it holds; after a crash
//! the log is replayed above that position, so each acknowledged row is there exactly once.
//!
//! ```text
//! DIR/LOCK                      held by the process that has the directory open
//! DIR/catalog.json              checkpoint of the catalog, with its log position
//! DIR/wal/<first_lsn>.wal       log segments
//! DIR/tables/<uuid>/            one Lance dataset a table, hidden column `_hypr_row_id` last; `_zones.arrow` if clustered
//! DIR/models/                   model files, see `models`
//! ```
//!
//! Invariants: only this crate imports Lance; nothing is acknowledged before it is durable; a reader sees one
//! snapshot between two commits; every queue is bounded.
//! Deliberately absent: SQL planning (only filter and projection pushdown), and any network.

mod alter;
pub mod ann;
mod bulk;
mod catalog;
mod check;
mod checksums;
mod clustering;
mod column_cache;
mod compaction;
mod constraints;
mod database;
pub mod disk;
mod evolution;
mod flush;
mod key_index;
mod lance_store;
mod lookup;
pub mod models;
mod objects;
mod options;
mod pinned;
mod point;
mod prefixes;
mod row_feed;
mod scan;
mod schema;
mod table;
mod tail;
mod text;
mod transaction;
mod upsert;
mod validate;
mod versions;
mod wal;

pub use alter::{Alteration, TableChange};
pub use ann::{NearestRequest, PinnedTable};
pub use catalog::TableDefinition;
pub use check::{CheckReport, Finding, Severity, check};
pub use clustering::{CLUSTERING_OPTION, ClusterKey};
pub use constraints::{CONSTRAINTS_OPTION, Check, Constraints, Unique};
pub use database::Database;
pub use lance_store::{NEXT_ROW_ID_KEY, POSITION_KEY};
pub use models::ModelStore;
pub use objects::{CatalogObject, Replace};
pub use options::{FlushHook, FlushStep, StorageOptions};
pub use prefixes::{PrefixStore, SavedPrefix};
pub use scan::{ScanRequest, TableScanExec};
pub use table::{Mutation, Table};
pub use text::{TextIndexSize, TextMatches, TextOptions, TextSearch};
pub use transaction::{Mark, SavepointRef, Transaction};
pub use upsert::{Conflict, ConflictTarget, Upsert};
pub use versions::{Restored, TableAtVersion, TableVersion, TagExists, VERSION_RETENTION_OPTION, VersionName};

/// The hidden column that numbers the rows of a table: `UInt64`, unique, never reused.
pub const ROW_ID_COLUMN: &str = "_hypr_row_id";
