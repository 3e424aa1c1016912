//! What an open transaction has changed in one table: rows it added and row ids it removed, over the snapshot
//! that it began with.
//!
//! Own rows have provisional ids from [`OWN_ROWS`] on, which no committed row has; a commit numbers them anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow_array::RecordBatch;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::keys::{OwnKeys, Refused};
use crate::key_index::KeyIndex;
use crate::table::{Table, TableShared};
use crate::tail::{Snapshot, Tail, TailBatch, is_dead, live_rows};

/// The first provisional row id.
pub(crate) const OWN_ROWS: u64 = 1 << 63;

/// What the tables of one transaction share with it.
#[derive(Debug)]
pub(crate) struct Scope {
    /// False once it was committed or rolled back.
    pub(super) active: AtomicBool,
    pub(super) read_only: bool,
    /// Bytes that all open transactions hold.
    pub(super) held_bytes: Arc<AtomicUsize>,
    pub(super) limit_bytes: usize,
}

impl Scope {
    pub(super) fn check_active(&self) -> Result<()> {
        if self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::not_found("this transaction has ended; begin another one"))
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_active()?;
        if self.read_only {
            return Err(Error::invalid("the transaction is READ ONLY (SQLSTATE 25006); begin one that may write"));
        }
        Ok(())
    }

    fn hold(&self, bytes: usize) -> Result<()> {
        let held = self.held_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if held > self.limit_bytes {
            self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "open transactions may hold {} MiB of uncommitted rows (storage.transaction_mb); commit in smaller steps",
                    self.limit_bytes >> 20
                ),
            ));
        }
        Ok(())
    }

    fn release(&self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// One table inside a transaction.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: Arc<Snapshot>,
    /// Position of `base`.
    lsn: u64,
    scope: Arc<Scope>,
    /// Changes of the table by the transaction's own statements, one at a time.
    pub(super) mutation: Arc<tokio::sync::RwLock<()>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    own: Tail,
    /// One for each key index of the table, in their order.
    keys: Vec<OwnKeys>,
    next_row_id: u64,
    bytes: usize,
}

/// A state of an overlay to return to.
#[derive(Debug)]
pub(super) struct OverlayMark {
    own: Tail,
    keys: Vec<usize>,
    bytes: usize,
}

/// What a commit writes of one table.
#[derive(Debug)]
pub(super) struct Changes {
    /// Live own rows in the order they were added, without row ids.
    pub(super) added: Vec<RecordBatch>,
    /// Committed rows that are removed, ascending.
    pub(super) removed: Vec<u64>,
}

impl Overlay {
    pub(super) fn new(base: Arc<Snapshot>, lsn: u64, scope: Arc<Scope>) -> Self {
        let state = State { own: Tail::new(None, 0), keys: Vec::new(), next_row_id: OWN_ROWS, bytes: 0 };
        Self { base, lsn, scope, mutation: Arc::default(), state: Mutex::new(state) }
    }

    /// What the transaction's statements see.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        let state = self.state.lock();
        if state.own.is_empty() { Arc::clone(&self.base) } else { Arc::new(self.base.extended(&state.own)) }
    }

    /// Removes `removed` (ascending) and adds `batches`, all of it or nothing.
    ///
    /// # Errors
    /// `AlreadyExists` for a duplicate key, `Conflict` when another writer has changed one of `removed` since the
    /// snapshot, `ResourceExhausted` when open transactions hold too much, `InvalidInput` in a read-only transaction,
    /// `NotFound` when the transaction has ended.
    pub(crate) async fn write(&self, table: &Table, removed: Vec<u64>, batches: Vec<RecordBatch>) -> Result<()> {
        self.scope.check_writable()?;
        let name = table.definition().qualified_name();
        // Others may change these rows at any time, and win; when they have, the transaction is lost now.
        let check = || table.shared.removals.lock().check(&name, self.lsn, &removed);
        loop {
            check()?;
            let keys = table.key_guard().await?;
            let indexes = keys.as_ref().map_or(&[][..], |indexes| &indexes[..]);
            let written = self.state.lock().write(&self.scope, table, indexes, &removed, &batches);
            match written {
                Ok(()) => return Ok(()),
                Err(Refused::Pending) => {
                    drop(keys);
                    table.wait_for_commits().await;
                }
                // The key may be that of the row which another writer put in the place of a removed one.
                Err(Refused::Taken(error)) => return Err(check().err().unwrap_or(error)),
                Err(Refused::Wrong(error)) => return Err(error),
            }
        }
    }

    pub(super) fn mark(&self) -> OverlayMark {
        let state = self.state.lock();
        OverlayMark { own: state.own.clone(), keys: state.keys.iter().map(OwnKeys::mark).collect(), bytes: state.bytes }
    }

    /// Returns to `mark`, or to no change at all.
    pub(super) fn undo_to(&self, mark: Option<&OverlayMark>) {
        let mut state = self.state.lock();
        let (own, keys, bytes) = match mark {
            Some(mark) => (mark.own.clone(), &mark.keys[..], mark.bytes),
            None => (Tail::new(None, 0), &[][..], 0),
        };
        self.scope.release(state.bytes - bytes);
        state.own = own;
        for (at, own) in state.keys.iter_mut().enumerate() {
            own.undo_to(keys.get(at).copied().unwrap_or(0));
        }
        state.bytes = bytes;
    }

    /// What is to be committed; `None` when nothing changed.
    pub(super) fn changes(&self) -> Result<Option<Changes>> {
        let state = self.state.lock();
        let dead = state.own.dead();
        let mut removed: Vec<u64> =
            dead.iter().flat_map(|ids| ids.iter().copied()).filter(|id| *id < OWN_ROWS).collect();
        removed.sort_unstable();
        let mut added = Vec::new();
        for batch in state.own.batches() {
            let live = live_rows(&batch.rows, dead)?;
            let columns = (0..live.num_columns() - 1).collect::<Vec<_>>();
            if live.num_rows() > 0 {
                added.push(live.project(&columns)?);
            }
        }
        Ok(if removed.is_empty() && added.is_empty() { None } else { Some(Changes { added, removed }) })
    }
}

impl State {
    fn write(
        &mut self,
        scope: &Scope,
        table: &Table,
        indexes: &[Arc<KeyIndex>],
        removed: &[u64],
        batches: &[RecordBatch],
    ) -> Result<(), Refused> {
        let first_row_id = self.next_row_id;
        let numbered = number(&table.shared, batches, first_row_id).map_err(Refused::Wrong)?;
        let bytes = numbered.iter().map(|batch| batch.bytes).sum::<usize>() + size_of_val(removed);
        scope.hold(bytes).map_err(Refused::Wrong)?;
        if let Err(refused) = self.take_keys(indexes, first_row_id, removed, batches) {
            scope.release(bytes);
            return Err(refused);
        }
        self.bytes += bytes;
        if !removed.is_empty() {
            self.own.push_dead(removed.to_vec(), 0, 0, 0);
        }
        for batch in numbered {
            self.next_row_id += batch.rows.num_rows() as u64;
            self.own.push_rows(batch, 0, 0, 0);
        }
        self.own.merge_batches();
        Ok(())
    }

    /// The keys of `removed` become free and those of `batches` taken, in all indexes or in none.
    fn take_keys(
        &mut self,
        indexes: &[Arc<KeyIndex>],
        first_row_id: u64,
        removed: &[u64],
        batches: &[RecordBatch],
    ) -> Result<(), Refused> {
        if self.keys.is_empty() {
            self.keys = indexes.iter().map(OwnKeys::new).collect();
        }
        let marks: Vec<usize> = self.keys.iter().map(OwnKeys::mark).collect();
        let own = &self.own;
        let gone = |row| removed.binary_search(&row).is_ok() || is_dead(own.dead(), row);
        let taken = self.keys.iter_mut().zip(indexes).try_for_each(|(own, committed)| {
            own.release(removed);
            own.take(committed, batches, first_row_id, gone)
        });
        if taken.is_err() {
            for (own, mark) in self.keys.iter_mut().zip(marks) {
                own.undo_to(mark);
                own.truncate(first_row_id);
            }
        }
        taken
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.scope.release(self.state.get_mut().bytes);
    }
}

fn number(table: &TableShared, batches: &[RecordBatch], mut next: u64) -> Result<Vec<TailBatch>> {
    let mut numbered = Vec::with_capacity(batches.len());
    for batch in batches {
        let rows = table.number_rows(batch, next)?;
        next += batch.num_rows() as u64;
        let bytes = rows.get_array_memory_size();
        numbered.push(TailBatch::new(rows, bytes));
    }
    Ok(numbered)
}
