//! Building indexes and keeping them in shape.
//!
//! A new index is registered under the lock of the tail, so that it learns of every later commit, and loaded from the
//! snapshot of that moment. Afterwards its task waits for commits: it moves new rows into the graph, and makes the
//! graph anew when too many of its rows are gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow_array::RecordBatch;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_ann::{Index, Metric, Params};
use hypr_common::{Error, Result};

use super::IndexLimits;
use super::column::{ABSORB_ROWS, ColumnIndex, GraphIndex};
use super::files::FileIndex;
use super::method::{FileParams, IndexMethod};
use super::places::Places;
use super::vectors::{Vectors, width};
use crate::lance_store::scan_error;
use crate::scan::{self, ScanRequest};
use crate::table::TableShared;
use crate::tail::Snapshot;

/// A graph is made anew when more than one in this many of its rows is gone.
const DEAD_FRACTION: usize = 3;
/// How long new rows may stay outside of the graph when they are few.
const TICK: Duration = Duration::from_millis(500);

/// The index of a column, if there is one or can be one; it may still be loading.
///
/// One in memory unless it was declared otherwise, or would take more memory than is allowed.
pub(super) async fn ensure(
    table: &Arc<TableShared>,
    column: usize,
    metric: Metric,
    limits: IndexLimits,
) -> Result<Option<ColumnIndex>> {
    if let Some(known) = table.vectors.get(column, metric) {
        return Ok(Some(known));
    }
    let dims = width(table.definition.columns.field(column))?;
    let rows = table.snapshot().rows().0;
    let fits = |params: &Params| Index::estimated_bytes(dims, rows, params) <= limits.memory_bytes;
    let method = match table.vectors.declared(column, metric) {
        None => IndexMethod::Hnsw(Params::default()),
        Some(declared) => declared,
    };
    let new = || {
        Ok(match method {
            IndexMethod::Hnsw(params) if fits(&params) => {
                ColumnIndex::Graph(Arc::new(GraphIndex::new(column, Index::new(metric, dims, params)?)))
            }
            IndexMethod::Hnsw(_) => {
                ColumnIndex::Files(Arc::new(FileIndex::new(table, column, metric, FileParams::default(), dims, rows)))
            }
            IndexMethod::Files(params) => {
                ColumnIndex::Files(Arc::new(FileIndex::new(table, column, metric, params, dims, rows)))
            }
        })
    };
    let (index, snapshot) = {
        let tail = table.tail.lock();
        let (index, is_new) = table.vectors.register(column, metric, new)?;
        if !is_new {
            return Ok(Some(index));
        }
        (index, Arc::new(tail.snapshot(&table.dir)))
    };
    // A task of its own: the index is loaded whether the statement that wanted it goes on or not.
    let shared = Arc::clone(table);
    let loading = match &index {
        ColumnIndex::Graph(graph) => tokio::spawn(build(shared, Arc::clone(graph), metric, snapshot, limits)),
        ColumnIndex::Files(files) => tokio::spawn(look_for_odd_rows(shared, Arc::clone(files), column, snapshot)),
    };
    if rows <= limits.graph_rows || !limits.background {
        loading.await.map_err(|e| Error::internal("building a vector index was stopped").with_source(e))?;
    }
    Ok(Some(index))
}

/// Tells an index on disk of the rows of `snapshot` that have no distance.
async fn look_for_odd_rows(table: Arc<TableShared>, index: Arc<FileIndex>, column: usize, snapshot: Arc<Snapshot>) {
    let noted = each_batch(&table, snapshot, column, |batch| {
        index.note_odd(&Vectors::new(batch, 0)?);
        Ok(())
    });
    match noted.await {
        Ok(()) => index.odd_are_known(),
        Err(error) => {
            let table = table.definition.qualified_name();
            tracing::error!(%table, %error, "a column cannot be looked through for rows without a distance");
        }
    }
}

/// Loads an index and, in the background, keeps it from then on.
async fn build(
    table: Arc<TableShared>,
    index: Arc<GraphIndex>,
    metric: Metric,
    snapshot: Arc<Snapshot>,
    limits: IndexLimits,
) {
    if let Err(error) = load(&table, &index, snapshot, limits).await {
        let table_name = table.definition.qualified_name();
        tracing::error!(table = %table_name, %error, "building a vector index failed; searches compare every row");
        table.vectors.remove(index.column, metric);
        return;
    }
    if limits.background {
        tokio::spawn(run(Arc::downgrade(&table), index, limits));
    }
}

/// Reads the rows of `snapshot` into a registered index and builds its graph.
async fn load(
    table: &Arc<TableShared>,
    index: &Arc<GraphIndex>,
    snapshot: Arc<Snapshot>,
    limits: IndexLimits,
) -> Result<()> {
    let _working = index.working.lock().await;
    let current = index.current.load_full();
    each_batch(table, snapshot, index.column, |batch| current.append(Vectors::new(batch, 0)?.iter())).await?;
    settle(index, limits).await?;
    index.set_ready();
    Ok(())
}

/// Shows `each` the column and the row ids of all rows of a snapshot.
async fn each_batch(
    table: &Arc<TableShared>,
    snapshot: Arc<Snapshot>,
    column: usize,
    mut each: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let context = SessionContext::new();
    let request = ScanRequest { projection: Some(vec![column]), with_row_id: true, ..ScanRequest::default() };
    let plan = scan::plan_snapshot(table, snapshot, 1, request).await?;
    let failed = |e| scan_error(&format!("reading the vectors of {}", table.definition.qualified_name()), e);
    let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
    while let Some(batch) = rows.try_next().await.map_err(failed)? {
        each(&batch)?;
    }
    Ok(())
}

/// Keeps an index until its table or it is gone.
async fn run(table: std::sync::Weak<TableShared>, index: Arc<GraphIndex>, limits: IndexLimits) {
    loop {
        let _ = tokio::time::timeout(TICK, index.wanted.notified()).await;
        let Some(table) = table.upgrade() else { return };
        if index.broken.load(Ordering::Acquire) || table.dropped.load(Ordering::Acquire) {
            return;
        }
        // The map of a new Lance version is read here and not by the next statement.
        if let Err(error) = Places::of(&table.snapshot(), &table.vectors.row_maps).await {
            tracing::warn!(%error, "reading the row ids of a new version failed");
        }
        if is_too_large(&index, limits) {
            let name = table.definition.qualified_name();
            tracing::info!(table = %name, "a vector index has outgrown its memory; the next search starts one on disk");
            let metric = index.current.load().metric();
            table.vectors.remove(index.column, metric);
            return;
        }
        drop(table);
        let _working = index.working.lock().await;
        if let Err(error) = settle(&index, limits).await {
            tracing::error!(%error, "the upkeep of a vector index failed; it will be tried again");
        }
    }
}

/// True for an index in memory whose column has grown well beyond what is allowed.
fn is_too_large(index: &GraphIndex, limits: IndexLimits) -> bool {
    let current = index.current.load();
    let stats = current.stats();
    let rows = stats.graph_rows - stats.dead_rows + stats.pending_rows;
    let allowed = limits.memory_bytes.saturating_add(limits.memory_bytes / 4);
    Index::estimated_bytes(current.dims(), rows, &current.params()) > allowed
}

/// Does all the upkeep that is due.
pub(super) async fn settle(index: &Arc<GraphIndex>, limits: IndexLimits) -> Result<()> {
    let index = Arc::clone(index);
    let done = tokio::task::spawn_blocking(move || -> Result<()> {
        index.drain_removed();
        let current = index.current.load_full();
        let stats = current.stats();
        let rows = stats.graph_rows + stats.pending_rows;
        if stats.graph_rows > 0 && stats.dead_rows * DEAD_FRACTION > stats.graph_rows {
            return rebuild(&index, &current, limits);
        }
        let due = if stats.graph_rows == 0 { rows >= limits.graph_rows } else { stats.pending_rows >= ABSORB_ROWS };
        if due {
            current.absorb(limits.threads);
        }
        Ok(())
    });
    done.await.map_err(|e| Error::internal("the upkeep of a vector index was stopped").with_source(e))?
}

/// Makes the graph anew from the rows that are left.
fn rebuild(index: &GraphIndex, current: &Arc<Index>, limits: IndexLimits) -> Result<()> {
    let next = Arc::new(Index::new(current.metric(), current.dims(), current.params())?);
    let rows = {
        // Between two commits: rows that are added from here on reach both.
        let mut slot = index.next.lock();
        *slot = Some(Arc::clone(&next));
        current.frozen()
    };
    next.restore(&rows);
    if next.stats().pending_rows >= limits.graph_rows {
        next.absorb(limits.threads);
    }
    let mut slot = index.next.lock();
    *slot = None;
    index.current.store(next);
    Ok(())
}
