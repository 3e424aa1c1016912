//! `UPDATE [..] SET [..] FROM [..] WHERE [..] RETURNING [..]`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use datafusion::sql::sqlparser::ast::{Assignment, AssignmentTarget, Update as UpdateAst, UpdateTableFromKind};
use hypr_common::{Error, Result};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::returning::Returning;
use super::rewrite::{self, TARGET};
use super::{ChangeQuery, Changed, Scanned, row_ids};
use crate::dialect::ddl::normalize;
use crate::prepared::{self, PreparedPlan};
use crate::{Outcome, Session, TableRef, convert};

/// An `UPDATE` statement.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(super) table: TableRef,
    alias: String,
    ast: UpdateAst,
    pub(super) returning: Option<Returning>,
}

impl Update {
    pub(super) fn new(ast: &UpdateAst) -> Result<Self> {
        if ast.or.is_some() || !ast.order_by.is_empty() || ast.limit.is_some() || ast.output.is_some() {
            return Err(Error::unsupported("UPDATE takes no OR, ORDER BY, LIMIT or OUTPUT"));
        }
        let table = prepared::target(&ast.table)?;
        let alias = rewrite::alias_of(&ast.table.relation, &table)?;
        let mut ast = ast.clone();
        rewrite::shorten_names(&mut ast, &table, &alias);
        let returning = ast.returning.take().map(|items| Returning::new(items, &table, &alias));
        Ok(Self { table, alias, ast, returning })
    }

    /// `SELECT <new values>, <row id> FROM <table>, <from> WHERE ..`
    pub(super) fn query(&self, target: &Arc<Table>) -> Result<ChangeQuery> {
        let mut values = rewrite::assignments(&self.ast.assignments, target)?;
        let mut query = rewrite::template(&format!("SELECT 1 FROM \"{TARGET}\" AS {}", rewrite::quoted(&self.alias)))?;
        let select = rewrite::select(&mut query)?;
        let schema = target.schema();
        let columns = schema.fields().iter().enumerate().map(|(at, field)| {
            let value = match values.remove(&at) {
                Some(value) => rewrite::as_column(value, at),
                None => rewrite::column(&self.alias, field.name()),
            };
            rewrite::named(value, field.name())
        });
        select.projection = columns.collect();
        let row_id = rewrite::column(&self.alias, ROW_ID_COLUMN);
        select.projection.push(rewrite::named(row_id, ROW_ID_COLUMN));
        if let Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) = &self.ast.from {
            select.from.extend(from.iter().cloned());
        }
        select.selection = self.ast.selection.clone();
        Ok(ChangeQuery { statement: rewrite::statement(query), overlay: rewrite::target_overlay(target) })
    }

    pub(super) async fn run(&self, session: &Session, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        let scanned = Scanned { session, table: &self.table, plan, returning: self.returning.as_ref() };
        scanned.run(params, self.rows_are_independent(), |target| self.query(target), decode).await
    }

    /// True when what one execution changes cannot decide what another one finds or computes, as long as both
    /// change different rows.
    fn rows_are_independent(&self) -> bool {
        let assigned: HashSet<String> = self.ast.assignments.iter().flat_map(assigned_columns).collect();
        let (found_by, queries) = rewrite::reads(&self.ast.selection);
        let values: Vec<_> = self.ast.assignments.iter().map(|assignment| assignment.value.clone()).collect();
        let (_, more_queries) = rewrite::reads(&values);
        self.ast.from.is_none() && !queries && !more_queries && found_by.iter().all(|column| !assigned.contains(column))
    }
}

fn assigned_columns(assignment: &Assignment) -> Vec<String> {
    let names = match &assignment.target {
        AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
        AssignmentTarget::Tuple(names) => names,
    };
    names.iter().filter_map(|name| name.0.last()?.as_ident().map(normalize)).collect()
}

/// Row ids and new rows. A row that a join in the statement found several times is changed once.
fn decode(batches: &[RecordBatch], schema: &SchemaRef) -> Result<Changed> {
    let (mut seen, mut changed) = (HashSet::new(), Changed::default());
    for batch in batches {
        let ids = row_ids(batch)?;
        let keep: Vec<bool> = ids.iter().map(|id| seen.insert(*id)).collect();
        changed.removed.extend(ids.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(id, _)| *id));
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let mut rows = batch.project(&columns)?;
        if keep.contains(&false) {
            rows = filter_record_batch(&rows, &BooleanArray::from(keep))?;
        }
        if rows.num_rows() > 0 {
            changed.added.push(convert::batch(&rows, schema)?);
        }
    }
    changed.affected = changed.removed.len() as u64;
    changed.shown = changed.added.clone();
    Ok(changed)
}
