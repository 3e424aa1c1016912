//! Which row holds which key: one index for the primary key and one for each `UNIQUE` constraint.
//!
//! An index is a hash map from a 128-bit keyed hash of the key's row encoding to the row id. It is built by the
//! first writer that needs it and takes about 25 to 50 bytes of memory per row of the table. Two keys with the
//! same hash would be taken for duplicates; at 10^9 rows that has a probability of about 10^-21.
//!
//! Keys are reserved before the commit is logged and released if the log refuses it. The lock is held only
//! while the map is changed, never during a sync. Until its commit is applied a reservation is *pending*: an
//! upsert that meets a pending key waits for that commit, so that it never works on a row it cannot see.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::{Mutex, MutexGuard};

/// A key without its value.
pub(crate) type KeyHash = [u64; 2];

/// What an index keeps unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// The primary key: no NULL.
    Primary,
    /// The `UNIQUE` constraint of that name: a key with a NULL in it is never a duplicate.
    Unique(String),
}

/// The keys of one table by one list of columns.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    table: String,
    kind: KeyKind,
    /// Names and positions of the key columns.
    columns: Vec<(String, usize)>,
    converter: RowConverter,
    hashers: [RandomState; 2],
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
pub(crate) struct Keys {
    rows: HashMap<KeyHash, u64>,
    /// Deleted rows that `rows` may still name; swept together, so that a deletion costs O(1) on average.
    dead: HashSet<u64>,
    /// Ids of rows whose commits are not applied yet.
    pending: Vec<Range<u64>>,
    /// How many times keys were forgotten.
    forgotten: u64,
}

/// Whether a key that `holder` has can be taken: `None` if not, else the row to give it back to when the commit fails.
/// `claimed` is what the commit's own claim on the key says, `replaced` the rows that it deletes.
fn freed(claimed: Option<Option<u64>>, holder: u64, replaced: &[u64], dead: &HashSet<u64>) -> Option<Option<u64>> {
    match claimed {
        Some(before) => Some(before),
        None if replaced.binary_search(&holder).is_ok() => Some(Some(holder)),
        None if dead.contains(&holder) => Some(None),
        None => None,
    }
}

/// A row whose key is taken.
struct Duplicate {
    batch: usize,
    row: usize,
    /// By a row of the same statement.
    in_statement: bool,
    /// By a commit that is not applied yet.
    is_pending: bool,
}

/// What a key is taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    Row(u64),
    /// A row whose commit is not applied yet.
    Pending,
}

/// Keys taken for a commit that is not durable yet. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Reservation {
    index: Arc<KeyIndex>,
    ids: Range<u64>,
    /// The keys and the row that held each before.
    taken: Vec<(KeyHash, Option<u64>)>,
    /// Keys that the commit leaves free: an upsert claimed them and gave the row another key.
    released: Vec<KeyHash>,
}

/// The keys of rows in the form the index knows them: none for a key that has a NULL and may repeat.
pub(crate) type Hashes = Vec<Option<KeyHash>>;

impl KeyIndex {
    pub(crate) fn new(table: String, kind: KeyKind, schema: &SchemaRef, key: &[String]) -> Result<Self> {
        let mut columns = Vec::with_capacity(key.len());
        let mut sort_fields = Vec::with_capacity(key.len());
        for name in key {
            let position = schema.index_of(name)?;
            sort_fields.push(SortField::new(schema.field(position).data_type().clone()));
            columns.push((name.clone(), position));
        }
        Ok(Self {
            table,
            kind,
            columns,
            converter: RowConverter::new(sort_fields)?,
            hashers: [RandomState::new(), RandomState::new()],
            keys: Mutex::default(),
        })
    }

    /// Positions of the key columns in the table's schema.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.columns.iter().map(|(_, position)| *position).collect()
    }

    /// True for the index of these columns, in any order.
    pub(crate) fn is_on(&self, columns: &[String]) -> bool {
        columns.len() == self.columns.len() && self.columns.iter().all(|(name, _)| columns.contains(name))
    }

    /// True for the index of the constraint of that name; the primary key is called `<table>_pkey`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        match &self.kind {
            KeyKind::Primary => {
                let table = self.table.rsplit('.').next().unwrap_or(&self.table);
                name.strip_suffix("_pkey") == Some(table)
            }
            KeyKind::Unique(own) => own == name,
        }
    }

    /// Enters existing rows: key columns in order, row id last.
    ///
    /// # Errors
    /// `AlreadyExists` when two of them have the same key.
    pub(crate) fn load(&self, keys_and_id: &RecordBatch) -> Result<()> {
        let (id, keys) = keys_and_id.columns().split_last().ok_or_else(|| Error::internal("a key scan is empty"))?;
        let hashes = self.hash(keys)?;
        let ids = id.as_primitive::<UInt64Type>().values();
        let mut guard = self.keys.lock();
        for (row, (hash, id)) in hashes.into_iter().zip(ids).enumerate() {
            if let Some(hash) = hash
                && guard.rows.insert(hash, *id).is_some()
            {
                drop(guard);
                return Err(self.duplicate(keys, row, false));
            }
        }
        Ok(())
    }

    /// The keys of `batch`, which has the table's columns.
    ///
    /// # Errors
    /// `InvalidInput` for a NULL in a primary key; `before` rows of the statement come before the batch.
    pub(crate) fn hashes(&self, batch: &RecordBatch, before: usize) -> Result<Hashes> {
        let keys = self.keys_of(batch);
        if self.kind == KeyKind::Primary {
            self.refuse_null(&keys, before)?;
        }
        self.hash(&keys)
    }

    /// Takes the keys of new rows numbered from `first_row_id`. `replaced` (ascending) are rows that the
    /// same commit deletes; their keys are free. `claims` are keys taken before for this commit, `earlier` the ids
    /// of rows of the same statement that have their keys already. `is_upsert`: the commit may replace a row that
    /// another upsert found by this key and has not changed yet.
    ///
    /// # Errors
    /// `InvalidInput` for a NULL in the key, `AlreadyExists` for a key that the table or the statement has, `Conflict`
    /// for an upsert that meets another one under way.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        batches: &[RecordBatch],
        first_row_id: u64,
        replaced: &[u64],
        claims: Option<&mut Claims>,
        is_upsert: bool,
        earlier: &[Range<u64>],
    ) -> Result<Reservation> {
        let (hashed, total) = self.hashes_of(batches)?;
        let ids = first_row_id..first_row_id + total as u64;
        let mut reservation = Reservation {
            index: Arc::clone(self),
            ids: ids.clone(),
            taken: Vec::with_capacity(total),
            released: Vec::new(),
        };
        let mut nothing = HashMap::new();
        let claimed = match claims {
            Some(claims) if Arc::ptr_eq(&claims.index, self) => &mut claims.keys,
            _ => &mut nothing,
        };
        let mut next = first_row_id;
        let mut guard = self.keys.lock();
        let Keys { rows, dead, pending, .. } = &mut *guard;
        pending.push(ids.clone());
        let mut duplicate = None;
        'batches: for (at, hashes) in hashed.iter().enumerate() {
            for (row, hash) in hashes.iter().enumerate() {
                let id = next;
                next += 1;
                let Some(hash) = hash else { continue };
                match rows.entry(*hash) {
                    Entry::Vacant(entry) => {
                        entry.insert(id);
                        reservation.taken.push((*hash, None));
                    }
                    Entry::Occupied(mut entry) => {
                        let holder = *entry.get();
                        let Some(before) = freed(claimed.remove(hash), holder, replaced, dead) else {
                            let has = |ids: &Range<u64>| ids.contains(&holder);
                            duplicate = Some(Duplicate {
                                batch: at,
                                row,
                                in_statement: earlier.iter().chain([&ids]).any(has),
                                is_pending: pending.iter().any(has),
                            });
                            break 'batches;
                        };
                        entry.insert(id);
                        reservation.taken.push((*hash, before));
                    }
                }
            }
        }
        if duplicate.is_none() {
            claimed.retain(|hash, before| {
                let leaves = before.is_some_and(|id| replaced.binary_search(&id).is_ok());
                if leaves {
                    rows.insert(*hash, ids.start);
                    reservation.taken.push((*hash, *before));
                    reservation.released.push(*hash);
                }
                !leaves
            });
        }
        drop(guard);
        let Some(duplicate) = duplicate else { return Ok(reservation) };
        Err(self.refusal(&duplicate, batches, is_upsert))
    }

    /// The keys of all rows of a statement, and their number.
    fn hashes_of(&self, batches: &[RecordBatch]) -> Result<(Vec<Hashes>, usize)> {
        let (mut hashed, mut before) = (Vec::with_capacity(batches.len()), 0);
        for batch in batches {
            hashed.push(self.hashes(batch, before)?);
            before += batch.num_rows();
        }
        Ok((hashed, before))
    }

    /// Why rows cannot have their keys.
    fn refusal(&self, duplicate: &Duplicate, batches: &[RecordBatch], is_upsert: bool) -> Error {
        if is_upsert && duplicate.is_pending && !duplicate.in_statement {
            let message = format!("another statement is changing the same row of table {}; run it again", self.table);
            return Error::new(ErrorKind::Conflict, message);
        }
        self.duplicate(&self.keys_of(&batches[duplicate.batch]), duplicate.row, duplicate.in_statement)
    }

    /// The error for a duplicate key in row `row` of `batch`.
    pub(crate) fn duplicate_row(&self, batch: &RecordBatch, row: usize, in_statement: bool) -> Error {
        self.duplicate(&self.keys_of(batch), row, in_statement)
    }

    /// Forgets rows that a durable commit deleted, once no new reader sees them.
    pub(crate) fn remove(&self, row_ids: &[u64]) {
        let mut guard = self.keys.lock();
        let Keys { rows, dead, forgotten, .. } = &mut *guard;
        *forgotten += 1;
        dead.extend(row_ids);
        if dead.len() > 1024 + rows.len() / 8 {
            rows.retain(|_, id| !dead.contains(id));
            dead.clear();
        }
    }

    fn keys_of(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        self.columns.iter().map(|(_, at)| Arc::clone(batch.column(*at))).collect()
    }

    fn hash(&self, keys: &[ArrayRef]) -> Result<Hashes> {
        let rows = self.converter.convert_columns(keys)?;
        let [a, b] = &self.hashers;
        let may_be_null = self.kind != KeyKind::Primary && keys.iter().any(|key| key.null_count() > 0);
        Ok(rows
            .iter()
            .enumerate()
            .map(|(row, bytes)| {
                let null = may_be_null && keys.iter().any(|key| key.is_null(row));
                (!null).then(|| [a.hash_one(bytes.as_ref()), b.hash_one(bytes.as_ref())])
            })
            .collect())
    }

    /// The hash of one key, its values as arrays of one row in the order of [`Self::positions`].
    pub(crate) fn hash_of(&self, key: &[ArrayRef]) -> Option<KeyHash> {
        self.hash(key).ok()?.into_iter().next()?
    }

    fn refuse_null(&self, keys: &[ArrayRef], before: usize) -> Result<()> {
        for (key, (name, _)) in keys.iter().zip(&self.columns) {
            if key.null_count() > 0
                && let Some(row) = (0..key.len()).find(|&row| key.is_null(row))
            {
                let row = before + row + 1;
                return Err(Error::invalid(format!("column {name} is part of the PRIMARY KEY, got NULL in row {row}")));
            }
        }
        Ok(())
    }

    /// The error for row `row` of `keys`, whose key another row has.
    pub(crate) fn duplicate(&self, keys: &[ArrayRef], row: usize, in_statement: bool) -> Error {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let options = FormatOptions::default();
        let show = |key: &ArrayRef| match ArrayFormatter::try_new(key, &options) {
            Ok(formatter) => formatter.value(row).to_string(),
            Err(_) => "?".to_owned(),
        };
        let values: Vec<String> = keys.iter().map(show).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        let rule = match &self.kind {
            KeyKind::Primary => String::new(),
            KeyKind::Unique(name) => format!(" (constraint {name})"),
        };
        let message = if in_statement {
            format!("the statement holds key ({names}) = ({values}) twice{rule}")
        } else {
            format!(
                "a row with key ({names}) = ({values}) exists in table {}{rule}; use UPDATE to change it",
                self.table
            )
        };
        Error::new(ErrorKind::AlreadyExists, message)
    }

    /// The state, for a decision over several keys or indexes.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock()
    }
}

impl Keys {
    /// Grows whenever a key is forgotten that a reader may have seen.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Who has the key.
    pub(crate) fn holder(&self, hash: &KeyHash) -> Holder {
        match self.rows.get(hash) {
            None => Holder::Nobody,
            Some(id) if self.pending.iter().any(|range| range.contains(id)) => Holder::Pending,
            Some(id) if self.dead.contains(id) => Holder::Nobody,
            Some(id) => Holder::Row(*id),
        }
    }
}

/// Keys that an upsert took before it knew what to do with them. Dropping it gives back those that the commit
/// did not use.
#[derive(Debug)]
pub(crate) struct Claims {
    index: Arc<KeyIndex>,
    /// The id that marks the keys as ours; no row has it.
    ids: Range<u64>,
    /// The row that held each key before.
    keys: HashMap<KeyHash, Option<u64>>,
}

impl Claims {
    /// No key yet; `id` is a row id that no row gets.
    pub(crate) fn new(index: &Arc<KeyIndex>, id: u64) -> Self {
        let ids = id..id + 1;
        index.keys.lock().pending.push(ids.clone());
        Self { index: Arc::clone(index), ids, keys: HashMap::new() }
    }

    pub(crate) fn index(&self) -> &Arc<KeyIndex> {
        &self.index
    }

    /// True for a key that an earlier row of this statement took.
    pub(crate) fn has(&self, hash: &KeyHash) -> bool {
        self.keys.contains_key(hash)
    }

    /// Takes a key. `keys` is the state of this index, `before` the row that has the key.
    pub(crate) fn take(&mut self, keys: &mut Keys, hash: KeyHash, before: Option<u64>) {
        keys.rows.insert(hash, self.ids.start);
        self.keys.insert(hash, before);
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        let mut guard = self.index.keys.lock();
        let ids = self.ids.clone();
        for (hash, before) in self.keys.drain() {
            restore(&mut guard.rows, hash, before);
        }
        guard.settle(&ids);
    }
}

impl Keys {
    fn settle(&mut self, ids: &Range<u64>) {
        if let Some(at) = self.pending.iter().position(|range| range == ids) {
            self.pending.swap_remove(at);
        }
    }
}

fn restore(rows: &mut HashMap<KeyHash, u64>, hash: KeyHash, before: Option<u64>) {
    match before {
        Some(id) => rows.insert(hash, id),
        None => rows.remove(&hash),
    };
}

impl Reservation {
    /// The commit is applied: the keys stay taken.
    pub(crate) fn confirm(mut self) {
        self.taken.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut guard = self.index.keys.lock();
        if self.taken.is_empty() {
            guard.forgotten += u64::from(!self.released.is_empty());
            for hash in &self.released {
                guard.rows.remove(hash);
            }
        }
        for (hash, before) in self.taken.drain(..).rev() {
            restore(&mut guard.rows, hash, before);
        }
        guard.settle(&self.ids);
    }
}
