//! Versions of a table: what they are, how they are named, pinned, kept and restored.
//!
//! A version is a Lance version. Each flush makes one, and so does a compaction, which holds the same rows; a
//! version holds every commit of its table up to the log position it is stamped with, and nothing of a later one.
//! Rows that are acknowledged and not flushed are in no version yet, so whoever names the *current* version (by
//! tagging it, listing versions, or asking for a time that has not passed) has the table flushed first.
//!
//! Tags are Lance's own (`_refs/tags`): one synced file each, honoured by Lance's clean-up, and read by any other
//! reader of the directory.
//!
//! Invariant: rows are immutable and numbered, so two versions differ by sets of row ids. A restore is that
//! difference as one commit: rows that came since go, rows that went since come back under new ids.
//! Deliberately absent: branches, and versions of several tables at one instant.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use hypr_common::{Error, ErrorKind, Result};
use lance::Dataset;

use crate::ROW_ID_COLUMN;
use crate::catalog::TableDefinition;
use crate::database::{Database, Inner};
use crate::evolution::{Evolution, Layout};
use crate::lance_store::lance_error;
use crate::scan::{self, ScanRequest};
use crate::table::{Superseded, Table, TableShared};
use crate::tail::Snapshot;

/// Table option: how long versions are kept, such as `7 days`; the database's `version_retention` without it.
pub const VERSION_RETENTION_OPTION: &str = "version_retention";

/// One version of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableVersion {
    /// Its number: ascending, not without gaps.
    pub version: u64,
    /// When it was committed, in microseconds since the Unix epoch.
    pub committed_us: i64,
    /// Its rows.
    pub rows: u64,
    /// Names given to it, in alphabetic order.
    pub tags: Vec<String>,
}

/// How a statement names a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VersionName {
    /// By number.
    Number(u64),
    /// By a tag.
    Tag(String),
    /// The newest committed at or before a time, in microseconds since the Unix epoch. A time that has not passed
    /// means the current rows.
    AsOf(i64),
}

/// What to do about a tag that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagExists {
    /// Refuse.
    Fail,
    /// Leave it where it is.
    Keep,
    /// Move it.
    Move,
}

/// What a restore changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Rows that had come since the version.
    pub removed: u64,
    /// Rows that had gone since the version.
    pub added: u64,
    /// The version that holds the result.
    pub version: u64,
}

/// A table as it was at one version. Its files stay as long as clean-up keeps the version.
#[derive(Clone, Debug)]
pub struct TableAtVersion {
    table: Arc<TableShared>,
    /// The columns that it is read with.
    layout: Layout,
    version: u64,
    snapshot: Arc<Snapshot>,
}

impl TableAtVersion {
    /// The version's number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The columns that the table had then.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.layout.columns)
    }

    /// The same rows with the columns of today.
    fn with_columns_of_today(&self) -> Self {
        Self { layout: self.table.layout.clone(), ..self.clone() }
    }

    /// Its rows, as far as that is known without reading data.
    pub fn approximate_rows(&self) -> usize {
        self.snapshot.rows().0
    }

    /// A plan over the version.
    ///
    /// # Errors
    /// `InvalidInput` for a projection outside of the schema.
    pub async fn scan(
        &self,
        state: &dyn datafusion::catalog::Session,
        request: ScanRequest,
    ) -> Result<Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
        let partitions = state.config().target_partitions();
        scan::plan_snapshot_with(&self.table, &self.layout, Arc::clone(&self.snapshot), partitions, request).await
    }

    /// As [`Table::supports_filter`].
    pub fn supports_filter(
        &self,
        filter: &datafusion::logical_expr::Expr,
    ) -> datafusion::logical_expr::TableProviderFilterPushDown {
        scan::supports_filter(&self.layout.columns, filter)
    }

    /// All row ids, ascending.
    async fn row_ids(&self) -> Result<Vec<u64>> {
        let mut rows = self.read(Some(Vec::new())).await?;
        let mut ids = Vec::new();
        while let Some(batch) = rows.try_next().await.map_err(|e| failed("reading a version", e))? {
            ids.extend(row_ids_of(&batch)?);
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The rows, row id last.
    async fn read(&self, projection: Option<Vec<usize>>) -> Result<SendableRecordBatchStream> {
        let context = SessionContext::new();
        let request = ScanRequest { projection, with_row_id: true, ..ScanRequest::default() };
        let plan = self.scan(&context.state(), request).await?;
        datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(|e| failed("reading a version", e))
    }
}

impl Database {
    /// Makes everything acknowledged part of a version and returns its number.
    ///
    /// # Errors
    /// As for [`Database::flush`].
    pub async fn current_version(&self, table: &Table) -> Result<u64> {
        let dataset = self.inner().current_dataset(&table.shared).await?;
        Ok(dataset.manifest().version)
    }

    /// The versions that exist, oldest first; the last one holds everything acknowledged before the call.
    ///
    /// # Errors
    /// As for [`Database::flush`].
    pub async fn versions(&self, table: &Table) -> Result<Vec<TableVersion>> {
        let dataset = self.inner().current_dataset(&table.shared).await?;
        let mut tags: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (tag, content) in dataset.tags().list().boxed().await.map_err(|e| lance_error("listing tags", e))? {
            tags.entry(content.version).or_default().push(tag);
        }
        let versions = dataset.versions().boxed().await.map_err(|e| lance_error("listing versions", e))?;
        let listed = versions.into_iter().filter(|version| version.version <= dataset.manifest().version);
        Ok(listed
            .map(|version| {
                let mut tags = tags.remove(&version.version).unwrap_or_default();
                tags.sort();
                TableVersion {
                    version: version.version,
                    committed_us: version.timestamp.timestamp_micros(),
                    rows: version.metadata.get("total_rows").and_then(|rows| rows.parse().ok()).unwrap_or(0),
                    tags,
                }
            })
            .collect())
    }

    /// The table as it was.
    ///
    /// # Errors
    /// `NotFound` for a version or tag that does not exist, or not any more, and for a time before the oldest version.
    pub async fn at_version(&self, table: &Table, name: &VersionName) -> Result<TableAtVersion> {
        let shared = &table.shared;
        let dataset = match name {
            VersionName::AsOf(us) if *us >= self.inner().options.clock.now_us() => {
                self.inner().current_dataset(shared).await?
            }
            name => {
                let newest = self.inner().some_dataset(shared).await?;
                let number = number_of(&newest, shared, name).await?;
                if number == newest.manifest().version { newest } else { checkout(&newest, shared, number).await? }
            }
        };
        // Clean-up leaves it alone for as long as it is read.
        shared.superseded.lock().push(Superseded::new(&dataset));
        Ok(TableAtVersion {
            table: Arc::clone(shared),
            layout: Layout::of_version(&dataset, &shared.layout),
            version: dataset.manifest().version,
            snapshot: Arc::new(Snapshot {
                dataset: Some(dataset),
                batches: Vec::new(),
                dead: Vec::new(),
                dir: Arc::clone(&shared.dir),
            }),
        })
    }

    /// Gives a version a name, which keeps it from clean-up, and returns the version's number. Without `version` it
    /// is the current one, with everything acknowledged in it. Durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, or `InvalidInput` for a name that is none.
    pub async fn create_tag(
        &self,
        table: &Table,
        tag: &str,
        version: Option<&VersionName>,
        exists: TagExists,
    ) -> Result<u64> {
        check_tag(tag)?;
        let shared = &table.shared;
        let current = self.inner().current_dataset(shared).await?;
        // Clean-up must not remove the version while it gets its name.
        let _guard = shared.flushing.lock().await;
        let number = match version {
            None => current.manifest().version,
            Some(name) => number_of(&current, shared, name).await?,
        };
        checkout(&current, shared, number).await?;
        let tags = current.tags();
        let known = tags.list().boxed().await.map_err(|e| lance_error("listing tags", e))?;
        let done = match known.get(tag) {
            None => tags.create(tag, number).await,
            Some(content) => match exists {
                TagExists::Keep => return Ok(content.version),
                TagExists::Move => tags.update(tag, number).await,
                TagExists::Fail => {
                    let message = format!(
                        "tag \"{tag}\" of table {} is version {} already; use CREATE OR REPLACE TAG to move it",
                        shared.definition.qualified_name(),
                        content.version
                    );
                    return Err(Error::new(ErrorKind::AlreadyExists, message));
                }
            },
        };
        done.map_err(|e| lance_error("tagging a version", e))?;
        Ok(number)
    }

    /// Takes a name away; false when there is none and `if_exists` allows that. The version goes with the next
    /// clean-up after its time.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn drop_tag(&self, table: &Table, tag: &str, if_exists: bool) -> Result<bool> {
        let shared = &table.shared;
        let dataset = self.inner().some_dataset(shared).await?;
        let _guard = shared.flushing.lock().await;
        let known = dataset.tags().list().boxed().await.map_err(|e| lance_error("listing tags", e))?;
        if !known.contains_key(tag) {
            if if_exists {
                return Ok(false);
            }
            return Err(no_tag(shared, tag, known.into_keys().collect()));
        }
        dataset.tags().delete(tag).boxed().await.map_err(|e| lance_error("removing a tag", e))?;
        Ok(true)
    }

    /// Makes the rows of the table those of a version: one commit, durable when this returns. The columns stay as
    /// they are now.
    ///
    /// # Errors
    /// `NotFound` for the version, `AlreadyExists` when a row was inserted meanwhile whose key comes back.
    pub async fn restore(&self, table: &Table, name: &VersionName) -> Result<Restored> {
        let mutation = table.begin_mutation().await;
        let pinned = self.at_version(table, name).await?.with_columns_of_today();
        let now = TableAtVersion {
            table: Arc::clone(&table.shared),
            layout: table.shared.layout.clone(),
            version: 0,
            snapshot: table.shared.snapshot(),
        };
        let (then_ids, now_ids) = (pinned.row_ids().await?, now.row_ids().await?);
        let removed = without(&now_ids, &then_ids);
        let missing = without(&then_ids, &now_ids);
        let mut restored = Restored { removed: removed.len() as u64, added: missing.len() as u64, version: 0 };
        if !removed.is_empty() || !missing.is_empty() {
            let rows = rows_to_restore(&pinned, missing).await?;
            self.replace_with_stream(table, mutation, removed, rows).await?;
        }
        restored.version = self.current_version(table).await?;
        Ok(restored)
    }
}

impl Inner {
    /// The newest version, after a flush.
    async fn current_dataset(&self, table: &Arc<TableShared>) -> Result<Arc<Dataset>> {
        self.flush_where(|other| std::ptr::eq(other, Arc::as_ptr(table))).await?;
        self.some_dataset(table).await
    }

    /// The newest version as it is, with the columns of today; an empty one is made for a table that has none.
    pub(crate) async fn some_dataset(&self, table: &Arc<TableShared>) -> Result<Arc<Dataset>> {
        let flushed = || table.tail.lock().flushed().map(|(dataset, _)| dataset);
        if let Some(dataset) = flushed().filter(|dataset| Evolution::of(dataset, &table.layout).is_none()) {
            return Ok(dataset);
        }
        let _guard = table.flushing.lock().await;
        self.finish_earlier_flush(table).await?;
        self.evolve(table).await?;
        if let Some(dataset) = flushed() {
            return Ok(dataset);
        }
        self.create_empty(table).await?;
        flushed().ok_or_else(|| Error::internal("a table has no version after its first"))
    }

    /// The first version that clean-up must keep whatever its tags: the one that was current when the retention
    /// began. Ages come from the versions themselves, so that they survive a restart.
    pub(crate) async fn oldest_kept_version(&self, table: &TableShared, dataset: &Dataset) -> Result<u64> {
        let own = retention_of(&table.definition.options)?;
        let kept_us = i64::try_from(own.unwrap_or(self.options.version_retention).as_micros()).unwrap_or(i64::MAX);
        let horizon = self.options.clock.now_us().saturating_sub(kept_us);
        let versions = dataset.versions().boxed().await.map_err(|e| lance_error("listing versions", e))?;
        let limit = if own.is_some() { usize::MAX } else { self.options.version_limit };
        let over = versions.len().saturating_sub(1).saturating_sub(limit);
        let superseded = versions.windows(2).skip(over);
        let kept = superseded.map(|pair| (pair[0].version, pair[1].timestamp.timestamp_micros()));
        Ok(kept.filter(|(_, until)| *until > horizon).map(|(version, _)| version).next().unwrap_or(u64::MAX))
    }
}

/// Checks the options of `CREATE TABLE` that this module reads.
pub(crate) fn check_options(definition: &TableDefinition) -> Result<()> {
    retention_of(&definition.options).map(drop)
}

/// `7 days`, `12 hours`, `30 minutes` or `90 seconds`.
fn retention_of(options: &BTreeMap<String, String>) -> Result<Option<Duration>> {
    let Some(text) = options.get(VERSION_RETENTION_OPTION) else {
        return Ok(None);
    };
    let parsed = || {
        let (count, unit) = text.trim().split_once(' ')?;
        let seconds = match unit.trim().trim_end_matches('s') {
            "second" => 1,
            "minute" => 60,
            "hour" => 3600,
            "day" => 86_400,
            _ => return None,
        };
        count.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
    };
    parsed().map(Some).ok_or_else(|| {
        Error::invalid(format!("{VERSION_RETENTION_OPTION} = '{text}' is no span of time; write it like '7 days'"))
    })
}

/// Rows of `pinned` whose ids are in `missing` (ascending).
async fn rows_to_restore(
    pinned: &TableAtVersion,
    missing: Vec<u64>,
) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + use<>> {
    let rows = if missing.is_empty() { None } else { Some(pinned.read(None).await?) };
    let rows = futures::stream::iter(rows).flatten();
    let columns: Vec<usize> = (0..pinned.schema().fields().len()).collect();
    Ok(rows
        .map_err(|e| failed("reading a version", e))
        .try_filter_map(move |batch| futures::future::ready(restored_batch(&batch, &missing, &columns))))
}

fn restored_batch(batch: &RecordBatch, missing: &[u64], columns: &[usize]) -> Result<Option<RecordBatch>> {
    let wanted: BooleanArray = row_ids_of(batch)?.iter().map(|id| Some(missing.binary_search(id).is_ok())).collect();
    let kept = filter_record_batch(&batch.project(columns)?, &wanted)?;
    Ok((kept.num_rows() > 0).then_some(kept))
}

fn row_ids_of(batch: &RecordBatch) -> Result<Vec<u64>> {
    let ids = batch.column_by_name(ROW_ID_COLUMN).and_then(|ids| ids.as_primitive_opt::<UInt64Type>());
    let ids = ids.ok_or_else(|| Error::internal("a version has no row ids"))?;
    Ok(ids.values().to_vec())
}

/// Those of `ids` that are not in `others`; all ascending.
fn without(ids: &[u64], others: &[u64]) -> Vec<u64> {
    let mut others = others.iter().peekable();
    let mut left = Vec::new();
    for id in ids {
        while others.next_if(|other| *other < id).is_some() {}
        if others.peek() != Some(&id) {
            left.push(*id);
        }
    }
    left
}

async fn number_of(newest: &Dataset, table: &TableShared, name: &VersionName) -> Result<u64> {
    match name {
        VersionName::Number(number) => Ok(*number),
        VersionName::Tag(tag) => {
            let tags = newest.tags().list().boxed().await.map_err(|e| lance_error("listing tags", e))?;
            match tags.get(tag) {
                Some(content) => Ok(content.version),
                None => Err(no_tag(table, tag, tags.into_keys().collect())),
            }
        }
        VersionName::AsOf(us) => {
            let versions = newest.versions().boxed().await.map_err(|e| lance_error("listing versions", e))?;
            let before = versions.iter().rev().find(|version| version.timestamp.timestamp_micros() <= *us);
            before.map(|version| version.version).ok_or_else(|| {
                let oldest = versions.first().map(|version| version.timestamp.to_rfc3339()).unwrap_or_default();
                let table = table.definition.qualified_name();
                Error::not_found(format!("table {table} has no version of that time; its oldest is of {oldest}"))
            })
        }
    }
}

async fn checkout(newest: &Dataset, table: &TableShared, number: u64) -> Result<Arc<Dataset>> {
    match newest.checkout_version(number).await {
        Ok(dataset) => Ok(Arc::new(dataset)),
        Err(error) => {
            let versions = newest.versions().boxed().await.map_err(|e| lance_error("listing versions", e))?;
            if versions.iter().any(|version| version.version == number) {
                return Err(lance_error("opening a version", error));
            }
            let name = &table.definition.name;
            Err(Error::not_found(format!(
                "table {} has no version {number}; table_versions('{name}') lists those it has",
                table.definition.qualified_name()
            )))
        }
    }
}

fn no_tag(table: &TableShared, tag: &str, mut known: Vec<String>) -> Error {
    known.sort();
    let hint = if known.is_empty() { "it has no tags".to_owned() } else { format!("it has {}", known.join(", ")) };
    Error::not_found(format!("table {} has no tag \"{tag}\"; {hint}", table.definition.qualified_name()))
}

/// The rules of Lance, whose readers must understand the name.
fn check_tag(tag: &str) -> Result<()> {
    lance::dataset::refs::check_valid_tag(tag).map_err(|_| {
        Error::invalid(format!("\"{tag}\" cannot name a tag: use letters, digits, '-', '_' and single dots within"))
    })
}

fn failed(what: &str, error: datafusion::error::DataFusionError) -> Error {
    Error::internal(format!("{what}: {error}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_ascending_ids() {
        assert_eq!(without(&[1, 2, 5, 9], &[2, 3, 9]), [1, 5]);
        assert_eq!(without(&[1, 2], &[]), [1, 2]);
        assert!(without(&[], &[1]).is_empty());
    }

    #[test]
    fn retention_is_a_number_and_a_unit() {
        let of = |text: &str| retention_of(&BTreeMap::from([("version_retention".to_owned(), text.to_owned())]));
        assert_eq!(of("7 days").unwrap(), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(of("1 hour").unwrap(), Some(Duration::from_secs(3600)));
        assert!(of("soon").unwrap_err().message().contains("'7 days'"));
        assert!(of("-1 days").is_err());
    }
}
