//! Nearest rows of a table by a vector column.
//!
//! [`PinnedTable::nearest`] answers from an index when there is one and from a scan when not; both see exactly the rows
//! of the pinned snapshot. Candidates come from one of two places (`column`): a graph in memory (`hypr_ann`), or, for a
//! column too large for that, Lance's indexes on disk (`files`). Either is a cache that is made from the rows and kept
//! in shape in the background (`upkeep`, `files::keep`), and learns of each commit before a reader can see it. A
//! candidate counts when `places` knows where the snapshot has it.
//!
//! Deliberately absent: SQL; and any durable state of which a row would depend.

mod column;
mod definition;
mod files;
mod method;
mod nearest;
mod places;
mod take;
mod upkeep;
mod vectors;

pub use definition::VectorIndexDefinition;
pub use files::FileStats;
pub use hypr_ann::{IndexStats, Metric, Neighbor, Odd, Params, RowSet};
pub use method::{FileKind, FileParams, IndexMethod};
pub use nearest::{Effort, NearestRequest, PinnedTable, SearchPath};

pub(crate) use column::VectorIndexes;
pub(crate) use files::run as keep_vector_files;

/// Bounds of the indexes in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexLimits {
    /// From this many rows on a column gets a graph.
    pub(crate) graph_rows: usize,
    /// Bytes that the index of one column may take.
    pub(crate) memory_bytes: usize,
    /// Threads that build.
    pub(crate) threads: usize,
    /// Builds and upkeep run by themselves.
    pub(crate) background: bool,
}
