//! `RETURNING`: a query over the rows that a change wrote, or took out.
//!
//! It knows the columns of the changed table and, in `MERGE`, `merge_action()`. It is computed before the commit, so
//! that an error in it leaves the table as it was.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{
    Expr, SelectItem, SelectItemQualifiedWildcardKind, VisitMut, VisitorMut, WildcardAdditionalOptions,
};
use hypr_common::{Error, Result};
use hypr_storage::Table;

use super::{ChangeQuery, rewrite};
use crate::dialect::ddl::normalize;
use crate::planner::Overlay;
use crate::prepared::PreparedPlan;
use crate::{Session, TableRef, shape};

/// The rows that were changed.
const CHANGED: &str = "__hypr_changed";
/// What `MERGE` did with a row; the last column of its rows.
pub(super) const ACTION: &str = "__hypr_action";

/// A `RETURNING` clause.
#[derive(Clone, Debug)]
pub(super) struct Returning {
    items: Vec<SelectItem>,
    table: TableRef,
    alias: String,
    with_action: bool,
}

impl Returning {
    /// `alias` is what the clause calls the table.
    pub(super) fn new(items: Vec<SelectItem>, table: &TableRef, alias: &str) -> Self {
        Self { items, table: table.clone(), alias: alias.to_owned(), with_action: false }
    }

    /// With `merge_action()`.
    pub(super) fn of_merge(items: Vec<SelectItem>, table: &TableRef, alias: &str) -> Self {
        Self { with_action: true, ..Self::new(items, table, alias) }
    }

    /// The columns of the rows that the clause is computed from.
    pub(super) fn input_schema(&self, target: &Table) -> SchemaRef {
        let schema = target.schema();
        if !self.with_action {
            return schema;
        }
        let mut fields = schema.fields().to_vec();
        fields.push(Arc::new(Field::new(ACTION, DataType::Utf8, false)));
        Arc::new(Schema::new(fields))
    }

    /// The columns that the client gets.
    pub(super) async fn schema(&self, session: &Session) -> Result<SchemaRef> {
        shape::result_schema(&session.statement_state(), &self.plan(session).await?)
    }

    /// The clause over no rows.
    pub(super) async fn plan(&self, session: &Session) -> Result<LogicalPlan> {
        let target = session.catalog().stored(&self.table)?;
        let query = self.query(&target, Vec::new())?;
        let state = session.statement_state();
        session.planner(&state).plan(query.statement, Some(&query.overlay), &[]).await
    }

    /// What the client gets for `rows`, which have the columns of [`input_schema`](Self::input_schema).
    pub(super) async fn rows(
        &self,
        session: &Session,
        state: &SessionState,
        plan: &PreparedPlan,
        rows: Vec<RecordBatch>,
        params: &RecordBatch,
        row: usize,
    ) -> Result<Vec<RecordBatch>> {
        let target = session.catalog().stored(&self.table)?;
        let query = self.query(&target, rows)?;
        let logical = session.bound(state, query.statement, plan, Some(&query.overlay), params, row).await?;
        session.collect(state, &logical).await
    }

    fn query(&self, target: &Table, rows: Vec<RecordBatch>) -> Result<ChangeQuery> {
        let mut query = rewrite::template(&format!("SELECT 1 FROM \"{CHANGED}\" AS {}", rewrite::quoted(&self.alias)))?;
        let select = rewrite::select(&mut query)?;
        select.projection.clear();
        for item in &self.items {
            match item {
                SelectItem::Wildcard(options) => self.all_columns(target, options, &mut select.projection)?,
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                    let relation = name.0.last().and_then(|part| part.as_ident()).map(normalize);
                    if relation.as_deref() != Some(self.alias.as_str()) {
                        return Err(Error::invalid(format!(
                            "RETURNING knows the changed table \"{}\" only, not {name}",
                            self.alias
                        )));
                    }
                    self.all_columns(target, options, &mut select.projection)?;
                }
                item => select.projection.push(item.clone()),
            }
        }
        for item in &mut select.projection {
            self.name_action(item)?;
        }
        let source = rewrite::in_memory(self.input_schema(target), rows)?;
        let overlay = Overlay { sources: HashMap::from([(rewrite::internal(CHANGED), source)]), columns: Vec::new() };
        Ok(ChangeQuery { statement: rewrite::statement(query), overlay })
    }

    fn all_columns(
        &self,
        target: &Table,
        options: &WildcardAdditionalOptions,
        into: &mut Vec<SelectItem>,
    ) -> Result<()> {
        if *options
            != (WildcardAdditionalOptions { wildcard_token: options.wildcard_token.clone(), ..Default::default() })
        {
            return Err(Error::unsupported("RETURNING takes * without EXCLUDE, EXCEPT, REPLACE or RENAME"));
        }
        let schema = target.schema();
        into.extend(
            schema.fields().iter().map(|field| SelectItem::UnnamedExpr(rewrite::column(&self.alias, field.name()))),
        );
        Ok(())
    }

    /// `merge_action()` is a column of the rows.
    fn name_action(&self, item: &mut SelectItem) -> Result<()> {
        struct Calls<'a> {
            column: Option<Expr>,
            refused: &'a mut bool,
        }
        let is_call = |expr: &Expr| matches!(expr, Expr::Function(call) if call.name.to_string().eq_ignore_ascii_case("merge_action"));
        impl VisitorMut for Calls<'_> {
            type Break = ();

            fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
                if matches!(expr, Expr::Function(call) if call.name.to_string().eq_ignore_ascii_case("merge_action")) {
                    match &self.column {
                        Some(column) => *expr = column.clone(),
                        None => *self.refused = true,
                    }
                }
                ControlFlow::Continue(())
            }
        }
        if let SelectItem::UnnamedExpr(expr) = item
            && is_call(expr)
        {
            *item = rewrite::named(expr.clone(), "merge_action");
        }
        let mut refused = false;
        let column = self.with_action.then(|| rewrite::column(&self.alias, ACTION));
        let _ = item.visit(&mut Calls { column, refused: &mut refused });
        if refused {
            return Err(Error::invalid("merge_action() is for the RETURNING of a MERGE"));
        }
        Ok(())
    }
}
