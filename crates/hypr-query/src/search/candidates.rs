//! The rows that a search chooses from: a table with its row id, under conditions.
//!
//! A scan of it is never run as it stands: [`super::exec::SearchExec`] takes from it the plan of the row ids that
//! meet the conditions, if there are any, and fetches the other columns of the rows that it found.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use hypr_common::Error;
use hypr_storage::{PinnedTable, ROW_ID_COLUMN, ScanRequest, Table};

use crate::error;

/// The provider.
pub(super) struct Candidates {
    table: Arc<Table>,
    schema: SchemaRef,
}

impl fmt::Debug for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidates").field("table", &self.table.definition().name).finish_non_exhaustive()
    }
}

impl Candidates {
    pub fn new(table: Arc<Table>) -> Self {
        let columns = table.schema();
        let mut fields: Vec<_> = columns.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(ROW_ID_COLUMN, DataType::UInt64, false)));
        let schema = Arc::new(Schema::new_with_metadata(fields, columns.metadata().clone()));
        Self { table, schema }
    }

    /// The table.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// The plan of the ids of the rows that meet `filters`.
    async fn matching(
        &self,
        state: &dyn Session,
        pinned: &PinnedTable,
        filters: &[Expr],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(condition) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = self.table.schema();
        let columns: BTreeSet<usize> =
            condition.column_refs().iter().filter_map(|column| schema.index_of(&column.name).ok()).collect();
        let columns: Vec<usize> = columns.into_iter().collect();
        let read = DFSchema::try_from(schema.project(&columns)?)?;
        let condition = state.create_physical_expr(condition, &read)?;
        let width = columns.len();
        let request =
            ScanRequest { projection: Some(columns), filters: filters.to_vec(), limit: None, with_row_id: true };
        let partitions = state.config().target_partitions().max(1);
        let scan = pinned.scan(partitions, request).await.map_err(error::to_datafusion)?;
        let kept = Arc::new(FilterExec::try_new(condition, scan)?);
        let row_id: Vec<(Arc<dyn datafusion::physical_expr::PhysicalExpr>, String)> =
            vec![(Arc::new(Column::new(ROW_ID_COLUMN, width)), ROW_ID_COLUMN.to_owned())];
        Ok(Some(Arc::new(ProjectionExec::try_new(row_id, kept)?)))
    }
}

#[async_trait]
impl TableProvider for Candidates {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let pinned = self.table.pin();
        let rows = self.matching(state, &pinned, filters).await?;
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        Ok(Arc::new(CandidatesExec::new(schema, pinned, rows)))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Exact; filters.len()])
    }
}

/// What a search takes from the scan below it.
#[derive(Debug)]
pub(super) struct CandidatesExec {
    pub pinned: PinnedTable,
    /// Row ids; `None` for those of all rows.
    pub rows: Option<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl CandidatesExec {
    fn new(schema: SchemaRef, pinned: PinnedTable, rows: Option<Arc<dyn ExecutionPlan>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { pinned, rows, properties: Arc::new(properties) }
    }
}

impl DisplayAs for CandidatesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CandidatesExec")
    }
}

impl ExecutionPlan for CandidatesExec {
    fn name(&self) -> &str {
        "CandidatesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Err(unsearchable())
    }
}

/// A condition stands between a search and its rows that is neither on columns nor on the score.
pub(super) fn unsearchable() -> DataFusionError {
    error::to_datafusion(Error::unsupported(
        "the rows of a search cannot be chosen by this condition; apply it to a subquery that ends in LIMIT",
    ))
}
