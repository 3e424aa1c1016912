//! The nearest rows of one snapshot.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use hypr_ann::{ExactScan, Index, IndexStats, Metric, Neighbor, Odd, RowSet, Search};
use hypr_common::{Error, Result};

use super::column::ColumnIndex;
use super::places::Places;
use super::vectors::{Vectors, width};
use super::{IndexLimits, upkeep};
use crate::scan::{self, ScanRequest};
use crate::table::{Table, TableShared};
use crate::tail::Snapshot;

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
    /// Candidates that a walk of the graph considers; more find more of the true neighbours. The default of the index
    /// if none.
    pub ef: Option<usize>,
    /// Adds rows beyond `k` that are as near as the last.
    pub ties: bool,
}

impl NearestRequest {
    /// The `k` rows nearest to `query`.
    pub fn new(column: usize, metric: Metric, query: Vec<f32>, k: usize) -> Self {
        Self { column, query, metric, k, allowed: None, ef: None, ties: false }
    }
}

/// How a search would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchPath {
    /// In an index in memory.
    Index(IndexStats),
    /// By comparing every row, since the index is still being built.
    Building,
    /// By comparing every row, since there is no index.
    Scan,
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

    /// Does all upkeep of the indexes that is due, and waits for builds under way.
    ///
    /// # Errors
    /// The first failure.
    pub async fn settle_indexes(&self) -> Result<()> {
        for (_, index) in self.shared.vectors.all() {
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

    pub(super) async fn places(&self) -> Result<Places> {
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
        let Some(index) = index.and_then(|index| index.searchable()) else {
            return self.compare_all(request).await;
        };
        let places = self.places().await?;
        index.search(&Search {
            query: &request.query,
            k: request.k,
            ef: request.ef,
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
        let index = self.index(column, metric).await?;
        let Some(index) = index.and_then(|index| index.searchable()) else {
            return Ok(vec![Odd::Null, Odd::Undefined, Odd::NotFinite]);
        };
        if index.stats().odd_rows == 0 {
            return Ok(Vec::new());
        }
        let places = self.places().await?;
        let mut kinds = Vec::new();
        index.any_odd(|id, why| {
            let is_new = !kinds.contains(&why)
                && allowed.is_none_or(|allowed| allowed.contains(id))
                && places.find(id).is_some();
            if is_new {
                kinds.push(why);
            }
            kinds.len() == 3
        });
        Ok(kinds)
    }

    /// How a search would go, and starts an index as the search would.
    ///
    /// # Errors
    /// `InvalidInput` for a column that does not fit.
    pub async fn search_path(&self, column: usize, metric: Metric) -> Result<SearchPath> {
        let index = self.index(column, metric).await?;
        Ok(match index.map(|index| index.searchable()) {
            Some(Some(index)) => SearchPath::Index(index.stats()),
            Some(None) => SearchPath::Building,
            None => SearchPath::Scan,
        })
    }

    async fn index(&self, column: usize, metric: Metric) -> Result<Option<Arc<ColumnIndex>>> {
        upkeep::ensure(&self.shared, column, metric, self.limits).await
    }

    fn check(&self, request: &NearestRequest) -> Result<()> {
        self.shared.refuse_unreadable()?;
        let schema = &self.shared.definition.columns;
        let field = schema.fields().get(request.column).ok_or_else(|| {
            Error::invalid(format!("the table has {} columns, not {}", schema.fields().len(), request.column + 1))
        })?;
        Index::check_query(request.metric, width(field)?, &request.query)
    }

    /// Without an index.
    async fn compare_all(&self, request: &NearestRequest) -> Result<Vec<Neighbor>> {
        let context = SessionContext::new();
        let projection = Some(vec![request.column]);
        let scan = ScanRequest { projection, with_row_id: true, ..ScanRequest::default() };
        let plan = self.scan(1, scan).await?;
        let failed = |e| Error::internal(format!("comparing the rows of a table: {e}"));
        let mut rows = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
        let mut best = ExactScan::new(request.metric, &request.query, request.k, request.ties);
        while let Some(batch) = rows.try_next().await.map_err(failed)? {
            for (id, vector) in Vectors::new(&batch, 0)?.iter() {
                if let Some(vector) = vector
                    && request.allowed.as_ref().is_none_or(|allowed| allowed.contains(id))
                {
                    best.consider(id, vector);
                }
            }
        }
        Ok(best.finish())
    }
}
