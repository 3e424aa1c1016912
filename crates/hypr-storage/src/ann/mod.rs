//! Nearest rows of a table by a vector column.
//!
//! [`PinnedTable::nearest`] answers from an index in memory (`hypr_ann`) when there is one and from a scan when not;
//! both see exactly the rows of the pinned snapshot. An index is a cache: it is loaded from the rows, learns of each
//! commit before a reader can see it (`column`), and is kept in shape in the background (`upkeep`). Row ids never
//! change their content, so an index needs no versions: a candidate counts when `places` knows where the snapshot has
//! it.
//!
//! Deliberately absent: SQL; and any durable state of an index other than its definition.

mod column;
mod definition;
mod nearest;
mod places;
mod take;
mod upkeep;
mod vectors;

pub use definition::VectorIndexDefinition;
pub use hypr_ann::{IndexStats, Metric, Neighbor, Odd, Params, RowSet};
pub use nearest::{NearestRequest, PinnedTable, SearchPath};

pub(crate) use column::VectorIndexes;

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
