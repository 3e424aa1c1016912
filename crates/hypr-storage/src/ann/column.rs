//! The indexes of a table, one for each column and metric that was asked for, and how they learn of commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use hypr_ann::{Index, Metric, Params};
use hypr_common::Result;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::places::RowMaps;
use super::vectors::Vectors;
use crate::tail::TailBatch;

/// New rows that are worth moving into a graph.
pub(super) const ABSORB_ROWS: usize = 256;

/// The index of one column for one metric.
#[derive(Debug)]
pub(crate) struct ColumnIndex {
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

impl ColumnIndex {
    fn new(column: usize, index: Index) -> Self {
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

    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Learns of a commit. Called under the lock of the table's tail, before any reader sees the commit.
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
    columns: RwLock<BTreeMap<(usize, Metric), Arc<ColumnIndex>>>,
    /// Of the indexes that a user declared.
    declared: RwLock<BTreeMap<(usize, Metric), Params>>,
    pub(crate) row_maps: RowMaps,
}

impl VectorIndexes {
    /// Learns of a commit. Called under the lock of the table's tail.
    pub(crate) fn applied(&self, added: &[TailBatch], removed: &[u64]) {
        for column in self.columns.read().values() {
            column.applied(added, removed);
        }
    }

    pub(crate) fn get(&self, column: usize, metric: Metric) -> Option<Arc<ColumnIndex>> {
        self.columns.read().get(&(column, metric)).filter(|index| !index.broken.load(Ordering::Acquire)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(Metric, Arc<ColumnIndex>)> {
        self.columns.read().iter().map(|((_, metric), index)| (*metric, Arc::clone(index))).collect()
    }

    /// A new index that learns of commits from here on; the one that is there, if there is one. The caller holds the
    /// lock of the table's tail.
    pub(super) fn register(
        &self,
        column: usize,
        metric: Metric,
        dims: usize,
        params: Params,
    ) -> Result<(Arc<ColumnIndex>, bool)> {
        let mut columns = self.columns.write();
        if let Some(known) = columns.get(&(column, metric)).filter(|known| !known.broken.load(Ordering::Acquire)) {
            return Ok((Arc::clone(known), false));
        }
        let index = Arc::new(ColumnIndex::new(column, Index::new(metric, dims, params)?));
        columns.insert((column, metric), Arc::clone(&index));
        Ok((index, true))
    }

    /// How the index of a column is to be built.
    pub(super) fn params(&self, column: usize, metric: Metric) -> Params {
        self.declared.read().get(&(column, metric)).copied().unwrap_or_default()
    }

    /// Declares how an index is built; one that was built otherwise is forgotten.
    pub(super) fn define(&self, column: usize, metric: Metric, params: Params) {
        let before = self.params(column, metric);
        self.declared.write().insert((column, metric), params);
        if before != params {
            self.remove(column, metric);
        }
    }

    /// Forgets a declared index.
    pub(super) fn undefine(&self, column: usize, metric: Metric) {
        self.declared.write().remove(&(column, metric));
        self.remove(column, metric);
    }

    /// Forgets an index; searches that have it go on.
    pub(crate) fn remove(&self, column: usize, metric: Metric) {
        if let Some(index) = self.columns.write().remove(&(column, metric)) {
            index.broken.store(true, Ordering::Release);
            index.wanted.notify_one();
        }
    }

    /// Forgets every index: the rows of the table are others than those that the indexes were told of.
    pub(crate) fn clear(&self) {
        let columns = std::mem::take(&mut *self.columns.write());
        for index in columns.into_values() {
            index.broken.store(true, Ordering::Release);
            index.wanted.notify_one();
        }
    }
}
