//! Decoded columns of Lance's data files, in memory.
//!
//! A data file never changes and its name is never given again, so a column that was read from it holds for every
//! version of the table that names the file. A column stands here with all rows that the file has, at their places in
//! it, deleted ones among them: whoever reads it leaves those out. What does not fit any more goes in the order in which
//! it was used last.
//!
//! Deliberately absent: vectors, pictures and other wide or nested columns, of which a reader wants few rows; and any
//! state of which a row would depend.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arrow::array::MutableArrayData;
use arrow_array::{Array, ArrayRef, RecordBatch, make_array};
use arrow_schema::DataType;
use futures::{FutureExt, StreamExt, TryStreamExt};
use hypr_common::{Error, Result};
use lance::Dataset;
use lance::dataset::fragment::{FileFragment, FragReadConfig};
use lance_core::datatypes::Schema as LanceSchema;
use lance_table::format::Fragment;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::lance_store::lance_error;

/// Rows of a piece of a column. Each piece has buffers of its own: who counts the bytes of a batch counts whole buffers.
pub(crate) const PIECE_ROWS: usize = 8192;
/// Rows that are decoded at a time.
const DECODED_ROWS: u32 = 65_536;
/// Batches that are decoded ahead.
const AHEAD: usize = 2;
/// What a text is taken for before it was read, in bytes.
const ASSUMED_TEXT_BYTES: usize = 32;
/// Single rows that are read of a column before it is read whole.
const MISSES: u32 = 16;
/// Columns of files that are known at once.
const MOST_ENTRIES: usize = 1 << 17;

/// A column of a data file: the file's name, which is its own alone, and the number of the field in Lance.
type ColumnKey = (Arc<str>, i32);

/// The rows of a column in pieces of [`PIECE_ROWS`], the last of which may have fewer.
pub(crate) type Pieces = Arc<[ArrayRef]>;

/// The columns of one database directory that are kept.
#[derive(Debug)]
pub(crate) struct ColumnCache {
    limit_bytes: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    columns: HashMap<ColumnKey, Arc<Entry>>,
    /// Of all columns that were read.
    bytes: usize,
    /// Counts uses.
    now: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Nothing in it for a column that is too large to be kept.
    column: OnceCell<Option<Pieces>>,
    /// What [`Held::bytes`] counts of it.
    counted: AtomicUsize,
    used: AtomicU64,
    misses: AtomicU32,
}

impl Entry {
    /// Whether the column is here, or was missed often enough to be read.
    fn is_worth(&self) -> bool {
        match self.column.get() {
            Some(column) => column.is_some(),
            None => self.misses.fetch_add(1, Ordering::Relaxed) >= MISSES,
        }
    }
}

impl Held {
    /// Lets go of what was used longest ago until `is_enough`.
    fn shrink(&mut self, is_enough: impl Fn(&Self) -> bool) {
        let used = |(key, entry): (&ColumnKey, &Arc<Entry>)| (entry.used.load(Ordering::Relaxed), key.clone());
        let mut by_use: Vec<(u64, ColumnKey)> = self.columns.iter().map(used).collect();
        by_use.sort_unstable();
        for (_, key) in by_use {
            if is_enough(self) {
                break;
            }
            if let Some(gone) = self.columns.remove(&key) {
                self.bytes -= gone.counted.load(Ordering::Relaxed);
            }
        }
    }
}

/// Whether columns of this type are kept.
fn is_kept(data_type: &DataType) -> bool {
    data_type.is_primitive() || matches!(data_type, DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8)
}

/// What a field of a fragment is kept by; none where no file of it holds the field.
fn key_of(fragment: &Fragment, field: i32) -> Option<ColumnKey> {
    let file = fragment.files.iter().find(|file| file.fields.contains(&field) && file.base_id.is_none())?;
    Some((Arc::from(file.path.as_str()), field))
}

/// The numbers of the fields of `columns` in the files of `dataset`; none where one is of a type that is not kept.
pub(crate) fn kept_fields<'a>(dataset: &Dataset, columns: impl Iterator<Item = &'a str>) -> Option<Vec<i32>> {
    let number = |name: &str| {
        // By comparison: Lance reads names as paths.
        let field = dataset.schema().fields.iter().find(|field| field.name == name)?;
        is_kept(&field.data_type()).then_some(field.id)
    };
    columns.map(number).collect()
}

impl ColumnCache {
    /// Keeps at most `limit_bytes`; 0 keeps nothing.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, held: Mutex::default() }
    }

    /// The most that one column of one file may take.
    fn column_limit(&self) -> usize {
        // Offsets into texts have 31 bits.
        (self.limit_bytes / 8).min(i32::MAX as usize)
    }

    fn entry(&self, fragment: &Fragment, field: i32) -> Option<Arc<Entry>> {
        let key = key_of(fragment, field)?;
        let mut held = self.held.lock();
        held.now += 1;
        let now = held.now;
        // Files that compaction has replaced are asked for no more.
        if held.columns.len() >= MOST_ENTRIES {
            held.shrink(|held| held.columns.len() <= MOST_ENTRIES / 2);
        }
        let entry = Arc::clone(held.columns.entry(key).or_default());
        entry.used.store(now, Ordering::Relaxed);
        Some(entry)
    }

    /// True when a scan of `fields` of `fragments` had better go by columns: all are here, or `may_come` and can stay.
    pub(crate) fn admits(&self, dataset: &Dataset, fragments: &[Fragment], fields: &[i32], may_come: bool) -> bool {
        if self.limit_bytes == 0 || fields.is_empty() {
            return false;
        }
        let width = |field: &i32| {
            let data_type = dataset.schema().field_by_id(*field).map(lance_core::datatypes::Field::data_type);
            data_type.and_then(|data_type| data_type.primitive_width()).unwrap_or(ASSUMED_TEXT_BYTES)
        };
        let widths: Vec<usize> = fields.iter().map(width).collect();
        let mut missing = 0;
        let held = self.held.lock();
        for fragment in fragments {
            let rows = fragment.physical_rows.unwrap_or(0);
            for (field, width) in fields.iter().zip(&widths) {
                let Some(key) = key_of(fragment, *field) else { return false };
                match held.columns.get(&key).and_then(|entry| entry.column.get()) {
                    Some(Some(_)) => {}
                    Some(None) => return false,
                    None if !may_come => return false,
                    None => missing += rows * width,
                }
            }
        }
        missing <= self.limit_bytes / 2
    }

    /// `fields` of every row that the files of `fragment` hold; none where one of them is too large to be kept.
    ///
    /// # Errors
    /// Those of reading the files.
    pub(crate) async fn read(
        &self,
        dataset: &Arc<Dataset>,
        fragment: &Fragment,
        fields: &[i32],
    ) -> Result<Option<Vec<Pieces>>> {
        match self.entries(fragment, fields) {
            Some(entries) => self.columns(dataset, fragment, fields, &entries).await,
            None => Ok(None),
        }
    }

    /// What is known of each of `fields`; none where no file of `fragment` holds one of them.
    fn entries(&self, fragment: &Fragment, fields: &[i32]) -> Option<Vec<Arc<Entry>>> {
        fields.iter().map(|field| self.entry(fragment, *field)).collect()
    }

    async fn columns(
        &self,
        dataset: &Arc<Dataset>,
        fragment: &Fragment,
        fields: &[i32],
        entries: &[Arc<Entry>],
    ) -> Result<Option<Vec<Pieces>>> {
        let columns = fields.iter().zip(entries).map(|(field, entry)| self.column(dataset, fragment, *field, entry));
        let columns = futures::future::try_join_all(columns).await?;
        Ok(columns.into_iter().collect())
    }

    async fn column(
        &self,
        dataset: &Arc<Dataset>,
        fragment: &Fragment,
        field: i32,
        entry: &Arc<Entry>,
    ) -> Result<Option<Pieces>> {
        let mut is_new = false;
        let column = entry.column.get_or_try_init(|| {
            is_new = true;
            read_column(dataset, fragment, field, self.column_limit())
        });
        let column = column.await?.clone();
        if is_new {
            self.admit(fragment, field, entry);
        }
        Ok(column)
    }

    /// Counts what has come, and makes room.
    fn admit(&self, fragment: &Fragment, field: i32, entry: &Arc<Entry>) {
        let pieces = entry.column.get().and_then(Option::as_ref);
        let bytes = pieces.map_or(0, |pieces| pieces.iter().map(|piece| piece.get_array_memory_size()).sum());
        let Some(key) = key_of(fragment, field) else { return };
        let mut held = self.held.lock();
        // Who was let go of while it was read is not counted.
        if held.columns.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, entry)) {
            entry.counted.store(bytes, Ordering::Relaxed);
            held.bytes += bytes;
        }
        // A little more than must go, so that not every new column looks through all of them.
        if held.bytes > self.limit_bytes {
            held.shrink(|held| held.bytes <= self.limit_bytes / 10 * 9);
        }
    }

    /// `fields` of the rows at `addresses` (`fragment << 32 | offset`), in their order; none where that takes reading
    /// more than is asked for. Columns of which rows are asked for again and again are read whole.
    ///
    /// # Errors
    /// Those of reading the files.
    pub(crate) async fn take(
        &self,
        dataset: &Arc<Dataset>,
        addresses: &[u64],
        fields: &[i32],
    ) -> Result<Option<Vec<ArrayRef>>> {
        if self.limit_bytes == 0 {
            return Ok(None);
        }
        let mut numbers: Vec<u64> = addresses.iter().map(|address| address >> 32).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut of_fragments = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let fragment = fragment(dataset, *number)?;
            let entries = self.entries(fragment, fields);
            let Some(entries) = entries.filter(|entries| entries.iter().all(|entry| entry.is_worth())) else {
                return Ok(None);
            };
            let Some(columns) = self.columns(dataset, fragment, fields, &entries).await? else { return Ok(None) };
            of_fragments.push(columns);
        }
        // The pieces that the rows lie in, and where each row lies.
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        let mut known: HashMap<(usize, usize), usize> = HashMap::new();
        let mut places = Vec::with_capacity(addresses.len());
        for address in addresses {
            let offset = (*address as u32) as usize;
            let piece = (numbers.partition_point(|number| *number < address >> 32), offset / PIECE_ROWS);
            let at = *known.entry(piece).or_insert_with(|| {
                pieces.push(piece);
                pieces.len() - 1
            });
            places.push((at, offset % PIECE_ROWS));
        }
        let column = |at: usize| -> Result<ArrayRef> {
            let piece = |(fragment, piece): &(usize, usize)| {
                let found = of_fragments[*fragment][at].get(*piece);
                found.map(AsRef::as_ref).ok_or_else(|| Error::internal("a row lies behind the end of its file"))
            };
            let sources: Vec<&dyn Array> = pieces.iter().map(piece).collect::<Result<_>>()?;
            Ok(arrow_select::interleave::interleave(&sources, &places)?)
        };
        (0..fields.len()).map(column).collect::<Result<_>>().map(Some)
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

fn fragment(dataset: &Dataset, number: u64) -> Result<&Fragment> {
    let fragments = dataset.fragments();
    let found = fragments.binary_search_by_key(&number, |fragment| fragment.id).ok();
    let found = found.or_else(|| fragments.iter().position(|fragment| fragment.id == number));
    found
        .map(|at| &fragments[at])
        .ok_or_else(|| Error::internal(format!("a row lies in fragment {number}, of which there is none")))
}

/// A column of all rows of the files of `fragment`; none if it takes more than `limit` bytes.
async fn read_column(dataset: &Arc<Dataset>, fragment: &Fragment, field: i32, limit: usize) -> Result<Option<Pieces>> {
    let failed = |e| lance_error("reading a column", e);
    let projection: LanceSchema = dataset.schema().project_by_ids(&[field], true);
    let undeleted = Fragment { deletion_file: None, ..fragment.clone() };
    let fragment = FileFragment::new(Arc::clone(dataset), undeleted);
    let reader = fragment.open(&projection, FragReadConfig::default()).boxed().await.map_err(failed)?;
    let mut batches = reader.read_all(DECODED_ROWS).await.map_err(failed)?.buffered(AHEAD);
    let (mut parts, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        let part = only_column(&batch)?;
        bytes += part.to_data().get_slice_memory_size()?;
        if bytes > limit {
            return Ok(None);
        }
        parts.push(part);
    }
    let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    match parts.as_slice() {
        [] => Ok(None),
        parts => Ok(Some(cut(&arrow_select::concat::concat(parts)?))),
    }
}

fn cut(column: &ArrayRef) -> Pieces {
    let data = column.to_data();
    let piece = |from: usize| {
        let to = column.len().min(from + PIECE_ROWS);
        let mut copy = MutableArrayData::new(vec![&data], false, to - from);
        copy.extend(0, from, to);
        make_array(copy.freeze())
    };
    (0..column.len()).step_by(PIECE_ROWS).map(piece).collect()
}

fn only_column(batch: &RecordBatch) -> Result<ArrayRef> {
    match batch.columns() {
        [column] => Ok(Arc::clone(column)),
        columns => Err(Error::internal(format!("{} columns were read of one", columns.len()))),
    }
}
