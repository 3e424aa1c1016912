//! The part of a table that is in the log and in memory, not yet in Lance, and the snapshots readers see.
//!
//! Rows are immutable and numbered; a deletion is a *dead* row id, wherever the row lies. New batches, before
//! readers are shown them, and dead lists are merged with their neighbours of similar size, so that their number stays
//! logarithmic however small the commits are.
//!
//! Invariant: a [`Snapshot`] is one state between two commits. A flush freezes a prefix of the tail, writes
//! it, and swaps it for the new Lance version in one step.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_select::concat::concat_batches;
use lance::Dataset;

use crate::clustering::{Zone, zones_of};
use crate::lance_store::TableDir;

/// Batches are not merged beyond this many bytes: copying them again costs more than it saves.
const MERGE_LIMIT_BYTES: usize = 1 << 20;
/// Batches that nobody was shown yet are merged when there are this many.
const MERGE_AFTER: usize = 64;

/// Rows of the tail, row id last.
#[derive(Clone, Debug)]
pub(crate) struct TailBatch {
    pub(crate) rows: RecordBatch,
    pub(crate) bytes: usize,
    /// By column; computed by the first scan that asks.
    zones: OnceLock<HashMap<String, Zone>>,
    bounds: OnceLock<IdBounds>,
}

/// The row ids of a batch.
#[derive(Clone, Debug)]
pub(crate) struct IdBounds {
    /// From the least to one past the greatest.
    pub(crate) ids: Range<u64>,
    pub(crate) ascend: bool,
}

impl TailBatch {
    /// Rows that take `bytes` in the log.
    pub(crate) fn new(rows: RecordBatch, bytes: usize) -> Self {
        Self { rows, bytes, zones: OnceLock::new(), bounds: OnceLock::new() }
    }

    /// The row id of each row.
    pub(crate) fn ids(&self) -> &[u64] {
        self.rows.column(self.rows.num_columns() - 1).as_primitive::<UInt64Type>().values()
    }

    /// Where the row ids lie.
    pub(crate) fn bounds(&self) -> &IdBounds {
        self.bounds.get_or_init(|| {
            let ids = self.ids();
            let first = ids.iter().min().copied().unwrap_or(0);
            IdBounds { ids: first..ids.iter().max().map_or(first, |last| last + 1), ascend: ids.is_sorted() }
        })
    }

    /// The extremes of `columns`, which are the same in every call; empty if they cannot be computed.
    pub(crate) fn zones(&self, columns: &[String]) -> &HashMap<String, Zone> {
        self.zones.get_or_init(|| zones_of(&self.rows, columns).unwrap_or_default())
    }
}

/// Ascending row ids of rows that are gone.
pub(crate) type DeadRows = Arc<[u64]>;

/// One consistent state of a table.
pub(crate) struct Snapshot {
    /// `None` until the first flush.
    pub(crate) dataset: Option<Arc<Dataset>>,
    pub(crate) batches: Vec<Arc<TailBatch>>,
    pub(crate) dead: Vec<DeadRows>,
    /// Keeps the files of a dropped table until its last reader is done.
    pub(crate) dir: Arc<TableDir>,
}

/// Counts it, for the reason that a table does.
impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("rows", &self.rows()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// This state with the changes that `own` holds on top.
    pub(crate) fn extended(&self, own: &Tail) -> Self {
        Self {
            dataset: self.dataset.clone(),
            batches: self.batches.iter().chain(&own.batches).cloned().collect(),
            dead: self.dead.iter().chain(&own.dead).cloned().collect(),
            dir: Arc::clone(&self.dir),
        }
    }

    /// Rows, and whether that is exact.
    pub(crate) fn rows(&self) -> (usize, bool) {
        let fragments = || self.dataset.iter().flat_map(|dataset| dataset.iter_fragments());
        let exact = self.dead.is_empty() && fragments().all(|fragment| fragment.num_rows().is_some());
        (self.estimate_rows(), exact)
    }

    /// True when both are made of the same parts.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let dataset = match (&self.dataset, &other.dataset) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let (batches, dead) = (self.batches.iter().zip(&other.batches), self.dead.iter().zip(&other.dead));
        dataset
            && (self.batches.len(), self.dead.len()) == (other.batches.len(), other.dead.len())
            && batches.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
            && dead.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
    }

    fn estimate_rows(&self) -> usize {
        let stored: usize = self
            .dataset
            .iter()
            .flat_map(|dataset| dataset.iter_fragments().map(|fragment| fragment.num_rows().unwrap_or(0)))
            .sum();
        let tail: usize = self.batches.iter().map(|batch| batch.rows.num_rows()).sum();
        let dead: usize = self.dead.iter().map(|dead| dead.len()).sum();
        (stored + tail).saturating_sub(dead)
    }
}

/// True when `row_id` is in one of `dead`.
pub(crate) fn is_dead(dead: &[DeadRows], row_id: u64) -> bool {
    dead.iter().any(|ids| ids.binary_search(&row_id).is_ok())
}

/// `rows`, whose last column is the row id, without those in `dead`.
pub(crate) fn live_rows(rows: &RecordBatch, dead: &[DeadRows]) -> Result<RecordBatch, arrow_schema::ArrowError> {
    if dead.is_empty() {
        return Ok(rows.clone());
    }
    let ids = rows.column(rows.num_columns() - 1).as_primitive::<UInt64Type>();
    let dead_ids: Vec<bool> = ids.values().iter().map(|&id| !is_dead(dead, id)).collect();
    if dead_ids.iter().all(|live| *live) {
        return Ok(rows.clone());
    }
    arrow_select::filter::filter_record_batch(rows, &dead_ids.into())
}

/// What lies in the tail since some commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    /// LSN of the first frame; `None` when there is nothing.
    pub(crate) first_lsn: Option<u64>,
    /// When the first commit was applied, in microseconds since the Unix epoch.
    pub(crate) since_us: i64,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

impl Span {
    fn extend(&mut self, first_lsn: u64, now_us: i64, rows: usize, bytes: usize) {
        if self.first_lsn.is_none() {
            self.first_lsn = Some(first_lsn);
            self.since_us = now_us;
        }
        self.rows += rows;
        self.bytes += bytes;
    }

    fn prepend(&mut self, earlier: Span) {
        if earlier.first_lsn.is_some() {
            self.first_lsn = earlier.first_lsn;
            self.since_us = earlier.since_us;
        }
        self.rows += earlier.rows;
        self.bytes += earlier.bytes;
    }
}

/// The prefix of a tail that a flush writes.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) batches: Vec<Arc<TailBatch>>,
    pub(crate) dead: Vec<DeadRows>,
    /// Every commit of the table up to this LSN is in it or was flushed before.
    pub(crate) lsn: u64,
    /// The Lance version the prefix extends.
    pub(crate) dataset: Option<Arc<Dataset>>,
}

/// A flush that did not finish: whether its commit landed is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished {
    /// The position that commit carries.
    pub(crate) lsn: u64,
}

/// The mutable state behind a table's snapshots. The log thread extends it, the flush swaps its prefix. A
/// transaction keeps its own changes in one, too.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    dataset: Option<Arc<Dataset>>,
    batches: Vec<Arc<TailBatch>>,
    /// Batches that came since the last merge.
    unmerged: usize,
    dead: Vec<DeadRows>,
    frozen_batches: usize,
    frozen_dead: usize,
    frozen: Span,
    /// Position of the frozen prefix.
    frozen_lsn: u64,
    open: Span,
    last_lsn: u64,
    /// Position of `dataset`.
    flushed_lsn: u64,
}

impl Tail {
    /// A tail on top of `dataset`, which holds every commit up to `flushed_lsn`.
    pub(crate) fn new(dataset: Option<Arc<Dataset>>, flushed_lsn: u64) -> Self {
        Self {
            dataset,
            batches: Vec::new(),
            unmerged: 0,
            dead: Vec::new(),
            frozen_batches: 0,
            frozen_dead: 0,
            frozen: Span::default(),
            frozen_lsn: 0,
            open: Span::default(),
            last_lsn: flushed_lsn,
            flushed_lsn,
        }
    }

    /// Adds the rows of a commit, row id last.
    pub(crate) fn push_rows(&mut self, batch: TailBatch, first_lsn: u64, lsn: u64, now_us: i64) {
        self.open.extend(first_lsn, now_us, batch.rows.num_rows(), batch.bytes);
        self.last_lsn = lsn;
        self.batches.push(Arc::new(batch));
        self.unmerged += 1;
        if self.unmerged == MERGE_AFTER {
            self.merge_batches();
        }
    }

    /// Merges the last batches, as long as what they come to is more than half of the one before: rows of many
    /// commits are copied together once, before readers are shown them.
    pub(crate) fn merge_batches(&mut self) {
        let mut first = self.batches.len();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(before) = first.checked_sub(1).filter(|before| *before >= self.frozen_batches)
            && let batch = &self.batches[before]
            && (rows == 0 || rows * 2 > batch.rows.num_rows())
            && bytes + batch.bytes <= MERGE_LIMIT_BYTES
        {
            rows += batch.rows.num_rows();
            bytes += batch.bytes;
            first = before;
        }
        self.unmerged = 0;
        let run = &self.batches[first..];
        if run.len() > 1
            && let Ok(rows) = concat_batches(run[0].rows.schema_ref(), run.iter().map(|batch| &batch.rows))
        {
            self.batches.truncate(first);
            self.batches.push(Arc::new(TailBatch::new(rows, bytes)));
        }
    }

    /// Adds the deletions of a commit.
    pub(crate) fn push_dead(&mut self, mut ids: Vec<u64>, first_lsn: u64, lsn: u64, now_us: i64) {
        self.open.extend(first_lsn, now_us, ids.len(), ids.len() * size_of::<u64>());
        self.last_lsn = lsn;
        ids.sort_unstable();
        ids.dedup();
        let mut merged: DeadRows = ids.into();
        while self.dead.len() > self.frozen_dead
            && let Some(last) = self.dead.last()
            && merged.len() * 2 > last.len()
        {
            let mut both = [&last[..], &merged[..]].concat();
            both.sort_unstable();
            merged = both.into();
            self.dead.pop();
        }
        self.dead.push(merged);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.dead.is_empty()
    }

    pub(crate) fn batches(&self) -> &[Arc<TailBatch>] {
        &self.batches
    }

    pub(crate) fn dead(&self) -> &[DeadRows] {
        &self.dead
    }

    /// The same tail with other columns: `convert` makes them from the rows of a batch.
    pub(crate) fn converted<E>(&self, convert: impl Fn(&RecordBatch) -> Result<RecordBatch, E>) -> Result<Self, E> {
        let convert = |batch: &Arc<TailBatch>| Ok(Arc::new(TailBatch::new(convert(&batch.rows)?, batch.bytes)));
        Ok(Self {
            batches: self.batches.iter().map(convert).collect::<Result<_, E>>()?,
            dataset: self.dataset.clone(),
            dead: self.dead.clone(),
            ..*self
        })
    }

    /// What readers see now.
    pub(crate) fn snapshot(&self, dir: &Arc<TableDir>) -> Snapshot {
        Snapshot {
            dataset: self.dataset.clone(),
            batches: self.batches.clone(),
            dead: self.dead.clone(),
            dir: Arc::clone(dir),
        }
    }

    /// Fixes the prefix to flush; `None` when there is nothing to flush.
    pub(crate) fn freeze(&mut self) -> Option<Frozen> {
        if self.open.first_lsn.is_none() && self.frozen.first_lsn.is_none() {
            return None;
        }
        self.frozen_batches = self.batches.len();
        self.frozen_dead = self.dead.len();
        let mut frozen = std::mem::take(&mut self.open);
        frozen.prepend(self.frozen);
        self.frozen = frozen;
        self.frozen_lsn = self.last_lsn;
        Some(Frozen {
            batches: self.batches.clone(),
            dead: self.dead.clone(),
            lsn: self.last_lsn,
            dataset: self.dataset.clone(),
        })
    }

    /// The frozen prefix that an earlier flush left behind.
    pub(crate) fn unfinished(&self) -> Option<Unfinished> {
        self.frozen.first_lsn.map(|_| Unfinished { lsn: self.frozen_lsn })
    }

    /// The frozen prefix is in `dataset` now.
    pub(crate) fn install(&mut self, dataset: Arc<Dataset>) {
        self.flushed_lsn = self.frozen_lsn;
        self.dataset = Some(dataset);
        self.batches.drain(..self.frozen_batches);
        self.dead.drain(..self.frozen_dead);
        (self.frozen_batches, self.frozen_dead) = (0, 0);
        self.frozen = Span::default();
    }

    /// `dataset` holds the same rows as the one before (a compaction).
    pub(crate) fn replace_dataset(&mut self, dataset: Arc<Dataset>) {
        self.dataset = Some(dataset);
    }

    /// Log position of what Lance holds.
    pub(crate) fn position(&self) -> u64 {
        self.flushed_lsn
    }

    /// The Lance version and the log position it holds.
    pub(crate) fn flushed(&self) -> Option<(Arc<Dataset>, u64)> {
        self.dataset.clone().map(|dataset| (dataset, self.flushed_lsn))
    }

    /// What is in memory only.
    pub(crate) fn unflushed(&self) -> Span {
        let mut span = self.open;
        span.prepend(self.frozen);
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, UInt64Array};

    fn batch(ids: std::ops::Range<u64>) -> TailBatch {
        let column: ArrayRef = Arc::new(UInt64Array::from_iter_values(ids));
        let bytes = column.len() * 8;
        TailBatch::new(RecordBatch::try_from_iter([("id", column)]).unwrap(), bytes)
    }

    #[test]
    fn single_rows_and_deletions_merge_into_few_pieces() {
        let mut tail = Tail::new(None, 0);
        for id in 0..10_000 {
            tail.push_rows(batch(id..id + 1), id + 1, id + 1, 0);
            tail.push_dead(vec![id], id + 1, id + 1, 0);
            // Groups of every size up to one that is merged before it ends.
            if id % 97 % 13 == 0 {
                tail.merge_batches();
            }
        }
        tail.merge_batches();
        assert!(tail.batches.len() <= 16, "{} batches", tail.batches.len());
        assert!(tail.dead.len() <= 16, "{} dead lists", tail.dead.len());
        let rows: usize = tail.batches.iter().map(|b| live_rows(&b.rows, &tail.dead).unwrap().num_rows()).sum();
        assert_eq!(rows, 0);
    }

    #[test]
    fn rows_that_arrive_during_a_flush_stay() {
        let mut tail = Tail::new(None, 0);
        tail.push_rows(batch(0..4), 1, 1, 0);
        let frozen = tail.freeze().unwrap();
        tail.push_rows(batch(4..5), 2, 2, 0);
        tail.push_dead(vec![1], 3, 3, 0);
        assert_eq!((frozen.lsn, frozen.batches.len(), frozen.dead.len()), (1, 1, 0));
        assert_eq!(tail.frozen_batches, 1, "the new row is not merged into the frozen prefix");
        assert_eq!(tail.unflushed().first_lsn, Some(1));
        let again = tail.freeze().unwrap();
        assert_eq!((again.lsn, again.batches.len(), again.dead.len()), (3, 2, 1));
    }
}
