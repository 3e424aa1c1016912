//! The nearest rows of one snapshot.

use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_ann::{ExactScan, Index, IndexStats, Metric, Neighbor, Odd, RowSet, Search};
use hypr_common::{Error, Result};
use lance_table::format::Fragment;

use super::column::ColumnIndex;
use super::files::FileStats;
use super::places::Places;
use super::vectors::{Vectors, width};
use super::{IndexLimits, upkeep};
use crate::lance_store::scan_error;
use crate::scan::{self, ScanRequest};
use crate::table::{Table, TableShared};
use crate::tail::Snapshot;

/// Rows that are fetched from Lance at a time.
const TAKEN_ROWS: usize = 4096;

/// How much a search looks at: more finds more of the true neighbours, and takes longer. Where none is given, what the
/// index was declared with counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Candidates that a walk of a graph considers.
    pub ef_search: Option<usize>,
    /// Partitions of an index on disk that are searched.
    pub nprobes: Option<usize>,
    /// Candidates of an index on disk that are compared exactly, for each row wanted.
    pub refine_factor: Option<usize>,
}

impl Effort {
    /// This, and where it does not say `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            ef_search: self.ef_search.or(other.ef_search),
            nprobes: self.nprobes.or(other.nprobes),
            refine_factor: self.refine_factor.or(other.refine_factor),
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = [("ef_search", self.ef_search), ("nprobes", self.nprobes), ("refine_factor", self.refine_factor)];
        given.into_iter().try_for_each(|(name, value)| match value {
            Some(value) => write!(f, ", {name}={value}"),
            None => Ok(()),
        })
    }
}

/// Which rows are wanted.
#[derive(Clone, Debug)]
pub struct NearestRequest {
    /// Position of a `VECTOR(n)` column in [`Table::schema`].
    pub column: usize,
    /// `[n]`, finite; not zero for the cosine.
    pub query: Vec<f32>,
    /// What near means.
    pub metric: Metric,
    /// Rows wanted.
    pub k: usize,
    /// The only rows to consider.
    pub allowed: Option<Arc<RowSet>>,
    /// How much is looked at.
    pub effort: Effort,
    /// Adds rows beyond `k` that are as near as the last.
    pub ties: bool,
}

impl NearestRequest {
    /// The `k` rows nearest to `query`.
    pub fn new(column: usize, metric: Metric, query: Vec<f32>, k: usize) -> Self {
        Self { column, query, metric, k, allowed: None, effort: Effort::default(), ties: false }
    }
}

/// How a search would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchPath {
    /// In an index in memory.
    Index(IndexStats),
    /// In an index on disk.
    Files(FileStats),
    /// By comparing every row, since the index is still being built.
    Building,
    /// By comparing every row, since there is no index.
    Scan,
}

impl SearchPath {
    /// False when every row is compared.
    pub fn is_indexed(&self) -> bool {
        matches!(self, Self::Index(_) | Self::Files(_))
    }
}

impl fmt::Display for SearchPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(stats) => write!(f, "index: graph_rows={}, new_rows={}", stats.graph_rows, stats.pending_rows),
            Self::Files(stats) => {
                let (kind, rows, new_rows) = (stats.kind.name(), stats.indexed_rows, stats.new_rows);
                write!(f, "index: {kind}, rows={rows}, new_rows={new_rows}")
            }
            Self::Building => f.write_str("every row: the index is being built"),
            Self::Scan => f.write_str("every row: no index"),
        }
    }
}

/// One state of a table, for several questions that must agree.
#[derive(Clone, Debug)]
pub struct PinnedTable {
    pub(crate) shared: Arc<TableShared>,
    pub(crate) snapshot: Arc<Snapshot>,
    limits: IndexLimits,
}

impl Table {
    /// The table as it is now.
    pub fn pin(&self) -> PinnedTable {
        PinnedTable { shared: Arc::clone(&self.shared), snapshot: self.shared.snapshot(), limits: self.limits.index }
    }

    /// The table as it was at `snapshot`.
    pub(crate) fn pin_at(&self, snapshot: Arc<Snapshot>) -> PinnedTable {
        PinnedTable { shared: Arc::clone(&self.shared), snapshot, limits: self.limits.index }
    }

    /// The nearest rows as of now; see [`PinnedTable::nearest`].
    ///
    /// # Errors
    /// As [`PinnedTable::nearest`].
    pub async fn nearest(&self, request: &NearestRequest) -> Result<Vec<Neighbor>> {
        self.pin().nearest(request).await
    }

    /// Does all upkeep of the indexes in memory that is due, and waits for builds under way.
    ///
    /// # Errors
    /// The first failure.
    pub async fn settle_indexes(&self) -> Result<()> {
        for index in self.shared.vectors.graphs() {
            let _working = index.working.lock().await;
            upkeep::settle(&index, self.limits.index).await?;
        }
        Ok(())
    }
}

impl PinnedTable {
    /// The columns, without the row id.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shared.definition.columns)
    }

    /// A plan over the pinned rows; see [`Table::scan`].
    ///
    /// # Errors
    /// As [`Table::scan`].
    pub async fn scan(&self, partitions: usize, request: ScanRequest) -> Result<Arc<dyn ExecutionPlan>> {
        scan::plan_snapshot(&self.shared, Arc::clone(&self.snapshot), partitions, request).await
    }

    /// Values of a vector of the `VECTOR(n)` column at `column`.
    ///
    /// # Errors
    /// `InvalidInput` for a column that does not fit.
    pub fn vector_width(&self, column: usize) -> Result<usize> {
        let schema = &self.shared.definition.columns;
        let field = schema.fields().get(column).ok_or_else(|| {
            Error::invalid(format!("the table has {} columns, not {}", schema.fields().len(), column + 1))
        })?;
        width(field)
    }

    /// The table's name with its schema.
    pub(crate) fn name(&self) -> String {
        self.shared.definition.qualified_name()
    }

    pub(crate) async fn places(&self) -> Result<Places> {
        Places::of(&self.snapshot, &self.shared.vectors.row_maps).await
    }

    /// The rows nearest to a vector, ascending by distance, then row id; rows whose distance is NULL are not among
    /// them. Distances are exact. From an index the rows are the nearest with a high probability, otherwise they are.
    ///
    /// The first request for a column and metric starts an index, which is loaded in the background when the table
    /// is large.
    ///
    /// # Errors
    /// `InvalidInput` for a column or query that does not fit.
    pub async fn nearest(&self, request: &NearestRequest) -> Result<Vec<Neighbor>> {
        self.check(request)?;
        let index = self.index(request.column, request.metric).await?;
        let index = match index {
            Some(ColumnIndex::Graph(graph)) => graph.searchable(),
            Some(ColumnIndex::Files(files)) => match files.search(self, request).await? {
                Some(found) => return Ok(found),
                None => None,
            },
            None => None,
        };
        let Some(index) = index else {
            return self.compare_all(request).await;
        };
        let places = self.places().await?;
        index.search(&Search {
            query: &request.query,
            k: request.k,
            ef: request.effort.ef_search,
            allowed: request.allowed.as_deref(),
            live: &|id| places.find(id).is_some(),
            ties: request.ties,
        })
    }

    /// Which kinds of rows without a distance there may be. Without an index that is not known, and all are.
    ///
    /// # Errors
    /// `InvalidInput` for a column that does not fit.
    pub async fn odd_rows(&self, column: usize, metric: Metric, allowed: Option<&RowSet>) -> Result<Vec<Odd>> {
        let places = self.places().await?;
        let mut kinds = Vec::new();
        let note = |id, why| {
            let is_new = !kinds.contains(&why)
                && allowed.is_none_or(|allowed| allowed.contains(id))
                && places.find(id).is_some();
            if is_new {
                kinds.push(why);
            }
            kinds.len() == 3
        };
        let known = match self.index(column, metric).await? {
            Some(ColumnIndex::Graph(graph)) => graph.searchable().map(|index| index.any_odd(note)).is_some(),
            Some(ColumnIndex::Files(files)) => files.any_odd(note),
            None => false,
        };
        Ok(if known { kinds } else { vec![Odd::Null, Odd::Undefined, Odd::NotFinite] })
    }

    /// How a search would go, and starts an index as the search would.
    ///
    /// # Errors
    /// `InvalidInput` for a column that does not fit.
    pub async fn search_path(&self, column: usize, metric: Metric) -> Result<SearchPath> {
        let index = self.index(column, metric).await?;
        Ok(match index {
            Some(ColumnIndex::Graph(graph)) => match graph.searchable() {
                Some(index) => SearchPath::Index(index.stats()),
                None => SearchPath::Building,
            },
            Some(ColumnIndex::Files(files)) => match files.stats(self).await? {
                Some(stats) => SearchPath::Files(stats),
                None => SearchPath::Building,
            },
            None => SearchPath::Scan,
        })
    }

    async fn index(&self, column: usize, metric: Metric) -> Result<Option<ColumnIndex>> {
        upkeep::ensure(&self.shared, column, metric, self.limits).await
    }

    fn check(&self, request: &NearestRequest) -> Result<()> {
        self.shared.refuse_unreadable()?;
        Index::check_query(request.metric, self.vector_width(request.column)?, &request.query)
    }

    /// Without an index.
    async fn compare_all(&self, request: &NearestRequest) -> Result<Vec<Neighbor>> {
        let projection = Some(vec![request.column]);
        let scan = ScanRequest { projection, with_row_id: true, ..ScanRequest::default() };
        let plan = self.scan(1, scan).await?;
        let mut best = ExactScan::new(request.metric, &request.query, request.k, request.ties);
        compare(plan, request, &mut best).await?;
        Ok(best.finish())
    }

    /// Compares the rows of some fragments and of the tail.
    pub(super) async fn compare_fragments(
        &self,
        request: &NearestRequest,
        fragments: Vec<Fragment>,
        best: &mut ExactScan<'_>,
    ) -> Result<()> {
        let snapshot = Arc::clone(&self.snapshot);
        let plan = scan::plan_fragments(&self.shared, snapshot, fragments, vec![request.column]).await?;
        compare(plan, request, best).await
    }

    /// Compares the rows at addresses in Lance.
    pub(super) async fn compare_addresses(
        &self,
        column: usize,
        addresses: &[u64],
        best: &mut ExactScan<'_>,
    ) -> Result<()> {
        for addresses in addresses.chunks(TAKEN_ROWS) {
            consider(&self.take_lance(addresses, &[column], true).await?, None, best)?;
        }
        Ok(())
    }
}

/// Compares the rows of a plan, whose columns are vectors and row ids.
async fn compare(plan: Arc<dyn ExecutionPlan>, request: &NearestRequest, best: &mut ExactScan<'_>) -> Result<()> {
    let context = SessionContext::new();
    let failed = |e| scan_error("comparing the rows of a table", e);
    let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
    while let Some(batch) = rows.try_next().await.map_err(failed)? {
        consider(&batch, request.allowed.as_deref(), best)?;
    }
    Ok(())
}

/// Compares rows, given as vectors and row ids.
fn consider(rows: &RecordBatch, allowed: Option<&RowSet>, best: &mut ExactScan<'_>) -> Result<()> {
    for (id, vector) in Vectors::new(rows, 0)?.iter() {
        if let Some(vector) = vector
            && allowed.is_none_or(|allowed| allowed.contains(id))
        {
            best.consider(id, vector);
        }
    }
    Ok(())
}
