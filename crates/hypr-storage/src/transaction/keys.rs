//! The keys of one index that an open transaction has given to its own rows of a table, with an undo log.
//!
//! Own rows are numbered from [`OWN_ROWS`]; the key of row `OWN_ROWS + i` is `hashes[i]`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use hypr_common::{Error, Result};

use super::overlay::OWN_ROWS;
use crate::key_index::{Holder, KeyHash, KeyIndex};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct OwnKeys {
    /// Hashes with the index that is there when the transaction first needs one; another may take its place.
    index: Arc<KeyIndex>,
    rows: HashMap<KeyHash, u64>,
    hashes: Vec<Option<KeyHash>>,
    /// What a key's entry was before each change, oldest first.
    undo: Vec<(KeyHash, Option<u64>)>,
}

/// Why own rows cannot have their keys.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another row of the transaction or of the table has the key.
    Taken(Error),
    /// A commit under way has the key.
    Pending,
    /// The rows are wrong.
    Wrong(Error),
}

impl OwnKeys {
    pub(super) fn new(index: &Arc<KeyIndex>) -> Self {
        Self { index: Arc::clone(index), rows: HashMap::new(), hashes: Vec::new(), undo: Vec::new() }
    }

    /// Changes so far; a place to return to.
    pub(super) fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Takes back every change after `mark`. The numbers of rows taken back are not used again.
    pub(super) fn undo_to(&mut self, mark: usize) {
        while self.undo.len() > mark
            && let Some((hash, before)) = self.undo.pop()
        {
            match before {
                Some(row) => self.rows.insert(hash, row),
                None => self.rows.remove(&hash),
            };
        }
    }

    /// Forgets own rows from `first_row_id` on, whose keys were taken back.
    pub(super) fn truncate(&mut self, first_row_id: u64) {
        self.hashes.truncate(usize::try_from(first_row_id - OWN_ROWS).unwrap_or(usize::MAX));
    }

    /// The keys of `removed` own rows are free again.
    pub(super) fn release(&mut self, removed: &[u64]) {
        for row in removed.iter().filter(|row| **row >= OWN_ROWS) {
            let hash = usize::try_from(row - OWN_ROWS).ok().and_then(|at| self.hashes.get(at).copied()).flatten();
            if let Some(hash) = hash.filter(|hash| self.rows.get(hash) == Some(row)) {
                self.rows.remove(&hash);
                self.undo.push((hash, Some(*row)));
            }
        }
    }

    /// Gives the keys of `batches` to own rows from `first_row_id` on. `gone` says which rows of `committed`, the
    /// table's keys as they are now, the transaction has removed. Refused, some may be taken: undo them.
    pub(super) fn take(
        &mut self,
        committed: &Arc<KeyIndex>,
        batches: &[RecordBatch],
        first_row_id: u64,
        gone: impl Fn(u64) -> bool,
    ) -> Result<(), Refused> {
        let own = Arc::clone(&self.index);
        let (mut next, mut rows_before) = (first_row_id, 0);
        for batch in batches {
            let hashes = own.hashes(batch, rows_before).map_err(Refused::Wrong)?;
            let theirs = match Arc::ptr_eq(&own, committed) {
                true => hashes.clone(),
                false => committed.hashes(batch, rows_before).map_err(Refused::Wrong)?,
            };
            for (row, (hash, their_hash)) in hashes.into_iter().zip(theirs).enumerate() {
                if let (Some(hash), Some(their_hash)) = (hash, their_hash) {
                    if let Some(holder) = self.rows.get(&hash) {
                        return Err(Refused::Taken(own.duplicate_row(batch, row, *holder >= first_row_id)));
                    }
                    let holder = committed.lock().holder(&their_hash);
                    match holder {
                        Holder::Pending => return Err(Refused::Pending),
                        Holder::Row(id) if !gone(id) => {
                            return Err(Refused::Taken(committed.duplicate_row(batch, row, false)));
                        }
                        Holder::Row(_) | Holder::Nobody => {}
                    }
                    self.rows.insert(hash, next);
                    self.undo.push((hash, None));
                }
                self.hashes.push(hash);
                next += 1;
            }
            rows_before += batch.num_rows();
        }
        Ok(())
    }
}
