//! Selecting from a view, and scanning a pinned state of a table.

use std::fmt;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result as DfResult};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, cast, ident, in_list, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use hypr_common::{Error, Result};
use hypr_storage::{PinnedTable, ScanRequest, Table};

use super::catalog::{KIND_COLUMN, KIND_ROW, Listing, View, stored_name};
use super::refresh::{Sources, sources};
use crate::catalog::Catalog;
use crate::error;

/// One state of a stored table.
pub(super) struct PinnedProvider {
    table: Arc<Table>,
    pinned: PinnedTable,
}

impl PinnedProvider {
    pub fn new(table: Arc<Table>, pinned: PinnedTable) -> Self {
        Self { table, pinned }
    }
}

impl fmt::Debug for PinnedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedProvider").field("table", &self.table.definition().name).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for PinnedProvider {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let request =
            ScanRequest { projection: projection.cloned(), filters: filters.to_vec(), limit, ..ScanRequest::default() };
        self.pinned.scan(state.config().target_partitions(), request).await.map_err(error::to_datafusion)
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|filter| self.table.supports_filter(filter)).collect())
    }
}

/// A view, to select from: right buckets from its table, all others computed.
pub(crate) struct ContinuousTable {
    catalog: Catalog,
    listing: Listing,
    schema: SchemaRef,
}

impl fmt::Debug for ContinuousTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContinuousTable").field("name", &self.listing.name).finish_non_exhaustive()
    }
}

impl ContinuousTable {
    pub(super) fn new(catalog: Catalog, listing: Listing) -> Result<Self> {
        let schema = listing.schema(&*listing.store(&catalog)?);
        Ok(Self { catalog, listing, schema })
    }

    async fn plan(&self, state: &SessionState) -> Result<LogicalPlan> {
        let view = View::open(&self.catalog, state, &self.listing).await?;
        let (store, base) = (view.store.pin(), view.base.pin());
        let sources = sources(&view, &store, &base, state).await?;
        let stored = self.stored_rows(&view, &store, &sources)?;
        if sources.computed.is_empty() {
            return Ok(stored);
        }
        let computed = view.shape.over(&view.base, &base, &sources.computed)?;
        let columns = computed.schema().columns();
        let columns = columns.into_iter().zip(self.schema.fields());
        let columns =
            columns.map(|(column, field)| cast(Expr::Column(column), field.data_type().clone()).alias(field.name()));
        let computed = LogicalPlanBuilder::from(computed).project(columns.collect::<Vec<_>>());
        computed
            .and_then(|computed| LogicalPlanBuilder::from(stored).union(computed.build()?))
            .and_then(LogicalPlanBuilder::build)
            .map_err(error::from_datafusion)
    }

    /// The rows of right buckets, by the view's names.
    fn stored_rows(&self, view: &View, store: &PinnedTable, sources: &Sources) -> Result<LogicalPlan> {
        let provider = provider_as_source(Arc::new(PinnedProvider::new(Arc::clone(&view.store), store.clone())));
        let bucket = ident(stored_name(view.shape.bucket_at));
        let mut condition = ident(KIND_COLUMN).eq(lit(KIND_ROW));
        if !sources.wrong.is_empty() {
            let wrong =
                sources.wrong.iter().map(|start| Ok(lit(view.shape.literal(*start)?))).collect::<Result<_>>()?;
            condition = condition.and(in_list(bucket, wrong, true));
        }
        let names = self.schema.fields().iter().enumerate();
        let columns = names.map(|(at, field)| ident(stored_name(at)).alias(field.name())).collect::<Vec<_>>();
        LogicalPlanBuilder::scan("stored", provider, None)
            .and_then(|scan| scan.filter(condition)?.project(columns)?.build())
            .map_err(error::from_datafusion)
    }
}

#[async_trait]
impl TableProvider for ContinuousTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn get_table_definition(&self) -> Option<&str> {
        Some(&self.listing.query)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(state) = state.as_any().downcast_ref::<SessionState>() else {
            return Err(error::to_datafusion(Error::internal("a view is read outside of a session")));
        };
        let mut plan = LogicalPlanBuilder::from(self.plan(state).await.map_err(error::to_datafusion)?);
        if let Some(condition) = conjunction(filters.iter().cloned().map(unqualified)) {
            plan = plan.filter(condition)?;
        }
        if let Some(projection) = projection {
            plan =
                plan.project(projection.iter().map(|at| ident(self.schema.field(*at).name())).collect::<Vec<_>>())?;
        }
        state.create_physical_plan(&plan.build()?).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Exact; filters.len()])
    }
}

/// The view's plan has its columns under bare names.
fn unqualified(filter: Expr) -> Expr {
    let rewritten = filter.clone().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    rewritten.map_or(filter, |rewritten| rewritten.data)
}
