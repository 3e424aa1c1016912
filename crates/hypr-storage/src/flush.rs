//! The flush service: moves the tails into Lance in the background and cuts the log behind them.
//!
//! A flush of one table is: freeze a prefix of the tail -> write files -> commit them, stamped with the log
//! position -> swap the snapshot. Then, over all tables: checkpoint the catalog -> cut the log. A crash
//! between any two of these loses nothing and doubles nothing, because the log is replayed only above the
//! position that the newest Lance version carries.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow_array::RecordBatch;
use hypr_common::{Error, Result};

use crate::database::Inner;
use crate::evolution::{Evolution, lance_schema};
use crate::lance_store::Stamp;
use crate::options::FlushStep;
use crate::table::{Superseded, TableShared};
use crate::tail::{Frozen, live_rows};

/// Runs until the database is closed or dropped.
pub(crate) async fn run(database: Weak<Inner>, wanted: Arc<tokio::sync::Notify>, tick: Duration) {
    loop {
        tokio::select! {
            () = wanted.notified() => {}
            () = tokio::time::sleep(tick) => {}
        }
        let Some(database) = database.upgrade() else { return };
        if database.is_closed() {
            return;
        }
        if let Err(error) = database.flush_due().await {
            tracing::error!(%error, "a background flush failed; it will be tried again");
        }
    }
}

impl Inner {
    /// Flushes the tables that are due, then cuts the log.
    pub(crate) async fn flush_due(&self) -> Result<()> {
        let options = &self.options;
        let due = |table: &TableShared| {
            let span = table.tail.lock().unflushed();
            let age_us = options.clock.now_us().saturating_sub(span.since_us);
            span.first_lsn.is_some()
                && table.damage().is_none()
                && (span.bytes >= options.flush_bytes
                    || span.rows >= options.flush_rows
                    || age_us >= i64::try_from(options.flush_age.as_micros()).unwrap_or(i64::MAX))
        };
        if self.flush_where(due).await? > 0 {
            self.compaction_wanted.notify_one();
        }
        Ok(())
    }

    /// Flushes the tables that are `due`, then cuts the log; returns how many there were.
    pub(crate) async fn flush_where(&self, due: impl Fn(&TableShared) -> bool) -> Result<usize> {
        let mut result = Ok(());
        let mut flushed = 0;
        for table in self.catalog.tables().iter().map(|table| &table.shared).filter(|table| due(table)) {
            let outcome = self.flush_table(table).await;
            *table.flush_error.lock() = outcome.as_ref().err().map(|e| (e.kind(), e.message().to_owned()));
            table.flushed.notify_waiters();
            match outcome {
                Ok(()) => flushed += 1,
                // The other tables are flushed all the same.
                Err(error) => result = Err(error),
            }
        }
        if flushed > 0 {
            self.cut_log()?;
        }
        result.map(|()| flushed)
    }

    async fn flush_table(&self, table: &Arc<TableShared>) -> Result<()> {
        let _guard = table.flushing.lock().await;
        if table.refuse_retired().is_err() {
            return Ok(());
        }
        self.finish_earlier_flush(table).await?;
        self.evolve(table).await?;
        let Some(frozen) = table.tail.lock().freeze() else { return Ok(()) };
        let name = table.definition.qualified_name();
        tracing::debug!(table = %name, lsn = frozen.lsn, "a flush begins");
        self.reached(FlushStep::Frozen)?;
        let stamp = Stamp { lsn: frozen.lsn, next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let rows = rows_to_write(table, &frozen)?;
        let rows = match &table.dir.clustering {
            Some(clustering) => {
                clustering.arrange(&rows, self.options.clustered_fragment_rows)?.into_iter().map(|r| vec![r]).collect()
            }
            None if rows.is_empty() => Vec::new(),
            None => vec![rows],
        };
        let dir = &table.dir.path;
        let dataset = frozen.dataset.as_ref();
        let schema = lance_schema(dataset.map(AsRef::as_ref), &table.layout);
        let transaction = self.lance.prepare_flush(dir, dataset, &schema, rows, &frozen.dead, stamp).await?;
        self.reached(FlushStep::Written)?;
        let committed = self.lance.commit(dir, dataset, transaction).await?;
        self.reached(FlushStep::Committed)?;
        self.install(table, committed, true);
        learn_zones(table).await;
        tracing::debug!(table = %name, "a flush ends");
        self.reached(FlushStep::Installed)
    }

    /// A flush that failed after its commit was sent may have landed; committing it again would double its
    /// rows.
    pub(crate) async fn finish_earlier_flush(&self, table: &Arc<TableShared>) -> Result<()> {
        let Some(unfinished) = table.tail.lock().unfinished() else { return Ok(()) };
        if let Some((dataset, stamp)) = self.lance.open(&table.dir.path).await? {
            self.install(table, dataset, stamp.lsn == unfinished.lsn);
        }
        Ok(())
    }

    /// Makes the first version of a table before anything is flushed: no rows, and the position of none.
    pub(crate) async fn create_empty(&self, table: &Arc<TableShared>) -> Result<()> {
        let stamp = Stamp { lsn: table.tail.lock().position(), next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let schema = lance_schema(None, &table.layout);
        let transaction = self.lance.prepare_flush(&table.dir.path, None, &schema, Vec::new(), &[], stamp).await?;
        let created = self.lance.commit(&table.dir.path, None, transaction).await?;
        self.install(table, created, false);
        Ok(())
    }

    /// Gives the Lance version the columns of the table before rows with those columns are written.
    pub(crate) async fn evolve(&self, table: &Arc<TableShared>) -> Result<()> {
        let flushed = table.tail.lock().flushed();
        let Some((dataset, lsn)) = flushed else { return Ok(()) };
        let Some(evolution) = Evolution::of(&dataset, &table.layout) else { return Ok(()) };
        let stamp = Stamp { lsn, next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let evolved = self.lance.evolve(&table.dir.path, &dataset, evolution, &table.layout, stamp).await?;
        self.install(table, evolved, false);
        Ok(())
    }

    /// Shows readers `dataset`; with `flushed`, it holds the frozen prefix of the tail.
    pub(crate) fn install(&self, table: &TableShared, dataset: lance::Dataset, flushed: bool) {
        let dataset = Arc::new(dataset);
        {
            let mut tail = table.tail.lock();
            if let Some((old, _)) = tail.flushed() {
                table.superseded.lock().push(Superseded::new(&old));
            }
            if flushed {
                tail.install(dataset);
            } else {
                tail.replace_dataset(dataset);
            }
        }
        table.publish();
    }

    fn cut_log(&self) -> Result<()> {
        // Read before the tables: what is applied later is above it.
        let applied = self.log.applied_lsn();
        let unflushed = self.catalog.tables();
        let first = unflushed.iter().filter_map(|table| table.shared.tail.lock().unflushed().first_lsn).min();
        self.catalog.checkpoint(self.options.disk.as_ref(), &self.dir)?;
        self.reached(FlushStep::Checkpointed)?;
        if unflushed.iter().all(|table| table.shared.damage().is_none()) {
            self.log.cut(first.unwrap_or(u64::MAX).min(applied + 1))?;
        }
        self.reached(FlushStep::Cut)
    }

    pub(crate) fn reached(&self, step: FlushStep) -> Result<()> {
        match &self.options.flush_hook {
            Some(hook) => hook.reached(step),
            None => Ok(()),
        }
    }
}

/// Keeps the extremes of new files, so that the next scan need not read them first.
pub(crate) async fn learn_zones(table: &TableShared) {
    let flushed = table.tail.lock().flushed();
    if let (Some(clustering), Some((dataset, _))) = (&table.dir.clustering, flushed) {
        clustering.learn(&dataset).await;
    }
}

/// The live rows of a frozen prefix in the form Lance keeps.
fn rows_to_write(table: &TableShared, frozen: &Frozen) -> Result<Vec<RecordBatch>> {
    let schema = lance_schema(frozen.dataset.as_deref(), &table.layout);
    let mut batches = Vec::with_capacity(frozen.batches.len());
    for batch in &frozen.batches {
        let live = live_rows(&batch.rows, &frozen.dead)?;
        if live.num_rows() > 0 {
            let bare = RecordBatch::try_new(Arc::clone(&schema), live.columns().to_vec())
                .map_err(|e| Error::internal("a tail does not match its table").with_source(e))?;
            batches.push(bare);
        }
    }
    Ok(batches)
}
