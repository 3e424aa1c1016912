//! What a caller can set about a database directory.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hypr_common::Result;
use hypr_common::clock::{Clock, SystemClock};

use lance_io::object_store::WrappingObjectStore;

use crate::ann::IndexLimits;
use crate::disk::{Disk, FileDisk};

/// Thresholds and injected services of a [`Database`](crate::Database). The defaults suit a server with a
/// few gigabytes of memory.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// A log segment that grows past this many bytes is followed by a new one. Default 64 MiB.
    pub segment_bytes: u64,
    /// Unflushed bytes of one table that start a flush. Default 64 MiB.
    pub flush_bytes: usize,
    /// Unflushed rows of one table that start a flush. Default 1,000,000.
    pub flush_rows: usize,
    /// Age of the oldest unflushed row that starts a flush. Default 5 s.
    pub flush_age: Duration,
    /// Unflushed bytes of one table at which its writers wait for a flush. Default 512 MiB.
    pub tail_limit_bytes: usize,
    /// Bytes of uncommitted rows that all open transactions may hold in memory together. Default 512 MiB.
    pub transaction_limit_bytes: usize,
    /// Commits that may wait for the log at once; further writers wait for a place. Default 1,024.
    pub queue_commits: usize,
    /// Bytes of commits that may wait for the log at once. Default 64 MiB.
    pub queue_bytes: usize,
    /// Lance fragments of similar size that are joined into one. Default 8.
    pub compaction_fan_in: usize,
    /// Fragments of at least this many rows are left alone by compaction. Default 1,000,000.
    pub compaction_target_rows: usize,
    /// Rows of a fragment of a clustered table: where the cluster key changes after this many, a flush and a
    /// compaction begin a new fragment. Default 65,536.
    pub clustered_fragment_rows: usize,
    /// How long superseded versions without a tag stay, for time travel and for other programs that read them; scans of
    /// this process keep theirs for as long as they need. Default 1 h.
    pub version_retention: Duration,
    /// The most superseded Lance versions that stay on disk, also when they are younger than that, in tables that do not
    /// say themselves how long to keep theirs. Default 100.
    pub version_limit: usize,
    /// Flush and compact without being asked. Default true; off, only [`Database::flush`](crate::Database::flush)
    /// and [`Database::close`](crate::Database::close) flush, and writers of a full tail wait for those.
    pub background_flush: bool,
    /// Rows from which on a vector column that is searched gets a graph; with fewer every row is compared.
    /// Default 2,000.
    pub vector_index_rows: usize,
    /// Bytes of memory that the index of one vector column may take; a column that needs more has its index on disk.
    /// Default 4 GiB.
    pub vector_index_memory_bytes: usize,
    /// Threads that build a vector index. Default 2, or 1 where there is one.
    pub vector_index_threads: usize,
    /// Build and keep vector indexes without being asked. Default true.
    pub background_index: bool,
    /// Bytes of decoded columns of flushed rows that stay in memory for later reads; 0 keeps none. Default 1 GiB.
    pub column_cache_bytes: usize,
    /// Where the age of unflushed rows is read from.
    pub clock: Arc<dyn Clock>,
    /// Where the log, the catalog and Lance's files lie.
    pub disk: Arc<dyn Disk>,
    /// Sees every file operation on Lance tables before the disk does (tests, metering).
    pub lance_wrapper: Option<Arc<dyn WrappingObjectStore>>,
    /// Called at every step of a flush; a test stops there to see what a crash leaves behind.
    pub flush_hook: Option<Arc<dyn FlushHook>>,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            flush_bytes: 64 << 20,
            flush_rows: 1_000_000,
            flush_age: Duration::from_secs(5),
            tail_limit_bytes: 512 << 20,
            transaction_limit_bytes: 512 << 20,
            queue_commits: 1024,
            queue_bytes: 64 << 20,
            compaction_fan_in: 8,
            compaction_target_rows: 1_000_000,
            clustered_fragment_rows: 65_536,
            version_retention: Duration::from_secs(3600),
            version_limit: 100,
            background_flush: true,
            vector_index_rows: 2000,
            vector_index_memory_bytes: 4 << 30,
            vector_index_threads: std::thread::available_parallelism().map_or(1, usize::from).min(2),
            background_index: true,
            column_cache_bytes: 1 << 30,
            clock: Arc::new(SystemClock),
            disk: Arc::new(FileDisk),
            lance_wrapper: None,
            flush_hook: None,
        }
    }
}

impl StorageOptions {
    pub(crate) fn index_limits(&self) -> IndexLimits {
        IndexLimits {
            graph_rows: self.vector_index_rows.max(1),
            memory_bytes: self.vector_index_memory_bytes,
            threads: self.vector_index_threads.max(1),
            background: self.background_index,
        }
    }
}

/// A point between two effects of a flush, in the order they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlushStep {
    /// The prefix of the tail to flush is fixed; nothing is written.
    Frozen,
    /// Data and deletion files are written and synced; no Lance version refers to them.
    Written,
    /// The new Lance version is durable; readers still see the old one and the tail.
    Committed,
    /// Readers see the new version without the flushed tail; the log still holds the flushed frames.
    Installed,
    /// The catalog is checkpointed; the log is not cut.
    Checkpointed,
    /// Log segments that hold only flushed frames are gone.
    Cut,
}

/// Observes flushes. An error ends the flush as a crash at that step would: the database must then be
/// abandoned and opened again.
pub trait FlushHook: Send + Sync + fmt::Debug {
    /// Called when `step` has been reached.
    fn reached(&self, step: FlushStep) -> Result<()>;
}
