//! The nearest rows of a table as a table.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DataFusionError, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::ExecutionPlan;
use hypr_storage::Table;

use super::DISTANCE_COLUMN;
use super::exec::{Condition, NearestExec, QueryVector};
use super::pattern::{DistanceCall, Query, column_and_constant};
use super::settings::SearchSettings;
use crate::error;

/// What is looked for.
#[derive(Clone, Debug)]
pub(super) struct NearestSearch {
    /// Position of the vector column in the table.
    pub column: usize,
    pub call: DistanceCall,
    pub k: usize,
    /// Rows as near as the last one are wanted too: a second sort key chooses among them.
    pub ties: bool,
    /// Rows without a distance come first.
    pub nulls_first: bool,
    /// Rows without a vector are not wanted.
    pub not_null: bool,
}

/// The columns of a table, and the distance of each row.
///
/// Its scans have as filters the conditions on rows, before them, of a [`Query::Later`], the call of the distance
/// function as something that is not null: there the planner gives it its value.
pub(super) struct NearestTable {
    table: Arc<Table>,
    schema: SchemaRef,
    search: NearestSearch,
}

impl fmt::Debug for NearestTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NearestTable").field("name", &self.table.definition().name).finish_non_exhaustive()
    }
}

impl NearestTable {
    pub fn new(table: Arc<Table>, search: NearestSearch) -> Self {
        let columns = table.schema();
        let mut fields: Vec<_> = columns.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(DISTANCE_COLUMN, DataType::Float64, true)));
        let schema = Arc::new(Schema::new_with_metadata(fields, columns.metadata().clone()));
        Self { table, schema, search }
    }

    /// A condition over the columns of the table as the search checks it: with the columns it reads, alone.
    fn condition(&self, state: &dyn Session, expr: &Expr) -> Result<Condition> {
        let expr = unqualified(expr.clone())?;
        let columns = self.table.schema();
        let mut positions: Vec<usize> =
            expr.column_refs().iter().map(|column| columns.index_of(&column.name)).collect::<Result<_, _>>()?;
        positions.sort_unstable();
        let schema = DFSchema::try_from(columns.project(&positions)?)?;
        Ok(Condition {
            // The expression comes out of the optimizer, and a vector is costly to simplify.
            physical: create_physical_expr(&expr, &schema, state.execution_props())?,
            columns: positions,
            pushed: split_conjunction(&expr).into_iter().cloned().collect(),
        })
    }
}

#[async_trait]
impl TableProvider for NearestTable {
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
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let search = &self.search;
        let (call, conditions, query) = match &search.call.query {
            Query::Known(vector) => (&search.call.expr, filters, QueryVector::Known(vector.clone())),
            Query::Later(_) => {
                let (call, conditions) = call_and_conditions(filters)?;
                let (_, query) = column_and_constant(call).ok_or_else(lost)?;
                let query = create_physical_expr(query, &DFSchema::empty(), state.execution_props())?;
                (call, conditions, QueryVector::Later(query))
            }
        };
        let condition = match conjunction(conditions.iter().cloned()) {
            Some(condition) => Some(self.condition(state, &condition)?),
            None => None,
        };
        let distance = self.condition(state, call)?;
        let pinned = self.table.pin();
        let path =
            pinned.search_path(search.column, search.call.function.metric()).await.map_err(error::to_datafusion)?;
        let projection = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let exec = NearestExec::new(
            self.table.definition().qualified_name(),
            pinned,
            search.clone(),
            query,
            SearchSettings::of(state.config()),
            path,
            condition,
            distance,
            Arc::new(self.schema.project(&projection)?),
            projection,
        );
        Ok(Arc::new(exec))
    }
}

/// The call of the distance function, with its value, and the conditions on rows.
fn call_and_conditions(filters: &[Expr]) -> Result<(&Expr, &[Expr])> {
    match filters {
        [Expr::IsNotNull(call), conditions @ ..] => Ok((call, conditions)),
        _ => Err(lost()),
    }
}

fn lost() -> DataFusionError {
    DataFusionError::Internal("a search for nearest rows lost what it compares with".to_owned())
}

fn unqualified(expr: Expr) -> Result<Expr> {
    let bare = expr.transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map(|bare| bare.data)
}
