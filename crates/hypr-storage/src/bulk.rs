//! Large commits without the log: rows stream into new Lance files, and one Lance commit makes them part of the
//! table.
//!
//! A commit of up to [`LOGGED_BYTES`] goes through the log like any other. A larger one would have to be held in
//! memory and written twice; here its rows are written once, by batches, into files that no version names, and the
//! commit that names them is atomic and synced. It carries the log position that the table's files have anyway, so
//! recovery replays exactly what it would have replayed without it: the rows are there once or not at all.
//!
//! Invariant: rows get ids, and keys are reserved, before they are written, so concurrent inserts and the load
//! refuse each other's keys. Files of a load that fails are garbage that clean-up collects.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};
use hypr_common::{Error, ErrorKind, Result};
use lance_table::format::Fragment;
use parking_lot::Mutex;

use crate::database::{Database, Inner};
use crate::evolution::lance_schema;
use crate::key_index::{KeyIndex, Reservation};
use crate::lance_store::Stamp;
use crate::options::FlushStep;
use crate::table::{KeyGuard, Mutation, Table, TableShared};

/// The most bytes that go through the log as one commit.
const LOGGED_BYTES: usize = 64 << 20;

impl Database {
    /// Adds a stream of rows, all or none, whatever their number; durable when this returns. Returns their number.
    ///
    /// # Errors
    /// As for [`Table::insert`], or the stream's own; then nothing is stored.
    pub async fn load(
        &self,
        table: &Table,
        rows: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<u64> {
        let (first, rest) = split_off(rows).await?;
        match rest {
            None => table.insert(first).await,
            Some(rest) => self.bulk(table, Vec::new(), first, rest.boxed(), None).await,
        }
    }

    /// Deletes rows and adds a stream of others in one commit, whatever their number.
    pub(crate) async fn replace_with_stream(
        &self,
        table: &Table,
        mutation: Mutation,
        removed: Vec<u64>,
        rows: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<()> {
        let (first, rest) = split_off(rows).await?;
        match rest {
            None => mutation.replace(removed, first).await.map(drop),
            Some(rest) => {
                // What is deleted must lie in files, for it is deleted there. The mutation is held to the end.
                self.current_version(table).await?;
                self.bulk(table, removed, first, rest.boxed(), Some(mutation)).await.map(drop)
            }
        }
    }

    async fn bulk(
        &self,
        table: &Table,
        removed: Vec<u64>,
        first: Vec<RecordBatch>,
        rest: futures::stream::BoxStream<'static, Result<RecordBatch>>,
        mutation: Option<Mutation>,
    ) -> Result<u64> {
        let inner = self.inner();
        let shared = &table.shared;
        // One guard for all batches, taken first: the columns and the indexes stay as they are until it is dropped.
        let keys = table.key_guard().await?;
        let dataset = inner.some_dataset(shared).await?;
        let schema = lance_schema(Some(&dataset), &shared.layout);
        let load = Arc::new(Load { table: table.clone(), schema, removed, keys, state: Mutex::default() });
        let rows = futures::stream::iter(first.into_iter().map(Ok)).chain(rest);
        let numbered = numbered(Arc::clone(&load), rows.boxed());
        let written = inner.lance.write_fragments(&dataset, numbered).await;
        let mut state = std::mem::take(&mut *load.state.lock());
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let fragments = written?;
        inner.reached(FlushStep::Written)?;
        if !load.removed.is_empty() {
            refuse_in_transactions(table)?;
        }
        // By itself: whoever asked may leave, and a commit that has landed must keep its keys.
        let database = self.clone();
        let finished = tokio::spawn(async move {
            let rows = database.finish_bulk(&load, state, fragments).await;
            drop(mutation);
            rows
        });
        finished.await.map_err(|e| Error::internal("a load ended early").with_source(e))?
    }

    async fn finish_bulk(&self, load: &Load, mut state: LoadState, fragments: Vec<Fragment>) -> Result<u64> {
        self.inner().commit_bulk(&load.table.shared, fragments, &load.removed).await?;
        load.indexes().for_each(|index| index.remove(&load.removed));
        // After the rows are there: whoever waited for the keys reads them now.
        state.reservations.drain(..).for_each(Reservation::confirm);
        Ok(state.rows)
    }
}

impl Inner {
    /// One Lance commit, which readers see when it is durable.
    async fn commit_bulk(&self, table: &Arc<TableShared>, fragments: Vec<Fragment>, removed: &[u64]) -> Result<()> {
        let _guard = table.flushing.lock().await;
        table.refuse_retired()?;
        self.finish_earlier_flush(table).await?;
        let Some((dataset, lsn)) = table.tail.lock().flushed() else {
            return Err(Error::internal("a table lost its files during a load"));
        };
        let stamp = Stamp { lsn, next_row_id: table.next_row_id.load(std::sync::atomic::Ordering::Acquire) };
        let ours = fragments.first().and_then(|fragment| fragment.files.first()).map(|file| file.path.clone());
        let dead = if removed.is_empty() { Vec::new() } else { vec![removed.into()] };
        let transaction = self.lance.prepare_bulk(&dataset, fragments, &dead, stamp).await?;
        let committed = match self.lance.commit(&table.dir.path, Some(&dataset), transaction).await {
            Ok(committed) => committed,
            // The commit may have landed all the same; what the disk says counts.
            Err(error) => match self.lance.open(&table.dir.path).await? {
                Some((newest, _)) if ours.is_some_and(|path| has_file(newest.fragments(), &path)) => newest,
                _ => return Err(error),
            },
        };
        self.reached(FlushStep::Committed)?;
        // No commit of the log describes these rows to those who follow it.
        table.lose_followers();
        self.install(table, committed, false);
        table.lose_followers();
        self.reached(FlushStep::Installed)
    }
}

/// The log has no position for these deletions by which an open transaction would see that its rows are gone.
fn refuse_in_transactions(table: &Table) -> Result<()> {
    if table.log.has_pins() {
        let name = table.definition().qualified_name();
        let message = format!("all rows of table {name} cannot be replaced while transactions are open; try again");
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    Ok(())
}

fn has_file(fragments: &[Fragment], path: &str) -> bool {
    fragments.iter().flat_map(|fragment| &fragment.files).any(|file| file.path == path)
}

/// A load under way.
struct Load {
    table: Table,
    /// That of the files.
    schema: SchemaRef,
    /// Ascending row ids that the same commit deletes.
    removed: Vec<u64>,
    // After `state`: reservations are released while the indexes cannot be rebuilt.
    state: Mutex<LoadState>,
    keys: KeyGuard,
}

#[derive(Default)]
struct LoadState {
    rows: u64,
    /// Those of the rows, ascending; rows that others insert meanwhile lie between.
    ids: Vec<Range<u64>>,
    reservations: Vec<Reservation>,
    failed: Option<Error>,
}

impl Load {
    fn indexes(&self) -> impl Iterator<Item = &Arc<KeyIndex>> {
        self.keys.iter().flat_map(|indexes| indexes.iter())
    }

    /// One batch with ids and reserved keys, in the form Lance keeps.
    fn number(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let shared = &self.table.shared;
        shared.refuse_retired()?;
        let before = self.state.lock().rows;
        let first_row = usize::try_from(before).unwrap_or(usize::MAX);
        let batch = crate::validate::conform(&shared.definition.columns, batch, first_row)?;
        let rows = batch.num_rows() as u64;
        let first_row_id = shared.next_row_id.fetch_add(rows, std::sync::atomic::Ordering::AcqRel);
        let batches = [batch];
        let earlier = self.state.lock().ids.clone();
        let mut reservations = Vec::new();
        for index in self.indexes() {
            reservations.push(index.reserve(&batches, first_row_id, &self.removed, None, false, &earlier)?);
        }
        let numbered = shared.number_rows(&batches[0], first_row_id)?;
        let mut state = self.state.lock();
        state.rows += rows;
        match state.ids.last_mut().filter(|ids| ids.end == first_row_id) {
            Some(ids) => ids.end += rows,
            None => state.ids.push(first_row_id..first_row_id + rows),
        }
        state.reservations.extend(reservations);
        RecordBatch::try_new(Arc::clone(&self.schema), numbered.columns().to_vec())
            .map_err(|e| Error::internal("a load does not match its table").with_source(e))
    }
}

/// The rows as Lance keeps them. The first error is left in the load's state.
fn numbered(
    load: Arc<Load>,
    rows: futures::stream::BoxStream<'static, Result<RecordBatch>>,
) -> SendableRecordBatchStream {
    let schema = Arc::clone(&load.schema);
    let batches = rows.map(move |batch| {
        batch.and_then(|batch| load.number(&batch)).map_err(|error| {
            load.state.lock().failed.get_or_insert(error);
            DataFusionError::Execution("the rows of a load ended early".to_owned())
        })
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

type Rest<S> = Option<S>;

/// The rows up to [`LOGGED_BYTES`], and the rest of the stream if there is more.
async fn split_off<S>(rows: S) -> Result<(Vec<RecordBatch>, Rest<std::pin::Pin<Box<S>>>)>
where
    S: Stream<Item = Result<RecordBatch>> + Send + 'static,
{
    let mut rows = Box::pin(rows);
    let (mut first, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        bytes += batch.get_array_memory_size();
        first.push(batch);
        if bytes > LOGGED_BYTES {
            return Ok((first, Some(rows)));
        }
    }
    Ok((first, None))
}
