//! One table: writes go through the log into the tail, reads see a snapshot.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_common::clock::Clock;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::ann::{IndexLimits, VectorIndexes};
use crate::catalog::{StoredTable, TableDefinition};
use crate::clustering::Clustering;
use crate::column_cache::ColumnCache;
use crate::constraints::Constraints;
use crate::evolution::Layout;
use crate::key_index::{Claims, KeyIndex, KeyKind, Reservation};
use crate::lance_store::{Stamp, TableDir, scan_error};
use crate::options::StorageOptions;
use crate::point::Before;
use crate::row_feed::RowFeed;
use crate::scan::{self, ScanRequest};
use crate::schema::with_row_id;
use crate::tail::{Snapshot, Tail, TailBatch};
use crate::text::{self, TextCaches, TextIndexSize, TextMatches, TextOptions, TextSearch};
use crate::transaction::{Overlay, Removals};
use crate::validate::conform;
use crate::wal::frame::{FRAME_TARGET_BYTES, Frame, StreamHeader};
use crate::wal::writer::{Effect, Log, Touched, closed};

/// Larger inserts are encoded on a blocking thread.
const INLINE_ENCODE_BYTES: usize = 256 << 10;

/// The state of a table that the log thread and the flush share with its [`Table`] handle.
pub(crate) struct TableShared {
    pub(crate) stored: StoredTable,
    pub(crate) definition: TableDefinition,
    pub(crate) constraints: Constraints,
    /// The definition's columns with their numbers.
    pub(crate) layout: Layout,
    /// The definition's columns and the row id. Any column may be NULL: a row that is gone may be from before it
    /// was NOT NULL.
    pub(crate) row_schema: SchemaRef,
    /// What its rows in the log begin with.
    stream_header: StreamHeader,
    pub(crate) dir: Arc<TableDir>,
    pub(crate) tail: Mutex<Tail>,
    snapshot: ArcSwap<Snapshot>,
    pub(crate) next_row_id: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    /// One flush or compaction at a time.
    pub(crate) flushing: Arc<tokio::sync::Mutex<()>>,
    /// One compaction at a time.
    pub(crate) compacting: tokio::sync::Mutex<()>,
    /// Lance versions that may still be wanted, ascending.
    pub(crate) superseded: Mutex<Vec<Superseded>>,
    /// Lance versions below this one are removed.
    pub(crate) cleaned_version: AtomicU64,
    /// Set when the table was dropped: writers are refused, flushes stop.
    pub(crate) dropped: AtomicBool,
    /// Set when the table goes on as another handle: writers are refused, flushes stop.
    pub(crate) altered: AtomicBool,
    /// Woken after each flush, for writers that wait for room.
    pub(crate) flushed: Notify,
    /// Why the table cannot be used, set once when the directory is opened.
    damaged: OnceLock<String>,
    /// Why the last flush failed.
    pub(crate) flush_error: Mutex<Option<(ErrorKind, String)>>,
    /// Tells caches of rows what commits change.
    pub(crate) feed: RowFeed,
    pub(crate) text: TextCaches,
    /// Nearest-neighbour indexes of its vector columns.
    pub(crate) vectors: VectorIndexes,
    /// What was removed while transactions were open.
    pub(crate) removals: Mutex<Removals>,
}

/// Names it, and shows no rows: plan nodes hold tables, and DataFusion formats each node that it plans.
impl std::fmt::Debug for TableShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableShared").field("name", &self.definition.qualified_name()).finish_non_exhaustive()
    }
}

impl TableShared {
    /// # Errors
    /// `Corrupted` for a definition that this crate did not write.
    pub(crate) fn new(
        stored: StoredTable,
        dir: PathBuf,
        options: &StorageOptions,
        columns: &Arc<ColumnCache>,
    ) -> Result<Self> {
        let clustering = Clustering::of(&stored.definition(), &dir);
        let (disk, columns) = (Arc::clone(&options.disk), Arc::clone(columns));
        let dir = Arc::new(TableDir { path: dir, disk, dropped: AtomicBool::new(false), clustering, columns });
        Self::with_tail(stored, dir, Arc::clone(&options.clock), Tail::new(None, 0))
    }

    /// The state of the same table after an `ALTER`, which nobody else may change meanwhile.
    pub(crate) fn altered(&self, stored: StoredTable) -> Result<Self> {
        let layout = stored.layout()?;
        let row_schema = tail_schema(&layout.columns);
        let convert = |rows: &RecordBatch| -> Result<RecordBatch> {
            let (ids, columns) =
                rows.columns().split_last().ok_or_else(|| Error::internal("rows of a tail have no columns"))?;
            let mut columns = layout.adopt(columns, rows.num_rows(), &self.layout)?;
            columns.push(Arc::clone(ids));
            Ok(RecordBatch::try_new(Arc::clone(&row_schema), columns)?)
        };
        let tail = self.tail.lock().converted(convert)?;
        let altered = Self::with_tail(stored, Arc::clone(&self.dir), Arc::clone(&self.clock), tail)?;
        let moved = |column: usize| altered.layout.ids.iter().position(|id| *id == self.layout.ids[column]);
        altered.vectors.adopt(&self.vectors, moved);
        altered.next_row_id.store(self.next_row_id.load(Ordering::Acquire), Ordering::Release);
        altered.cleaned_version.store(self.cleaned_version.load(Ordering::Acquire), Ordering::Release);
        altered.superseded.lock().clone_from(&self.superseded.lock());
        altered.flush_error.lock().clone_from(&self.flush_error.lock());
        Ok(altered)
    }

    fn with_tail(stored: StoredTable, dir: Arc<TableDir>, clock: Arc<dyn Clock>, tail: Tail) -> Result<Self> {
        let (definition, layout) = (stored.definition(), stored.layout()?);
        let constraints = Constraints::of(&definition)?;
        let row_schema = tail_schema(&definition.columns);
        let stream_header = StreamHeader::new(&definition.columns)?;
        Ok(Self {
            snapshot: ArcSwap::from_pointee(tail.snapshot(&dir)),
            tail: Mutex::new(tail),
            stored,
            definition,
            constraints,
            layout,
            row_schema,
            stream_header,
            dir,
            next_row_id: AtomicU64::new(0),
            clock,
            flushing: Arc::default(),
            compacting: tokio::sync::Mutex::default(),
            superseded: Mutex::default(),
            cleaned_version: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            altered: AtomicBool::new(false),
            flushed: Notify::new(),
            damaged: OnceLock::new(),
            flush_error: Mutex::default(),
            feed: RowFeed::default(),
            text: TextCaches::default(),
            vectors: VectorIndexes::default(),
            removals: Mutex::default(),
        })
    }

    /// Starts from what Lance holds (recovery).
    pub(crate) fn reset(&self, dataset: Option<lance::Dataset>, stamp: Stamp) {
        *self.tail.lock() = Tail::new(dataset.map(Arc::new), stamp.lsn);
        self.lose_followers();
        self.next_row_id.store(stamp.next_row_id, Ordering::Release);
        self.publish();
    }

    /// The rows change in a way that no commit tells: whoever follows commits starts anew.
    pub(crate) fn lose_followers(&self) {
        self.feed.lose();
        self.vectors.clear();
    }

    /// Shows readers the current state.
    pub(crate) fn publish(&self) {
        let mut tail = self.tail.lock();
        tail.merge_batches();
        // Under the lock, so that snapshots are published in the order of the states they show.
        self.snapshot.store(Arc::new(tail.snapshot(&self.dir)));
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The rows of one frame, numbered from `first_row_id`.
    pub(crate) fn number_rows(&self, batch: &RecordBatch, first_row_id: u64) -> Result<RecordBatch> {
        self.number_columns(batch.columns().to_vec(), batch.num_rows(), first_row_id)
    }

    /// Rows of the table's columns, numbered from `first_row_id`.
    pub(crate) fn number_columns(
        &self,
        mut columns: Vec<ArrayRef>,
        rows: usize,
        first_row_id: u64,
    ) -> Result<RecordBatch> {
        let ids: ArrayRef = Arc::new(UInt64Array::from_iter_values(first_row_id..first_row_id + rows as u64));
        columns.push(ids);
        Ok(RecordBatch::try_new(Arc::clone(&self.row_schema), columns)?)
    }

    /// Applies one commit: all of it is seen, or nothing.
    pub(crate) fn apply(&self, added: Vec<TailBatch>, removed: Vec<u64>, first_lsn: u64, lsn: u64) {
        let now_us = self.clock.now_us();
        let mut tail = self.tail.lock();
        self.feed.push(&added, &removed);
        self.vectors.applied(&added, &removed);
        if !removed.is_empty() {
            tail.push_dead(removed, first_lsn, lsn, now_us);
        }
        for batch in added {
            tail.push_rows(batch, first_lsn, lsn, now_us);
        }
    }

    /// The table's files or log cannot be trusted: statements on it are refused, everything else goes on.
    pub(crate) fn mark_damaged(&self, why: &str) {
        let message = format!("table {} cannot be used: {why}", self.definition.qualified_name());
        tracing::error!("{message}");
        // The first reason found is the one to mend first.
        let _ = self.damaged.set(message);
    }

    /// Why the table cannot be used.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damaged.get().map(String::as_str)
    }

    /// # Errors
    /// `Corrupted` names the file; `NotFound` after a drop.
    pub(crate) fn refuse_unreadable(&self) -> Result<()> {
        if let Some(damage) = self.damage() {
            return Err(Error::corrupted(damage));
        }
        if self.dropped.load(Ordering::Acquire) {
            return Err(Error::not_found(format!("table {} was dropped", self.definition.qualified_name())));
        }
        Ok(())
    }

    /// # Errors
    /// As [`Self::refuse_unreadable`]; `Conflict` after an `ALTER`, for this handle is of the table before it.
    pub(crate) fn refuse_retired(&self) -> Result<()> {
        self.refuse_unreadable()?;
        if self.altered.load(Ordering::Acquire) {
            let message =
                format!("table {} was altered while the statement ran; run it again", self.definition.qualified_name());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(())
    }
}

fn tail_schema(columns: &Schema) -> SchemaRef {
    let fields = columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    with_row_id(&Schema::new(fields.collect::<Vec<_>>()))
}

/// A Lance version that is not the newest any more.
#[derive(Clone, Debug)]
pub(crate) struct Superseded {
    pub(crate) version: u64,
    dataset: Weak<lance::Dataset>,
}

impl Superseded {
    pub(crate) fn new(dataset: &Arc<lance::Dataset>) -> Self {
        Self { version: dataset.manifest().version, dataset: Arc::downgrade(dataset) }
    }

    /// Whether a scan of this process reads it.
    pub(crate) fn is_held(&self) -> bool {
        self.dataset.strong_count() > 0
    }
}

/// A handle on one table. Obtained from [`Database::table`](crate::Database::table).
#[derive(Clone)]
pub struct Table {
    pub(crate) shared: Arc<TableShared>,
    pub(crate) log: Arc<Log>,
    /// Wakes the flush service.
    pub(crate) flush_wanted: Arc<Notify>,
    pub(crate) limits: Limits,
    /// Held for writing by statements that find their rows by a scan, for reading by upserts.
    pub(crate) mutation: Arc<RwLock<()>>,
    /// `None` until the first writer. Writers hold it for reading until their commit is applied, so that the
    /// indexes are built, and the table is altered, in a state without commits in flight.
    pub(crate) keys: Arc<RwLock<Option<KeyIndexes>>>,
    /// The transaction's changes, of a table inside one: it is read and written there only.
    overlay: Option<Arc<Overlay>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.definition().qualified_name()).finish_non_exhaustive()
    }
}

/// That of the primary key, if any, and one for each `UNIQUE` constraint.
pub(crate) type KeyIndexes = Arc<[Arc<KeyIndex>]>;
/// A writer's hold on the key indexes.
pub(crate) type KeyGuard = OwnedRwLockReadGuard<Option<KeyIndexes>>;

/// When writers wake the flush, and when they wait for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) flush_bytes: usize,
    pub(crate) flush_rows: usize,
    pub(crate) tail_limit_bytes: usize,
    pub(crate) index: IndexLimits,
}

impl Table {
    pub(crate) fn new(shared: Arc<TableShared>, log: Arc<Log>, flush_wanted: Arc<Notify>, limits: Limits) -> Self {
        Self { shared, log, flush_wanted, limits, mutation: Arc::default(), keys: Arc::default(), overlay: None }
    }

    /// The table inside a transaction. `mutation` orders the transaction's own changes.
    pub(crate) fn inside(&self, overlay: Arc<Overlay>, mutation: Arc<RwLock<()>>) -> Self {
        Self { overlay: Some(overlay), mutation, ..self.clone() }
    }

    /// Refuses what works on the rows that everybody sees, and would leave out the transaction's own.
    pub(crate) fn refuse_inside(&self, what: &str) -> Result<()> {
        match &self.overlay {
            Some(_) => Err(Error::unsupported(format!("{what} is not available inside a transaction; COMMIT first"))),
            None => Ok(()),
        }
    }

    /// True for a table as a transaction sees it: what works on the rows that everybody sees leaves out its own.
    pub fn is_inside_transaction(&self) -> bool {
        self.overlay.is_some()
    }

    /// What a reader of this handle sees now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        match &self.overlay {
            Some(overlay) => overlay.snapshot(),
            None => self.shared.snapshot(),
        }
    }

    /// The table after an `ALTER`, over the same rows.
    pub(crate) fn altered(&self, stored: StoredTable) -> Result<Self> {
        let shared = Arc::new(self.shared.altered(stored)?);
        Ok(Self::new(shared, Arc::clone(&self.log), Arc::clone(&self.flush_wanted), self.limits))
    }

    /// What `CREATE TABLE` said, and `ALTER TABLE` since.
    pub fn definition(&self) -> &TableDefinition {
        &self.shared.definition
    }

    /// The columns, without the row id.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shared.definition.columns)
    }

    /// What it demands of rows beyond their types and the primary key.
    pub fn constraints(&self) -> &Constraints {
        &self.shared.constraints
    }

    /// Why statements on the table are refused, naming the damaged file; `None` for a sound table.
    pub fn damage(&self) -> Option<&str> {
        self.shared.damage()
    }

    /// Rows, as far as that is known without reading data.
    pub fn approximate_rows(&self) -> Option<usize> {
        self.shared.damage().is_none().then(|| self.snapshot().rows().0)
    }

    /// Adds rows in one commit, durable when this returns, and returns their number. If the future is
    /// dropped, the commit either happens as a whole or not at all. Inside a transaction, the rows become part of it.
    ///
    /// # Errors
    /// `InvalidInput` names the column and row that do not fit, `AlreadyExists` the duplicate key,
    /// `ResourceExhausted` a full disk; then nothing is stored.
    pub async fn insert(&self, batches: Vec<RecordBatch>) -> Result<u64> {
        self.shared.refuse_retired()?;
        let batches = self.conform_all(&batches)?;
        if batches.is_empty() {
            return Ok(0);
        }
        if let Some(overlay) = &self.overlay {
            let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
            return overlay.write(self, Vec::new(), batches).await.map(|()| rows);
        }
        self.wait_for_room().await?;
        let change = self.stage(batches, Vec::new()).await?;
        let rows = change.rows;
        self.commit(change, None).await?;
        Ok(rows)
    }

    /// Waits for its turn to change rows of this table; other mutations wait until the returned one is
    /// used or dropped. Inserts go on meanwhile.
    pub async fn begin_mutation(&self) -> Mutation {
        let guard = Arc::clone(&self.mutation).write_owned().await;
        Mutation { table: self.clone(), guard }
    }

    /// A plan over one snapshot of the table: Lance fragments and the unflushed tail, or the one row that the filters ask
    /// for by its key.
    ///
    /// # Errors
    /// `InvalidInput` for a projection outside of the schema, `Corrupted` for a table that cannot be used.
    pub async fn scan(
        &self,
        state: &dyn datafusion::catalog::Session,
        request: ScanRequest,
    ) -> Result<Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
        let keys = Before::of(self);
        let snapshot = self.snapshot();
        if let Some(keys) = keys
            && let Some(lookup) = keys.plan(self, &snapshot, &request).await?
        {
            return Ok(lookup);
        }
        scan::plan_snapshot(&self.shared, snapshot, state.config().target_partitions(), request).await
    }

    /// Whether [`scan`](Self::scan) makes use of `filter`. It never promises that every row it returns matches.
    pub fn supports_filter(
        &self,
        filter: &datafusion::logical_expr::Expr,
    ) -> datafusion::logical_expr::TableProviderFilterPushDown {
        scan::supports_filter(&self.shared.definition.columns, filter)
    }

    /// The rows of a column that match a text query best, by BM25. Sees every commit that returned before.
    ///
    /// # Errors
    /// `InvalidInput` for a query that means nothing, `NotFound` for an unknown column, `Unsupported` inside a
    /// transaction.
    pub async fn text_search(&self, request: TextSearch) -> Result<TextMatches> {
        self.refuse_inside("text search")?;
        let text::Matches { row_ids, scores, snapshot } = text::search(&self.shared, request).await?;
        Ok(TextMatches { row_ids, scores, pinned: self.pin_at(snapshot) })
    }

    /// Builds the text index of a column, if it is not there, and says how large it is.
    ///
    /// # Errors
    /// As for [`Table::text_search`].
    pub async fn build_text_index(&self, column: &str, options: &TextOptions) -> Result<TextIndexSize> {
        text::build(&self.shared, column, options).await
    }

    /// Frees the text index of a column; a later search builds it again.
    pub fn forget_text_index(&self, column: &str) {
        text::forget(&self.shared, column);
    }

    pub(crate) fn conform_all(&self, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
        let mut rows = 0;
        let mut conformed = Vec::with_capacity(batches.len());
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            conformed.push(conform(&self.shared.definition.columns, batch, rows)?);
            rows += batch.num_rows();
        }
        Ok(conformed)
    }

    /// Back-pressure: writers wait while the tail is at its limit.
    pub(crate) async fn wait_for_room(&self) -> Result<()> {
        loop {
            let flushed = self.shared.flushed.notified();
            let full = self.shared.tail.lock().unflushed().bytes >= self.limits.tail_limit_bytes;
            if !full {
                return Ok(());
            }
            self.flush_wanted.notify_one();
            flushed.await;
            self.shared.refuse_retired()?;
            if let Some((kind, why)) = self.shared.flush_error.lock().as_ref() {
                return Err(Error::new(
                    *kind,
                    format!(
                        "table {} takes no rows until it can be flushed: {why}",
                        self.shared.definition.qualified_name()
                    ),
                ));
            }
        }
    }

    /// Numbers rows, encodes frames and takes keys. `removed` (ascending) are rows the same commit deletes.
    async fn stage(&self, batches: Vec<RecordBatch>, removed: Vec<u64>) -> Result<Change> {
        let keys = self.key_guard().await?;
        self.stage_claimed(batches, removed, keys, Vec::new()).await
    }

    /// As [`stage`](Self::stage), with keys that were taken before.
    pub(crate) async fn stage_claimed(
        &self,
        batches: Vec<RecordBatch>,
        removed: Vec<u64>,
        keys: KeyGuard,
        mut claims: Vec<Claims>,
    ) -> Result<Change> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let first_row_id = self.shared.next_row_id.fetch_add(rows as u64, Ordering::AcqRel);
        let mut reservations = Vec::new();
        let is_upsert = !claims.is_empty();
        for index in keys.iter().flat_map(|indexes| indexes.iter()) {
            let claimed = claims.iter_mut().find(|claims| Arc::ptr_eq(claims.index(), index));
            reservations.push(index.reserve(&batches, first_row_id, &removed, claimed, is_upsert, &[])?);
        }
        let shared = Arc::clone(&self.shared);
        let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        let encode = move || encode(&shared, &batches, first_row_id, &removed).map(|e| (e, removed));
        let ((frames, added), removed) = if bytes <= INLINE_ENCODE_BYTES {
            encode()?
        } else {
            tokio::task::spawn_blocking(encode).await.map_err(|_| closed())??
        };
        Ok(Change { rows: rows as u64, frames, added, removed, keys, reservations })
    }

    /// A writer's hold on the key indexes, which are built if need be.
    pub(crate) async fn key_guard(&self) -> Result<KeyGuard> {
        loop {
            let guard = Arc::clone(&self.keys).read_owned().await;
            self.shared.refuse_retired()?;
            if guard.is_some() {
                return Ok(guard);
            }
            drop(guard);
            let mut keys = self.keys.write().await;
            if keys.is_none() {
                // Boxed: every writer's future would hold the whole scan.
                *keys = Some(Box::pin(self.build_indexes()).await?);
            }
        }
    }

    /// Waits until every commit of this table that is under way is applied. The caller holds no [`KeyGuard`] of it.
    pub(crate) async fn wait_for_commits(&self) {
        drop(self.keys.write().await);
    }

    pub(crate) fn refuse_retired(&self) -> Result<()> {
        self.shared.refuse_retired()
    }

    /// The indexes of the table as it is now.
    ///
    /// # Errors
    /// `AlreadyExists` when rows share a key that is to be unique.
    pub(crate) async fn build_indexes(&self) -> Result<KeyIndexes> {
        let definition = &self.shared.definition;
        let mut indexes = Vec::new();
        if !definition.primary_key.is_empty() {
            indexes.push(self.build_index(KeyKind::Primary, &definition.primary_key).await?);
        }
        for unique in &self.shared.constraints.unique {
            indexes.push(self.build_index(KeyKind::Unique(unique.name.clone()), &unique.columns).await?);
        }
        Ok(indexes.into())
    }

    pub(crate) async fn build_index(&self, kind: KeyKind, key: &[String]) -> Result<Arc<KeyIndex>> {
        let definition = &self.shared.definition;
        let index = KeyIndex::new(definition.qualified_name(), kind, &definition.columns, key)?;
        let context = SessionContext::new();
        let request = ScanRequest { projection: Some(index.positions()), with_row_id: true, ..ScanRequest::default() };
        let plan = scan::plan(&self.shared, &context.state(), request).await?;
        let internal = |e| scan_error(&format!("reading the keys of {}", definition.qualified_name()), e);
        let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(internal)?;
        while let Some(batch) = rows.try_next().await.map_err(internal)? {
            index.load(&batch)?;
        }
        Ok(Arc::new(index))
    }

    /// Encodes a change of this table that is part of a larger commit, and takes its keys. `check` is asked about
    /// the rows it removes (ascending) once nobody else can remove them.
    ///
    /// # Errors
    /// That of `check`, and as for [`Table::insert`].
    pub(crate) async fn prepare_commit(
        &self,
        added: Vec<RecordBatch>,
        removed: Vec<u64>,
        check: impl FnOnce(&[u64]) -> Result<()>,
    ) -> Result<(Vec<Frame>, Box<dyn Effect>)> {
        self.shared.refuse_retired()?;
        self.wait_for_room().await?;
        let turn = match removed.is_empty() {
            true => None,
            false => Some(Turn::Mutation { _guard: Arc::clone(&self.mutation).write_owned().await }),
        };
        check(&removed)?;
        let mut change = self.stage(added, removed).await?;
        let frames = std::mem::take(&mut change.frames);
        Ok((frames, Box::new(self.effect(change, turn))))
    }

    /// Logs a staged change and waits until it is durable and applied.
    pub(crate) async fn commit(&self, mut change: Change, turn: Option<Turn>) -> Result<()> {
        let frames = std::mem::take(&mut change.frames);
        let effect = self.effect(change, turn);
        let done = self.log.submit(frames, Box::new(effect)).await?;
        done.await.map_err(|_| closed())?.map(drop)
    }

    fn effect(&self, change: Change, turn: Option<Turn>) -> ChangeEffect {
        ChangeEffect {
            table: Arc::clone(&self.shared),
            added: change.added,
            removed: change.removed,
            reservations: change.reservations,
            keys: change.keys,
            turn,
            flush_wanted: Arc::clone(&self.flush_wanted),
            limits: self.limits,
        }
    }
}

/// The right to delete and replace rows of one table. Row ids must come from a scan that began after
/// [`Table::begin_mutation`] returned.
#[derive(Debug)]
pub struct Mutation {
    table: Table,
    guard: OwnedRwLockWriteGuard<()>,
}

/// What keeps statements apart that would work on the same rows, held until a commit is applied.
#[derive(Debug)]
pub(crate) enum Turn {
    Mutation { _guard: OwnedRwLockWriteGuard<()> },
    Upsert { _guard: OwnedRwLockReadGuard<()> },
}

impl Mutation {
    /// Deletes rows in one commit, durable when this returns, and returns their number.
    ///
    /// # Errors
    /// As for [`Table::insert`].
    pub async fn delete(self, row_ids: Vec<u64>) -> Result<u64> {
        self.replace(row_ids, Vec::new()).await
    }

    /// Deletes `row_ids` and adds `batches` in one commit, durable when this returns, and returns the
    /// number of rows deleted. A new row may have the key of a deleted one.
    ///
    /// # Errors
    /// As for [`Table::insert`].
    pub async fn replace(self, mut row_ids: Vec<u64>, batches: Vec<RecordBatch>) -> Result<u64> {
        self.table.shared.refuse_retired()?;
        row_ids.sort_unstable();
        row_ids.dedup();
        let batches = self.table.conform_all(&batches)?;
        if row_ids.is_empty() && batches.is_empty() {
            return Ok(0);
        }
        let deleted = row_ids.len() as u64;
        if let Some(overlay) = &self.table.overlay {
            return overlay.write(&self.table, row_ids, batches).await.map(|()| deleted);
        }
        self.table.wait_for_room().await?;
        let change = self.table.stage(batches, row_ids).await?;
        self.table.commit(change, Some(Turn::Mutation { _guard: self.guard })).await?;
        Ok(deleted)
    }
}

/// A change that is encoded and has its keys, ready for the log.
pub(crate) struct Change {
    rows: u64,
    frames: Vec<Frame>,
    added: Vec<TailBatch>,
    removed: Vec<u64>,
    keys: KeyGuard,
    reservations: Vec<Reservation>,
}

type Encoded = (Vec<Frame>, Vec<TailBatch>);

fn encode(table: &TableShared, batches: &[RecordBatch], mut first_row_id: u64, removed: &[u64]) -> Result<Encoded> {
    let (mut frames, mut added) = (Vec::new(), Vec::with_capacity(batches.len()));
    for ids in removed.chunks(FRAME_TARGET_BYTES / size_of::<u64>()) {
        frames.push(Frame::delete(table.stored.id, ids)?);
    }
    for batch in batches {
        let pieces = batch.get_array_memory_size().div_ceil(FRAME_TARGET_BYTES).max(1);
        let rows_per_piece = batch.num_rows().div_ceil(pieces).max(1);
        for start in (0..batch.num_rows()).step_by(rows_per_piece) {
            let piece = batch.slice(start, rows_per_piece.min(batch.num_rows() - start));
            let frame = Frame::rows(table.stored.id, first_row_id, &table.stream_header, &piece)?;
            let rows = table.number_rows(&piece, first_row_id)?;
            added.push(TailBatch::new(rows, frame.len()));
            frames.push(frame);
            first_row_id += piece.num_rows() as u64;
        }
    }
    Ok((frames, added))
}

struct ChangeEffect {
    table: Arc<TableShared>,
    added: Vec<TailBatch>,
    removed: Vec<u64>,
    // Before `keys`: reservations are released while the indexes cannot be rebuilt.
    reservations: Vec<Reservation>,
    keys: KeyGuard,
    turn: Option<Turn>,
    flush_wanted: Arc<Notify>,
    limits: Limits,
}

impl Effect for ChangeEffect {
    fn apply(self: Box<Self>, first_lsn: u64, lsn: u64, touched: &mut Touched) {
        let removed = self.removed.clone();
        if !removed.is_empty() {
            self.table.removals.lock().note(lsn, &removed, touched.oldest_pin());
        }
        self.table.apply(self.added, self.removed, first_lsn, lsn);
        touched.add(&self.table);
        // Whoever waits for one of these reads a snapshot next, which must have this commit.
        let (reservations, keys, turn) = (self.reservations, self.keys, self.turn);
        touched.after_publish(move || {
            if !removed.is_empty() {
                keys.iter().flat_map(|indexes| indexes.iter()).for_each(|index| index.remove(&removed));
            }
            reservations.into_iter().for_each(Reservation::confirm);
            drop((keys, turn));
        });
        let unflushed = self.table.tail.lock().unflushed();
        if unflushed.bytes >= self.limits.flush_bytes || unflushed.rows >= self.limits.flush_rows {
            self.flush_wanted.notify_one();
        }
    }
}
