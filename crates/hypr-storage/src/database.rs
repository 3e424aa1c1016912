//! A database directory: opening and recovering it, and the tables in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hypr_common::clock::Clock;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::alter::Still;
use crate::ann;
use crate::catalog::{CatalogChange, Checkpoint, StoredTable, TableDefinition};
use crate::compaction;
use crate::constraints::Constraints;
use crate::disk::Disk;
use crate::evolution::Layout;
use crate::flush;
use crate::lance_store::LanceStore;
use crate::models::ModelStore;
use crate::objects::{CatalogObject, ObjectKey};
use crate::options::StorageOptions;
use crate::schema::{check_columns, check_key};
use crate::table::{Limits, Table, TableShared};
use crate::tail::TailBatch;
use crate::versions;
use crate::wal::frame::{Frame, FrameKind, FrameRef};
use crate::wal::recover::{Recovered, Torn, replay};
use crate::wal::writer::{Effect, Log, Touched, closed};

/// A handle on an open database directory. The directory is unlocked when the last handle, table and scan
/// are dropped.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) options: StorageOptions,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) lance: LanceStore,
    pub(crate) log: Arc<Log>,
    models: Arc<ModelStore>,
    flush_wanted: Arc<Notify>,
    pub(crate) compaction_wanted: Arc<Notify>,
    /// One catalog change at a time.
    ddl: Arc<tokio::sync::Mutex<()>>,
    /// Bytes that open transactions hold.
    transaction_bytes: Arc<AtomicUsize>,
    closed: AtomicBool,
    /// Woken when the database is closed, for work that takes long.
    pub(crate) closing: Notify,
    /// One upkeep of indexes on disk at a time.
    pub(crate) indexing: tokio::sync::Mutex<()>,
}

/// The tables and other objects, as the log has made them.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    state: RwLock<CatalogState>,
    /// One checkpoint at a time.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct CatalogState {
    tables: BTreeMap<(String, String), Arc<Table>>,
    objects: BTreeMap<ObjectKey, CatalogObject>,
    next_table_id: u32,
    /// Position of the last change.
    lsn: u64,
    checkpoint_lsn: u64,
}

impl Catalog {
    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        self.state.read().tables.values().cloned().collect()
    }

    fn get(&self, schema: &str, name: &str) -> Option<Arc<Table>> {
        self.state.read().tables.get(&(schema.to_owned(), name.to_owned())).cloned()
    }

    /// Writes `catalog.json` if there are changes that it does not hold.
    pub(crate) fn checkpoint(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let _writing = self.writing.lock();
        let checkpoint = {
            let state = self.state.read();
            if state.lsn == state.checkpoint_lsn {
                return Ok(());
            }
            let tables = state.tables.values().map(|table| table.shared.stored.clone()).collect();
            Checkpoint::new(state.lsn, state.next_table_id, tables, state.objects.values().cloned().collect())
        };
        checkpoint.write(disk, dir)?;
        self.state.write().checkpoint_lsn = checkpoint.lsn;
        Ok(())
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens `dir`, creating it when it does not exist, and recovers what the log holds. A table whose files
    /// are damaged, or whose rows a damaged log may have held, is there but refuses statements, see
    /// [`Table::damage`]; the others are served.
    ///
    /// # Errors
    /// `Unavailable` names the process that holds the directory and does not let go of it within two seconds,
    /// `Corrupted` the damaged catalog.
    pub async fn open(dir: &Path, options: StorageOptions) -> Result<Self> {
        let disk = options.disk.as_ref();
        prepare_dir(disk, dir)?;
        let lock = wait_for_lock(dir).await?;
        let lance = LanceStore::new(&dir.join("tables"), &options)?;
        let checkpoint = Checkpoint::read(disk, dir)?;
        let log_dir = dir.join("wal");
        let mut found = recover_catalog(disk, &log_dir, checkpoint, Torn::CutOff)?;
        let tables = open_tables(dir, &lance, &options, std::mem::take(&mut found.tables)).await?;
        let recovered = recover_rows(disk, &log_dir, &tables, &found, Torn::Leave)?;
        if recovered.gaps.is_empty() {
            remove_orphans(disk, dir, &tables)?;
        }
        let mut state = found.state;
        let log = Arc::new(Log::start(&log_dir, recovered, &options, lock)?);
        let flush_wanted = Arc::new(Notify::new());
        for shared in tables.into_values() {
            let key = (shared.definition.schema_name.clone(), shared.definition.name.clone());
            let table = Table::new(shared, Arc::clone(&log), Arc::clone(&flush_wanted), limits(&options));
            state.tables.insert(key, Arc::new(table));
        }
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            models: Arc::new(ModelStore::open(dir)?),
            catalog: Arc::new(Catalog { state: RwLock::new(state), writing: Mutex::default() }),
            lance,
            log,
            flush_wanted,
            compaction_wanted: Arc::default(),
            ddl: Arc::default(),
            transaction_bytes: Arc::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            indexing: tokio::sync::Mutex::default(),
            options,
        });
        inner.catalog.checkpoint(inner.options.disk.as_ref(), dir)?;
        if inner.options.background_flush {
            let tick = (inner.options.flush_age / 4).clamp(Duration::from_millis(10), Duration::from_millis(250));
            tokio::spawn(flush::run(Arc::downgrade(&inner), Arc::clone(&inner.flush_wanted), tick));
            tokio::spawn(compaction::run(Arc::downgrade(&inner), Arc::clone(&inner.compaction_wanted)));
        }
        if inner.options.background_index {
            tokio::spawn(ann::keep_vector_files(Arc::downgrade(&inner)));
        }
        let database = Self { inner };
        database.start_vector_indexes()?;
        Ok(database)
    }

    /// Tells one state of the catalog from another: the log position of its last change.
    pub fn catalog_position(&self) -> u64 {
        self.inner.catalog.state.read().lsn
    }

    /// All tables, by schema and name.
    pub fn tables(&self) -> Vec<Arc<Table>> {
        self.inner.catalog.tables()
    }

    /// One table.
    pub fn table(&self, schema: &str, name: &str) -> Option<Arc<Table>> {
        self.inner.catalog.get(schema, name)
    }

    /// Creates a table, durable when this returns. False when it exists and `if_not_exists` allows that.
    ///
    /// # Errors
    /// `AlreadyExists`, or `InvalidInput` and `Unsupported` naming the column.
    pub async fn create_table(&self, definition: TableDefinition, if_not_exists: bool) -> Result<bool> {
        let inner = &self.inner;
        let _guard = self.lock_catalog().await;
        let name = definition.qualified_name();
        if inner.catalog.get(&definition.schema_name, &definition.name).is_some() {
            if if_not_exists {
                return Ok(false);
            }
            let message = format!("table {name} exists already; drop it first or use IF NOT EXISTS");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        check_columns(&name, &definition.columns, &definition.primary_key)?;
        for unique in &Constraints::of(&definition)?.unique {
            check_key(&name, &definition.columns, "UNIQUE", &unique.columns)?;
        }
        versions::check_options(&definition)?;
        let table = self.unlogged_table(self.next_table_id(), &definition)?;
        let change = CatalogChange::CreateTable { table: table.shared.stored.clone() };
        self.log_change(&change, CatalogEdit::Create(Arc::new(table))).await?;
        Ok(true)
    }

    /// Drops a table, durable when this returns; scans that have begun go on. False when it does not exist
    /// and `if_exists` allows that.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn drop_table(&self, schema: &str, name: &str, if_exists: bool) -> Result<bool> {
        let inner = &self.inner;
        let _guard = self.lock_catalog().await;
        let Some(table) = inner.catalog.get(schema, name) else {
            if if_exists {
                return Ok(false);
            }
            return Err(Error::not_found(format!("table {schema}.{name} does not exist; use IF EXISTS to allow that")));
        };
        let change = CatalogChange::DropTable { id: table.shared.stored.id };
        let dir = Arc::clone(&table.shared.dir);
        self.log_change(&change, CatalogEdit::Drop(table)).await?;
        inner.lance.checksums().forget(&dir.path);
        Ok(true)
    }

    /// A new table that nobody knows of yet.
    ///
    /// # Errors
    /// `Unsupported` names a column that cannot be kept.
    pub(crate) fn unlogged_table(&self, id: u32, definition: &TableDefinition) -> Result<Table> {
        let inner = &self.inner;
        let stored = StoredTable::new(id, Uuid::now_v7(), definition)?;
        let dir = table_dir(&inner.dir, &stored);
        let shared = Arc::new(TableShared::new(stored, dir, &inner.options, inner.lance.columns())?);
        Ok(Table::new(shared, Arc::clone(&inner.log), Arc::clone(&inner.flush_wanted), limits(&inner.options)))
    }

    /// The id of the next table; ask while the catalog is locked.
    pub(crate) fn next_table_id(&self) -> u32 {
        self.inner.catalog.state.read().next_table_id
    }

    /// Holds off other changes of the catalog.
    pub(crate) async fn lock_catalog(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.inner.ddl).lock_owned().await
    }

    pub(crate) fn with_objects<T>(&self, read: impl FnOnce(&BTreeMap<ObjectKey, CatalogObject>) -> T) -> T {
        read(&self.inner.catalog.state.read().objects)
    }

    pub(crate) async fn log_change(&self, change: &CatalogChange, edit: CatalogEdit) -> Result<()> {
        let frame = Frame::ddl(change.encode()?)?;
        let done = self.inner.log.submit(vec![frame], self.catalog_effect(edit)).await?;
        done.await.map_err(|_| closed())?.map(drop)
    }

    /// What a logged change does to the catalog.
    pub(crate) fn catalog_effect(&self, edit: CatalogEdit) -> Box<dyn Effect> {
        Box::new(CatalogEffect { catalog: Arc::clone(&self.inner.catalog), edit })
    }

    pub(crate) fn log(&self) -> &Log {
        &self.inner.log
    }

    pub(crate) fn options(&self) -> &StorageOptions {
        &self.inner.options
    }

    /// Bytes that open transactions hold.
    pub(crate) fn transaction_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.inner.transaction_bytes)
    }

    /// Moves everything that is only in the log into Lance, cuts the log, and compacts.
    ///
    /// # Errors
    /// The first failure; the rows stay in the log and in memory.
    pub async fn flush(&self) -> Result<()> {
        self.flush_all().await?;
        self.inner.compact_all().await
    }

    /// Does all upkeep of vector indexes that is due, in memory and on disk, and waits for builds under way.
    ///
    /// # Errors
    /// The first failure.
    pub async fn settle_vector_indexes(&self) -> Result<()> {
        for table in self.tables() {
            table.settle_indexes().await?;
        }
        self.inner.keep_vector_files().await
    }

    async fn flush_all(&self) -> Result<()> {
        let due = |table: &TableShared| table.tail.lock().unflushed().first_lsn.is_some() && table.damage().is_none();
        self.inner.flush_where(due).await.map(drop)
    }

    /// Waits for commits under way, refuses new ones, and flushes.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush); nothing is lost then, the log is replayed when the directory is opened.
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.closing.notify_waiters();
        drop(self.inner.indexing.lock().await);
        self.inner.log.close().await;
        self.flush_all().await
    }

    /// The models in this directory.
    pub fn models(&self) -> Arc<ModelStore> {
        Arc::clone(&self.inner.models)
    }

    /// Bytes of decoded columns that are kept in memory, at most [`StorageOptions::column_cache_bytes`].
    pub fn column_cache_bytes(&self) -> usize {
        self.inner.lance.columns().bytes()
    }

    /// Where this database reads the time.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.inner.options.clock)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }
}

impl Inner {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

pub(crate) enum CatalogEdit {
    Create(Arc<Table>),
    Drop(Arc<Table>),
    Alter {
        before: Arc<Table>,
        after: Arc<Table>,
        /// Until the change is applied nobody writes by the old handle, or starts to.
        _still: Still,
    },
    PutObject(CatalogObject),
    DropObject(ObjectKey),
}

struct CatalogEffect {
    catalog: Arc<Catalog>,
    edit: CatalogEdit,
}

impl Effect for CatalogEffect {
    fn apply(self: Box<Self>, _first_lsn: u64, lsn: u64, _touched: &mut Touched) {
        let mut state = self.catalog.state.write();
        state.lsn = lsn;
        match self.edit {
            CatalogEdit::Create(table) => {
                let definition = table.definition();
                let key = (definition.schema_name.clone(), definition.name.clone());
                state.next_table_id = state.next_table_id.max(table.shared.stored.id + 1);
                state.tables.insert(key, table);
            }
            CatalogEdit::Drop(table) => {
                let definition = table.definition();
                state.tables.remove(&(definition.schema_name.clone(), definition.name.clone()));
                table.shared.dropped.store(true, Ordering::Release);
                table.shared.dir.dropped.store(true, Ordering::Release);
                table.shared.flushed.notify_waiters();
            }
            CatalogEdit::Alter { before, after, .. } => {
                let key = |table: &Table| (table.definition().schema_name.clone(), table.definition().name.clone());
                state.tables.remove(&key(&before));
                state.tables.insert(key(&after), after);
                before.shared.altered.store(true, Ordering::Release);
                before.shared.flushed.notify_waiters();
            }
            CatalogEdit::PutObject(object) => drop(state.objects.insert(object.key(), object)),
            CatalogEdit::DropObject(key) => drop(state.objects.remove(&key)),
        }
    }
}

fn limits(options: &StorageOptions) -> Limits {
    Limits {
        flush_bytes: options.flush_bytes,
        flush_rows: options.flush_rows,
        tail_limit_bytes: options.tail_limit_bytes,
        index: options.index_limits(),
    }
}

pub(crate) fn table_dir(dir: &Path, table: &StoredTable) -> PathBuf {
    dir.join("tables").join(table.uuid.to_string())
}

/// How long a directory that is being let go of is waited for: the last scan of a handle just dropped, or a
/// server about to end.
const HANDOVER: Duration = Duration::from_secs(2);

/// Creates the directories.
fn prepare_dir(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let existed = dir.exists();
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir.display(), e))?;
    if !existed && let Some(parent) = std::path::absolute(dir).ok().as_deref().and_then(Path::parent) {
        File::open(parent).and_then(|opened| opened.sync_all()).map_err(|e| Error::io(parent.display(), e))?;
    }
    for path in [dir.join("wal"), dir.join("tables")] {
        disk.create_dir_all(&path).map_err(|e| Error::io(path.display(), e))?;
    }
    // What a killed process has named but not synced is built upon from here on.
    for named in [dir.to_owned(), dir.join("wal"), dir.join("tables")] {
        disk.sync_dir(&named).map_err(|e| Error::io(named.display(), e))?;
    }
    Ok(())
}

/// Takes the lock of a directory whose holder may be about to end.
async fn wait_for_lock(dir: &Path) -> Result<File> {
    let started = Instant::now();
    loop {
        match take_lock(dir) {
            Err(error) if error.kind() == ErrorKind::Unavailable && started.elapsed() < HANDOVER => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            taken => return taken,
        }
    }
}

/// Takes the lock of a directory that exists.
pub(crate) fn take_lock(dir: &Path) -> Result<File> {
    let path = dir.join("LOCK");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|e| Error::io(path.display(), e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(held(dir)),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::io(path.display(), error)),
    }
}

/// Who holds the directory, from the `server.json` that a server leaves there.
fn held(dir: &Path) -> Error {
    let server = std::fs::read(dir.join("server.json")).ok();
    let server: Option<serde_json::Value> = server.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let holder = match &server {
        Some(server) => {
            let url = server.get("url").and_then(|url| url.as_str()).unwrap_or("an unknown address");
            let pid = server.get("pid").map_or_else(|| "unknown".to_owned(), ToString::to_string);
            format!("a server (pid {pid}) at {url}; connect to it with --server {url}, or stop it")
        }
        None => "another process; stop it first".to_owned(),
    };
    Error::new(ErrorKind::Unavailable, format!("the data directory {} is in use by {holder}", dir.display()))
}

/// By table, in log order: the position of each `ALTER` in the log and what rows before it look like.
type Alterations = HashMap<u32, Vec<(u64, Layout)>>;

/// The catalog after the log, without its tables' rows.
pub(crate) struct RecoveredCatalog {
    state: CatalogState,
    pub(crate) tables: HashMap<u32, StoredTable>,
    /// Where in the log the tables were created that are created there.
    pub(crate) created: HashMap<u32, u64>,
    alterations: Alterations,
}

pub(crate) fn recover_catalog(
    disk: &dyn Disk,
    log_dir: &Path,
    checkpoint: Checkpoint,
    torn: Torn,
) -> Result<RecoveredCatalog> {
    let mut state = CatalogState {
        next_table_id: checkpoint.next_table_id,
        lsn: checkpoint.lsn,
        checkpoint_lsn: checkpoint.lsn_on_disk,
        tables: BTreeMap::new(),
        objects: checkpoint.objects.into_iter().map(|object| (object.key(), object)).collect(),
    };
    let mut tables: HashMap<u32, StoredTable> = checkpoint.tables.into_iter().map(|t| (t.id, t)).collect();
    let (mut created, mut alterations) = (HashMap::new(), Alterations::new());
    replay(disk, log_dir, torn, |frames| {
        for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Ddl) {
            let change = CatalogChange::decode(frame.payload)?;
            if let CatalogChange::CreateTable { table } = &change {
                created.insert(table.id, frame.lsn);
            }
            if let CatalogChange::AlterTable { before, .. } = &change {
                alterations.entry(before.id).or_default().push((frame.lsn, before.layout()?));
            }
            if frame.lsn <= checkpoint.lsn {
                continue;
            }
            state.lsn = frame.lsn;
            match change {
                CatalogChange::CreateTable { table } => {
                    state.next_table_id = state.next_table_id.max(table.id + 1);
                    tables.insert(table.id, table);
                }
                CatalogChange::DropTable { id } => drop(tables.remove(&id)),
                CatalogChange::AlterTable { table, .. } => drop(tables.insert(table.id, *table)),
                CatalogChange::PutObject { object } => drop(state.objects.insert(object.key(), object)),
                CatalogChange::DropObject { kind, schema_name, name } => {
                    state.objects.remove(&(kind, schema_name, name));
                }
            }
        }
        Ok(())
    })?;
    Ok(RecoveredCatalog { state, tables, created, alterations })
}

pub(crate) async fn open_tables(
    dir: &Path,
    lance: &LanceStore,
    options: &StorageOptions,
    stored: HashMap<u32, StoredTable>,
) -> Result<HashMap<u32, Arc<TableShared>>> {
    let mut tables = HashMap::with_capacity(stored.len());
    for (id, stored) in stored {
        let table_dir = table_dir(dir, &stored);
        let opened = lance.open(&table_dir).await;
        let shared = TableShared::new(stored, table_dir, options, lance.columns())?;
        match opened {
            Ok(Some((dataset, stamp))) => shared.reset(Some(dataset), stamp),
            Ok(None) => {}
            Err(error) => shared.mark_damaged(error.message()),
        }
        tables.insert(id, Arc::new(shared));
    }
    Ok(tables)
}

/// Replays the rows that Lance does not hold yet.
pub(crate) fn recover_rows(
    disk: &dyn Disk,
    log_dir: &Path,
    tables: &HashMap<u32, Arc<TableShared>>,
    catalog: &RecoveredCatalog,
    torn: Torn,
) -> Result<Recovered> {
    let positions: HashMap<u32, u64> = tables.iter().map(|(id, table)| (*id, table.tail.lock().position())).collect();
    let mut strangers = BTreeMap::new();
    let mut recovered = replay(disk, log_dir, torn, |frames| {
        let mut changes: BTreeMap<u32, (Vec<TailBatch>, Vec<u64>)> = BTreeMap::new();
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        for frame in frames.iter().filter(|frame| matches!(frame.kind, FrameKind::Rows | FrameKind::Delete)) {
            let id = frame.table_id()?;
            match (tables.get(&id), positions.get(&id)) {
                (Some(table), Some(position)) if last.lsn > *position && table.damage().is_none() => {
                    let altered = catalog.alterations.get(&id).into_iter().flatten().find(|(lsn, _)| *lsn > frame.lsn);
                    let layout = altered.map_or(&table.layout, |(_, before)| before);
                    recover_frame(table, layout, frame, changes.entry(id).or_default())?;
                }
                (None, _) if id >= catalog.state.next_table_id => _ = strangers.insert(id, frame.lsn),
                // Flushed, of a damaged table, or of a table that was dropped later.
                _ => {}
            }
        }
        for (id, (added, removed)) in changes {
            tables[&id].apply(added, removed, first.lsn, last.lsn);
        }
        Ok(())
    })?;
    tables.values().for_each(|table| table.publish());
    if let Some((id, lsn)) = strangers.first_key_value()
        && recovered.gaps.is_empty()
    {
        return Err(Error::corrupted(format!(
            "position {lsn} of the log has rows of a table {id} that was never created"
        )));
    }
    let known = positions.values().copied().chain([catalog.state.lsn]).max().unwrap_or(0);
    recovered.reach(known + 1, log_dir);
    for (id, table) in tables {
        if let Some(gap) =
            recovered.gaps.iter().find(|gap| gap.may_hide(positions[id], catalog.created.get(id).copied()))
        {
            table.mark_damaged(&gap.why);
        }
    }
    Ok(recovered)
}

/// `layout` is that of the rows in the frame.
fn recover_frame(
    table: &TableShared,
    layout: &Layout,
    frame: &FrameRef<'_>,
    change: &mut (Vec<TailBatch>, Vec<u64>),
) -> Result<()> {
    if frame.kind == FrameKind::Delete {
        change.1.extend(frame.decode_delete()?.1);
        return Ok(());
    }
    let (_, mut next, batches) = frame.decode_rows()?;
    for batch in batches {
        let columns = match layout == &table.layout {
            true => batch.columns().to_vec(),
            false => table.layout.adopt(batch.columns(), batch.num_rows(), layout)?,
        };
        let rows = table.number_columns(columns, batch.num_rows(), next)?;
        change.0.push(TailBatch::new(rows, frame.len()));
        next += batch.num_rows() as u64;
    }
    table.next_row_id.fetch_max(next, Ordering::AcqRel);
    Ok(())
}

/// Removes the files of tables whose drop was logged before a crash kept them.
fn remove_orphans(disk: &dyn Disk, dir: &Path, tables: &HashMap<u32, Arc<TableShared>>) -> Result<()> {
    let known: HashSet<&Path> = tables.values().map(|table| table.dir.path.as_path()).collect();
    let tables_dir = dir.join("tables");
    for path in disk.list(&tables_dir).map_err(|e| Error::io(tables_dir.display(), e))? {
        if !known.contains(path.as_path()) {
            tracing::info!(dir = %path.display(), "removing the files of a dropped table");
            disk.remove_dir_all(&path).map_err(|e| Error::io(path.display(), e))?;
        }
    }
    Ok(())
}
