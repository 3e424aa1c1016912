//! Lance tables on a file system that syncs: opening, committing with the log position, compacting.
//!
//! Lance's `file://` path never syncs. Datasets are opened as `file-object-store://`, which goes through an
//! object store, and a wrapper puts the disk's own in its place ([`Disk::objects`]): data, deletion, transaction
//! and manifest files and their directories are synced in the order they are written, and every block that is
//! read is compared with its checksum ([`crate::checksums`]).
//!
//! Every commit carries [`POSITION_KEY`] and [`NEXT_ROW_ID_KEY`] on its `Transaction`. Appends and deletions
//! of one flush are one commit (`Operation::Update`), so no version shows half a flush.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_schema::{Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::prelude::{col, lit};
use futures::{FutureExt, TryStreamExt};
use hypr_common::{Error, ErrorKind, Result};
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::transaction::{Operation, Transaction, TransactionBuilder, UpdateMode};
use lance::dataset::{BatchUDF, CommitBuilder, InsertBuilder, NewColumnTransform, ReadParams, WriteMode, WriteParams};
use lance::session::Session;
use lance_io::object_store::{ObjectStoreParams, WrappingObjectStore};
use lance_table::format::{Fragment, IndexMetadata};
use object_store14::ObjectStore;
use object_store14::list::PaginatedListStore;

use crate::ROW_ID_COLUMN;
use crate::checksums::{Checksums, DamagedFile, Verified};
use crate::clustering::Clustering;
use crate::column_cache::ColumnCache;
use crate::disk::Disk;
use crate::evolution::{Evolution, Layout};
use crate::options::StorageOptions;
use crate::scan::batch_rows;
use crate::tail::{DeadRows, is_dead};

/// Transaction property: every commit of the table up to this log position is in this version or an earlier one.
pub const POSITION_KEY: &str = "hypr.wal_position";
/// Transaction property: rows get ids from here on.
pub const NEXT_ROW_ID_KEY: &str = "hypr.next_row_id";

/// More than this is compacted in the order it lies in, not sorted by the cluster key: sorting is in memory.
const SORTED_COMPACTION_BYTES: u64 = 256 << 20;
const INDEX_CACHE_BYTES: usize = 256 << 20;
const METADATA_CACHE_BYTES: usize = 128 << 20;
/// One compaction reads about this much at most, so that a flush never waits for it for long.
const COMPACTION_BYTES: u64 = 512 << 20;

/// What a commit says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) lsn: u64,
    pub(crate) next_row_id: u64,
}

impl Stamp {
    fn properties(self) -> Arc<HashMap<String, String>> {
        Arc::new(HashMap::from([
            (POSITION_KEY.to_owned(), self.lsn.to_string()),
            (NEXT_ROW_ID_KEY.to_owned(), self.next_row_id.to_string()),
        ]))
    }

    fn read(transaction: &Transaction) -> Option<Self> {
        let properties = transaction.transaction_properties.as_ref()?;
        let number = |key: &str| properties.get(key)?.parse().ok();
        Some(Self { lsn: number(POSITION_KEY)?, next_row_id: number(NEXT_ROW_ID_KEY)? })
    }
}

/// The directory of one table; removed when the table is dropped and its last reader is done.
#[derive(Debug)]
pub(crate) struct TableDir {
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dropped: std::sync::atomic::AtomicBool,
    /// How the rows in it are laid out, if the table says so.
    pub(crate) clustering: Option<Clustering>,
    /// Columns of its files.
    pub(crate) columns: Arc<ColumnCache>,
}

impl Drop for TableDir {
    fn drop(&mut self) {
        if self.dropped.load(std::sync::atomic::Ordering::Acquire)
            && let Err(error) = self.disk.remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.path.display(), %error, "removing the files of a dropped table failed");
        }
    }
}

/// Puts the disk's syncing and verified files where Lance would put its own.
#[derive(Debug)]
struct SyncedFiles {
    outer: Option<Arc<dyn WrappingObjectStore>>,
    disk: Arc<dyn Disk>,
    checksums: Arc<Checksums>,
}

impl WrappingObjectStore for SyncedFiles {
    fn wrap(&self, prefix: &str, _original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let synced = self.disk.objects();
        let inner = match &self.outer {
            Some(outer) => outer.wrap(prefix, synced),
            None => synced,
        };
        Arc::new(Verified { inner, checksums: Arc::clone(&self.checksums) })
    }

    fn wrap_paginated(&self, _: &str, _: Arc<dyn PaginatedListStore>) -> Option<Arc<dyn PaginatedListStore>> {
        None
    }
}

/// Opens and commits the Lance datasets of one database directory.
#[derive(Clone, Debug)]
pub(crate) struct LanceStore {
    session: Arc<Session>,
    store_params: ObjectStoreParams,
    disk: Arc<dyn Disk>,
    checksums: Arc<Checksums>,
    columns: Arc<ColumnCache>,
}

impl LanceStore {
    /// The tables in `tables_dir`.
    pub(crate) fn new(tables_dir: &Path, options: &StorageOptions) -> Result<Self> {
        let disk = Arc::clone(&options.disk);
        let checksums = Arc::new(Checksums::new(Arc::clone(&disk), tables_dir)?);
        let outer = options.lance_wrapper.clone();
        let files = SyncedFiles { outer, disk: Arc::clone(&disk), checksums: Arc::clone(&checksums) };
        let wrapper: Arc<dyn WrappingObjectStore> = Arc::new(files);
        Ok(Self {
            session: Arc::new(Session::new(INDEX_CACHE_BYTES, METADATA_CACHE_BYTES, Default::default())),
            store_params: ObjectStoreParams { object_store_wrapper: Some(wrapper), ..Default::default() },
            disk,
            checksums,
            columns: Arc::new(ColumnCache::new(options.column_cache_bytes)),
        })
    }

    /// Columns of the files that are kept in memory.
    pub(crate) fn columns(&self) -> &Arc<ColumnCache> {
        &self.columns
    }

    /// What is recorded of the files of the tables.
    pub(crate) fn checksums(&self) -> &Checksums {
        &self.checksums
    }

    /// Whether a version was ever committed in `dir`; a crash during the first flush leaves files without one.
    fn has_version(&self, dir: &Path) -> Result<bool> {
        let versions = dir.join("_versions");
        match self.disk.list(&versions) {
            Ok(files) => Ok(files.iter().any(|file| file.extension().is_some_and(|end| end == "manifest"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(versions.display(), error)),
        }
    }

    /// The newest version in `dir` and the newest stamp; `None` before the first flush.
    ///
    /// # Errors
    /// `Corrupted` names the file that is damaged or missing.
    pub(crate) async fn open(&self, dir: &Path) -> Result<Option<(Dataset, Stamp)>> {
        let recorded = self.newest_recorded(dir)?;
        if recorded.is_none() && !self.has_version(dir)? {
            return Ok(None);
        }
        // A killed process may have left the newest manifest with a name that is not durable.
        for named in [dir.to_owned(), dir.join("_versions")] {
            self.disk.sync_dir(&named).map_err(|e| Error::io(named.display(), e))?;
        }
        let params = ReadParams {
            session: Some(Arc::clone(&self.session)),
            store_options: Some(self.store_params.clone()),
            ..Default::default()
        };
        let dataset = DatasetBuilder::from_uri(uri(dir)?)
            .with_read_params(params)
            .load()
            .boxed()
            .await
            .map_err(|e| lance_error(&format!("opening {}", dir.display()), e))?;
        if let Some(version) = recorded.filter(|version| *version > dataset.manifest().version) {
            return Err(Error::corrupted(format!(
                "the manifest of version {version} of {} is missing; restore it from a backup, or drop the table",
                dir.display()
            )));
        }
        let stamp = newest_stamp(&dataset).await?;
        Ok(Some((dataset, stamp)))
    }

    /// The newest version whose manifest has a checksum.
    fn newest_recorded(&self, dir: &Path) -> Result<Option<u64>> {
        let files = self.checksums.table(dir)?.files();
        let versions = files.iter().filter_map(|(name, _)| manifest_version(name.strip_prefix("_versions/")?));
        Ok(versions.max())
    }

    fn write_params(&self, mode: WriteMode, stamp: Stamp) -> WriteParams {
        WriteParams {
            mode,
            store_params: Some(self.store_params.clone()),
            session: Some(Arc::clone(&self.session)),
            transaction_properties: Some(stamp.properties()),
            skip_auto_cleanup: true,
            ..Default::default()
        }
    }

    /// Writes (and syncs) the files of a flush. `rows` have the schema [`crate::evolution::lance_schema`] and come in
    /// groups, which share no fragment.
    pub(crate) async fn prepare_flush(
        &self,
        dir: &Path,
        dataset: Option<&Arc<Dataset>>,
        schema: &SchemaRef,
        groups: Vec<Vec<RecordBatch>>,
        dead: &[DeadRows],
        stamp: Stamp,
    ) -> Result<Transaction> {
        let Some(dataset) = dataset else {
            let groups =
                if groups.is_empty() { vec![vec![RecordBatch::new_empty(Arc::clone(schema))]] } else { groups };
            return self.first_flush(dir, groups, stamp).await;
        };
        let new_fragments = self.append_groups(dataset, groups, stamp).await?;
        let (updated, removed) = delete_rows(dataset, dead).await?;
        Ok(replacement(dataset, removed, updated, new_fragments, stamp))
    }

    /// Writes (and syncs) rows into files that no version names.
    pub(crate) async fn write_fragments(
        &self,
        dataset: &Arc<Dataset>,
        rows: datafusion::physical_plan::SendableRecordBatchStream,
    ) -> Result<Vec<Fragment>> {
        let params = self.write_params(WriteMode::Append, Stamp::default());
        let transaction = InsertBuilder::new(Arc::clone(dataset))
            .with_params(&params)
            .execute_uncommitted_stream(rows)
            .boxed()
            .await
            .map_err(|e| lance_error("writing a load", e))?;
        match transaction.operation {
            Operation::Append { fragments } => Ok(fragments),
            other => Err(Error::internal(format!("an append became {}", other.name()))),
        }
    }

    /// The commit that adds `fragments` to `dataset` and deletes its rows in `dead`.
    pub(crate) async fn prepare_bulk(
        &self,
        dataset: &Arc<Dataset>,
        fragments: Vec<Fragment>,
        dead: &[DeadRows],
        stamp: Stamp,
    ) -> Result<Transaction> {
        let (updated, removed) = delete_rows(dataset, dead).await?;
        Ok(replacement(dataset, removed, updated, fragments, stamp))
    }

    async fn first_flush(&self, dir: &Path, groups: Vec<Vec<RecordBatch>>, stamp: Stamp) -> Result<Transaction> {
        let (params, uri) = (self.write_params(WriteMode::Create, stamp), uri(dir)?);
        let mut first: Option<Transaction> = None;
        for rows in groups {
            let written = InsertBuilder::new(uri.as_str()).with_params(&params).execute_uncommitted(rows).boxed().await;
            let written = written.map_err(|e| lance_error("writing a flush", e))?;
            match (&mut first, written.operation) {
                (None, operation) => first = Some(Transaction { operation, ..written }),
                (
                    Some(Transaction { operation: Operation::Overwrite { fragments, .. }, .. }),
                    Operation::Overwrite { fragments: more, .. },
                ) => fragments.extend(more),
                (Some(_), other) => return Err(Error::internal(format!("a first flush became {}", other.name()))),
            }
        }
        first.ok_or_else(|| Error::internal("a first flush wrote nothing"))
    }

    /// Writes (and syncs) the fragments of each group of rows; no version refers to them yet.
    async fn append_groups(
        &self,
        dataset: &Arc<Dataset>,
        groups: Vec<Vec<RecordBatch>>,
        stamp: Stamp,
    ) -> Result<Vec<Fragment>> {
        let params = self.write_params(WriteMode::Append, stamp);
        let mut fragments = Vec::new();
        for rows in groups {
            let insert = InsertBuilder::new(Arc::clone(dataset)).with_params(&params);
            let written =
                insert.execute_uncommitted(rows).boxed().await.map_err(|e| lance_error("writing a flush", e))?;
            match written.operation {
                Operation::Append { fragments: more } => fragments.extend(more),
                other => return Err(Error::internal(format!("an append became {}", other.name()))),
            }
        }
        Ok(fragments)
    }

    /// Makes a prepared transaction the newest version; it is durable when this returns.
    pub(crate) async fn commit(
        &self,
        dir: &Path,
        dataset: Option<&Arc<Dataset>>,
        transaction: Transaction,
    ) -> Result<Dataset> {
        let uri = uri(dir)?;
        let builder = match dataset {
            Some(dataset) => CommitBuilder::new(Arc::clone(dataset)),
            None => CommitBuilder::new(uri.as_str())
                .with_store_params(self.store_params.clone())
                .with_session(Arc::clone(&self.session)),
        };
        builder
            .with_skip_auto_cleanup(true)
            .execute(transaction)
            .boxed()
            .await
            .map_err(|e| lance_error("committing a flush", e))
    }

    /// Writes (and syncs) the live rows of the chosen fragments as new ones, sorted by the cluster key and cut at
    /// about `target_rows` if there is one; nothing refers to them yet.
    pub(crate) async fn rewrite(
        &self,
        dataset: &Arc<Dataset>,
        chosen: &Chosen,
        clustering: Option<&Clustering>,
        target_rows: usize,
    ) -> Result<Vec<Fragment>> {
        let mut scanner = dataset.scan();
        scanner.with_fragments(chosen.0.clone()).scan_in_order(true).batch_size(batch_rows(&chosen.0));
        let stream = scanner.try_into_stream().boxed().await.map_err(|e| lance_error("compacting", e))?;
        let bytes: u64 = chosen.0.iter().map(file_bytes).sum();
        if let Some(clustering) = clustering.filter(|_| bytes <= SORTED_COMPACTION_BYTES) {
            let rows: Vec<RecordBatch> = stream.try_collect().await.map_err(|e| lance_error("compacting", e))?;
            let groups = clustering.arrange(&rows, target_rows)?.into_iter().map(|rows| vec![rows]).collect();
            return self.append_groups(dataset, groups, Stamp::default()).await;
        }
        let params = self.write_params(WriteMode::Append, Stamp::default());
        let transaction = InsertBuilder::new(Arc::clone(dataset))
            .with_params(&params)
            .execute_uncommitted_stream(datafusion::physical_plan::SendableRecordBatchStream::from(stream))
            .boxed()
            .await
            .map_err(|e| lance_error("compacting", e))?;
        match transaction.operation {
            Operation::Append { fragments } => Ok(fragments),
            other => Err(Error::internal(format!("a compaction became {}", other.name()))),
        }
    }

    /// Puts `written` in the place of what it was written from, in one version.
    pub(crate) async fn commit_rewrite(
        &self,
        dir: &Path,
        dataset: &Arc<Dataset>,
        chosen: Chosen,
        written: Vec<Fragment>,
        stamp: Stamp,
    ) -> Result<Dataset> {
        let removed = chosen.0.iter().map(|fragment| fragment.id).collect();
        let transaction = replacement(dataset, removed, Vec::new(), written, stamp);
        self.commit(dir, Some(dataset), transaction).await
    }

    /// Adds and removes indexes in one version that has the same rows.
    pub(crate) async fn commit_indexes(
        &self,
        dir: &Path,
        dataset: &Arc<Dataset>,
        new_indices: Vec<IndexMetadata>,
        removed_indices: Vec<IndexMetadata>,
        stamp: Stamp,
    ) -> Result<Dataset> {
        let operation = Operation::CreateIndex { new_indices, removed_indices };
        let transaction = TransactionBuilder::new(dataset.manifest().version, operation)
            .transaction_properties(Some(stamp.properties()))
            .build();
        self.commit(dir, Some(dataset), transaction).await
    }

    /// Removes the files of an index that no version will refer to.
    pub(crate) fn discard_index(&self, dir: &Path, index: &IndexMetadata) {
        for file in index.files.iter().flatten() {
            self.discard_file(dir, &format!("_indices/{}/{}", index.uuid, file.path));
        }
    }

    /// Removes data files that no version will refer to.
    pub(crate) fn discard(&self, dir: &Path, written: &[Fragment]) {
        for file in written.iter().flat_map(|fragment| &fragment.files) {
            self.discard_file(dir, &format!("data/{}", file.path));
        }
    }

    fn discard_file(&self, dir: &Path, name: &str) {
        let path = dir.join(name);
        if let Err(error) = self.disk.remove(&path) {
            // Lance removes it when it is a week old.
            tracing::warn!(file = %path.display(), %error, "a file that is not needed cannot be removed");
        } else if let Ok(table) = self.checksums.table(dir) {
            table.forget(name);
        }
    }

    /// Gives `dataset` the columns of `layout`. What was done before a crash is found done.
    pub(crate) async fn evolve(
        &self,
        dir: &Path,
        dataset: &Arc<Dataset>,
        evolution: Evolution,
        layout: &Layout,
        stamp: Stamp,
    ) -> Result<Dataset> {
        let failed = |e| lance_error("changing the columns of a table", e);
        let mut evolved = dataset.as_ref().clone();
        for column in evolution.added {
            let schema = Arc::new(Schema::new(vec![column.field.clone()]));
            let transform = match &column.from {
                None if !layout.has_fill(column.at) => NewColumnTransform::AllNulls(schema),
                _ => NewColumnTransform::BatchUDF(BatchUDF {
                    mapper: column.mapper(layout.clone(), Arc::clone(&schema)),
                    output_schema: schema,
                    result_checkpoint: None,
                }),
            };
            let read = vec![column.from.clone().unwrap_or_else(|| ROW_ID_COLUMN.to_owned())];
            evolved.add_columns(transform, Some(read), None).boxed().await.map_err(failed)?;
        }
        let schema = Evolution::target(&evolved, layout)?;
        let operation = Operation::Project { schema, preserves_nullability: true };
        let transaction = TransactionBuilder::new(evolved.manifest().version, operation)
            .transaction_properties(Some(stamp.properties()))
            .build();
        self.commit(dir, Some(&Arc::new(evolved)), transaction).await
    }

    /// Removes versions before `before_version`, and files that only they use. The newest stays, and with
    /// it the newest stamp.
    pub(crate) async fn clean_up(&self, dataset: &Dataset, before_version: u64) -> Result<()> {
        let policy = CleanupPolicy {
            before_version: Some(before_version.min(dataset.manifest().version)),
            error_if_tagged_old_versions: false,
            ..Default::default()
        };
        dataset.cleanup_with_policy(policy).boxed().await.map(drop).map_err(|e| lance_error("removing old versions", e))
    }
}

/// One commit: fragments out, fragments changed, fragments in.
fn replacement(
    dataset: &Dataset,
    removed_fragment_ids: Vec<u64>,
    updated_fragments: Vec<Fragment>,
    new_fragments: Vec<Fragment>,
    stamp: Stamp,
) -> Transaction {
    let operation = if removed_fragment_ids.is_empty() && updated_fragments.is_empty() {
        Operation::Append { fragments: new_fragments }
    } else {
        Operation::Update {
            removed_fragment_ids,
            updated_fragments,
            new_fragments,
            fields_modified: Vec::new(),
            compacted_sstables: Vec::new(),
            fields_for_preserving_frag_bitmap: Vec::new(),
            update_mode: Some(UpdateMode::RewriteRows),
            inserted_rows_filter: None,
            updated_fragment_offsets: None,
        }
    };
    TransactionBuilder::new(dataset.manifest().version, operation)
        .transaction_properties(Some(stamp.properties()))
        .build()
}

/// Writes deletion files for the rows of `dataset` that are in `dead`: changed fragments, and ids of
/// fragments that have no row left.
async fn delete_rows(dataset: &Arc<Dataset>, dead: &[DeadRows]) -> Result<(Vec<Fragment>, Vec<u64>)> {
    let first = dead.iter().filter_map(|ids| ids.first()).min().copied();
    let last = dead.iter().filter_map(|ids| ids.last()).max().copied();
    let (Some(first), Some(last)) = (first, last) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let mut by_fragment: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut scanner = dataset.scan();
    scanner
        .project(&[ROW_ID_COLUMN])
        .map_err(|e| lance_error("finding deleted rows", e))?
        .with_row_address()
        .filter_expr(col(ROW_ID_COLUMN).between(lit(first), lit(last)));
    let mut stream = scanner.try_into_stream().boxed().await.map_err(|e| lance_error("finding deleted rows", e))?;
    while let Some(batch) = stream.try_next().await.map_err(|e| lance_error("finding deleted rows", e))? {
        let ids = batch.column(0).as_primitive::<UInt64Type>();
        let addresses = batch.column(1).as_primitive::<UInt64Type>();
        for (&id, &address) in ids.values().iter().zip(addresses.values()) {
            if is_dead(dead, id) {
                by_fragment.entry((address >> 32) as u32).or_default().push(address as u32);
            }
        }
    }
    let (mut updated, mut removed) = (Vec::new(), Vec::new());
    for (fragment_id, offsets) in by_fragment {
        let fragment = dataset
            .get_fragment(fragment_id as usize)
            .ok_or_else(|| Error::internal(format!("fragment {fragment_id} vanished during a flush")))?;
        match fragment.extend_deletions(offsets).boxed().await.map_err(|e| lance_error("writing deletions", e))? {
            Some(fragment) => updated.push(fragment.metadata().clone()),
            None => removed.push(u64::from(fragment_id)),
        }
    }
    Ok((updated, removed))
}

/// Fragments that one compaction joins, never none.
#[derive(Debug)]
pub(crate) struct Chosen(Vec<Fragment>);

impl Chosen {
    /// The largest run of at least `fan_in` fragments within a factor of `fan_in` in size with all that are
    /// smaller, or else those that are mostly deleted; of about [`COMPACTION_BYTES`] at most.
    pub(crate) fn of(dataset: &Dataset, fan_in: usize, target_rows: usize) -> Option<Self> {
        let fragments = dataset.fragments();
        let rows = |fragment: &Fragment| fragment.num_rows().unwrap_or(0);
        let small = |fragment: &Fragment| rows(fragment) < target_rows && file_bytes(fragment) < COMPACTION_BYTES / 4;
        let hollow = |fragment: &Fragment| {
            let physical = fragment.physical_rows.unwrap_or(0);
            physical > 0 && rows(fragment) * 2 < physical
        };
        let tier = |fragment: &Fragment| rows(fragment).max(1).ilog(fan_in.max(2));
        let mut tiers: HashMap<u32, usize> = HashMap::new();
        for fragment in fragments.iter().filter(|fragment| small(fragment)) {
            *tiers.entry(tier(fragment)).or_default() += 1;
        }
        let full = tiers.iter().filter(|(_, count)| **count >= fan_in.max(2)).map(|(tier, _)| *tier).max();
        let in_full_tier = |fragment: &Fragment| small(fragment) && full.is_some_and(|full| tier(fragment) <= full);
        // One kind at a time: a small fragment that is alone with a large hollow one would be rewritten for nothing.
        let joins = full.is_some();
        let wanted = fragments.iter().filter(|fragment| if joins { in_full_tier(fragment) } else { hollow(fragment) });
        let mut bytes = 0;
        let chosen: Vec<Fragment> = wanted
            .take_while(|fragment| {
                let first = bytes == 0;
                bytes += file_bytes(fragment).max(1);
                first || bytes <= COMPACTION_BYTES
            })
            .cloned()
            .collect();
        (!chosen.is_empty()).then_some(Self(chosen))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no row of them was deleted since, nor a file replaced.
    pub(crate) fn is_unchanged_in(&self, dataset: &Dataset) -> bool {
        let now: HashMap<u64, &Fragment> = dataset.fragments().iter().map(|fragment| (fragment.id, fragment)).collect();
        self.0.iter().all(|fragment| now.get(&fragment.id) == Some(&fragment))
    }
}

fn file_bytes(fragment: &Fragment) -> u64 {
    fragment.files.iter().filter_map(|file| file.file_size_bytes.get()).map(u64::from).sum()
}

/// Properties do not carry forward, and others may commit to the dataset too: walks back to the newest
/// version that has a stamp.
async fn newest_stamp(dataset: &Dataset) -> Result<Stamp> {
    let mut version = dataset.manifest().version;
    while version > 0 {
        match dataset.read_transaction_by_version(version).boxed().await {
            Ok(transaction) => {
                if let Some(stamp) = transaction.as_ref().and_then(Stamp::read) {
                    return Ok(stamp);
                }
            }
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => break,
            Err(error) => return Err(lance_error("reading the log position of a table", error)),
        }
        version -= 1;
    }
    Err(Error::corrupted(format!(
        "no version of {} says which log position it holds; restore the table from a backup",
        dataset.uri()
    )))
}

/// The version that a manifest's file name stands for: the number, or, so that newer ones are listed first, what
/// is left of the largest number without it.
fn manifest_version(file: &str) -> Option<u64> {
    let digits = file.strip_suffix(".manifest")?;
    let number: u64 = digits.parse().ok()?;
    Some(if digits.len() == 20 { u64::MAX - number } else { number })
}

fn uri(dir: &Path) -> Result<String> {
    let absolute = std::path::absolute(dir).map_err(|e| Error::io(dir.display(), e))?;
    let path = absolute
        .to_str()
        .ok_or_else(|| Error::invalid(format!("the data directory {} is not UTF-8; rename it", dir.display())))?;
    Ok(format!("file-object-store://{}", path.replace('%', "%25").replace(' ', "%20")))
}

/// As [`lance_error`], of a scan that runs.
pub(crate) fn scan_error(what: &str, error: DataFusionError) -> Error {
    match DamagedFile::behind(&error) {
        Some(damaged) => Error::corrupted(format!("{what}: {damaged}")).with_source(error),
        None => Error::internal(format!("{what}: {error}")).with_source(error),
    }
}

/// A Lance error with the kind that tells the caller what to do.
pub(crate) fn lance_error(what: &str, error: lance::Error) -> Error {
    if let Some(damaged) = DamagedFile::behind(&error) {
        return Error::corrupted(format!("{what}: {damaged}")).with_source(error);
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            let message = format!("{what}: the disk is full; free space, nothing is lost");
            return Error::new(ErrorKind::ResourceExhausted, message).with_source(error);
        }
        source = inner.source();
    }
    let kind = match &error {
        lance::Error::InvalidInput { .. } => ErrorKind::InvalidInput,
        lance::Error::NotSupported { .. } => ErrorKind::Unsupported,
        lance::Error::CorruptFile { .. } => ErrorKind::Corrupted,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{what}: {error}")).with_source(error)
}
