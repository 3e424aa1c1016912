//! Times that statements name: any constant expression.

use arrow_schema::{DataType, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::ExprWithAlias;
use datafusion::sql::sqlparser::parser::Parser;
use hypr_common::{Error, Result};
use hypr_storage::VersionName;

use super::At;
use crate::dialect::HyprDialect;
use crate::{error, statement_state};

/// The version that `at` names. Times without a zone are UTC.
///
/// # Errors
/// `InvalidInput` for an expression that is not constant, or no time.
pub(super) fn version_name(state: &SessionState, at: &At) -> Result<VersionName> {
    match at {
        At::Number(number) => Ok(VersionName::Number(*number)),
        At::Tag(tag) => Ok(VersionName::Tag(tag.clone())),
        At::Time(sql) => micros(state, sql).map(VersionName::AsOf),
    }
}

fn micros(state: &SessionState, sql: &str) -> Result<i64> {
    let malformed = || {
        Error::invalid(format!(
            "TIMESTAMP AS OF takes a constant time such as '2026-01-31 12:00:00' or now() - INTERVAL '1 hour', not {sql}"
        ))
    };
    let dialect = HyprDialect::default();
    let parsed = Parser::new(&dialect).try_with_sql(sql).and_then(|mut parser| parser.parse_expr());
    let expr = ExprWithAlias { expr: parsed.map_err(|_| malformed())?, alias: None };
    let schema = DFSchema::empty();
    let planned =
        statement_state::full(state).create_logical_expr_from_sql_expr(expr, &schema).map_err(|_| malformed())?;
    let started = state.execution_props().query_execution_start_time.or_else(|| Some(chrono::Utc::now()));
    let context = SimplifyContext::builder()
        .with_config_options(std::sync::Arc::clone(state.config_options()))
        .with_query_execution_start_time(started)
        .build();
    let simplifier = ExprSimplifier::new(context);
    let folded = simplifier.coerce(planned, &schema).and_then(|expr| simplifier.simplify(expr));
    let Expr::Literal(value, _) = folded.map_err(error::from_datafusion)? else {
        return Err(malformed());
    };
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    match value.cast_to(&utc) {
        Ok(ScalarValue::TimestampMicrosecond(Some(us), _)) => Ok(us),
        _ => Err(malformed()),
    }
}
