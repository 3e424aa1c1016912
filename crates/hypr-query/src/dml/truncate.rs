//! `TRUNCATE`: every row of the tables goes, each table in one commit.

use std::sync::Arc;

use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlanBuilder, ident};
use datafusion::sql::sqlparser::ast::Truncate as TruncateAst;
use hypr_common::{ErrorKind, Result};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::row_ids;
use crate::{Outcome, Session, TableRef, error, prepared};

/// A `TRUNCATE` statement.
#[derive(Clone, Debug)]
pub(crate) struct Truncate {
    tables: Vec<TableRef>,
    if_exists: bool,
}

impl Truncate {
    pub(super) fn new(ast: &TruncateAst) -> Result<Self> {
        let tables = ast.table_names.iter().map(|table| prepared::qualified(&table.name)).collect::<Result<_>>()?;
        Ok(Self { tables, if_exists: ast.if_exists })
    }

    pub(super) async fn run(&self, session: &Session) -> Result<Outcome> {
        let mut affected = 0;
        for table in &self.tables {
            match session.catalog().stored(table) {
                Ok(target) => affected += truncate_one(session, table, &target).await?,
                Err(error) if self.if_exists && error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Affected(affected))
    }
}

async fn truncate_one(session: &Session, table: &TableRef, target: &Arc<Table>) -> Result<u64> {
    let mutation = target.begin_mutation().await;
    let state = session.statement_state();
    let provider = Arc::new(crate::catalog::StoredTable::with_row_id(Arc::clone(target)));
    let ids = LogicalPlanBuilder::scan(table.name.clone(), provider_as_source(provider), None)
        .and_then(|scan| scan.project([ident(ROW_ID_COLUMN)]))
        .and_then(LogicalPlanBuilder::build)
        .map_err(error::from_datafusion)?;
    let batches = session.collect(&state, &ids).await?;
    let ids = batches.iter().map(row_ids).collect::<Result<Vec<_>>>()?.concat();
    if ids.is_empty() { Ok(0) } else { mutation.delete(ids).await }
}
