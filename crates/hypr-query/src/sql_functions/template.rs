//! The plan of a function's body with its parameters open.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow_schema::FieldRef;
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::{DFSchema, Result as DfResult, ScalarValue, Spans, TableReference, plan_err};
use datafusion::logical_expr::{
    AggregateUDF, Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF, Subquery, cast, lit, when,
};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Ident, Query, Select, SelectItem, SetExpr, Statement as Sql, TableFactor, Value, VisitMut,
    VisitorMut,
};
use hypr_common::{Error, Result};

use super::aggregate::{AggregateBody, SqlAggregate};
use super::definition::{Returns, SqlFunction};
use super::inline::{Arguments, SqlCall};
use crate::planner::Planner;
use crate::{dialect, error};

/// The relation that the body of a function is planned beside.
const BODY: &str = "body\u{1}";

/// A function ready to be called.
#[derive(Debug)]
pub(crate) struct Template {
    function: SqlFunction,
    parameters: Vec<FieldRef>,
    results: Vec<FieldRef>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// An expression over the columns of the relation of parameters.
    Expr(Expr),
    /// A query with outer references to the relation of parameters.
    Query(LogicalPlan),
    /// An expression over aggregates.
    Aggregate(AggregateBody),
}

impl Template {
    /// Plans the body of `function`; `calling` are the functions whose bodies led here, itself included.
    ///
    /// # Errors
    /// What is wrong with the body, with the name of the function.
    pub(crate) async fn plan(planner: &Planner<'_>, function: &SqlFunction, calling: &mut Vec<String>) -> Result<Self> {
        let within = |error: Error| {
            Error::new(error.kind(), format!("function \"{}\": {}", function.name, error.message())).with_source(error)
        };
        Self::plan_body(planner, function, calling).await.map_err(within)
    }

    async fn plan_body(planner: &Planner<'_>, function: &SqlFunction, calling: &mut Vec<String>) -> Result<Self> {
        let (parameters, results) = (function.parameter_fields()?, function.result_fields()?);
        let mut query = body_query(planner, function)?;
        let body = match (&function.returns, sole_expression(&mut query)) {
            (Returns::Aggregate(_), expr) => Body::Aggregate(plan_aggregate(planner, function, expr, calling).await?),
            (Returns::Value(_), Some(expr)) => Body::Expr(plan_expression(planner, function, expr, calling).await?),
            _ => Body::Query(plan_query(planner, function, query, calling).await?),
        };
        if let Body::Query(plan) = &body {
            let columns = plan.schema().fields().len();
            if columns != results.len() {
                let wanted = results.len();
                return Err(Error::invalid(format!("it returns {wanted} columns and its query has {columns}")));
            }
        }
        Ok(Self { function: function.clone(), parameters, results, body })
    }

    pub(crate) fn function(&self) -> &SqlFunction {
        &self.function
    }

    /// One field a parameter.
    pub(crate) fn parameters(&self) -> &[FieldRef] {
        &self.parameters
    }

    /// The type of the value it gives.
    pub(crate) fn result(&self) -> &FieldRef {
        &self.results[0]
    }

    /// The function that stands for calls until they are inlined; none for a table function.
    pub(crate) fn marker(self: &Arc<Self>) -> Option<Arc<ScalarUDF>> {
        match self.function.returns {
            Returns::Value(_) => Some(Arc::new(ScalarUDF::from(SqlCall::new(Arc::clone(self))))),
            Returns::Aggregate(_) | Returns::Table(_) => None,
        }
    }

    /// As [`Self::marker`], for an aggregate function.
    pub(crate) fn aggregate_marker(self: &Arc<Self>) -> Option<Arc<AggregateUDF>> {
        match self.function.returns {
            Returns::Aggregate(_) => Some(Arc::new(AggregateUDF::from(SqlAggregate::new(Arc::clone(self))))),
            Returns::Value(_) | Returns::Table(_) => None,
        }
    }

    /// The body of an aggregate function.
    pub(super) fn aggregate(&self) -> Option<&AggregateBody> {
        match &self.body {
            Body::Aggregate(body) => Some(body),
            Body::Expr(_) | Body::Query(_) => None,
        }
    }

    /// The value of a call whose arguments are over the columns of `around`.
    pub(super) fn value(&self, args: &[Expr], around: &DFSchema) -> DfResult<Expr> {
        let args = self.arguments(args)?;
        let any_null = args.iter().cloned().map(Expr::is_null).reduce(Expr::or);
        let arguments = Arguments::new(&self.function.name, &self.parameters, args, around)?;
        let value = match &self.body {
            Body::Expr(expr) => arguments.in_expr(expr.clone())?,
            Body::Query(plan) => {
                let plan = arguments.in_plan(plan.clone())?;
                let outer_ref_columns = plan.all_out_ref_exprs();
                Expr::ScalarSubquery(Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: Spans::new() })
            }
            Body::Aggregate(_) => return plan_err!("{} is an aggregate", self.function.name),
        };
        let data_type = self.result().data_type();
        let value = cast(value, data_type.clone());
        match any_null.filter(|_| self.function.strict) {
            Some(any_null) => when(any_null, lit(ScalarValue::try_from(data_type)?)).otherwise(value),
            None => Ok(value),
        }
    }

    /// The rows of a call, with the declared names and types.
    pub(crate) fn rows(&self, args: &[Expr]) -> DfResult<LogicalPlan> {
        let args = self.arguments(args)?;
        let Body::Query(plan) = &self.body else {
            return plan_err!("{} gives a value, not rows", self.function.name);
        };
        let none_null = args.iter().cloned().map(Expr::is_not_null).reduce(Expr::and);
        let arguments = Arguments::new(&self.function.name, &self.parameters, args, &DFSchema::empty())?;
        let mut rows = LogicalPlanBuilder::from(arguments.in_plan(plan.clone())?);
        if let Some(none_null) = none_null.filter(|_| self.function.strict) {
            rows = rows.filter(none_null)?;
        }
        let columns = rows.schema().columns().into_iter().zip(&self.results).map(|(column, result)| {
            let metadata = FieldMetadata::from(result.metadata().clone());
            cast(Expr::Column(column), result.data_type().clone()).alias_with_metadata(result.name(), Some(metadata))
        });
        let columns: Vec<Expr> = columns.collect();
        rows.project(columns)?.build()
    }

    /// The arguments of a call as the types of the parameters.
    pub(super) fn arguments(&self, args: &[Expr]) -> DfResult<Vec<Expr>> {
        let (name, takes) = (&self.function.name, self.parameters.len());
        if args.len() != takes {
            return plan_err!("{name} takes {takes} arguments, not {}", args.len());
        }
        Ok(args.iter().zip(&self.parameters).map(|(arg, field)| cast(arg.clone(), field.data_type().clone())).collect())
    }
}

/// The parsed body, with `$1` as the first parameter's name.
fn body_query(planner: &Planner<'_>, function: &SqlFunction) -> Result<Query> {
    let Statement::Statement(sql) = dialect::parse(&function.body, planner.names)? else {
        return Err(Error::invalid("the body must be a query"));
    };
    let Sql::Query(mut query) = *sql else {
        return Err(Error::unsupported("the body must be a query; statements that change rows are not available"));
    };
    match query.visit(&mut Numbers(function)) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(*query),
    }
}

/// Replaces `$1` by `function.parameter`.
struct Numbers<'a>(&'a SqlFunction);

impl VisitorMut for Numbers<'_> {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<Error> {
        let SqlExpr::Value(value) = expr else {
            return ControlFlow::Continue(());
        };
        let Value::Placeholder(number) = &value.value else {
            return ControlFlow::Continue(());
        };
        let parameters = &self.0.parameters;
        let index = number.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        match index.and_then(|index| parameters.get(index.checked_sub(1)?)) {
            Some(parameter) => {
                let parts = [&self.0.name, &parameter.name].map(|part| Ident::with_quote('"', part));
                *expr = SqlExpr::CompoundIdentifier(parts.to_vec());
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(Error::invalid(format!(
                "the body uses {number}, and there are {} parameters",
                parameters.len()
            ))),
        }
    }
}

/// The expression of `SELECT expression` and nothing else.
fn sole_expression(query: &mut Query) -> Option<SqlExpr> {
    let is_plain = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let Select { projection, from, selection, group_by: _, having, qualify, distinct, .. } = select.as_ref();
    let is_plain = is_plain && from.is_empty() && selection.is_none() && having.is_none() && qualify.is_none();
    match projection.as_slice() {
        [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] if is_plain && distinct.is_none() => {
            Some(expr.clone())
        }
        _ => None,
    }
}

/// The query `(SELECT CAST(NULL AS type) AS parameter, ..) AS function`.
fn parameters_relation(function: &SqlFunction) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns = function
        .parameters
        .iter()
        .map(|parameter| format!("CAST(NULL AS {}) AS {}", parameter.sql_type, quoted(&parameter.name)))
        .chain(function.parameters.is_empty().then(|| "NULL AS \"no parameters\"".to_owned()));
    format!("(SELECT {}) AS {}", columns.collect::<Vec<_>>().join(", "), quoted(&function.name))
}

async fn plan_expression(
    planner: &Planner<'_>,
    function: &SqlFunction,
    expr: SqlExpr,
    calling: &mut Vec<String>,
) -> Result<Expr> {
    let mut statement = parse(planner, &format!("SELECT NULL AS value FROM {}", parameters_relation(function)))?;
    select_of(&mut statement)?.projection = vec![SelectItem::ExprWithAlias { expr, alias: Ident::new("value") }];
    let plan = planner.plan_within(statement, None, &[], calling).await?;
    match plan {
        LogicalPlan::Projection(projection) if matches!(*projection.input, LogicalPlan::SubqueryAlias(_)) => {
            projection.expr.first().map(|value| value.clone().unalias()).ok_or_else(unexpected)
        }
        _ => Err(Error::unsupported("aggregates and window functions in a function need a query with FROM")),
    }
}

async fn plan_aggregate(
    planner: &Planner<'_>,
    function: &SqlFunction,
    expr: Option<SqlExpr>,
    calling: &mut Vec<String>,
) -> Result<AggregateBody> {
    let usage = || {
        Error::invalid(
            "the body of an aggregate function is an expression over aggregates of its parameters, \
             such as AS $$ SELECT sum(x * w) / sum(w) $$",
        )
    };
    let expr = expr.ok_or_else(usage)?;
    // Grouped by the parameters, so that they may stand outside of the aggregates.
    let groups: Vec<String> = (1..=function.parameters.len()).map(|at| format!("${at}")).collect();
    let groups = if groups.is_empty() { String::new() } else { format!(" GROUP BY {}", groups.join(", ")) };
    let mut statement =
        parse(planner, &format!("SELECT NULL AS value FROM {}{groups}", parameters_relation(function)))?;
    let select = select_of(&mut statement)?;
    select.projection = vec![SelectItem::ExprWithAlias { expr, alias: Ident::new("value") }];
    if let ControlFlow::Break(error) = select.group_by.visit(&mut Numbers(function)) {
        return Err(error);
    }
    let plan = planner.plan_within(statement, None, &[], calling).await?;
    AggregateBody::of(&plan).map_err(error::from_datafusion)?.ok_or_else(usage)
}

async fn plan_query(
    planner: &Planner<'_>,
    function: &SqlFunction,
    query: Query,
    calling: &mut Vec<String>,
) -> Result<LogicalPlan> {
    let text = format!("SELECT * FROM {}, LATERAL (SELECT 1) AS \"{BODY}\"", parameters_relation(function));
    let mut statement = parse(planner, &text)?;
    let relation = select_of(&mut statement)?.from.last_mut().map(|table| &mut table.relation);
    let Some(TableFactor::Derived { subquery, .. }) = relation else {
        return Err(unexpected());
    };
    **subquery = query;
    let plan = planner.plan_within(statement, None, &[], calling).await?;
    body_of(&plan).ok_or_else(unexpected)
}

/// The plan of the body inside that of the query around it.
fn body_of(plan: &LogicalPlan) -> Option<LogicalPlan> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) if alias.alias == TableReference::bare(BODY) => match alias.input.as_ref() {
            LogicalPlan::Subquery(subquery) => Some(subquery.subquery.as_ref().clone()),
            other => Some(other.clone()),
        },
        other => other.inputs().into_iter().find_map(body_of),
    }
}

fn parse(planner: &Planner<'_>, text: &str) -> Result<Statement> {
    dialect::parse(text, planner.names).map_err(|e| Error::internal("a template does not parse").with_source(e))
}

fn select_of(statement: &mut Statement) -> Result<&mut Select> {
    if let Statement::Statement(sql) = statement
        && let Sql::Query(query) = sql.as_mut()
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        return Ok(select);
    }
    Err(unexpected())
}

fn unexpected() -> Error {
    Error::internal("the plan of a function has an unexpected shape")
}
