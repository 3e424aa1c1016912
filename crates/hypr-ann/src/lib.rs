//! Nearest neighbours among numbered vectors, in memory.
//!
//! An [`Index`] holds the vectors of one column for one [`Metric`]. Rows are [appended](Index::append) and found at
//! once: new rows are compared one by one, and [`Index::absorb`] moves them into a graph (`graph`, an HNSW), which a
//! search walks on 8-bit codes (`code`) before it compares the best candidates exactly.
//!
//! Invariants: a distance that a search returns is exact, to the bit that of the SQL function; a search never returns
//! a row that its caller says is not live; searches never wait for `append` or `absorb`.
//! Deliberately absent: files, and the knowledge of which rows a reader may see. An index is a cache of rows that are
//! stored elsewhere and is made again from them.

mod best;
mod code;
mod graph;
mod index;
mod metric;
mod rows;
mod rowset;
mod search;

pub use index::{Frozen, Index, IndexStats, Odd};
pub use metric::Metric;
pub use rowset::RowSet;
pub use search::{ExactScan, Neighbor, Search};

/// How a graph is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Links of a node in the upper layers, half of those in the lowest. 2 to 128.
    pub m: usize,
    /// Candidates that an insertion considers. At least `m`.
    pub ef_construction: usize,
    /// Candidates that a search considers unless it says otherwise.
    pub ef_search: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { m: 16, ef_construction: 100, ef_search: 64 }
    }
}

#[cfg(test)]
mod tests;
