//! `INSERT INTO [..] VALUES|SELECT [..] ON CONFLICT [..] RETURNING [..]`.
//!
//! `VALUES` of parameters alone are not planned: the parameter batch is the rows. One row of `VALUES` with other
//! expressions is planned once, over all rows of parameters.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Values, cast, ident};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Insert as InsertAst, ObjectName, Query, SetExpr, Statement as Sql, TableObject, Value,
};
use hypr_common::{Error, Result, types};
use hypr_storage::Table;

use super::returning::Returning;
use super::rewrite::{self, TARGET};
use super::upsert::OnConflict;
use super::{Done, vector_casts};
use crate::dialect::ddl::normalize;
use crate::planner::Overlay;
use crate::prepared::{self, PreparedPlan};
use crate::rules::Rules;
use crate::{Outcome, Session, TableRef, convert, error};

/// An `INSERT` statement.
#[derive(Clone, Debug)]
pub(crate) struct Insert {
    pub(super) table: TableRef,
    /// Without `ON CONFLICT`, `RETURNING` and the table's alias, which DataFusion does not plan.
    ast: InsertAst,
    /// The columns named; none for all of the table's in order.
    columns: Vec<String>,
    source: Source,
    pub(super) on_conflict: Option<OnConflict>,
    pub(super) returning: Option<Returning>,
}

/// Where the rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// `VALUES ($1, $2, ..)` and nothing else: the parameter batch is the rows. The parameters, from 0, in the
    /// order of the columns.
    Parameters(Vec<usize>),
    /// One row of `VALUES` with other expressions.
    OneRow,
    /// `DEFAULT VALUES`.
    Defaults,
    /// A query, or several rows.
    Query,
}

impl Insert {
    pub(super) fn new(ast: &InsertAst) -> Result<Self> {
        if ast.overwrite || ast.replace_into || ast.or.is_some() || ast.ignore || ast.insert_alias.is_some() {
            return Err(Error::unsupported(
                "INSERT OVERWRITE, OR REPLACE and IGNORE are not available; use INSERT .. ON CONFLICT",
            ));
        }
        if ast.output.is_some() || !ast.assignments.is_empty() {
            return Err(Error::unsupported("INSERT takes VALUES or a query, and RETURNING in place of OUTPUT"));
        }
        let TableObject::TableName(name) = &ast.table else {
            return Err(Error::invalid("INSERT INTO takes a table's name"));
        };
        let table = prepared::qualified(name)?;
        let mut ast = ast.clone();
        let alias = ast.table_alias.take().map_or_else(|| table.name.clone(), |alias| normalize(&alias.alias));
        let returning = ast.returning.take().map(|mut items| {
            rewrite::shorten_names(&mut items, &table, &alias);
            Returning::new(items, &table, &alias)
        });
        let on_conflict = match ast.on.take() {
            Some(on) => Some(OnConflict::new(on, &table, &alias)?),
            None => None,
        };
        let columns = ast.columns.iter().map(|name| match name.0.as_slice() {
            [part] => part.as_ident().map(normalize),
            _ => None,
        });
        let columns = columns
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::invalid("INSERT names columns without their table"))?;
        let source = source(&ast, &columns)?;
        Ok(Self { table, ast, columns, source, on_conflict, returning })
    }

    /// Checks the widths of `VALUES` and of the list of columns.
    fn check_width(&self, target: &Table) -> Result<()> {
        let Some(SetExpr::Values(values)) = self.ast.source.as_ref().map(|query| query.body.as_ref()) else {
            return Ok(());
        };
        let table_columns = target.schema().fields().len();
        for values in values.rows.iter().map(|row| row.content.len()) {
            match self.columns.len() {
                0 if values != table_columns => {
                    return Err(Error::invalid(format!(
                        "table \"{}\" has {table_columns} columns and VALUES has {values}",
                        self.table
                    )));
                }
                0 => {}
                columns if values != columns => {
                    return Err(Error::invalid(format!(
                        "the statement names {columns} columns and VALUES has {values}"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The statement as DataFusion plans it: `DEFAULT` in `VALUES` is spelled out, and text for a vector is cast.
    fn statement(&self, target: &Table) -> Result<Statement> {
        let mut ast = self.ast.clone();
        ast.table = TableObject::TableName(ObjectName::from(vec![rewrite::quoted(TARGET)]));
        if let Some(SetExpr::Values(values)) = ast.source.as_mut().map(|query| query.body.as_mut()) {
            let schema = target.schema();
            for row in &mut values.rows {
                for (at, value) in row.content.iter_mut().enumerate() {
                    let position = match self.columns.get(at) {
                        Some(name) => schema.index_of(name).ok(),
                        None => Some(at),
                    };
                    if let Some(position) = position.filter(|position| *position < schema.fields().len()) {
                        *value = rewrite::or_default(value.clone(), target, position)?;
                        // DataFusion knows no way from text to a list; a cast is ours.
                        if is_text(value) && types::is_vector(schema.field(position)) {
                            *value = rewrite::as_column(value.clone(), position);
                        }
                    }
                }
            }
        }
        Ok(Statement::Statement(Box::new(Sql::Insert(ast))))
    }

    /// The plans that take parameters.
    pub(super) async fn plans(&self, session: &Session) -> Result<Vec<LogicalPlan>> {
        let target = session.catalog().stored(&self.table)?;
        self.check_width(&target)?;
        let mut plans = Vec::new();
        if self.source != Source::Defaults {
            let state = session.statement_state();
            let overlay = insert_overlay(&target)?;
            plans.push(session.planner(&state).plan(self.statement(&target)?, Some(&overlay), &[]).await?);
        }
        if let Some(on_conflict) = &self.on_conflict {
            plans.extend(on_conflict.plan(session, &target).await?);
        }
        Ok(plans)
    }

    pub(super) async fn run(&self, session: &Session, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        let schema = match &self.returning {
            Some(returning) => Some(returning.schema(session).await?),
            None => None,
        };
        let mut done = Done::default();
        match &self.on_conflict {
            Some(on_conflict) => self.upsert(session, plan, on_conflict, params, &mut done).await?,
            None => self.insert(session, plan, params, &mut done).await?,
        }
        done.outcome(self.returning.as_ref(), schema)
    }

    /// All rows of all executions in one commit.
    async fn insert(
        &self,
        session: &Session,
        plan: &PreparedPlan,
        params: &RecordBatch,
        done: &mut Done,
    ) -> Result<()> {
        let target = session.catalog().stored(&self.table)?;
        self.check_width(&target)?;
        if let Source::Parameters(parameters) = &self.source
            && params.num_columns() > 0
            && self.returning.is_none()
            && Rules::are_none(&target)
        {
            // Rows as they came: nothing is planned, so there is no need of a state.
            let rows = self.bound_rows(&target.schema(), &Rules::default(), parameters, params)?;
            if rows.num_rows() > 0 {
                done.affected = target.insert(vec![rows]).await?;
            }
            return Ok(());
        }
        let state = session.statement_state();
        let rules = Rules::of(session, &state, &target)?;
        let batches = self.proposed(session, &state, plan, &target, &rules, params).await?;
        rules.check(&batches)?;
        if let Some(returning) = &self.returning {
            done.returned = returning.rows(session, &state, plan, batches.clone(), params, 0).await?;
        }
        if !batches.is_empty() {
            done.affected = target.insert(batches).await?;
        }
        Ok(())
    }

    /// With one row of `VALUES` the executions are one upsert, else one after another.
    async fn upsert(
        &self,
        session: &Session,
        plan: &PreparedPlan,
        on_conflict: &OnConflict,
        params: &RecordBatch,
        done: &mut Done,
    ) -> Result<()> {
        let one_each = matches!(self.source, Source::Parameters(_) | Source::OneRow);
        let together = one_each && !on_conflict.has_parameters() && params.num_rows() > 1 && self.returning.is_none();
        let executions: Vec<RecordBatch> = match together {
            true => vec![params.clone()],
            false => (0..params.num_rows()).map(|row| params.slice(row, 1)).collect(),
        };
        for params in executions {
            let target = session.catalog().stored(&self.table)?;
            self.check_width(&target)?;
            let state = session.statement_state();
            let rules = Rules::of(session, &state, &target)?;
            let proposed = self.proposed(session, &state, plan, &target, &rules, &params).await?;
            rules.check(&proposed)?;
            let upsert = super::upsert::Execution {
                session,
                state: &state,
                plan,
                target: &target,
                rules: &rules,
                on_conflict,
                returning: self.returning.as_ref(),
                params: &params,
                many: together,
            };
            upsert.run(proposed, done).await?;
        }
        Ok(())
    }

    /// The rows of all executions, as the table's columns.
    async fn proposed(
        &self,
        session: &Session,
        state: &SessionState,
        plan: &PreparedPlan,
        target: &Table,
        rules: &Rules,
        params: &RecordBatch,
    ) -> Result<Vec<RecordBatch>> {
        let schema = target.schema();
        let batches = match &self.source {
            Source::Parameters(parameters) if params.num_columns() > 0 => {
                vec![self.bound_rows(&schema, rules, parameters, params)?]
            }
            Source::Defaults => {
                let columns = schema.fields().iter().map(|field| rules.value(field, params.num_rows()));
                vec![convert::build(&schema, columns.collect::<Result<_>>()?, params.num_rows())?]
            }
            _ => self.planned(session, state, plan, target, rules, params).await?,
        };
        Ok(batches.into_iter().filter(|batch| batch.num_rows() > 0).collect())
    }

    /// The parameter batch as rows of the table, without planning.
    fn bound_rows(
        &self,
        schema: &SchemaRef,
        rules: &Rules,
        parameters: &[usize],
        params: &RecordBatch,
    ) -> Result<RecordBatch> {
        if let Some(missing) = parameters.iter().find(|parameter| **parameter >= params.num_columns()) {
            prepared::check_count(missing + 1, params)?;
        }
        if let Some(unknown) = self.columns.iter().find(|name| schema.index_of(name).is_err()) {
            return Err(Error::invalid(format!("table \"{}\" has no column \"{unknown}\"", self.table)));
        }
        let arrays = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(at, field)| {
                let given = match self.columns.is_empty() {
                    true => Some(at),
                    false => self.columns.iter().position(|column| column == field.name()),
                };
                match given {
                    Some(given) => convert::column(params.column(parameters[given]), field),
                    None => rules.value(field, params.num_rows()),
                }
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        convert::build(schema, arrays, params.num_rows())
    }

    async fn planned(
        &self,
        session: &Session,
        state: &SessionState,
        plan: &PreparedPlan,
        target: &Table,
        rules: &Rules,
        params: &RecordBatch,
    ) -> Result<Vec<RecordBatch>> {
        let (schema, statement, overlay) = (target.schema(), self.statement(target)?, insert_overlay(target)?);
        let mut batches = Vec::new();
        if self.source == Source::OneRow && params.num_columns() > 0 {
            let logical = session.planner(state).plan(statement, Some(&overlay), &[]).await?;
            let logical = values_over_rows(input(logical)?, params).map_err(error::from_datafusion)?;
            batches.extend(rows_of(session, state, logical, &schema).await?);
        } else {
            for row in 0..params.num_rows() {
                let logical = session.bound(state, statement.clone(), plan, Some(&overlay), params, row).await?;
                batches.extend(rows_of(session, state, input(logical)?, &schema).await?);
            }
        }
        batches.into_iter().map(|batch| convert::batch(&self.with_defaults(batch, &schema, rules)?, &schema)).collect()
    }

    /// DataFusion gives NULL to columns that the statement leaves out.
    fn with_defaults(&self, batch: RecordBatch, schema: &Schema, rules: &Rules) -> Result<RecordBatch> {
        if self.columns.is_empty() || !rules.has_defaults() {
            return Ok(batch);
        }
        let (mut fields, mut columns) = (batch.schema().fields().to_vec(), batch.columns().to_vec());
        for (at, field) in schema.fields().iter().enumerate() {
            if !self.columns.contains(field.name()) {
                columns[at] = rules.value(field, batch.num_rows())?;
                fields[at] = Arc::new(field.as_ref().clone().with_nullable(true));
            }
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

/// The table as the target of an insert, in which every column takes NULL: a NULL that does not fit is found with
/// the rows at hand, and its column named.
fn insert_overlay(target: &Table) -> Result<Overlay> {
    let fields =
        target.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
    let schema = Arc::new(Schema::new(fields));
    let columns = schema.fields().to_vec();
    let source = rewrite::in_memory(schema, Vec::new())?;
    Ok(Overlay { sources: HashMap::from([(rewrite::internal(TARGET), source)]), columns })
}

async fn rows_of(
    session: &Session,
    state: &SessionState,
    input: LogicalPlan,
    schema: &SchemaRef,
) -> Result<Vec<RecordBatch>> {
    let input = vector_casts::name_columns(input, schema).map_err(error::from_datafusion)?;
    session.collect(state, &input).await
}

fn input(plan: LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::Dml(DmlStatement { input, .. }) => Ok(Arc::unwrap_or_clone(input)),
        _ => Err(Error::internal("an INSERT was planned as something else")),
    }
}

/// Turns `VALUES (f($1), $2, ..)` into a projection over the parameter batch, so that many executions are one
/// plan.
fn values_over_rows(plan: LogicalPlan, params: &RecordBatch) -> DfResult<LogicalPlan> {
    let fields = (0..params.num_columns())
        .map(|index| Field::new(parameter_column(index), params.column(index).data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let rows = RecordBatch::try_new(Arc::clone(&schema), params.columns().to_vec())?;
    let table = provider_as_source(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?));
    let plan = plan.transform_down(|node| match node {
        LogicalPlan::Values(Values { schema, values }) if values.len() == 1 => {
            let scan = LogicalPlanBuilder::scan("parameters", Arc::clone(&table), None)?;
            let exprs = values.into_iter().flatten().zip(schema.fields());
            let exprs = exprs.map(|(expr, field)| Ok(parameters_as_columns(expr)?.alias(field.name())));
            Ok(Transformed::yes(scan.project(exprs.collect::<DfResult<Vec<_>>>()?)?.build()?))
        }
        node => Ok(Transformed::no(node)),
    })?;
    Ok(plan.data)
}

fn parameter_column(index: usize) -> String {
    format!("${}", index + 1)
}

fn parameters_as_columns(expr: Expr) -> DfResult<Expr> {
    let transformed = expr.transform_up(|expr| match expr {
        Expr::Placeholder(placeholder) => {
            let column = ident(placeholder.id);
            Ok(Transformed::yes(match placeholder.field {
                Some(field) => cast(column, field.data_type().clone()),
                None => column,
            }))
        }
        expr => Ok(Transformed::no(expr)),
    })?;
    Ok(transformed.data)
}

fn source(ast: &InsertAst, columns: &[String]) -> Result<Source> {
    let Some(query) = &ast.source else {
        return match columns.is_empty() {
            true => Ok(Source::Defaults),
            false => Err(Error::invalid("INSERT needs VALUES or a query")),
        };
    };
    let Some(row) = only_row(query) else {
        return Ok(Source::Query);
    };
    let parameters: Option<Vec<usize>> = row.iter().map(parameter_index).collect();
    Ok(match parameters {
        Some(parameters) if columns.is_empty() || columns.len() == parameters.len() => Source::Parameters(parameters),
        _ => Source::OneRow,
    })
}

fn only_row(query: &Query) -> Option<&[SqlExpr]> {
    match query.body.as_ref() {
        SetExpr::Values(values) => match values.rows.as_slice() {
            [row] => Some(&row.content),
            _ => None,
        },
        _ => None,
    }
}

fn is_text(expr: &SqlExpr) -> bool {
    matches!(expr, SqlExpr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)))
}

/// The index, from 0, of a bare `$n`.
fn parameter_index(expr: &SqlExpr) -> Option<usize> {
    match expr {
        SqlExpr::Value(value) => match &value.value {
            Value::Placeholder(name) => name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_parameters_are_rows_and_other_values_are_planned() {
        let parse = |sql: &str| match crate::dialect::parse_plain(sql).unwrap() {
            Statement::Statement(sql) => match *sql {
                Sql::Insert(insert) => Insert::new(&insert).unwrap().source,
                _ => panic!(),
            },
            _ => panic!(),
        };
        assert_eq!(parse("INSERT INTO t (b, a) VALUES ($2, $1)"), Source::Parameters(vec![1, 0]));
        assert_eq!(parse("INSERT INTO t VALUES ($1, 1)"), Source::OneRow);
        assert_eq!(parse("INSERT INTO t VALUES ($1), ($2)"), Source::Query);
        assert_eq!(parse("INSERT INTO t DEFAULT VALUES"), Source::Defaults);
    }
}
