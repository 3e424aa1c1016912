//! Keeps the index of a column in step with the table.
//!
//! The index is built by the first search, from a scan, and from then on follows the commits: each search first
//! enters what has been committed since the last one, and after large commits the upkeep task does so in the
//! background. So the next statement after an insert finds the row, and a deleted row is never found. When changes
//! were lost (see [`crate::row_feed`]) the index is compared with the rows and takes in the difference.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_common::{Error, Result};
use parking_lot::{RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard};

use super::analyzer::{Analyzer, TextOptions};
use super::index::{Bitmap, TextIndex};
use super::query::Query;
use super::{Matches, query, score};
use crate::row_feed::{Pending, RowChange, Subscription};
use crate::scan::{self, ScanRequest};
use crate::table::TableShared;
use crate::tail::Snapshot;

/// The index of one column of one table.
#[derive(Debug)]
pub(crate) struct TextCache {
    table: String,
    column: String,
    options: TextOptions,
    subscription: Arc<Subscription>,
    state: RwLock<State>,
    /// One comparison with the rows at a time.
    comparing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    index: TextIndex,
    analyzer: Analyzer,
    /// False while the index is compared with the rows: commits have to wait for that.
    complete: bool,
}

impl Drop for TextCache {
    fn drop(&mut self) {
        // The upkeep task sees that there is nothing left to keep.
        self.subscription.wanted.notify_one();
    }
}

impl TextCache {
    /// An empty cache of `column`, with the task that keeps it. To be called inside of a runtime.
    pub(crate) fn start(table: &Arc<TableShared>, column: &str, options: &TextOptions) -> Result<Arc<Self>> {
        let analyzer = Analyzer::new(options)?;
        let cache = Arc::new(Self {
            table: table.definition.qualified_name(),
            column: column.to_owned(),
            options: options.clone(),
            subscription: table.feed.subscribe(column),
            state: RwLock::new(State { index: TextIndex::default(), analyzer, complete: false }),
            comparing: tokio::sync::Mutex::default(),
        });
        tokio::spawn(upkeep(Arc::downgrade(&cache), Arc::downgrade(table), Arc::clone(&cache.subscription)));
        Ok(cache)
    }

    pub(crate) fn options(&self) -> &TextOptions {
        &self.options
    }

    /// The best `limit` rows for `text`, among `allowed` if given.
    pub(crate) async fn search(
        self: &Arc<Self>,
        table: &Arc<TableShared>,
        text: &str,
        limit: usize,
        allowed: Option<Vec<u64>>,
    ) -> Result<Matches> {
        let query = Arc::new(query::parse(text, &mut Analyzer::new(&self.options)?)?);
        let allowed = allowed.map(Arc::new);
        loop {
            self.build(table).await?;
            let (cache, table, query, allowed) =
                (Arc::clone(self), Arc::clone(table), Arc::clone(&query), allowed.clone());
            let found = move || cache.search_now(&table, &query, limit, allowed.as_deref().map(Vec::as_slice));
            if let Some(found) = blocking(found).await? {
                return Ok(found);
            }
        }
    }

    /// `None` when changes were lost since the index was built.
    fn search_now(&self, table: &TableShared, query: &Query, limit: usize, allowed: Option<&[u64]>) -> Option<Matches> {
        let (state, snapshot) = self.current(table)?;
        let index = &state.index;
        let allowed = allowed.map(|rows| {
            let mut set = Bitmap::default();
            rows.iter().filter_map(|row| index.document(*row)).for_each(|document| set.insert(document));
            set
        });
        let best = score::search(index, query, limit, allowed.as_ref());
        Some(Matches {
            row_ids: best.iter().map(|scored| index.row(scored.document)).collect(),
            scores: best.iter().map(|scored| scored.score as f32).collect(),
            snapshot,
        })
    }

    /// The index with exactly the commits of the snapshot in it.
    fn current(&self, table: &TableShared) -> Option<(RwLockReadGuard<'_, State>, Arc<Snapshot>)> {
        let state = self.state.upgradable_read();
        if !state.complete {
            return None;
        }
        let (snapshot, pending) = {
            let tail = table.tail.lock();
            (tail.snapshot(&table.dir), self.subscription.take())
        };
        // What is known about the published one need not be found out again.
        let published = table.snapshot();
        let snapshot = if published.is_same(&snapshot) { published } else { Arc::new(snapshot) };
        if pending.lost {
            return None;
        }
        if pending.changes.is_empty() {
            return Some((RwLockUpgradableReadGuard::downgrade(state), snapshot));
        }
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        state.apply(pending);
        Some((RwLockWriteGuard::downgrade(state), snapshot))
    }

    /// Builds the index, or compares it with the rows, unless it follows the commits already.
    pub(crate) async fn build(self: &Arc<Self>, table: &Arc<TableShared>) -> Result<()> {
        if !self.subscription.is_lost() {
            // A comparison may still be on its way.
            drop(self.comparing.lock().await);
            return Ok(());
        }
        let _one = self.comparing.lock().await;
        if !self.subscription.is_lost() {
            return Ok(());
        }
        self.state.write().complete = false;
        {
            let _tail = table.tail.lock();
            self.subscription.restart();
        }
        // The scan must see every commit that came before the restart.
        table.publish();
        let compared = self.compare(table).await;
        match compared {
            Ok(()) => self.state.write().complete = true,
            Err(_) => self.subscription.lose(),
        }
        compared
    }

    async fn compare(self: &Arc<Self>, table: &Arc<TableShared>) -> Result<()> {
        let failed = |e| Error::internal(format!("reading the texts of {}.{}: {e}", self.table, self.column));
        let position = table.definition.columns.index_of(&self.column)?;
        let context = SessionContext::new();
        let request = ScanRequest { projection: Some(vec![position]), with_row_id: true, ..ScanRequest::default() };
        let plan = scan::plan(table, &context.state(), request).await?;
        let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
        let mut seen = (self.state.read().index.live_documents() > 0).then(HashSet::<u64>::new);
        while let Some(batch) = rows.try_next().await.map_err(failed)? {
            if let Some(seen) = &mut seen {
                seen.extend(batch.column(1).as_primitive::<UInt64Type>().values());
            }
            let cache = Arc::clone(self);
            blocking(move || cache.enter(&batch)).await?;
        }
        if let Some(seen) = seen {
            let cache = Arc::clone(self);
            blocking(move || cache.state.write().index.retain(|row_id| seen.contains(&row_id))).await?;
        }
        Ok(())
    }

    fn enter(&self, batch: &RecordBatch) {
        self.state.write().add(batch.column(0), batch.column(1));
    }

    /// Enters what was committed, and drops deleted rows when there are many.
    fn keep(&self, table: &TableShared) {
        if let Some((state, _)) = self.current(table)
            && state.index.is_sparse()
        {
            drop(state);
            self.state.write().index.compact();
        }
    }

    /// Rows and bytes of memory.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.index.live_documents(), state.index.bytes())
    }
}

impl State {
    fn apply(&mut self, pending: Pending) {
        for change in pending.changes {
            match change {
                RowChange::Added(texts, ids) => self.add(&texts, &ids),
                RowChange::Removed(ids) => ids.iter().for_each(|row_id| self.index.remove(*row_id)),
            }
        }
    }

    fn add(&mut self, texts: &ArrayRef, ids: &ArrayRef) {
        let Self { index, analyzer, .. } = self;
        let ids = ids.as_primitive::<UInt64Type>().values();
        let mut enter = |row: usize, text: Option<&str>| {
            if let Some(text) = text {
                index.add(analyzer, ids[row], text);
            }
        };
        match texts.data_type() {
            DataType::Utf8 => texts.as_string::<i32>().iter().enumerate().for_each(|(row, text)| enter(row, text)),
            DataType::LargeUtf8 => texts.as_string::<i64>().iter().enumerate().for_each(|(row, text)| enter(row, text)),
            DataType::Utf8View => texts.as_string_view().iter().enumerate().for_each(|(row, text)| enter(row, text)),
            // Checked when the cache is made.
            _ => {}
        }
    }
}

/// Follows large commits in the background, until the cache or the table is dropped.
async fn upkeep(cache: Weak<TextCache>, table: Weak<TableShared>, subscription: Arc<Subscription>) {
    loop {
        subscription.wanted.notified().await;
        let (Some(cache), Some(table)) = (cache.upgrade(), table.upgrade()) else { return };
        if blocking(move || cache.keep(&table)).await.is_err() {
            return;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a text search was interrupted").with_source(e))
}
