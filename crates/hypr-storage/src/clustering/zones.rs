//! The extremes of the key columns in every data file of a table.
//!
//! A zone belongs to a data file and a column, and data files never change, so zones are right in every version
//! of the table. `_zones.arrow` is an Arrow IPC file with a row a zone: `file`, `column`, `nulls`, `rows`, and
//! `extremes`, itself an IPC stream with one row of `min` and `max` in the column's type. It is a cache: zones
//! that it lacks, or that cannot be read, are computed from the fragments.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, BinaryArray, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::DataType;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DataFusionError, ScalarValue};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use futures::{FutureExt, TryStreamExt};
use hypr_common::{Error, Result};
use lance::Dataset;
use lance_table::format::Fragment;
use parking_lot::Mutex;

use crate::lance_store::lance_error;
use crate::tail::TailBatch;

const FILE: &str = "_zones.arrow";

/// What is known of the values of one column in some rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Zone {
    min: ScalarValue,
    max: ScalarValue,
    nulls: u64,
    rows: u64,
}

impl Zone {
    fn of(values: &ArrayRef) -> Result<Self> {
        let extremes = || {
            let mut min = MinAccumulator::try_new(values.data_type())?;
            let mut max = MaxAccumulator::try_new(values.data_type())?;
            min.update_batch(std::slice::from_ref(values))?;
            max.update_batch(std::slice::from_ref(values))?;
            Ok((min.evaluate()?, max.evaluate()?))
        };
        let failed = |e: DataFusionError| Error::internal("the extremes of a column cannot be found").with_source(e);
        let (min, max) = extremes().map_err(failed)?;
        Ok(Self { min, max, nulls: values.null_count() as u64, rows: values.len() as u64 })
    }

    fn extend(&mut self, other: Zone) {
        if self.min.is_null() || (!other.min.is_null() && other.min < self.min) {
            self.min = other.min;
        }
        if self.max.is_null() || (!other.max.is_null() && other.max > self.max) {
            self.max = other.max;
        }
        self.nulls += other.nulls;
        self.rows += other.rows;
    }
}

type Known = HashMap<(String, String), Zone>;

/// The zones of one table.
#[derive(Debug)]
pub(crate) struct Zones {
    /// Sorted.
    columns: Vec<String>,
    path: PathBuf,
    /// Data file and column; `None` until the file of zones was read.
    known: Mutex<Option<Known>>,
    /// One reader of missing zones at a time.
    learning: tokio::sync::Mutex<()>,
}

impl Zones {
    pub(crate) fn new(columns: Vec<String>, dir: &Path) -> Self {
        Self { columns, path: dir.join(FILE), known: Mutex::default(), learning: tokio::sync::Mutex::default() }
    }

    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Learns what is missing for `dataset`. A zone that cannot be computed is left out and its fragment is read.
    pub(crate) async fn learn(&self, dataset: &Arc<Dataset>) {
        let _guard = self.learning.lock().await;
        let files: Vec<Vec<(String, String)>> = dataset.fragments().iter().map(|f| self.files(dataset, f)).collect();
        let missing: Vec<usize> = self.with_known(|known| {
            (0..files.len()).filter(|at| files[*at].iter().any(|key| !known.contains_key(key))).collect()
        });
        if missing.is_empty() {
            return;
        }
        for at in missing {
            match self.read(dataset, &dataset.fragments()[at]).await {
                Ok(zones) => self.with_known(|known| {
                    let of_column = |key: &(String, String)| zones.get(&key.1).cloned();
                    known.extend(files[at].iter().filter_map(|key| Some((key.clone(), of_column(key)?))));
                }),
                Err(error) => {
                    tracing::warn!(%error, table = %dataset.uri(), "a fragment has no zones and will be read")
                }
            }
        }
        let known = self.with_known(|known| known.clone());
        if let Err(error) = save(&self.path, &known) {
            tracing::warn!(%error, "the zones of a table are not kept; they will be computed again");
        }
    }

    /// Forgets files that `dataset`, the newest version, does not have. Readers of older versions learn them again.
    pub(crate) fn keep_for(&self, dataset: &Dataset) {
        let current: HashSet<(String, String)> =
            dataset.fragments().iter().flat_map(|fragment| self.files(dataset, fragment)).collect();
        self.with_known(|known| known.retain(|key, _| current.contains(key)));
    }

    /// The zones of the dataset's fragments, in their order.
    pub(crate) async fn of_fragments(&self, dataset: &Arc<Dataset>) -> Statistics {
        self.learn(dataset).await;
        let files = dataset.fragments().iter().map(|fragment| self.files(dataset, fragment));
        let containers = self.with_known(|known| {
            files
                .map(|files| {
                    files.into_iter().filter_map(|key| Some((key.1.clone(), known.get(&key)?.clone()))).collect()
                })
                .collect()
        });
        Statistics { containers }
    }

    /// The zones of batches in memory, in their order.
    pub(crate) fn of_batches(&self, batches: &[Arc<TailBatch>]) -> Statistics {
        let containers = batches.iter().map(|batch| batch.zones(&self.columns).clone());
        Statistics { containers: containers.collect() }
    }

    /// The data file of every key column in a fragment.
    fn files(&self, dataset: &Dataset, fragment: &Fragment) -> Vec<(String, String)> {
        let file_of = |column: &String| {
            let id = dataset.schema().field(column)?.id;
            let file = fragment.files.iter().find(|file| file.fields.contains(&id))?;
            Some((file.path.clone(), column.clone()))
        };
        self.columns.iter().filter_map(file_of).collect()
    }

    async fn read(&self, dataset: &Arc<Dataset>, fragment: &Fragment) -> Result<HashMap<String, Zone>> {
        let failed = |e| lance_error("reading the extremes of a fragment", e);
        let mut scanner = dataset.scan();
        let present: Vec<&String> = self.columns.iter().filter(|name| dataset.schema().field(name).is_some()).collect();
        scanner.project(&present).map_err(failed)?.with_fragments(vec![fragment.clone()]);
        let mut batches = scanner.try_into_stream().boxed().await.map_err(failed)?;
        let mut zones: HashMap<String, Zone> = HashMap::new();
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            for (name, zone) in zones_of(&batch, &self.columns)? {
                match zones.get_mut(&name) {
                    Some(known) => known.extend(zone),
                    None => drop(zones.insert(name, zone)),
                }
            }
        }
        Ok(zones)
    }

    fn with_known<T>(&self, read: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock();
        read(known.get_or_insert_with(|| match load(&self.path) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "the zones of a table cannot be read; they will be computed again");
                Known::new()
            }
        }))
    }
}

/// The zones of those of `columns` that the batch has.
pub(crate) fn zones_of(rows: &RecordBatch, columns: &[String]) -> Result<HashMap<String, Zone>> {
    let present = columns.iter().filter_map(|name| Some((name, rows.column_by_name(name)?)));
    present.map(|(name, values)| Ok((name.clone(), Zone::of(values)?))).collect()
}

/// Zones by column of a list of fragments or batches.
pub(crate) struct Statistics {
    containers: Vec<HashMap<String, Zone>>,
}

impl Statistics {
    fn column(&self, column: &Column, of: impl Fn(&Zone) -> ScalarValue) -> Option<ArrayRef> {
        let zone = |container: &HashMap<String, Zone>| container.get(&column.name).map(&of);
        let data_type: DataType = self.containers.iter().find_map(|container| Some(zone(container)?.data_type()))?;
        let unknown = ScalarValue::try_from(&data_type).ok()?;
        let values = self.containers.iter().map(|container| {
            // A column may have been widened since a zone was computed.
            zone(container).filter(|value| value.data_type() == data_type).unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

impl PruningStatistics for Statistics {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |zone| zone.min.clone())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |zone| zone.max.clone())
    }

    fn num_containers(&self) -> usize {
        self.containers.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |zone| ScalarValue::UInt64(Some(zone.nulls)))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.containers.iter().map(|container| container.values().next().map(|zone| zone.rows));
        Some(Arc::new(rows.collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

fn save(path: &Path, known: &Known) -> Result<()> {
    let mut rows: Vec<(&(String, String), &Zone)> = known.iter().collect();
    rows.sort_unstable_by_key(|(key, _)| *key);
    let extremes = rows.iter().map(|(_, zone)| encode(zone)).collect::<Result<Vec<_>>>()?;
    let columns: [(&str, ArrayRef); 5] = [
        ("file", Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| &key.0)))),
        ("column", Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| &key.1)))),
        ("nulls", Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, zone)| zone.nulls)))),
        ("rows", Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, zone)| zone.rows)))),
        ("extremes", Arc::new(BinaryArray::from_iter_values(extremes))),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    let bytes = writer.into_inner()?;
    let temporary = path.with_extension("tmp");
    let replace = || std::fs::write(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, path));
    replace().map_err(|e| Error::io(path.display(), e))
}

fn load(path: &Path) -> Result<Known> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Known::new()),
        Err(error) => return Err(Error::io(path.display(), error)),
    };
    let mut known = Known::new();
    for batch in FileReader::try_new(Cursor::new(bytes), None)? {
        let batch = batch?;
        let text = |at: usize| batch.column(at).as_string_opt::<i32>();
        let count = |at: usize| batch.column(at).as_primitive_opt::<UInt64Type>();
        let (Some(files), Some(columns), Some(nulls), Some(rows), Some(extremes)) =
            (text(0), text(1), count(2), count(3), batch.column(4).as_binary_opt::<i32>())
        else {
            return Err(Error::corrupted(format!("{} has unexpected columns", path.display())));
        };
        for row in 0..batch.num_rows() {
            let (min, max) = decode(extremes.value(row))?;
            let key = (files.value(row).to_owned(), columns.value(row).to_owned());
            known.insert(key, Zone { min, max, nulls: nulls.value(row), rows: rows.value(row) });
        }
    }
    Ok(known)
}

fn encode(zone: &Zone) -> Result<Vec<u8>> {
    let failed = |e| Error::internal("a zone cannot be written").with_source(e);
    let (min, max) = (zone.min.to_array().map_err(failed)?, zone.max.to_array().map_err(failed)?);
    let batch = RecordBatch::try_from_iter_with_nullable([("min", min, true), ("max", max, true)])?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

fn decode(bytes: &[u8]) -> Result<(ScalarValue, ScalarValue)> {
    let damaged = || Error::corrupted("a zone is damaged");
    let batch = StreamReader::try_new(Cursor::new(bytes), None)?.next().ok_or_else(damaged)??;
    if batch.num_columns() != 2 || batch.num_rows() != 1 {
        return Err(damaged());
    }
    let value = |at: usize| ScalarValue::try_from_array(batch.column(at), 0).map_err(|_| damaged());
    Ok((value(0)?, value(1)?))
}
