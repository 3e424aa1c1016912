//! Runs `INSERT`, `UPDATE`, `DELETE` and `TRUNCATE`.
//!
//! DataFusion plans which rows and which values; the store makes the change in one commit. `UPDATE` and
//! `DELETE` plan against the table with its row ids as a column, hold the table's mutation lock from before
//! the scan to the commit, and name the rows by id.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow_schema::{Field, FieldRef, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result as DfResult};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Values, WriteOp, cast, ident};
use hypr_common::{Error, ErrorKind, Result, types};
use hypr_storage::{ROW_ID_COLUMN, Table};

use crate::functions::VectorCast;
use crate::prepared::{InsertSource, PreparedPlan};
use crate::{Outcome, Session, TableRef, convert, error};

/// Runs `INSERT` for all rows of `params` in one commit.
pub(crate) async fn insert(
    session: &Session,
    plan: &PreparedPlan,
    table: &TableRef,
    source: &InsertSource,
    params: &RecordBatch,
) -> Result<Outcome> {
    let target = session.catalog().stored(table)?;
    let schema = target.schema();
    let batches = match source {
        InsertSource::Parameters { columns, parameters } if params.num_columns() > 0 => {
            vec![from_parameters(&schema, columns, parameters, params)?]
        }
        _ => planned_rows(session, plan, source, &schema, params).await?,
    };
    let batches: Vec<RecordBatch> = batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    if batches.is_empty() {
        return Ok(Outcome::Affected(0));
    }
    target.insert(batches).await.map(Outcome::Affected)
}

/// The parameter batch as rows of the table, without planning.
fn from_parameters(
    schema: &SchemaRef,
    columns: &[String],
    parameters: &[usize],
    params: &RecordBatch,
) -> Result<RecordBatch> {
    let arrays = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| {
            let given = match columns.is_empty() {
                true => Some(at),
                false => columns.iter().position(|column| column == field.name()),
            };
            match given {
                Some(given) => convert::column(params.column(parameters[given]), field),
                None => Ok(new_null_array(field.data_type(), params.num_rows())),
            }
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    convert::build(schema, arrays, params.num_rows())
}

async fn planned_rows(
    session: &Session,
    plan: &PreparedPlan,
    source: &InsertSource,
    schema: &SchemaRef,
    params: &RecordBatch,
) -> Result<Vec<RecordBatch>> {
    let state = session.statement_state();
    let mut batches = Vec::new();
    if *source == InsertSource::OneRow && params.num_columns() > 0 {
        let logical = session.planner(&state).plan((*plan.statement).clone(), None, &[]).await?;
        let logical = values_over_rows(dml_input(logical)?, params).map_err(error::from_datafusion)?;
        batches.extend(rows_of(session, &state, logical, schema).await?);
    } else {
        for row in 0..params.num_rows() {
            let logical = session.bound_plan(&state, plan, None, params, row).await?;
            batches.extend(rows_of(session, &state, dml_input(logical)?, schema).await?);
        }
    }
    batches.iter().map(|batch| convert::batch(batch, schema)).collect()
}

async fn rows_of(
    session: &Session,
    state: &SessionState,
    input: LogicalPlan,
    schema: &SchemaRef,
) -> Result<Vec<RecordBatch>> {
    let input = name_vector_casts(input, schema).map_err(error::from_datafusion)?;
    session.collect(state, &input).await
}

fn dml_input(plan: LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::Dml(DmlStatement { input, .. }) => Ok(Arc::unwrap_or_clone(input)),
        _ => Err(Error::internal("a change of rows was planned as something else")),
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

/// Replaces the casts to vector columns at the top of a plan by ours, whose errors name the column.
fn name_vector_casts(plan: LogicalPlan, schema: &SchemaRef) -> DfResult<LogicalPlan> {
    let LogicalPlan::Projection(top) = &plan else {
        return Ok(plan);
    };
    // `VALUES` casts below the top, in columns called column1, column2, ..
    let mut sources: HashMap<String, FieldRef> = HashMap::new();
    for expr in &top.expr {
        let (name, inner) = expr.qualified_name_and_inner();
        if let (Some(field), Some(source)) = (vector_field(schema, &name), source_column(inner)) {
            sources.insert(source.name.clone(), field);
        }
    }
    let rewrite = |expr: Expr, field: Option<FieldRef>| -> DfResult<Expr> {
        let Some(field) = field else {
            return Ok(expr);
        };
        let transformed = expr.transform_down(|expr| match expr {
            Expr::Cast(cast) if cast.field.data_type() == field.data_type() => {
                Ok(Transformed::yes(VectorCast::call(*cast.expr, Arc::clone(&field))))
            }
            expr => Ok(Transformed::no(expr)),
        })?;
        Ok(transformed.data)
    };
    let plan = plan.transform_down(|node| match node {
        LogicalPlan::Projection(projection) => {
            let schema_of = Arc::clone(&projection.schema);
            let exprs = projection.expr.into_iter().zip(schema_of.fields()).map(|(expr, output)| {
                let field = vector_field(schema, output.name()).or_else(|| sources.get(output.name()).cloned());
                rewrite(expr, field)
            });
            let exprs = exprs.collect::<DfResult<Vec<_>>>()?;
            let projection = datafusion::logical_expr::Projection::try_new(exprs, projection.input)?;
            Ok(Transformed::yes(LogicalPlan::Projection(projection)))
        }
        LogicalPlan::Values(Values { schema: output, values }) => {
            let values = values.into_iter().map(|row| {
                let row = row.into_iter().zip(output.fields());
                row.map(|(expr, field)| rewrite(expr, sources.get(field.name()).cloned())).collect::<DfResult<Vec<_>>>()
            });
            Ok(Transformed::yes(LogicalPlan::Values(Values {
                values: values.collect::<DfResult<_>>()?,
                schema: output,
            })))
        }
        node => Ok(Transformed::no(node)),
    })?;
    Ok(plan.data)
}

fn vector_field(schema: &SchemaRef, name: &str) -> Option<FieldRef> {
    let (_, field) = schema.fields().find(name)?;
    types::is_vector(field).then(|| Arc::clone(field))
}

/// The column that a cast and an alias wrap.
fn source_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Cast(cast) => source_column(&cast.expr),
        Expr::Alias(alias) => source_column(&alias.expr),
        _ => None,
    }
}

trait NameAndInner {
    fn qualified_name_and_inner(&self) -> (String, &Expr);
}

impl NameAndInner for Expr {
    fn qualified_name_and_inner(&self) -> (String, &Expr) {
        match self {
            Expr::Alias(alias) => (alias.name.clone(), alias.expr.as_ref()),
            Expr::Column(column) => (column.name.clone(), self),
            other => (String::new(), other),
        }
    }
}

/// Runs `UPDATE`, once for each row of `params`.
pub(crate) async fn update(
    session: &Session,
    plan: &PreparedPlan,
    table: &TableRef,
    params: &RecordBatch,
) -> Result<Outcome> {
    let target = session.catalog().stored(table)?;
    let mut affected = 0;
    for row in 0..params.num_rows() {
        let mutation = target.begin_mutation().await;
        let state = session.statement_state();
        let logical = session.bound_plan(&state, plan, Some(table), params, row).await?;
        let input = dml_input(logical)?;
        refuse_row_id_assignment(&input)?;
        let batches = rows_of(session, &state, input, &target.schema()).await?;
        let (ids, batches) = split_row_ids(&batches, &target.schema())?;
        if !ids.is_empty() {
            affected += mutation.replace(ids, batches).await?;
        }
    }
    Ok(Outcome::Affected(affected))
}

fn refuse_row_id_assignment(input: &LogicalPlan) -> Result<()> {
    let last = input.expressions().into_iter().next_back();
    match last.as_ref().and_then(source_column) {
        Some(column) if column.name == ROW_ID_COLUMN => Ok(()),
        _ => Err(Error::invalid(format!("column \"{ROW_ID_COLUMN}\" cannot be changed"))),
    }
}

/// The row ids and the new rows. A row that a join inside the plan doubled is changed once.
fn split_row_ids(batches: &[RecordBatch], schema: &SchemaRef) -> Result<(Vec<u64>, Vec<RecordBatch>)> {
    let (mut seen, mut ids, mut rows) = (HashSet::new(), Vec::new(), Vec::new());
    for batch in batches {
        let keep: Vec<bool> = row_ids(batch)?
            .into_iter()
            .map(|id| {
                seen.insert(id) && {
                    ids.push(id);
                    true
                }
            })
            .collect();
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let mut kept = batch.project(&columns)?;
        if keep.contains(&false) {
            kept = filter_record_batch(&kept, &BooleanArray::from(keep))?;
        }
        if kept.num_rows() > 0 {
            rows.push(convert::batch(&kept, schema)?);
        }
    }
    Ok((ids, rows))
}

fn row_ids(batch: &RecordBatch) -> Result<Vec<u64>> {
    let column = batch.column_by_name(ROW_ID_COLUMN).and_then(|column| column.as_primitive_opt::<UInt64Type>());
    match column {
        Some(ids) if ids.null_count() == 0 => Ok(ids.values().to_vec()),
        _ => Err(Error::internal("a scan for a change gave no row ids")),
    }
}

/// Runs `DELETE`, once for each row of `params`.
pub(crate) async fn delete(
    session: &Session,
    plan: &PreparedPlan,
    table: &TableRef,
    params: &RecordBatch,
) -> Result<Outcome> {
    let target = session.catalog().stored(table)?;
    let mut affected = 0;
    for row in 0..params.num_rows() {
        let mutation = target.begin_mutation().await;
        let state = session.statement_state();
        let logical = session.bound_plan(&state, plan, Some(table), params, row).await?;
        let (WriteOp::Delete, input) = write_op(logical)? else {
            return Err(Error::internal("DELETE was planned as something else"));
        };
        let row_id = input.schema().columns().into_iter().find(|column| column.name == ROW_ID_COLUMN);
        let Some(row_id) = row_id else {
            return Err(Error::internal("DELETE was planned without row ids"));
        };
        let ids = LogicalPlanBuilder::from(input)
            .project([Expr::Column(row_id)])
            .and_then(LogicalPlanBuilder::build)
            .map_err(error::from_datafusion)?;
        affected += delete_ids(mutation, &session.collect(&state, &ids).await?).await?;
    }
    Ok(Outcome::Affected(affected))
}

fn write_op(plan: LogicalPlan) -> Result<(WriteOp, LogicalPlan)> {
    match plan {
        LogicalPlan::Dml(DmlStatement { op, input, .. }) => Ok((op, Arc::unwrap_or_clone(input))),
        _ => Err(Error::internal("a change of rows was planned as something else")),
    }
}

async fn delete_ids(mutation: hypr_storage::Mutation, batches: &[RecordBatch]) -> Result<u64> {
    let mut ids = Vec::new();
    for batch in batches {
        ids.extend(row_ids(batch)?);
    }
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() { Ok(0) } else { mutation.delete(ids).await }
}

/// Deletes every row of the tables.
pub(crate) async fn truncate(session: &Session, tables: &[TableRef], if_exists: bool) -> Result<Outcome> {
    let mut affected = 0;
    for table in tables {
        match session.catalog().stored(table) {
            Ok(target) => affected += truncate_one(session, table, &target).await?,
            Err(error) if if_exists && error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Affected(affected))
}

async fn truncate_one(session: &Session, table: &TableRef, target: &Arc<Table>) -> Result<u64> {
    let mutation = target.begin_mutation().await;
    let state = session.statement_state();
    let provider = Arc::new(crate::catalog::StoredTable::with_row_id(Arc::clone(target)));
    let ids = LogicalPlanBuilder::scan(table.name.clone(), provider_as_source(provider), None)
        .and_then(|scan| scan.project([ident(ROW_ID_COLUMN)]))
        .and_then(LogicalPlanBuilder::build)
        .map_err(error::from_datafusion)?;
    delete_ids(mutation, &session.collect(&state, &ids).await?).await
}
