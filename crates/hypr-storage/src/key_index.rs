//! Which row holds which primary key.
//!
//! A hash map from a 128-bit keyed hash of the key's row encoding to the row id. It is built by the first
//! writer that needs it and takes about 25 to 50 bytes of memory per row of the table. Two keys with the
//! same hash would be taken for duplicates; at 10^9 rows that has a probability of about 10^-21.
//!
//! Keys are reserved before the commit is logged and released if the log refuses it. The lock is held only
//! while the map is changed, never during a sync.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

type KeyHash = [u64; 2];

/// The keys of one table.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    table: String,
    /// Names and positions of the key columns.
    columns: Vec<(String, usize)>,
    converter: RowConverter,
    hashers: [RandomState; 2],
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    rows: HashMap<KeyHash, u64>,
    /// Deleted rows that `rows` may still name; swept together, so that a deletion costs O(1) on average.
    dead: HashSet<u64>,
}

/// Keys taken for a commit that is not durable yet. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Reservation {
    index: Arc<KeyIndex>,
    /// The keys and the row that held each before.
    taken: Vec<(KeyHash, Option<u64>)>,
}

impl KeyIndex {
    pub(crate) fn new(table: String, schema: &SchemaRef, primary_key: &[String]) -> Result<Self> {
        let mut columns = Vec::with_capacity(primary_key.len());
        let mut sort_fields = Vec::with_capacity(primary_key.len());
        for name in primary_key {
            let position = schema.index_of(name)?;
            sort_fields.push(SortField::new(schema.field(position).data_type().clone()));
            columns.push((name.clone(), position));
        }
        Ok(Self {
            table,
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

    /// Enters existing rows: key columns in order, row id last.
    pub(crate) fn load(&self, keys_and_id: &RecordBatch) -> Result<()> {
        let (id, keys) = keys_and_id.columns().split_last().ok_or_else(|| Error::internal("a key scan is empty"))?;
        let hashes = self.hash(keys)?;
        let ids = id.as_primitive::<UInt64Type>().values();
        self.keys.lock().rows.extend(hashes.into_iter().zip(ids.iter().copied()));
        Ok(())
    }

    /// Takes the keys of new rows numbered from `first_row_id`. `replaced` (ascending) are rows that the
    /// same commit deletes; their keys are free.
    ///
    /// # Errors
    /// `InvalidInput` for a NULL in the key, `AlreadyExists` for a key that the table or the statement has.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        batches: &[RecordBatch],
        first_row_id: u64,
        replaced: &[u64],
    ) -> Result<Reservation> {
        let mut hashed = Vec::with_capacity(batches.len());
        let mut before = 0;
        for batch in batches {
            let keys: Vec<ArrayRef> = self.columns.iter().map(|(_, at)| Arc::clone(batch.column(*at))).collect();
            self.refuse_null(&keys, before)?;
            hashed.push((self.hash(&keys)?, keys));
            before += batch.num_rows();
        }
        let mut reservation = Reservation { index: Arc::clone(self), taken: Vec::with_capacity(before) };
        let mut next = first_row_id;
        let mut guard = self.keys.lock();
        let Keys { rows, dead } = &mut *guard;
        let mut duplicate = None;
        'batches: for (hashes, keys) in &hashed {
            for (row, hash) in hashes.iter().enumerate() {
                match rows.entry(*hash) {
                    Entry::Vacant(entry) => {
                        entry.insert(next);
                        reservation.taken.push((*hash, None));
                    }
                    Entry::Occupied(mut entry) if replaced.binary_search(entry.get()).is_ok() => {
                        let before = entry.insert(next);
                        reservation.taken.push((*hash, Some(before)));
                    }
                    Entry::Occupied(mut entry) if dead.contains(entry.get()) => {
                        entry.insert(next);
                        reservation.taken.push((*hash, None));
                    }
                    Entry::Occupied(entry) => {
                        duplicate = Some((keys, row, *entry.get() >= first_row_id && *entry.get() < next));
                        break 'batches;
                    }
                }
                next += 1;
            }
        }
        drop(guard);
        match duplicate {
            None => Ok(reservation),
            Some((keys, row, in_statement)) => Err(self.duplicate(keys, row, in_statement)),
        }
    }

    /// Forgets rows that a durable commit deleted.
    pub(crate) fn remove(&self, row_ids: &[u64]) {
        let mut guard = self.keys.lock();
        let Keys { rows, dead } = &mut *guard;
        dead.extend(row_ids);
        if dead.len() > 1024 + rows.len() / 8 {
            rows.retain(|_, id| !dead.contains(id));
            dead.clear();
        }
    }

    fn hash(&self, keys: &[ArrayRef]) -> Result<Vec<KeyHash>> {
        let rows = self.converter.convert_columns(keys)?;
        let [a, b] = &self.hashers;
        Ok(rows.iter().map(|row| [a.hash_one(row.as_ref()), b.hash_one(row.as_ref())]).collect())
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

    fn duplicate(&self, keys: &[ArrayRef], row: usize, in_statement: bool) -> Error {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let options = FormatOptions::default();
        let show = |key: &ArrayRef| match ArrayFormatter::try_new(key, &options) {
            Ok(formatter) => formatter.value(row).to_string(),
            Err(_) => "?".to_owned(),
        };
        let values: Vec<String> = keys.iter().map(show).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        let message = if in_statement {
            format!("the statement holds key ({names}) = ({values}) twice")
        } else {
            format!("a row with key ({names}) = ({values}) exists in table {}; use UPDATE to change it", self.table)
        };
        Error::new(ErrorKind::AlreadyExists, message)
    }
}

impl Reservation {
    /// The commit is durable: the keys stay taken.
    pub(crate) fn confirm(mut self) {
        self.taken.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let rows = &mut self.index.keys.lock().rows;
        for (hash, before) in self.taken.drain(..).rev() {
            match before {
                Some(id) => rows.insert(hash, id),
                None => rows.remove(&hash),
            };
        }
    }
}
