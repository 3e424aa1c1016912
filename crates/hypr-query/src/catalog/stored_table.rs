//! A table of the store as DataFusion scans it, with or without the hidden row id.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Constraint, Constraints, Result, Statistics};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use hypr_storage::{ROW_ID_COLUMN, ScanRequest, Table};

use crate::error;

/// A provider over one [`Table`].
pub(crate) struct StoredTable {
    table: Arc<Table>,
    schema: SchemaRef,
    constraints: Constraints,
    with_row_id: bool,
}

impl fmt::Debug for StoredTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredTable").field("name", &self.table.definition().name).finish_non_exhaustive()
    }
}

impl StoredTable {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        let schema = table.schema();
        let key =
            table.definition().primary_key.iter().filter_map(|name| schema.index_of(name).ok()).collect::<Vec<_>>();
        let constraints = if key.is_empty() {
            Constraints::default()
        } else {
            Constraints::new_unverified(vec![Constraint::PrimaryKey(key)])
        };
        Self { table, schema, constraints, with_row_id: false }
    }

    /// True when it shows the table as everybody sees it, without row ids.
    pub(crate) fn is_plain(&self) -> bool {
        !self.with_row_id && !self.table.is_inside_transaction()
    }

    /// The table, unless the scan has columns or a transaction of its own.
    pub(crate) fn plain_table(&self) -> Option<Arc<Table>> {
        self.is_plain().then(|| Arc::clone(&self.table))
    }

    /// The table.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// The same table with [`ROW_ID_COLUMN`] as its last column: what `UPDATE` and `DELETE` plan against.
    pub(crate) fn with_row_id(table: Arc<Table>) -> Self {
        let mut provider = Self::new(table);
        let mut fields: Vec<_> = provider.schema.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(ROW_ID_COLUMN, DataType::UInt64, false)));
        provider.schema = Arc::new(Schema::new_with_metadata(fields, provider.schema.metadata().clone()));
        provider.with_row_id = true;
        provider
    }
}

#[async_trait]
impl TableProvider for StoredTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_logical_plan(&'_ self) -> Option<Cow<'_, datafusion::logical_expr::LogicalPlan>> {
        None
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stored_columns = self.schema.fields().len() - usize::from(self.with_row_id);
        let wanted = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let stored: Vec<usize> = wanted.iter().copied().filter(|column| *column < stored_columns).collect();
        let with_row_id = stored.len() < wanted.len();
        let request = ScanRequest { projection: Some(stored.clone()), filters: filters.to_vec(), limit, with_row_id };
        let scan = self.table.scan(state, request).await.map_err(error::to_datafusion)?;
        if !with_row_id || wanted.last() == Some(&stored_columns) {
            return Ok(scan);
        }
        // The store puts the row id last; put it where it was asked for.
        let mut next = 0;
        let columns = wanted.iter().map(|column| {
            let at = if *column == stored_columns { stored.len() } else { next };
            next += usize::from(*column != stored_columns);
            let name = self.schema.field(*column).name();
            (Arc::new(Column::new(name, at)) as _, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<(_, String)>>(), scan)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| {
                let on_row_id = filter.column_refs().iter().any(|column| column.name == ROW_ID_COLUMN);
                if on_row_id { TableProviderFilterPushDown::Unsupported } else { self.table.supports_filter(filter) }
            })
            .collect())
    }

    fn statistics(&self) -> Option<Statistics> {
        let rows = self.table.approximate_rows()?;
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Inexact(rows);
        Some(statistics)
    }
}
