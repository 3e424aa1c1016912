//! Transactions: snapshot isolation, first committer wins.
//!
//! A transaction sees the whole database as it was at its first statement, and its own changes. Nobody else sees
//! those before the commit, which is one commit of the log over all tables, so that it happens as a whole or not
//! at all, also across a crash. A commit fails with `Conflict` when another writer has, since that first
//! statement, changed or deleted a row that the transaction changes or deletes, taken a key that it gives to a row, or
//! dropped or created a table that it needs. Rows that a transaction only read may change: write skew is possible.
//!
//! ```text
//! first statement   pin: the published snapshot of every table, between two commits of the log
//! statement         reads pinned snapshot + own rows - removed rows; writes go into the overlay of their table
//! savepoint         a mark in every overlay; a rollback to it restores them
//! commit            lock rows' tables -> check removals since the pin -> take keys -> one commit of the log
//! ```
//!
//! Tables may be created and dropped inside. Uncommitted rows are held in memory, bounded over all transactions.
//! Deliberately absent: row locks (nobody waits for a transaction), and changes of the catalog other than tables.

mod keys;
mod overlay;
mod removals;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::catalog::{CatalogChange, TableDefinition};
use crate::database::{CatalogEdit, Database};
use crate::schema::check_columns;
use crate::table::Table;
use crate::tail::Snapshot;
use crate::wal::frame::Frame;
use crate::wal::writer::{Effect, Pin, Touched, closed};

pub(crate) use overlay::Overlay;
use overlay::{Changes, OverlayMark, Scope};
pub(crate) use removals::Removals;

/// Savepoints of one transaction at a time.
const MAX_SAVEPOINTS: usize = 10_000;
/// The id of a table whose creation is not committed.
pub(crate) const UNCOMMITTED_TABLE: u32 = u32::MAX;

/// Schema and name of a table.
type Name = (String, String);

/// An open transaction; dropping it rolls it back. See the module documentation.
pub struct Transaction {
    database: Database,
    scope: Arc<Scope>,
    state: Mutex<State>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    /// `None` until the first statement.
    pinned: Option<Pinned>,
    created: BTreeMap<Name, Arc<Table>>,
    dropped: BTreeMap<Name, Arc<Table>>,
    overlays: HashMap<Uuid, (Arc<Table>, Arc<Overlay>)>,
    savepoints: Vec<Savepoint>,
    next_savepoint: u64,
}

/// The state of the database that a transaction reads.
struct Pinned {
    pin: Pin,
    at_us: i64,
    tables: BTreeMap<Name, (Arc<Table>, Arc<Snapshot>)>,
}

struct Savepoint {
    id: u64,
    name: String,
    mark: Mark,
}

/// A state of a transaction to return to.
#[derive(Debug)]
pub struct Mark {
    created: BTreeMap<Name, Arc<Table>>,
    dropped: BTreeMap<Name, Arc<Table>>,
    overlays: HashMap<Uuid, OverlayMark>,
}

/// Which savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavepointRef<'a> {
    /// The latest of that name.
    Name(&'a str),
    /// What [`Transaction::savepoint`] returned.
    Id(u64),
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Database {
    /// Begins a transaction. It takes its snapshot at its first statement, so one that waits holds nothing.
    pub fn begin(&self, read_only: bool) -> Transaction {
        let scope = Scope {
            active: AtomicBool::new(true),
            read_only,
            held_bytes: self.transaction_bytes(),
            limit_bytes: self.options().transaction_limit_bytes,
        };
        Transaction { database: self.clone(), scope: Arc::new(scope), state: Mutex::default(), turn: Arc::default() }
    }
}

impl Transaction {
    /// Waits for the other statements of this transaction that change something.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Whether it holds a snapshot or changes.
    pub fn is_used(&self) -> bool {
        self.state.lock().pinned.is_some()
    }

    /// Fails when the transaction has ended or its snapshot is too old to be read.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`.
    pub fn check(&self) -> Result<()> {
        self.with_state(|_| Ok(()))
    }

    /// Fails when the transaction may not write.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check_writable(&self) -> Result<()> {
        self.scope.check_writable()
    }

    /// The table as this transaction sees and changes it; `None` when it does not exist for it.
    pub fn table(&self, schema: &str, name: &str) -> Option<Arc<Table>> {
        let name = (schema.to_owned(), name.to_owned());
        self.with_state(|state| Ok(state.table(&name, &self.scope))).ok().flatten()
    }

    /// All tables by schema and name.
    pub fn tables(&self) -> Vec<Arc<Table>> {
        let all = self.with_state(|state| {
            let mut names: Vec<Name> = state.pinned.iter().flat_map(|pinned| pinned.tables.keys().cloned()).collect();
            names.extend(state.created.keys().cloned());
            names.sort();
            names.dedup();
            Ok(names.iter().filter_map(|name| state.table(name, &self.scope)).collect())
        });
        all.unwrap_or_default()
    }

    /// Creates a table, for others when the transaction commits.
    ///
    /// # Errors
    /// As [`Database::create_table`].
    pub fn create_table(&self, definition: &TableDefinition, if_not_exists: bool) -> Result<bool> {
        self.scope.check_writable()?;
        let name = (definition.schema_name.clone(), definition.name.clone());
        if self.table(&name.0, &name.1).is_some() {
            if if_not_exists {
                return Ok(false);
            }
            let message =
                format!("table {} exists already; drop it first or use IF NOT EXISTS", definition.qualified_name());
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        check_columns(&definition.qualified_name(), &definition.columns, &definition.primary_key)?;
        let table = self.database.unlogged_table(UNCOMMITTED_TABLE, definition)?;
        self.with_state(|state| {
            state.created.insert(name, Arc::new(table));
            Ok(())
        })?;
        Ok(true)
    }

    /// Drops a table, for others when the transaction commits.
    ///
    /// # Errors
    /// As [`Database::drop_table`].
    pub fn drop_table(&self, schema: &str, name: &str, if_exists: bool) -> Result<bool> {
        self.scope.check_writable()?;
        let key = (schema.to_owned(), name.to_owned());
        self.with_state(|state| {
            if state.created.remove(&key).is_some() {
                return Ok(true);
            }
            let base = state.pinned.as_ref().and_then(|pinned| pinned.tables.get(&key));
            match base.map(|(table, _)| Arc::clone(table)).filter(|_| !state.dropped.contains_key(&key)) {
                Some(table) => Ok(state.dropped.insert(key, table).is_none()),
                None if if_exists => Ok(false),
                None => {
                    Err(Error::not_found(format!("table {schema}.{name} does not exist; use IF EXISTS to allow that")))
                }
            }
        })
    }

    /// A state to return to when the statement that now begins fails.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn mark(&self) -> Result<Mark> {
        self.with_state(|state| Ok(state.mark()))
    }

    /// Returns to `mark`.
    pub fn undo_to(&self, mark: &Mark) {
        self.state.lock().undo_to(mark);
    }

    /// Sets a savepoint and returns its number.
    ///
    /// # Errors
    /// `ResourceExhausted` when there are very many.
    pub fn savepoint(&self, name: &str) -> Result<u64> {
        self.with_state(|state| {
            if state.savepoints.len() >= MAX_SAVEPOINTS {
                let message = format!("a transaction has at most {MAX_SAVEPOINTS} savepoints; release some");
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
            state.next_savepoint += 1;
            let id = state.next_savepoint;
            let savepoint = Savepoint { id, name: name.to_owned(), mark: state.mark() };
            state.savepoints.push(savepoint);
            Ok(id)
        })
    }

    /// Forgets a savepoint and those after it; changes stay.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn release(&self, savepoint: SavepointRef<'_>) -> Result<()> {
        self.with_state(|state| {
            let at = state.find(savepoint)?;
            state.savepoints.truncate(at);
            Ok(())
        })
    }

    /// Takes back what was changed since a savepoint, which stays; those after it are forgotten.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rollback_to(&self, savepoint: SavepointRef<'_>) -> Result<()> {
        self.with_state(|state| {
            let at = state.find(savepoint)?;
            state.savepoints.truncate(at + 1);
            if let Some(kept) = state.savepoints.pop() {
                state.undo_to(&kept.mark);
                state.savepoints.push(kept);
            }
            Ok(())
        })
    }

    /// Ends the transaction and forgets its changes. Ending it twice is no error.
    pub fn rollback(&self) {
        self.scope.active.store(false, Ordering::Release);
        drop(std::mem::take(&mut *self.state.lock()));
    }

    /// Ends the transaction and makes its changes durable and visible, all of them or none.
    ///
    /// # Errors
    /// `Conflict` when another writer came first (run the transaction again), `NotFound` when it has ended, and
    /// those of [`Table::insert`]; then nothing is stored.
    pub async fn commit(&self) -> Result<()> {
        if !self.scope.active.swap(false, Ordering::AcqRel) {
            return Err(Error::not_found("this transaction has ended; begin another one"));
        }
        let state = std::mem::take(&mut *self.state.lock());
        match state.pinned {
            Some(_) => state.commit(&self.database).await,
            None => Ok(()),
        }
    }

    /// Pins the snapshot if this is the first use.
    fn with_state<T>(&self, run: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.scope.check_active()?;
        let now_us = self.database.options().clock.now_us();
        let mut state = self.state.lock();
        match &state.pinned {
            None => state.pinned = Some(Pinned::take(&self.database, now_us)),
            Some(pinned) => {
                let age_us = u128::try_from(now_us.saturating_sub(pinned.at_us)).unwrap_or_default();
                if age_us > self.database.options().version_retention.as_micros() {
                    return Err(conflict("it has been open for so long that its snapshot is not kept any more"));
                }
            }
        }
        run(&mut state)
    }
}

impl Pinned {
    fn take(database: &Database, at_us: i64) -> Self {
        let read = || {
            let tables = database.tables().into_iter().map(|table| {
                let definition = table.definition();
                let name = (definition.schema_name.clone(), definition.name.clone());
                let snapshot = table.shared.snapshot();
                (name, (table, snapshot))
            });
            tables.collect()
        };
        let (pin, tables) = database.log().pin(read);
        Self { pin, at_us, tables }
    }
}

impl State {
    fn table(&mut self, name: &Name, scope: &Arc<Scope>) -> Option<Arc<Table>> {
        let (table, base) = match (self.created.get(name), self.pinned.as_ref()) {
            (Some(created), _) => (created, created.shared.snapshot()),
            (None, Some(pinned)) if !self.dropped.contains_key(name) => {
                let (table, base) = pinned.tables.get(name)?;
                (table, Arc::clone(base))
            }
            _ => return None,
        };
        let lsn = self.pinned.as_ref().map_or(0, |pinned| pinned.pin.lsn());
        let new = || (Arc::clone(table), Arc::new(Overlay::new(base, lsn, Arc::clone(scope))));
        let (_, overlay) = self.overlays.entry(table.shared.stored.uuid).or_insert_with(new);
        Some(Arc::new(table.inside(Arc::clone(overlay), Arc::clone(&overlay.mutation))))
    }

    fn mark(&self) -> Mark {
        Mark {
            created: self.created.clone(),
            dropped: self.dropped.clone(),
            overlays: self.overlays.iter().map(|(uuid, (_, overlay))| (*uuid, overlay.mark())).collect(),
        }
    }

    fn undo_to(&mut self, mark: &Mark) {
        self.created.clone_from(&mark.created);
        self.dropped.clone_from(&mark.dropped);
        for (uuid, (_, overlay)) in &self.overlays {
            overlay.undo_to(mark.overlays.get(uuid));
        }
    }

    fn find(&self, savepoint: SavepointRef<'_>) -> Result<usize> {
        let found = self.savepoints.iter().rposition(|kept| match savepoint {
            SavepointRef::Name(name) => kept.name == name,
            SavepointRef::Id(id) => kept.id == id,
        });
        found.ok_or_else(|| match savepoint {
            SavepointRef::Name(name) => {
                Error::not_found(format!("savepoint \"{name}\" does not exist (SQLSTATE 3B001)"))
            }
            SavepointRef::Id(_) => Error::not_found("this savepoint does not exist or was released (SQLSTATE 3B001)"),
        })
    }

    async fn commit(self, database: &Database) -> Result<()> {
        let changes_catalog = !self.created.is_empty() || !self.dropped.is_empty();
        let _catalog = if changes_catalog { Some(database.lock_catalog().await) } else { None };
        let mut commit = Commit::default();
        let created = self.catalog_edits(database, &mut commit)?;
        for (table, changes) in self.writes(&created)? {
            self.check_current(database, &table)?;
            commit.add(&table, changes, self.pinned.as_ref().map_or(0, |pinned| pinned.pin.lsn())).await?;
        }
        if commit.frames.is_empty() {
            return Ok(());
        }
        let done = database.log().submit(commit.frames, Box::new(AllOf(commit.effects))).await?;
        done.await.map_err(|_| closed())?.map(drop)
    }

    /// Logs dropped and created tables; returns the latter as they will be, by the uuid they had inside.
    fn catalog_edits(&self, database: &Database, commit: &mut Commit) -> Result<HashMap<Uuid, Arc<Table>>> {
        for (name, table) in &self.dropped {
            match database.table(&name.0, &name.1) {
                Some(current) if Arc::ptr_eq(&current.shared, &table.shared) => {
                    let change = CatalogChange::DropTable { id: table.shared.stored.id };
                    commit.edit(database, &change, CatalogEdit::Drop(current))?;
                }
                _ => return Err(conflict(&format!("another writer dropped table {}.{}", name.0, name.1))),
            }
        }
        let mut created = HashMap::with_capacity(self.created.len());
        for (id, (name, table)) in (database.next_table_id()..).zip(&self.created) {
            if database.table(&name.0, &name.1).is_some() && !self.dropped.contains_key(name) {
                return Err(conflict(&format!("another writer created table {}.{}", name.0, name.1)));
            }
            let lasting = Arc::new(database.unlogged_table(id, table.definition())?);
            let change = CatalogChange::CreateTable { table: lasting.shared.stored.clone() };
            commit.edit(database, &change, CatalogEdit::Create(Arc::clone(&lasting)))?;
            created.insert(table.shared.stored.uuid, lasting);
        }
        Ok(created)
    }

    /// What changes in tables that will exist, in the order that everybody locks tables.
    fn writes(&self, created: &HashMap<Uuid, Arc<Table>>) -> Result<Vec<(Arc<Table>, Changes)>> {
        let mut writes = Vec::new();
        for (uuid, (table, overlay)) in &self.overlays {
            let dropped = self.dropped.values().any(|dropped| Arc::ptr_eq(&dropped.shared, &table.shared));
            let lasting = match created.get(uuid) {
                Some(lasting) => lasting,
                None if dropped || table.shared.stored.id == UNCOMMITTED_TABLE => continue,
                None => table,
            };
            if let Some(changes) = overlay.changes()? {
                writes.push((Arc::clone(lasting), changes));
            }
        }
        writes.sort_by_key(|(table, _)| table.shared.stored.id);
        Ok(writes)
    }

    fn check_current(&self, database: &Database, table: &Table) -> Result<()> {
        let definition = table.definition();
        let name = (definition.schema_name.clone(), definition.name.clone());
        let current = database.table(&name.0, &name.1);
        if self.created.contains_key(&name) || current.is_some_and(|now| Arc::ptr_eq(&now.shared, &table.shared)) {
            return Ok(());
        }
        Err(conflict(&format!("another writer dropped or altered table {}", definition.qualified_name())))
    }
}

/// A commit of the log as it is put together.
#[derive(Default)]
struct Commit {
    frames: Vec<Frame>,
    effects: Vec<Box<dyn Effect>>,
}

impl Commit {
    fn edit(&mut self, database: &Database, change: &CatalogChange, edit: CatalogEdit) -> Result<()> {
        self.frames.push(Frame::ddl(change.encode()?)?);
        self.effects.push(database.catalog_effect(edit));
        Ok(())
    }

    /// Checks and encodes the changes of one table that were made on the state at `lsn`.
    async fn add(&mut self, table: &Table, changes: Changes, lsn: u64) -> Result<()> {
        let name = table.definition().qualified_name();
        let prepared = table.prepare_commit(changes.added, changes.removed, |removed| {
            table.shared.removals.lock().check(&name, lsn, removed)
        });
        let (frames, effect) = prepared.await.map_err(|error| match error.kind() {
            // The statement was checked against the keys as they were then.
            ErrorKind::AlreadyExists => conflict(error.message()),
            _ => error,
        })?;
        self.frames.extend(frames);
        self.effects.push(effect);
        Ok(())
    }
}

/// Effects of one commit, in order.
struct AllOf(Vec<Box<dyn Effect>>);

impl Effect for AllOf {
    fn apply(self: Box<Self>, first_lsn: u64, lsn: u64, touched: &mut Touched) {
        for effect in self.0 {
            effect.apply(first_lsn, lsn, touched);
        }
    }
}

/// A commit that came too late.
fn conflict(why: &str) -> Error {
    let message =
        format!("the transaction cannot be committed: {why}; nothing was stored, run it again (SQLSTATE 40001)");
    Error::new(ErrorKind::Conflict, message)
}
