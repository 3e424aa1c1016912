//! The nearest rows of a table as a table.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use hypr_storage::Table;

use super::DISTANCE_COLUMN;
use super::exec::{Condition, NearestExec, QueryVector};
use super::pattern::{DistanceCall, Query};
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
    /// Over the table's columns.
    pub predicate: Option<Expr>,
}

/// The columns of a table, and the distance of each row.
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
            physical: state.create_physical_expr(expr.clone(), &schema)?,
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
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let search = &self.search;
        let condition = match &search.predicate {
            Some(predicate) => Some(self.condition(state, predicate)?),
            None => None,
        };
        let distance = self.condition(state, &search.call.expr)?;
        let query = match &search.call.query {
            Query::Known(vector) => QueryVector::Known(vector.clone()),
            Query::Later(expr) => QueryVector::Later(state.create_physical_expr(expr.clone(), &DFSchema::empty())?),
        };
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

fn unqualified(expr: Expr) -> Result<Expr> {
    let bare = expr.transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map(|bare| bare.data)
}
