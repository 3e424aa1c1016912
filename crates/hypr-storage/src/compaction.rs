//! Keeps the number of files of a table bounded, however small its writes are: joins small fragments, and
//! removes versions that nobody holds.
//!
//! The fragments of a table form tiers by size; `compaction_fan_in` of one tier become one of the next. A row is
//! rewritten once a tier, so the work is logarithmic in the size of a table, and a table has at most `fan_in`
//! fragments a tier, beside those that are large already.
//!
//! A compaction reads and writes beside flushes, deletes and readers, and takes the table's flush lock only for
//! its commit. When a flush has deleted rows of the chosen fragments meanwhile, what was written is thrown away
//! and written again under the lock; the bytes of one compaction are bounded, and so is that wait.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hypr_common::Result;

use crate::database::Inner;
use crate::flush::learn_zones;
use crate::lance_store::{Chosen, Stamp};
use crate::table::{Superseded, TableShared};

/// Versions that may be removed before it is worth looking through all files for them.
const SPARE_VERSIONS: u64 = 16;
/// How often the service looks whether the database is closed.
const TICK: Duration = Duration::from_secs(1);

/// Runs until the database is closed or dropped.
pub(crate) async fn run(database: Weak<Inner>, wanted: Arc<tokio::sync::Notify>) {
    loop {
        let woken = tokio::time::timeout(TICK, wanted.notified()).await.is_ok();
        let Some(database) = database.upgrade() else { return };
        if database.is_closed() {
            return;
        }
        if woken && let Err(error) = database.compact_all().await {
            tracing::error!(%error, "a compaction failed; it will be tried again after the next flush");
        }
    }
}

impl Inner {
    /// Compacts every table that needs it; the first failure is returned when all have been tried.
    pub(crate) async fn compact_all(&self) -> Result<()> {
        let mut result = Ok(());
        for table in self.catalog.tables().iter().map(|table| &table.shared) {
            if table.damage().is_some() || table.refuse_retired().is_err() {
                continue;
            }
            if let Err(error) = self.compact(table).await {
                result = Err(error);
            }
        }
        result
    }

    /// Joins small fragments and removes versions that no reader holds any more.
    async fn compact(&self, table: &Arc<TableShared>) -> Result<()> {
        let _one = table.compacting.lock().await;
        let mut compacted = false;
        while self.compact_once(table).await? {
            compacted = true;
        }
        self.clean_up(table, compacted).await
    }

    /// One compaction; false when there is nothing to gain.
    async fn compact_once(&self, table: &Arc<TableShared>) -> Result<bool> {
        let Some((dataset, _)) = table.tail.lock().flushed() else { return Ok(false) };
        let clustering = table.dir.clustering.as_ref();
        let Some(chosen) = self.choose(table, &dataset) else { return Ok(false) };
        let name = table.definition.qualified_name();
        tracing::debug!(table = %name, fragments = chosen.len(), "a compaction begins");
        let written = self.lance.rewrite(&dataset, &chosen, clustering, self.target_rows(table)).await?;
        let columns = dataset.schema().clone();
        drop(dataset);
        let _flushing = table.flushing.lock().await;
        if table.refuse_retired().is_err() {
            self.lance.discard(&table.dir.path, &written);
            return Ok(false);
        }
        self.finish_earlier_flush(table).await?;
        let Some((current, lsn)) = table.tail.lock().flushed() else { return Ok(false) };
        let (chosen, written) = if chosen.is_unchanged_in(&current) && *current.schema() == columns {
            (chosen, written)
        } else {
            self.lance.discard(&table.dir.path, &written);
            let Some(chosen) = self.choose(table, &current) else { return Ok(false) };
            let written = self.lance.rewrite(&current, &chosen, clustering, self.target_rows(table)).await?;
            (chosen, written)
        };
        let stamp = Stamp { lsn, next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let fragments = chosen.len();
        let committed = self.lance.commit_rewrite(&table.dir.path, &current, chosen, written, stamp).await?;
        let version = committed.manifest().version;
        self.install(table, committed, false);
        learn_zones(table).await;
        tracing::debug!(table = %name, fragments, version, "a compaction ends");
        Ok(true)
    }

    fn choose(&self, table: &TableShared, dataset: &lance::Dataset) -> Option<Chosen> {
        Chosen::of(dataset, self.options.compaction_fan_in, self.target_rows(table))
    }

    /// Fragments of this many rows are left alone. Those of a clustered table are small, so that scans can leave
    /// them out.
    fn target_rows(&self, table: &TableShared) -> usize {
        let options = &self.options;
        match table.dir.clustering {
            Some(_) => options.clustered_fragment_rows.min(options.compaction_target_rows),
            None => options.compaction_target_rows,
        }
    }

    /// Removes versions that are past their time and have no tag, and that no reader holds.
    async fn clean_up(&self, table: &Arc<TableShared>, compacted: bool) -> Result<()> {
        let Some((dataset, _)) = table.tail.lock().flushed() else { return Ok(()) };
        let cleaned = table.cleaned_version.load(Ordering::Acquire);
        if !compacted && dataset.manifest().version.saturating_sub(cleaned) < SPARE_VERSIONS {
            return Ok(());
        }
        let held = {
            let mut superseded = table.superseded.lock();
            superseded.retain(Superseded::is_held);
            superseded.iter().map(|old| old.version).min().unwrap_or(u64::MAX)
        };
        let kept = self.oldest_kept_version(table, &dataset).await?;
        let oldest_needed = held.min(kept).min(dataset.manifest().version);
        let spare = oldest_needed.saturating_sub(cleaned);
        if spare == 0 || (!compacted && spare < SPARE_VERSIONS) {
            return Ok(());
        }
        self.lance.clean_up(&dataset, oldest_needed).await?;
        table.cleaned_version.store(oldest_needed, Ordering::Release);
        Ok(())
    }
}
