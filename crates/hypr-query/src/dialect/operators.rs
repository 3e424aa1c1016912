//! JSON operators as functions: `->` (JSON), `->>` (text), `?` (has key), `@>` (contains).

use std::sync::Arc;

use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::{Alias, ScalarFunction};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, ScalarUDF};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use datafusion_functions_json::udfs;

use crate::functions;

/// Plans the JSON operators.
#[derive(Debug)]
pub(crate) struct JsonOperators;

impl ExprPlanner for JsonOperators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, _schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let Some((function, operator, swapped)) = function_of(&raw.op) else {
            return Ok(PlannerResult::Original(raw));
        };
        let title = format!("{} {operator} {}", title(&raw.left), title(&raw.right));
        let args = if swapped { vec![raw.right, raw.left] } else { vec![raw.left, raw.right] };
        let call = Expr::ScalarFunction(ScalarFunction { func: function, args });
        // The alias is the column's default title.
        Ok(PlannerResult::Planned(Expr::Alias(Alias::new(call, None::<&str>, title))))
    }
}

fn function_of(operator: &BinaryOperator) -> Option<(Arc<ScalarUDF>, &'static str, bool)> {
    match operator {
        BinaryOperator::Arrow => Some((udfs::json_get_json_udf(), "->", false)),
        BinaryOperator::LongArrow => Some((udfs::json_as_text_udf(), "->>", false)),
        BinaryOperator::Question => Some((udfs::json_contains_udf(), "?", false)),
        BinaryOperator::AtArrow => Some((functions::json_contains(), "@>", false)),
        BinaryOperator::ArrowAt => Some((functions::json_contains(), "<@", true)),
        _ => None,
    }
}

fn title(expr: &Expr) -> String {
    match expr {
        Expr::Column(column) => column.name.clone(),
        Expr::Alias(alias) => alias.name.clone(),
        Expr::Literal(value, _) => match value.try_as_str() {
            Some(Some(text)) => format!("'{text}'"),
            _ => value.to_string(),
        },
        Expr::Cast(cast) => title(&cast.expr),
        other => other.to_string(),
    }
}
