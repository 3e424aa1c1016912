//! `INSERT .. ON CONFLICT`: takes the keys of proposed rows first, and decides then.
//!
//! [`Table::begin_upsert`] claims every key in the key index, or waits for the commit that holds it. From then
//! on nobody else can insert or upsert a row with such a key, so the rows that [`Upsert::existing`] reads are
//! the ones that [`Upsert::commit`] replaces: no update is lost, and upserts of different keys share a sync as
//! inserts do. `UPDATE`, `DELETE` and `MERGE` find rows by scanning and therefore wait for upserts under way,
//! and upserts for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use hypr_common::{Error, ErrorKind, Result};
use tokio::sync::OwnedRwLockReadGuard;

use crate::Table;
use crate::key_index::{Claims, Hashes, Holder, KeyIndex};
use crate::lookup::rows_by_id;
use crate::table::{KeyGuard, Turn};

/// Which unique keys a conflict may be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConflictTarget {
    /// Any key of the table.
    Any,
    /// The key of these columns, in any order.
    Columns(Vec<String>),
    /// The `UNIQUE` constraint of that name, or `<table>_pkey`.
    Constraint(String),
}

/// What has the key of a proposed row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Nothing: the row can be inserted.
    None,
    /// The stored row with this id.
    Row(u64),
    /// An earlier row of the same statement.
    Earlier,
}

/// Proposed rows whose keys are taken. Dropping it gives them back.
#[derive(Debug)]
pub struct Upsert {
    table: Table,
    rows: RecordBatch,
    conflicts: Vec<Conflict>,
    // Before `keys`: claims are given back while the indexes cannot be rebuilt.
    claims: Vec<Claims>,
    keys: KeyGuard,
    mutation: OwnedRwLockReadGuard<()>,
}

impl Table {
    /// Takes the keys of `rows`, waiting for commits that hold some of them.
    ///
    /// # Errors
    /// As for [`Table::insert`]; `InvalidInput` when the table has no such key, `Unsupported` inside a transaction.
    pub async fn begin_upsert(&self, rows: Vec<RecordBatch>, target: &ConflictTarget) -> Result<Upsert> {
        self.refuse_retired()?;
        self.refuse_inside("ON CONFLICT")?;
        let rows = concat_batches(&self.schema(), &self.conform_all(&rows)?)?;
        self.wait_for_room().await?;
        let mutation = Arc::clone(&self.mutation).read_owned().await;
        loop {
            let keys = self.key_guard().await?;
            let chosen = self.chosen_keys(&keys, target)?;
            let hashes = chosen.iter().map(|index| index.hashes(&rows, 0)).collect::<Result<Vec<_>>>()?;
            let mark = self.shared.next_row_id.fetch_add(chosen.len() as u64, Ordering::AcqRel);
            let mut claims: Vec<Claims> =
                chosen.iter().zip(mark..).map(|(index, mark)| Claims::new(index, mark)).collect();
            if let Some(conflicts) = claim(&mut claims, &hashes, rows.num_rows()) {
                return Ok(Upsert { table: self.clone(), rows, conflicts, claims, keys, mutation });
            }
            // Somebody else's commit has one of the keys. The lock is free when every commit under way is applied.
            drop(claims);
            drop(keys);
            self.wait_for_commits().await;
        }
    }

    fn chosen_keys(&self, keys: &KeyGuard, target: &ConflictTarget) -> Result<Vec<Arc<KeyIndex>>> {
        let all = keys.as_ref().map_or(&[][..], |indexes| &indexes[..]);
        let table = self.definition().qualified_name();
        let chosen: Vec<Arc<KeyIndex>> = match target {
            ConflictTarget::Any => all.to_vec(),
            ConflictTarget::Columns(columns) => all.iter().filter(|index| index.is_on(columns)).cloned().collect(),
            ConflictTarget::Constraint(name) => all.iter().filter(|index| index.is_called(name)).cloned().collect(),
        };
        match (chosen.is_empty(), target) {
            (false, _) => Ok(chosen),
            (true, ConflictTarget::Any) => Err(Error::invalid(format!(
                "table {table} has no PRIMARY KEY and no UNIQUE constraint to conflict with"
            ))),
            (true, ConflictTarget::Columns(columns)) => Err(Error::invalid(format!(
                "table {table} has no PRIMARY KEY or UNIQUE constraint on ({})",
                columns.join(", ")
            ))),
            (true, ConflictTarget::Constraint(name)) => {
                Err(Error::invalid(format!("table {table} has no unique constraint called {name}")))
            }
        }
    }
}

/// Takes the keys of all rows, or of none when one of them is pending.
fn claim(claims: &mut [Claims], hashes: &[Hashes], rows: usize) -> Option<Vec<Conflict>> {
    let indexes: Vec<Arc<KeyIndex>> = claims.iter().map(|claims| Arc::clone(claims.index())).collect();
    // Always in the same order, so that two upserts cannot wait for one another.
    let mut states: Vec<_> = indexes.iter().map(|index| index.lock()).collect();
    let mut conflicts = Vec::with_capacity(rows);
    for row in 0..rows {
        let mut conflict = Conflict::None;
        for (at, hashes) in hashes.iter().enumerate() {
            let Some(hash) = hashes[row] else { continue };
            if claims[at].has(&hash) {
                conflict = Conflict::Earlier;
                break;
            }
            match states[at].holder(&hash) {
                Holder::Nobody => {}
                Holder::Row(id) => {
                    conflict = Conflict::Row(id);
                    break;
                }
                Holder::Pending => return None,
            }
        }
        if conflict != Conflict::Earlier {
            let before = match conflict {
                Conflict::Row(id) => Some(id),
                _ => None,
            };
            // With several keys a conflicting row is skipped, and its other keys stay free.
            for (at, hashes) in hashes.iter().enumerate().filter(|_| before.is_none() || hashes.len() == 1) {
                if let Some(hash) = hashes[row] {
                    claims[at].take(&mut states[at], hash, before);
                }
            }
        }
        conflicts.push(conflict);
    }
    Some(conflicts)
}

impl Upsert {
    /// The proposed rows in one batch, conformed to the table.
    pub fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    /// What each proposed row meets.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// The stored rows that proposed rows meet, in order, row id last.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn existing(&self) -> Result<RecordBatch> {
        let ids: Vec<u64> = self
            .conflicts
            .iter()
            .filter_map(|conflict| match conflict {
                Conflict::Row(id) => Some(*id),
                _ => None,
            })
            .collect();
        rows_by_id(&self.table, &ids).await
    }

    /// Deletes `replaced`, which are rows of [`existing`](Self::existing), and adds `batches` in one commit,
    /// durable when this returns.
    ///
    /// # Errors
    /// As for [`Table::insert`]; `Conflict` when another upsert, which found one of the rows by another key, is about
    /// to change it.
    pub async fn commit(self, mut replaced: Vec<u64>, batches: Vec<RecordBatch>) -> Result<()> {
        replaced.sort_unstable();
        let batches = self.table.conform_all(&batches)?;
        if replaced.is_empty() && batches.is_empty() {
            return Ok(());
        }
        match self.table.stage_claimed(batches, replaced, self.keys, self.claims).await {
            Ok(change) => self.table.commit(change, Some(Turn::Upsert { _guard: self.mutation })).await,
            Err(error) => {
                if error.kind() == ErrorKind::Conflict {
                    // Whoever tries again now would meet the same one.
                    self.table.wait_for_commits().await;
                }
                Err(error)
            }
        }
    }
}
