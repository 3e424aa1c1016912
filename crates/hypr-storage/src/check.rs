//! Verifies a database directory that nobody has open, without changing it: every byte that has a checksum, and
//! that log, catalog, tables and models agree with each other.
//!
//! It reads what an open would read, with the same code, and then all the rest: files of older versions, every
//! column of every row, the keys, the models' weights. Deliberately absent: repair. What is damaged is restored
//! from a backup or dropped, and which of the two is not for a program to choose.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use datafusion::prelude::SessionContext;
use futures::{FutureExt, TryStreamExt};
use hypr_common::{Error, Result};
use lance::index::DatasetIndexExt;
use serde::Serialize;

use crate::catalog::{COPY, Checkpoint, FILE};
use crate::checksums::{self, DamagedFile};
use crate::database::{open_tables, recover_catalog, recover_rows, take_lock};
use crate::disk;
use crate::key_index::{KeyIndex, KeyKind};
use crate::lance_store::LanceStore;
use crate::models::ModelStore;
use crate::options::StorageOptions;
use crate::prefixes::PrefixStore;
use crate::scan::{self, ScanRequest};
use crate::table::TableShared;
use crate::wal::recover::Torn;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is lost: what a crash leaves, what has no checksum.
    Note,
    /// Something is not what was written.
    Damage,
}

/// One thing that is worth a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `log`, `catalog`, `table public.t`, `model smollm2`.
    pub object: String,
    /// The file or directory.
    pub path: Option<PathBuf>,
    /// What is wrong and what to do.
    pub message: String,
}

/// What a check has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// In the order found: catalog, log, tables by name, models by id.
    pub findings: Vec<Finding>,
    /// Tables in the catalog.
    pub tables: usize,
    /// Rows that were read in them.
    pub rows: u64,
    /// Files that were compared with their checksums.
    pub files: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Models.
    pub models: usize,
}

impl CheckReport {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }

    fn damage(&mut self, object: impl Into<String>, path: Option<PathBuf>, message: impl Into<String>) {
        let (object, message) = (object.into(), message.into());
        self.findings.push(Finding { severity: Severity::Damage, object, path, message });
    }

    fn note(&mut self, object: impl Into<String>, path: Option<PathBuf>, message: impl Into<String>) {
        let (object, message) = (object.into(), message.into());
        self.findings.push(Finding { severity: Severity::Note, object, path, message });
    }
}

/// Checks the database directory `dir`, on `options.disk`. Memory: 16 bytes a row of the largest table, and
/// twice that with a primary key.
///
/// # Errors
/// `NotFound` when `dir` is no database directory, `Unavailable` when a process has it open (named); damage is
/// no error but a finding.
pub async fn check(dir: &Path, options: &StorageOptions) -> Result<CheckReport> {
    let disk = options.disk.as_ref();
    let log_dir = dir.join("wal");
    if disk.list(&log_dir).is_err() {
        let message = format!("{} is no data directory: it has no log (wal)", dir.display());
        return Err(Error::not_found(message));
    }
    let _lock = take_lock(dir)?;
    let mut report = CheckReport::default();
    check_catalog(dir, options, &mut report);
    match Checkpoint::read(disk, dir) {
        Ok(checkpoint) => check_log_and_tables(dir, options, checkpoint, &mut report).await?,
        Err(error) if report.is_sound() => report.damage("catalog", Some(dir.join(FILE)), error.message()),
        Err(_) => {}
    }
    check_models(dir, &mut report)?;
    check_prefixes(dir, &mut report)?;
    Ok(report)
}

fn check_catalog(dir: &Path, options: &StorageOptions, report: &mut CheckReport) {
    for file in [FILE, COPY] {
        let path = dir.join(file);
        if let Err(error) = Checkpoint::read_file(options.disk.as_ref(), &path) {
            report.damage("catalog", Some(path), error.message());
        }
    }
}

async fn check_log_and_tables(
    dir: &Path,
    options: &StorageOptions,
    checkpoint: Checkpoint,
    report: &mut CheckReport,
) -> Result<()> {
    let (disk, log_dir) = (options.disk.as_ref(), dir.join("wal"));
    let lance = LanceStore::new(&dir.join("tables"), options)?;
    let mut found = match recover_catalog(disk, &log_dir, checkpoint, Torn::Leave) {
        Ok(found) => found,
        Err(error) => {
            report.damage("log", Some(log_dir), error.message());
            return Ok(());
        }
    };
    let tables = open_tables(dir, &lance, options, std::mem::take(&mut found.tables)).await?;
    match recover_rows(disk, &log_dir, &tables, &found, Torn::Leave) {
        Ok(recovered) => {
            recovered.header_damage.iter().for_each(|why| report.damage("log", Some(log_dir.clone()), why));
            recovered.gaps.iter().for_each(|gap| report.damage("log", Some(log_dir.clone()), &gap.why));
            if let Some(torn) = &recovered.torn {
                report.note(
                    "log",
                    Some(log_dir.clone()),
                    format!("{torn}; never acknowledged, the next start cuts them off"),
                );
            }
        }
        Err(error) => report.damage("log", Some(log_dir), error.message()),
    }
    check_orphans(dir, options, &tables, report);
    let mut tables: Vec<_> = tables.into_values().collect();
    tables.sort_by_key(|table| table.definition.qualified_name());
    report.tables = tables.len();
    for table in &tables {
        check_table(&lance, options, table, report).await;
    }
    Ok(())
}

/// Directories of no table.
fn check_orphans(
    dir: &Path,
    options: &StorageOptions,
    tables: &HashMap<u32, Arc<TableShared>>,
    report: &mut CheckReport,
) {
    let known: HashSet<&Path> = tables.values().map(|table| table.dir.path.as_path()).collect();
    for path in options.disk.list(&dir.join("tables")).unwrap_or_default() {
        if !known.contains(path.as_path()) {
            report.note("catalog", Some(path), "belongs to no table: left by a drop, the next start removes it");
        }
    }
}

async fn check_table(lance: &LanceStore, options: &StorageOptions, table: &Arc<TableShared>, report: &mut CheckReport) {
    let object = format!("table {}", table.definition.qualified_name());
    let dir = &table.dir.path;
    let damaged = check_files(lance, options, &object, dir, report);
    if let Some(damage) = table.damage() {
        // Said already where the file itself was found.
        if !damaged.iter().any(|file| damage.contains(&file.display().to_string())) {
            report.damage(&object, Some(dir.clone()), damage);
        }
        return;
    }
    if let Some(dataset) = &table.snapshot().dataset
        && let Err(error) = dataset.validate().boxed().await
        && damaged.is_empty()
    {
        report.damage(&object, Some(dir.clone()), format!("its Lance dataset does not hold together: {error}"));
    }
    check_indexes(options, &object, table, report).await;
    match check_rows(table).await {
        Ok(rows) => report.rows += rows,
        // Reading a file that is damaged fails, which says nothing new.
        Err(_) if !damaged.is_empty() => {}
        Err(error) => report.damage(&object, Some(dir.clone()), error.message()),
    }
}

/// Looks whether the indexes that the newest version names have their files.
async fn check_indexes(options: &StorageOptions, object: &str, table: &Arc<TableShared>, report: &mut CheckReport) {
    let Some(dataset) = table.snapshot().dataset.clone() else { return };
    let indexes = match dataset.load_indices().boxed().await {
        Ok(indexes) => indexes,
        Err(error) => {
            let message = format!("its indexes cannot be listed: {error}");
            return report.damage(object, Some(table.dir.path.clone()), message);
        }
    };
    for index in indexes.iter() {
        let dir = table.dir.path.join("_indices").join(index.uuid.to_string());
        let present = options.disk.list(&dir).unwrap_or_default();
        for file in index.files.iter().flatten().map(|file| dir.join(&file.path)) {
            if !present.contains(&file) {
                let message = format!(
                    "{} of index {} is missing; no row is lost, the index is built again when the column is searched",
                    file.display(),
                    index.name
                );
                report.damage(object, Some(file), message);
            }
        }
    }
}

/// Compares every recorded file with its checksums; returns the damaged ones.
fn check_files(
    lance: &LanceStore,
    options: &StorageOptions,
    object: &str,
    dir: &Path,
    report: &mut CheckReport,
) -> Vec<PathBuf> {
    let mut damaged = Vec::new();
    let recorded = match lance.checksums().table(dir) {
        Ok(recorded) => recorded,
        Err(error) => {
            report.damage(object, Some(dir.join(checksums::FILE)), error.message());
            return damaged;
        }
    };
    for line in recorded.damaged_lines() {
        let path = dir.join(checksums::FILE);
        let message = format!("{} is damaged in line {line}: the file it speaks of is not verified", path.display());
        report.damage(object, Some(path), message);
    }
    for (name, sums) in recorded.files() {
        let path = dir.join(&name);
        let bytes = match disk::read_if_exists(options.disk.as_ref(), &path) {
            Ok(Some(bytes)) => bytes,
            // Removed by a clean-up whose record a crash lost; a version that needs it cannot be read, below.
            Ok(None) => continue,
            Err(error) => {
                report.damage(object, Some(path.clone()), Error::io(path.display(), error).message());
                damaged.push(path);
                continue;
            }
        };
        (report.files, report.bytes) = (report.files + 1, report.bytes + bytes.len() as u64);
        let why = if bytes.len() as u64 == sums.len() {
            sums.compare(0, &bytes).err().map(|at| format!("the 64 KiB at offset {at} do not match their checksum"))
        } else {
            Some(format!("it has {} bytes, {} were written", bytes.len(), sums.len()))
        };
        if let Some(why) = why {
            report.damage(object, Some(path.clone()), DamagedFile { path: path.clone(), why }.to_string());
            damaged.push(path);
        }
    }
    damaged
}

/// Reads every value of every row, in Lance and in the log.
async fn check_rows(table: &Arc<TableShared>) -> Result<u64> {
    let name = table.definition.qualified_name();
    let context = SessionContext::new();
    let request = ScanRequest { with_row_id: true, ..ScanRequest::default() };
    let plan = scan::plan(table, &context.state(), request).await?;
    let read = |e| crate::lance_store::scan_error(&format!("reading {name}"), e);
    let mut batches = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(read)?;
    let mut keys = Vec::new();
    if !table.definition.primary_key.is_empty() {
        keys.push((KeyKind::Primary, &table.definition.primary_key));
    }
    for unique in &table.constraints.unique {
        keys.push((KeyKind::Unique(unique.name.clone()), &unique.columns));
    }
    let keys = keys.into_iter().map(|(kind, key)| KeyIndex::new(name.clone(), kind, &table.definition.columns, key));
    let keys: Vec<KeyIndex> = keys.collect::<Result<_>>()?;
    let mut ids = Vec::new();
    while let Some(batch) = batches.try_next().await.map_err(read)? {
        ids.extend_from_slice(batch.column(batch.num_columns() - 1).as_primitive::<UInt64Type>().values());
        refuse_nulls(table, &batch)?;
        for keys in &keys {
            let mut columns = keys.positions();
            columns.push(batch.num_columns() - 1);
            keys.load(&batch.project(&columns)?).map_err(|error| Error::corrupted(error.message()))?;
        }
    }
    let rows = ids.len() as u64;
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::corrupted(format!("row id {} is there twice", twice[0])));
    }
    let next = table.next_row_id.load(std::sync::atomic::Ordering::Acquire);
    if let Some(last) = ids.last().filter(|last| **last >= next) {
        return Err(Error::corrupted(format!("row id {last} is not below {next}, the next one to be given")));
    }
    let (stated, exact) = table.snapshot().rows();
    if exact && stated as u64 != rows {
        return Err(Error::corrupted(format!("it has {rows} rows, its versions state {stated}")));
    }
    Ok(rows)
}

fn refuse_nulls(table: &TableShared, batch: &RecordBatch) -> Result<()> {
    for (field, column) in table.definition.columns.fields().iter().zip(batch.columns()) {
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(Error::corrupted(format!("column {}, which is NOT NULL, holds a NULL", field.name())));
        }
    }
    Ok(())
}

fn check_prefixes(dir: &Path, report: &mut CheckReport) -> Result<()> {
    for (name, path, outcome) in PrefixStore::new(dir).verify()? {
        match outcome {
            Ok(bytes) => (report.files, report.bytes) = (report.files + 1, report.bytes + bytes),
            Err(error) => report.damage(format!("prefix {name}"), Some(path), error.message()),
        }
    }
    Ok(())
}

fn check_models(dir: &Path, report: &mut CheckReport) -> Result<()> {
    if !dir.join("models").exists() {
        return Ok(());
    }
    let models = ModelStore::open(dir)?;
    let ids: BTreeSet<String> = models.list()?.into_iter().map(|entry| entry.model_id).collect();
    report.models = ids.len();
    for id in ids {
        if let Err(error) = models.verify(&id) {
            report.damage(format!("model {id}"), Some(dir.join("models")), error.message());
        }
    }
    Ok(())
}
