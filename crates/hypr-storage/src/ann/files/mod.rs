//! Indexes on disk, for columns that are too large for one in memory: Lance's own, beside the rows, in the table's
//! Lance versions.
//!
//! An index consists of *segments*, each of which covers some fragments; rows of other fragments and those of the tail
//! are compared one by one. Fragments never change, and a compaction gives its rows new addresses in new fragments, so
//! a segment stays right for as long as its rows are asked for by the addresses that the reader's snapshot has: that
//! is the mask of every search. Deleted rows, rows that were moved, and rows that a condition leaves out are therefore
//! never candidates. What the codes of an index say of distances decides only which rows are fetched and compared
//! exactly.
//!
//! [`keep`] builds segments. A segment that cannot be read is noted; searches compare every row until it is replaced.
//!
//! Deliberately absent: anything about an index that is not in its files; a table's rows are whole without them.

mod keep;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{ArrayRef, Float32Array};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use hypr_ann::{ExactScan, Metric, Neighbor, Odd};
use hypr_common::{Error, Result};
use lance::Dataset;
use lance::dataset::scanner::RowAddrMask;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::prefilter::PreFilter;
use lance_index::vector::{Query, VectorIndex};
use lance_table::format::{Fragment, IndexMetadata};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::method::{FileKind, FileParams, default_probes, lance_metric, name_of_column, refine_factor};
use super::nearest::{Effort, NearestRequest, PinnedTable};
use super::places::Places;
use super::vectors::Vectors;
use crate::evolution::physical_columns;
use crate::lance_store::lance_error;
use crate::table::{Table, TableShared};
use crate::tail::TailBatch;

pub(crate) use keep::run;

/// With no more rows than this to choose from, all of them are compared.
const FEW_ROWS: usize = 2048;

/// What an index on disk has of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStats {
    /// Which index it is.
    pub kind: FileKind,
    /// Rows in its segments.
    pub indexed_rows: usize,
    /// Rows that are compared one by one, since they are newer.
    pub new_rows: usize,
}

/// The index on disk of one column for one metric.
#[derive(Debug)]
pub(crate) struct FileIndex {
    column: usize,
    metric: Metric,
    kind: FileKind,
    params: FileParams,
    /// What Lance calls it.
    name: String,
    /// Rows without a distance.
    odd: RwLock<BTreeMap<u64, Odd>>,
    /// All rows of the snapshot it started from were looked at for them.
    odd_known: AtomicBool,
    /// Rows that were deleted since `odd` was looked through for them.
    removed: Mutex<Vec<u64>>,
    /// Segments that could not be read.
    damaged: Mutex<HashSet<Uuid>>,
    /// The Lance version that no segment could be built of.
    failed_at: AtomicU64,
    retired: AtomicBool,
}

impl FileIndex {
    /// The index of the column at `column`, now with `rows` rows of `dims` values.
    pub(super) fn new(
        table: &TableShared,
        column: usize,
        metric: Metric,
        params: FileParams,
        dims: usize,
        rows: usize,
    ) -> Self {
        let kind = params.kind(dims, rows);
        let params = FileParams { kind: Some(kind), ..params };
        Self {
            column,
            metric,
            kind,
            params,
            name: params.index_name(table.layout.ids[column], metric),
            odd: RwLock::default(),
            odd_known: AtomicBool::new(false),
            removed: Mutex::default(),
            damaged: Mutex::default(),
            failed_at: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Learns of a commit. Called under the lock of the table's tail.
    pub(super) fn applied(&self, added: &[TailBatch], removed: &[u64]) {
        for batch in added {
            match Vectors::new(&batch.rows, self.column) {
                Ok(vectors) => self.note_odd(&vectors),
                // Then nothing is known of such rows, and searches ask each of them.
                Err(_) => self.odd_known.store(false, Ordering::Release),
            }
        }
        if !removed.is_empty() {
            self.removed.lock().extend_from_slice(removed);
        }
    }

    /// Looks for rows without a distance.
    pub(super) fn note_odd(&self, vectors: &Vectors<'_>) {
        let odd: Vec<(u64, Odd)> =
            vectors.iter().filter_map(|(id, vector)| Some((id, Odd::of(self.metric, vector)?))).collect();
        if !odd.is_empty() {
            self.odd.write().extend(odd);
        }
    }

    /// Every row there was has been looked at.
    pub(super) fn odd_are_known(&self) {
        self.odd_known.store(true, Ordering::Release);
    }

    /// Forgets rows that no later reader sees.
    fn drain_removed(&self) {
        let removed = std::mem::take(&mut *self.removed.lock());
        if removed.is_empty() {
            return;
        }
        let mut odd = self.odd.write();
        for id in removed {
            odd.remove(&id);
        }
    }

    /// Shows `visible` rows without a distance until it is satisfied; false when they are not all known.
    pub(super) fn any_odd(&self, mut visible: impl FnMut(u64, Odd) -> bool) -> bool {
        let known = self.odd_known.load(Ordering::Acquire);
        if known {
            let _ = self.odd.read().iter().any(|(id, why)| visible(*id, *why));
        }
        known
    }

    /// The segments in a Lance version.
    async fn segments(&self, dataset: &Dataset) -> Result<Vec<IndexMetadata>> {
        let all = dataset.load_indices().boxed().await.map_err(|e| lance_error("listing the indexes of a table", e))?;
        Ok(all.iter().filter(|segment| segment.name == self.name).cloned().collect())
    }

    /// As [`Self::segments`], when all of them can be read, as far as that is known.
    async fn readable_segments(&self, dataset: &Dataset) -> Result<Vec<IndexMetadata>> {
        let segments = self.segments(dataset).await?;
        let damaged = self.damaged.lock();
        let readable = !segments.iter().any(|segment| damaged.contains(&segment.uuid));
        Ok(if readable { segments } else { Vec::new() })
    }

    /// What a search of `pinned` would find built; none when it compares every row.
    pub(super) async fn stats(&self, pinned: &PinnedTable) -> Result<Option<FileStats>> {
        let Some(dataset) = &pinned.snapshot.dataset else { return Ok(None) };
        let segments = self.readable_segments(dataset).await?;
        if segments.is_empty() {
            return Ok(None);
        }
        let rows = |fragment: &Fragment| fragment.num_rows().unwrap_or(0);
        let (covered, new) = split(dataset, &segments);
        let in_tail: usize = pinned.snapshot.batches.iter().map(|batch| batch.rows.num_rows()).sum();
        Ok(Some(FileStats {
            kind: self.kind,
            indexed_rows: covered.iter().map(rows).sum(),
            new_rows: new.iter().map(rows).sum::<usize>() + in_tail,
        }))
    }

    /// The nearest rows of `pinned`; none when every row has to be compared.
    pub(super) async fn search(&self, pinned: &PinnedTable, request: &NearestRequest) -> Result<Option<Vec<Neighbor>>> {
        let Some(dataset) = &pinned.snapshot.dataset else { return Ok(None) };
        let segments = self.readable_segments(dataset).await?;
        if segments.is_empty() {
            return Ok(None);
        }
        let places = pinned.places().await?;
        let search = SegmentSearch::new(self, request, &places, &segments);
        let addresses = match search.run(dataset, &self.column_name(&pinned.shared, dataset)?).await {
            Ok(addresses) => addresses,
            Err((segment, error)) => {
                self.note_damage(&pinned.shared, segment, &error);
                return Ok(None);
            }
        };
        let (_, new) = split(dataset, &segments);
        let mut best = ExactScan::new(request.metric, &request.query, request.k, request.ties);
        pinned.compare_fragments(request, new, &mut best).await?;
        pinned.compare_addresses(request.column, &addresses, &mut best).await?;
        Ok(Some(best.finish()))
    }

    fn note_damage(&self, table: &TableShared, segment: Uuid, error: &lance::Error) {
        if self.damaged.lock().insert(segment) {
            let (table, column) =
                (table.definition.qualified_name(), table.definition.columns.field(self.column).name());
            tracing::error!(
                %table, %column, index = %segment, %error,
                "the files of a vector index cannot be read; searches compare every row until it is built again"
            );
        }
    }

    /// What Lance calls the column.
    fn column_name(&self, table: &TableShared, dataset: &Dataset) -> Result<String> {
        let physical = physical_columns(dataset, &table.layout).into_iter().nth(self.column).flatten();
        physical.map(|column| column.name).ok_or_else(|| Error::internal("an indexed column has no files"))
    }
}

/// The fragments that segments cover, and the others.
fn split(dataset: &Dataset, segments: &[IndexMetadata]) -> (Vec<Fragment>, Vec<Fragment>) {
    dataset.fragments().iter().cloned().partition(|fragment| covers(segments, fragment.id as u32))
}

fn covers(segments: &[IndexMetadata], fragment: u32) -> bool {
    let covers = |segment: &IndexMetadata| {
        segment.fragment_bitmap.as_ref().is_some_and(|fragments| fragments.contains(fragment))
    };
    segments.iter().any(covers)
}

/// A search of the segments of an index for candidates.
struct SegmentSearch<'a> {
    segments: &'a [IndexMetadata],
    metric: Metric,
    query: &'a [f32],
    effort: Effort,
    /// Candidates wanted of each segment.
    candidates: usize,
    among: Among,
}

/// The rows that may be found.
enum Among {
    /// At these addresses, few enough to compare them all.
    These(Vec<u64>),
    /// In a mask, which holds this share of the rows.
    Mask(Arc<Selected>, f64),
}

impl<'a> SegmentSearch<'a> {
    fn new(index: &FileIndex, request: &'a NearestRequest, places: &Places, segments: &'a [IndexMetadata]) -> Self {
        let effort = index.params.effort(request.effort);
        let candidates = request.k.saturating_mul(refine_factor(effort)).max(1);
        let among = match &request.allowed {
            None => Among::Mask(Arc::new(Selected(places.lance_rows())), 1.0),
            Some(allowed) => {
                let mut addresses = places.addresses_of(allowed.iter());
                addresses.retain(|address| covers(segments, (address >> 32) as u32));
                let share = addresses.len() as f64 / places.lance_row_count().max(1) as f64;
                match addresses.len() <= candidates.max(FEW_ROWS) {
                    true => Among::These(addresses),
                    false => {
                        let mask = RowAddrMask::from_allowed(addresses.into_iter().collect());
                        Among::Mask(Arc::new(Selected(Arc::new(mask))), share)
                    }
                }
            }
        };
        Self { segments, metric: request.metric, query: &request.query, effort, candidates, among }
    }

    /// The addresses of rows to compare, ascending; or the segment that could not be searched.
    async fn run(self, dataset: &Dataset, column: &str) -> Result<Vec<u64>, (Uuid, lance::Error)> {
        let (mask, share) = match self.among {
            Among::These(addresses) => return Ok(addresses),
            Among::Mask(ref mask, share) => (mask, share),
        };
        let mut found: Vec<(f32, u64)> = Vec::new();
        for segment in self.segments {
            let searched = self.search_segment(dataset, column, segment, mask, share).await;
            found.extend(searched.map_err(|error| (segment.uuid, error))?);
        }
        found.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut addresses: Vec<u64> = found.into_iter().take(self.candidates).map(|(_, address)| address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    async fn search_segment(
        &self,
        dataset: &Dataset,
        column: &str,
        segment: &IndexMetadata,
        mask: &Arc<Selected>,
        share: f64,
    ) -> lance::Result<Vec<(f32, u64)>> {
        let metrics = NoOpMetricsCollector;
        let index = dataset.open_vector_index_from_metadata(column, segment, &metrics).boxed().await?;
        let partitions = index.total_partitions();
        // The neighbours that a condition leaves are spread over as many more partitions.
        let probes = self.effort.nprobes.unwrap_or_else(|| default_probes(partitions)) as f64 / share;
        let probes = (probes.ceil() as usize).clamp(1, partitions.max(1));
        let query = self.query(column, probes)?;
        let (index, query) = match Arc::clone(&index).prepare_partition_query(&query)? {
            Some(prepared) => prepared,
            None => (index, query),
        };
        let (nearest, distances) = index.find_partitions(&query)?;
        let searches = nearest.values().iter().zip(distances.values()).take(probes).map(|(partition, distance)| {
            let query = Query { dist_q_c: *distance, ..query.clone() };
            search_partition(Arc::clone(&index), *partition as usize, query, Arc::clone(mask))
        });
        let found: Vec<Vec<(f32, u64)>> =
            stream::iter(searches.collect::<Vec<_>>()).buffered(CONCURRENT_PARTITIONS).try_collect().await?;
        Ok(found.concat())
    }

    fn query(&self, column: &str, probes: usize) -> lance::Result<Query> {
        let key: ArrayRef = match self.metric {
            Metric::Cosine => {
                let norm = self.query.iter().map(|value| value * value).sum::<f32>().sqrt();
                Arc::new(Float32Array::from_iter_values(self.query.iter().map(|value| value / norm)))
            }
            Metric::L2 | Metric::InnerProduct => Arc::new(Float32Array::from(self.query.to_vec())),
        };
        Ok(Query {
            column: column.to_owned(),
            key,
            k: self.candidates,
            lower_bound: None,
            upper_bound: None,
            minimum_nprobes: probes,
            maximum_nprobes: Some(probes),
            search_effort: 0.5,
            ef: Some(self.effort.ef_search.unwrap_or(0).max(self.candidates)),
            refine_factor: None,
            metric_type: Some(lance_metric(self.metric).try_into()?),
            use_index: true,
            query_parallelism: 1,
            dist_q_c: 0.0,
            approx_mode: Default::default(),
        })
    }
}

/// Partitions searched at a time: while one is computed, others are read.
const CONCURRENT_PARTITIONS: usize = 4;

/// Candidates of one partition, with what its codes say of their distance.
async fn search_partition(
    index: Arc<dyn VectorIndex>,
    partition: usize,
    query: Query,
    mask: Arc<Selected>,
) -> lance::Result<Vec<(f32, u64)>> {
    let batch = index.search_in_partition(partition, &query, mask, &NoOpMetricsCollector).boxed().await?;
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| lance::Error::internal(format!("an index gave no column {name}")))
    };
    let distances = column("_distance")?.as_primitive::<Float32Type>();
    let addresses = column("_rowid")?.as_primitive::<UInt64Type>();
    Ok(distances.values().iter().copied().zip(addresses.values().iter().copied()).collect())
}

/// The rows that a search may find, by address.
struct Selected(Arc<RowAddrMask>);

#[async_trait]
impl PreFilter for Selected {
    async fn wait_for_ready(&self) -> lance::Result<()> {
        Ok(())
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn mask(&self) -> Arc<RowAddrMask> {
        Arc::clone(&self.0)
    }

    fn filter_row_ids<'a>(&self, row_ids: Box<dyn Iterator<Item = &'a u64> + 'a>) -> Vec<u64> {
        self.0.selected_indices(row_ids)
    }
}

impl Table {
    /// The names of the Lance indexes in the newest flushed version of the table, one for each segment.
    ///
    /// # Errors
    /// Those of reading the version.
    pub async fn lance_indexes(&self) -> Result<Vec<String>> {
        let Some((dataset, _)) = self.shared.tail.lock().flushed() else { return Ok(Vec::new()) };
        let all = dataset.load_indices().boxed().await.map_err(|e| lance_error("listing the indexes of a table", e))?;
        Ok(all.iter().map(|segment| segment.name.clone()).collect())
    }
}

/// True for the name of a Lance index that is ours, of the column and metric.
pub(super) fn is_of_column(name: &str, column_id: u32, metric: Metric) -> bool {
    name.starts_with(&name_of_column(column_id, metric))
}
