//! `DELETE FROM [..] USING [..] WHERE [..] RETURNING [..]`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use datafusion::sql::sqlparser::ast::{Delete as DeleteAst, FromTable, TableFactor};
use hypr_common::{Error, Result};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::returning::Returning;
use super::rewrite::{self, TARGET};
use super::{ChangeQuery, Changed, Scanned, row_ids};
use crate::prepared::{self, PreparedPlan};
use crate::{Outcome, Session, TableRef, convert};

/// A `DELETE` statement.
#[derive(Clone, Debug)]
pub(crate) struct Delete {
    pub(super) table: TableRef,
    alias: String,
    ast: DeleteAst,
    pub(super) returning: Option<Returning>,
}

impl Delete {
    pub(super) fn new(ast: &DeleteAst) -> Result<Self> {
        if !ast.order_by.is_empty() || ast.limit.is_some() || ast.output.is_some() || !ast.tables.is_empty() {
            return Err(Error::unsupported("DELETE takes no ORDER BY, LIMIT, OUTPUT or list of tables"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &ast.from;
        let Some(factor @ TableFactor::Table { name, .. }) = rewrite::only_table(from) else {
            return Err(Error::unsupported("DELETE FROM takes one table; name the others after USING"));
        };
        let table = prepared::qualified(name)?;
        let alias = rewrite::alias_of(factor, &table)?;
        let mut ast = ast.clone();
        rewrite::shorten_names(&mut ast, &table, &alias);
        let returning = ast.returning.take().map(|items| Returning::new(items, &table, &alias));
        Ok(Self { table, alias, ast, returning })
    }

    /// `SELECT [<columns>,] <row id> FROM <table>, <using> WHERE ..`
    pub(super) fn query(&self, target: &Arc<Table>) -> Result<ChangeQuery> {
        let mut query = rewrite::template(&format!("SELECT 1 FROM \"{TARGET}\" AS {}", rewrite::quoted(&self.alias)))?;
        let select = rewrite::select(&mut query)?;
        select.projection.clear();
        if self.returning.is_some() {
            let schema = target.schema();
            let names = schema.fields().iter().map(|field| field.name());
            select.projection.extend(names.map(|name| rewrite::named(rewrite::column(&self.alias, name), name)));
        }
        let row_id = rewrite::column(&self.alias, ROW_ID_COLUMN);
        select.projection.push(rewrite::named(row_id, ROW_ID_COLUMN));
        select.from.extend(self.ast.using.iter().flatten().cloned());
        select.selection = self.ast.selection.clone();
        Ok(ChangeQuery { statement: rewrite::statement(query), overlay: rewrite::target_overlay(target) })
    }

    pub(super) async fn run(&self, session: &Session, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        let scanned = Scanned { session, table: &self.table, plan, returning: self.returning.as_ref() };
        let alone = self.ast.using.is_none() && !rewrite::reads(&self.ast.selection).1;
        scanned.run(params, alone, |target| self.query(target), decode).await
    }
}

/// Row ids, and with `RETURNING` the rows. A row that a join in the statement found several times is one.
fn decode(batches: &[RecordBatch], schema: &SchemaRef) -> Result<Changed> {
    let (mut seen, mut changed) = (HashSet::new(), Changed::default());
    for batch in batches {
        let keep: Vec<bool> = row_ids(batch)?.into_iter().map(|id| seen.insert(id)).collect();
        if batch.num_columns() > 1 {
            let columns: Vec<usize> = (0..schema.fields().len()).collect();
            let rows = filter_record_batch(&batch.project(&columns)?, &BooleanArray::from(keep))?;
            changed.shown.push(convert::batch(&rows, schema)?);
        }
    }
    changed.removed = seen.into_iter().collect();
    changed.affected = changed.removed.len() as u64;
    Ok(changed)
}
