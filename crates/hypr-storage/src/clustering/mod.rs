//! Clustered tables: rows that are near in the cluster key lie in the same few fragments, and a scan reads only
//! the fragments, and the batches of the tail, that can hold what its filters ask for.
//!
//! A flush and a compaction sort their rows by the key and cut them into fragments of at least
//! [`StorageOptions::clustered_fragment_rows`](crate::StorageOptions::clustered_fragment_rows) where the key
//! changes. The extremes of every key column in every data file are kept in memory and in `_zones.arrow` beside
//! the table (see [`zones`]).
//!
//! Invariant: zones only ever leave out fragments; what they do not know is read. Deletions leave them true,
//! because extremes of more rows are extremes.
//! Deliberately absent: moving rows that are written already; fragments that overlap after late rows are joined
//! by compaction only while they are small.

mod zones;

use std::path::Path;
use std::sync::Arc;

use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, partition, take_record_batch};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Schema, TimeUnit};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use hypr_common::{Error, Result};
use lance::Dataset;
use lance_table::format::Fragment;
use serde::{Deserialize, Serialize};

use crate::catalog::TableDefinition;
use crate::scan::unqualified;
use crate::tail::TailBatch;
use zones::Zones;
pub(crate) use zones::{Zone, zones_of};

/// The option of a table that holds its cluster key: a JSON list of [`ClusterKey`].
pub const CLUSTERING_OPTION: &str = "clustering";

/// One column of a cluster key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    /// The column.
    pub column: String,
    /// Width in nanoseconds of the time buckets to sort by; `None` sorts by the value. Buckets begin at the Unix
    /// epoch: where they begin matters for nothing but which rows are neighbours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_ns: Option<i64>,
}

/// How the rows of one table are laid out, and what is known of its files.
#[derive(Debug)]
pub(crate) struct Clustering {
    keys: Vec<ClusterKey>,
    zones: Zones,
}

impl Clustering {
    /// The clustering of a table; none when its definition says nothing of it, or names columns it has no more.
    pub(crate) fn of(definition: &TableDefinition, dir: &Path) -> Option<Self> {
        let mut keys: Vec<ClusterKey> = serde_json::from_str(definition.options.get(CLUSTERING_OPTION)?).ok()?;
        keys.retain(|key| {
            definition.columns.field_with_name(&key.column).is_ok_and(|field| is_key_type(field.data_type()))
        });
        let mut columns: Vec<String> = keys.iter().map(|key| key.column.clone()).collect();
        columns.sort_unstable();
        columns.dedup();
        (!keys.is_empty()).then(|| Self { keys, zones: Zones::new(columns, dir) })
    }

    /// The rows sorted by the key, in the groups that become fragments. The last column must be the row id.
    pub(crate) fn arrange(&self, rows: &[RecordBatch], fragment_rows: usize) -> Result<Vec<RecordBatch>> {
        let Some(first) = rows.first() else { return Ok(Vec::new()) };
        let all = concat_batches(&first.schema(), rows)?;
        let options = Some(SortOptions { descending: false, nulls_first: true });
        let mut columns = Vec::with_capacity(self.keys.len() + 2);
        for key in &self.keys {
            columns.push(SortColumn { values: sort_values(&all, key)?, options });
        }
        if let Some(last) = self.keys.last().filter(|key| key.bucket_ns.is_some())
            && let Some(values) = all.column_by_name(&last.column)
        {
            columns.push(SortColumn { values: Arc::clone(values), options });
        }
        // Rows of one key keep the order they came in.
        columns.push(SortColumn { values: Arc::clone(all.column(all.num_columns() - 1)), options });
        let order = lexsort_to_indices(&columns, None)?;
        let sorted = take_record_batch(&all, &order)?;
        let leading = arrow::compute::take(&columns[0].values, &order, None)?;
        let mut cuts = cuts(&partition(&[leading])?.ranges(), fragment_rows.max(1));
        let end = cuts.split_off(1);
        Ok(cuts
            .into_iter()
            .chain(end.iter().copied())
            .zip(end.iter().copied())
            .map(|(a, b)| sorted.slice(a, b - a))
            .collect())
    }

    /// Learns the zones of the fragments of `dataset` that are not known yet, and forgets files it does not have.
    pub(crate) async fn learn(&self, dataset: &Arc<Dataset>) {
        self.zones.learn(dataset).await;
        self.zones.keep_for(dataset);
    }

    /// The fragments and tail batches that can hold rows for which all of `filters` are true. A filter that cannot
    /// be compared with zones leaves nothing out.
    pub(crate) async fn prune(
        &self,
        schema: &Schema,
        filters: &[Expr],
        dataset: Option<&Arc<Dataset>>,
        batches: &[Arc<TailBatch>],
    ) -> (Vec<Fragment>, Vec<Arc<TailBatch>>) {
        let fragments = dataset.map(|dataset| dataset.fragments().to_vec()).unwrap_or_default();
        match self.kept(schema, filters, dataset, batches).await {
            Ok(Some((kept_fragments, kept_batches))) => (
                fragments.into_iter().zip(kept_fragments).filter_map(|(f, kept)| kept.then_some(f)).collect(),
                batches.iter().zip(kept_batches).filter(|(_, kept)| *kept).map(|(b, _)| Arc::clone(b)).collect(),
            ),
            Ok(None) => (fragments, batches.to_vec()),
            Err(error) => {
                tracing::debug!(%error, "a filter cannot be compared with the zones of a table");
                (fragments, batches.to_vec())
            }
        }
    }

    /// For each fragment and each batch whether it must be read; `None` where the filters say nothing of the key.
    async fn kept(
        &self,
        schema: &Schema,
        filters: &[Expr],
        dataset: Option<&Arc<Dataset>>,
        batches: &[Arc<TailBatch>],
    ) -> Result<Option<(Vec<bool>, Vec<bool>)>, DataFusionError> {
        let relevant = filters.iter().filter(|filter| self.is_on_key(filter)).cloned().map(unqualified);
        let Some(filter) = conjunction(relevant) else { return Ok(None) };
        let columns = schema.project(&self.positions(schema))?;
        let filter = create_physical_expr(&filter, &DFSchema::try_from(columns.clone())?, &ExecutionProps::new())?;
        let predicate = PruningPredicate::try_new(filter, Arc::new(columns))?;
        if predicate.always_true() {
            return Ok(None);
        }
        let fragments = match dataset {
            Some(dataset) => predicate.prune(&self.zones.of_fragments(dataset).await)?,
            None => Vec::new(),
        };
        Ok(Some((fragments, predicate.prune(&self.zones.of_batches(batches))?)))
    }

    fn positions(&self, schema: &Schema) -> Vec<usize> {
        self.zones.columns().iter().filter_map(|column| schema.index_of(column).ok()).collect()
    }

    fn is_on_key(&self, filter: &Expr) -> bool {
        let columns = filter.column_refs();
        !columns.is_empty() && columns.iter().all(|column| self.zones.columns().contains(&column.name))
    }
}

/// Types that have an order and a cheap extreme.
fn is_key_type(data_type: &DataType) -> bool {
    data_type.is_numeric()
        || data_type.is_temporal()
        || matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean)
}

/// The values of a key, as buckets if it has a width.
fn sort_values(rows: &RecordBatch, key: &ClusterKey) -> Result<ArrayRef> {
    let values = rows
        .column_by_name(&key.column)
        .ok_or_else(|| Error::internal(format!("column \"{}\" of a cluster key is missing", key.column)))?;
    let Some(width) = key.bucket_ns.filter(|width| *width > 0) else { return Ok(Arc::clone(values)) };
    let instants = match values.data_type() {
        // What lies outside of the years 1677 to 2262 is in no bucket; it is sorted by value after this key.
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            cast(values, &DataType::Timestamp(TimeUnit::Nanosecond, None))?
        }
        _ => return Ok(Arc::clone(values)),
    };
    let instants = instants.as_primitive::<TimestampNanosecondType>();
    let buckets: Int64Array = instants.unary::<_, Int64Type>(|instant| instant.div_euclid(width));
    Ok(Arc::new(buckets))
}

/// Where fragments begin and end: at changes of the leading key once `fragment_rows` are reached; a run of one
/// key that is longer is cut where it reaches them. The last one takes up a remainder of less than half.
fn cuts(runs: &[std::ops::Range<usize>], fragment_rows: usize) -> Vec<usize> {
    let total = runs.last().map_or(0, |run| run.end);
    let mut cuts = vec![0];
    let mut start = 0;
    for run in runs {
        if run.end - start < fragment_rows {
            continue;
        }
        // A long run in pieces of the target size, the change of the key before it apart.
        if run.len() >= 2 * fragment_rows {
            if run.start - start > fragment_rows / 2 {
                cuts.push(run.start);
                start = run.start;
            }
            while run.end - start >= 2 * fragment_rows {
                start += fragment_rows;
                cuts.push(start);
            }
        }
        if run.end - start >= fragment_rows {
            cuts.push(run.end);
            start = run.end;
        }
    }
    if start < total {
        if cuts.len() > 1 && total - start < fragment_rows / 2 {
            cuts.pop();
        }
        cuts.push(total);
    }
    cuts
}

#[cfg(test)]
mod tests;
