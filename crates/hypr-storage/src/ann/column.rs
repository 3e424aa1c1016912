//! The indexes of a table, one for each column and metric that was asked for, and how they learn of commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use hypr_ann::{Index, Metric};
use hypr_common::Result;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::files::FileIndex;
use super::method::IndexMethod;
use super::places::RowMaps;
use super::vectors::Vectors;
use crate::tail::TailBatch;

/// New rows that are worth moving into a graph.
pub(super) const ABSORB_ROWS: usize = 256;

/// How the rows near a vector are found, in one column by one metric.
#[derive(Clone, Debug)]
pub(crate) enum ColumnIndex {
    /// In a graph in memory, which holds all rows.
    Graph(Arc<GraphIndex>),
    /// In files of Lance, which hold rows that were flushed.
    Files(Arc<FileIndex>),
}

impl ColumnIndex {
    /// Learns of a commit. Called under the lock of the table's tail, before any reader sees the commit.
    fn applied(&self, added: &[TailBatch], removed: &[u64]) {
        match self {
            Self::Graph(graph) => graph.applied(added, removed),
            Self::Files(files) => files.applied(added, removed),
        }
    }

    fn is_broken(&self) -> bool {
        match self {
            Self::Graph(graph) => graph.broken.load(Ordering::Acquire),
            Self::Files(files) => files.is_retired(),
        }
    }

    /// Nobody will ask for it any more.
    fn retire(&self) {
        match self {
            Self::Graph(graph) => graph.retire(),
            Self::Files(files) => files.retire(),
        }
    }
}

/// The index in memory of one column for one metric.
#[derive(Debug)]
pub(crate) struct GraphIndex {
    pub(super) column: usize,
    pub(super) current: ArcSwap<Index>,
    /// The index that will take its place; it learns of the same commits.
    pub(super) next: Mutex<Option<Arc<Index>>>,
    /// All rows of the snapshot it started from are in it.
    ready: AtomicBool,
    /// It can no longer be trusted and is to be thrown away.
    pub(super) broken: AtomicBool,
    /// Rows that were deleted and that the index was not told of yet.
    removed: Mutex<Vec<u64>>,
    /// One load, absorption or rebuild at a time.
    pub(super) working: tokio::sync::Mutex<()>,
    /// Wakes the upkeep.
    pub(super) wanted: Notify,
}

impl GraphIndex {
    pub(super) fn new(column: usize, index: Index) -> Self {
        Self {
            column,
            current: ArcSwap::from_pointee(index),
            next: Mutex::new(None),
            ready: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            removed: Mutex::default(),
            working: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// The index, once it holds all rows.
    pub(crate) fn searchable(&self) -> Option<Arc<Index>> {
        let usable = self.ready.load(Ordering::Acquire) && !self.broken.load(Ordering::Acquire);
        usable.then(|| self.current.load_full())
    }

    fn retire(&self) {
        self.broken.store(true, Ordering::Release);
        self.wanted.notify_one();
    }

    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    fn applied(&self, added: &[TailBatch], removed: &[u64]) {
        let next = self.next.lock();
        let current = self.current.load_full();
        for batch in added {
            let appended = Vectors::new(&batch.rows, self.column).and_then(|vectors| {
                next.iter().try_for_each(|next| next.append(vectors.iter()))?;
                current.append(vectors.iter())
            });
            if let Err(error) = appended {
                tracing::error!(%error, "a vector index does not take a row; it is not used any more");
                self.broken.store(true, Ordering::Release);
            }
        }
        if !removed.is_empty() {
            self.removed.lock().extend_from_slice(removed);
        }
        if !removed.is_empty() || current.stats().pending_rows >= ABSORB_ROWS {
            self.wanted.notify_one();
        }
    }

    /// Tells the index of deletions.
    pub(super) fn drain_removed(&self) {
        let removed = std::mem::take(&mut *self.removed.lock());
        if removed.is_empty() {
            return;
        }
        let next = self.next.lock().clone();
        next.iter().for_each(|next| next.remove(removed.iter().copied()));
        self.current.load().remove(removed);
    }
}

/// The indexes of one table.
#[derive(Debug, Default)]
pub(crate) struct VectorIndexes {
    columns: RwLock<BTreeMap<(usize, Metric), ColumnIndex>>,
    /// Of the indexes that a user declared.
    declared: RwLock<BTreeMap<(usize, Metric), IndexMethod>>,
    pub(crate) row_maps: RowMaps,
}

impl VectorIndexes {
    /// Learns of a commit. Called under the lock of the table's tail.
    pub(crate) fn applied(&self, added: &[TailBatch], removed: &[u64]) {
        for column in self.columns.read().values() {
            column.applied(added, removed);
        }
    }

    pub(crate) fn get(&self, column: usize, metric: Metric) -> Option<ColumnIndex> {
        self.columns.read().get(&(column, metric)).filter(|index| !index.is_broken()).cloned()
    }

    /// Those in memory.
    pub(crate) fn graphs(&self) -> Vec<Arc<GraphIndex>> {
        let graph = |index: &ColumnIndex| match index {
            ColumnIndex::Graph(graph) => Some(Arc::clone(graph)),
            ColumnIndex::Files(_) => None,
        };
        self.columns.read().values().filter_map(graph).collect()
    }

    /// Those on disk.
    pub(crate) fn files(&self) -> Vec<Arc<FileIndex>> {
        let files = |index: &ColumnIndex| match index {
            ColumnIndex::Files(files) => Some(Arc::clone(files)),
            ColumnIndex::Graph(_) => None,
        };
        self.columns.read().values().filter_map(files).collect()
    }

    /// A new index that learns of commits from here on; the one that is there, if there is one. The caller holds the
    /// lock of the table's tail.
    pub(super) fn register(
        &self,
        column: usize,
        metric: Metric,
        new: impl FnOnce() -> Result<ColumnIndex>,
    ) -> Result<(ColumnIndex, bool)> {
        let mut columns = self.columns.write();
        if let Some(known) = columns.get(&(column, metric)).filter(|known| !known.is_broken()) {
            return Ok((known.clone(), false));
        }
        let index = new()?;
        columns.insert((column, metric), index.clone());
        Ok((index, true))
    }

    /// Columns and metrics that have an index.
    pub(crate) fn registered(&self) -> Vec<(usize, Metric)> {
        self.columns.read().keys().copied().collect()
    }

    /// How the index of a column was declared.
    pub(super) fn declared(&self, column: usize, metric: Metric) -> Option<IndexMethod> {
        self.declared.read().get(&(column, metric)).copied()
    }

    /// Declares how an index is built; one that was built otherwise is forgotten.
    pub(super) fn define(&self, column: usize, metric: Metric, method: IndexMethod) {
        let before = self.declared.write().insert((column, metric), method);
        if before != Some(method) {
            self.remove(column, metric);
        }
    }

    /// Forgets a declared index.
    pub(super) fn undefine(&self, column: usize, metric: Metric) {
        self.declared.write().remove(&(column, metric));
        self.remove(column, metric);
    }

    /// The declared indexes of the same table before an `ALTER`; `moved` gives the new place of a column.
    pub(crate) fn adopt(&self, before: &Self, moved: impl Fn(usize) -> Option<usize>) {
        let known = before.declared.read();
        let kept = known.iter().filter_map(|((column, metric), method)| Some(((moved(*column)?, *metric), *method)));
        self.declared.write().extend(kept);
    }

    /// Forgets an index; searches that have it go on.
    pub(crate) fn remove(&self, column: usize, metric: Metric) {
        if let Some(index) = self.columns.write().remove(&(column, metric)) {
            index.retire();
        }
    }

    /// Forgets every index: the rows of the table are others than those that the indexes were told of.
    pub(crate) fn clear(&self) {
        let columns = std::mem::take(&mut *self.columns.write());
        columns.into_values().for_each(|index| index.retire());
    }
}
