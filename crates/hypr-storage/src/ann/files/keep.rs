//! Building segments, and keeping their number and their gaps small.
//!
//! A segment is built beside everything else from the fragments of one Lance version, and becomes part of the newest
//! version by a commit that changes no row and carries the log position that the version has anyway. What a crash
//! leaves of an unfinished one is files that no version names.
//!
//! New fragments get a segment of their own when they hold a tenth of the rows. When there are several segments, when
//! a third of the rows of all is gone or as many again are new, or when one cannot be read, all are replaced by one.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use hypr_common::Result;
use lance::index::CreateIndexBuilder;
use lance_core::datatypes::format_field_path;
use lance_index::IndexType;

use super::{
    Arc, Dataset, DatasetIndexExt, DatasetIndexInternalExt, FileIndex, IndexMetadata, NoOpMetricsCollector,
    TableShared, covers, is_of_column, lance_error,
};
use crate::ann::method::TRAINING_ROWS;
use crate::ann::vectors::width;
use crate::database::Inner;
use crate::lance_store::Stamp;

/// How often tables are looked at.
const TICK: Duration = Duration::from_millis(500);
/// New rows get a segment when they are one in this many.
const NEW_SHARE: usize = 10;
/// All segments are replaced when one in this many of their rows is gone.
const GONE_SHARE: usize = 3;
/// Segments that a search has to go through at most.
const MAX_SEGMENTS: usize = 4;

/// Runs until the database is closed or dropped.
pub(crate) async fn run(database: Weak<Inner>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(database) = database.upgrade() else { return };
        if database.is_closed() {
            return;
        }
        if let Err(error) = database.keep_vector_files().await {
            tracing::error!(%error, "the upkeep of a vector index on disk failed; it will be tried again");
        }
    }
}

/// A segment to build.
struct Due {
    fragments: Vec<u32>,
    /// Rows in them.
    rows: usize,
    replaces_all: bool,
}

impl Inner {
    /// Does what is due for the indexes on disk; the first failure is returned when all tables have been looked at.
    pub(crate) async fn keep_vector_files(&self) -> Result<()> {
        let _one = self.indexing.lock().await;
        let mut result = Ok(());
        for table in self.catalog.tables() {
            let table = &table.shared;
            if table.damage().is_some() || table.refuse_retired().is_err() {
                continue;
            }
            if let Err(error) = self.keep_files_of(table).await {
                result = Err(error);
            }
        }
        result
    }

    async fn keep_files_of(&self, table: &Arc<TableShared>) -> Result<()> {
        for index in table.vectors.files() {
            index.drain_removed();
            while !index.is_retired() && !self.is_closed() && self.build_due(table, &index).await? {}
        }
        let wanted = table.vectors.files();
        let registered = table.vectors.registered();
        if registered.is_empty() {
            return Ok(());
        }
        // Built otherwise than is wanted now, or for a column that is in memory again.
        self.remove_vector_files(table, |name| {
            let is_known = |(column, metric): &(usize, _)| is_of_column(name, table.layout.ids[*column], *metric);
            registered.iter().any(is_known) && !wanted.iter().any(|index| index.name == name)
        })
        .await
    }

    /// Builds one segment; false when none is due.
    async fn build_due(&self, table: &Arc<TableShared>, index: &FileIndex) -> Result<bool> {
        let Some((dataset, _)) = table.tail.lock().flushed() else { return Ok(false) };
        let least = self.options.vector_index_rows.max(TRAINING_ROWS);
        let version = dataset.manifest().version;
        let due = if index.failed_at.load(Ordering::Acquire) == version {
            None
        } else {
            index.due(table, &dataset, least).await?
        };
        let Some(due) = due else { return Ok(false) };
        let (name, column) = (table.definition.qualified_name(), table.definition.columns.field(index.column).name());
        tracing::info!(table = %name, %column, kind = index.kind.name(), rows = due.rows, "a vector index is being built");
        let built = {
            let closing = self.closing.notified();
            tokio::pin!(closing);
            closing.as_mut().enable();
            if self.is_closed() {
                return Ok(false);
            }
            tokio::select! {
                built = index.build(table, &dataset, &due) => built,
                () = closing => return Ok(false),
            }
        };
        drop(dataset);
        match built {
            Ok(Some(segment)) => self.add_segment(table, index, segment, due.replaces_all).await,
            outcome => {
                index.failed_at.store(version, Ordering::Release);
                match outcome {
                    Err(error) => tracing::error!(table = %name, %column, %error, "building a vector index failed"),
                    Ok(_) => tracing::warn!(table = %name, %column, "there are too few vectors for an index on disk"),
                }
                Ok(false)
            }
        }
    }

    /// Makes a segment part of the newest version.
    async fn add_segment(
        &self,
        table: &Arc<TableShared>,
        index: &FileIndex,
        segment: IndexMetadata,
        replaces_all: bool,
    ) -> Result<bool> {
        let _flushing = table.flushing.lock().await;
        let dir = &table.dir.path;
        if table.refuse_retired().is_err() || index.is_retired() || self.is_closed() {
            self.lance.discard_index(dir, &segment);
            return Ok(false);
        }
        self.finish_earlier_flush(table).await?;
        let Some((current, lsn)) = table.tail.lock().flushed() else { return Ok(false) };
        let replaced = if replaces_all { index.segments(&current).await? } else { Vec::new() };
        let stamp = Stamp { lsn, next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let committed = self.lance.commit_indexes(dir, &current, vec![segment], replaced, stamp).await?;
        let version = committed.manifest().version;
        self.install(table, committed, false);
        tracing::info!(table = %table.definition.qualified_name(), index = %index.name, version, "a vector index was built");
        Ok(true)
    }

    /// Removes the Lance indexes whose names are `unwanted` from the newest version.
    pub(crate) async fn remove_vector_files(
        &self,
        table: &Arc<TableShared>,
        unwanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let failed = |e| lance_error("listing the indexes of a table", e);
        let Some((dataset, _)) = table.tail.lock().flushed() else { return Ok(()) };
        let all = dataset.load_indices().boxed().await.map_err(failed)?;
        if !all.iter().any(|segment| unwanted(&segment.name)) {
            return Ok(());
        }
        drop(dataset);
        let _flushing = table.flushing.lock().await;
        if table.refuse_retired().is_err() || self.is_closed() {
            return Ok(());
        }
        self.finish_earlier_flush(table).await?;
        let Some((current, lsn)) = table.tail.lock().flushed() else { return Ok(()) };
        let all = current.load_indices().boxed().await.map_err(failed)?;
        let removed = all.iter().filter(|segment| unwanted(&segment.name)).cloned().collect();
        let stamp = Stamp { lsn, next_row_id: table.next_row_id.load(Ordering::Acquire) };
        let committed = self.lance.commit_indexes(&table.dir.path, &current, Vec::new(), removed, stamp).await?;
        self.install(table, committed, false);
        Ok(())
    }
}

impl FileIndex {
    async fn due(&self, table: &TableShared, dataset: &Dataset, least: usize) -> Result<Option<Due>> {
        let segments = self.segments(dataset).await?;
        let fragments = dataset.fragments();
        let rows_of = |wanted: &dyn Fn(u32) -> bool| -> (Vec<u32>, usize) {
            let chosen = || fragments.iter().filter(|fragment| wanted(fragment.id as u32));
            let rows = chosen().map(|fragment| fragment.num_rows().unwrap_or(0)).sum();
            (chosen().map(|fragment| fragment.id as u32).collect(), rows)
        };
        let (all, rows) = rows_of(&|_| true);
        let (new, new_rows) = rows_of(&|fragment| !covers(&segments, fragment));
        let indexed = rows - new_rows;
        let new_are_due = new_rows >= least.max(indexed / NEW_SHARE);
        let replaces_all = match self.built_rows(table, dataset, &segments).await? {
            None => true,
            Some(built) => {
                segments.is_empty()
                    || new_rows > indexed
                    || built.saturating_sub(indexed) * GONE_SHARE > built
                    || new_are_due && segments.len() >= MAX_SEGMENTS
            }
        };
        Ok(match (replaces_all, new_are_due) {
            (true, _) if rows >= least => Some(Due { fragments: all, rows, replaces_all }),
            (false, true) => Some(Due { fragments: new, rows: new_rows, replaces_all }),
            _ => None,
        })
    }

    /// The rows that segments were built with; none when one cannot be read.
    async fn built_rows(
        &self,
        table: &TableShared,
        dataset: &Dataset,
        segments: &[IndexMetadata],
    ) -> Result<Option<usize>> {
        let column = self.column_name(table, dataset)?;
        let mut rows = 0;
        for segment in segments {
            if self.damaged.lock().contains(&segment.uuid) {
                return Ok(None);
            }
            let opened = dataset.open_vector_index_from_metadata(&column, segment, &NoOpMetricsCollector);
            match opened.boxed().await {
                Ok(index) => rows += index.num_rows() as usize,
                Err(error) => {
                    self.note_damage(table, segment.uuid, &error);
                    return Ok(None);
                }
            }
        }
        Ok(Some(rows))
    }

    /// Builds a segment over some fragments, which no version names yet. None where there are too few vectors.
    async fn build(&self, table: &TableShared, dataset: &Dataset, due: &Due) -> Result<Option<IndexMetadata>> {
        let failed = |e| lance_error("building a vector index", e);
        let dims = width(table.definition.columns.field(self.column))?;
        let params = self.params.for_lance(self.metric, dims, due.rows).map_err(failed)?;
        let column = self.column_name(table, dataset)?;
        let column = format_field_path(&[column.as_str()]);
        let mut dataset = dataset.clone();
        let mut builder = CreateIndexBuilder::new(&mut dataset, &[column.as_str()], IndexType::Vector, &params)
            .name(self.name.clone())
            .replace(true)
            .fragments(due.fragments.clone());
        let segment = builder.execute_uncommitted().boxed().await.map_err(failed)?;
        let covers_any = segment.fragment_bitmap.as_ref().is_some_and(|fragments| !fragments.is_empty());
        Ok(covers_any.then_some(segment))
    }
}
