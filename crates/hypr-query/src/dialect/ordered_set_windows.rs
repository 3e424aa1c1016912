//! `percentile_cont(p) WITHIN GROUP (ORDER BY x) OVER w`: DataFusion takes `WITHIN GROUP` or `OVER`, not both. As
//! a window function it is `percentile_cont(x, p) OVER w`, where the frame says which rows count and their order
//! does not matter.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Value,
    VisitorMut,
};
use hypr_common::{Error, Result};

use super::visit_statement;

/// Rewrites every such call.
pub(super) fn to_arguments(statement: &mut Statement) -> Result<()> {
    visit_statement(statement, &mut OrderedSets)
}

struct OrderedSets;

impl VisitorMut for OrderedSets {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        match expr {
            Expr::Function(function) if function.over.is_some() && !function.within_group.is_empty() => {
                rewrite(function).map_or_else(ControlFlow::Break, ControlFlow::Continue)
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn rewrite(function: &mut Function) -> Result<()> {
    let name = function.name.to_string().to_lowercase();
    let usage = "write percentile_cont(0.95) WITHIN GROUP (ORDER BY column) OVER (..)";
    let ([key], FunctionArguments::List(list)) = (function.within_group.as_slice(), &mut function.args) else {
        return Err(Error::invalid(format!("{name} takes one ordering expression; {usage}")));
    };
    let descending = key.options.asc == Some(false);
    let ([FunctionArg::Unnamed(FunctionArgExpr::Expr(p))], true) = (list.args.as_slice(), list.clauses.is_empty())
    else {
        return Err(Error::invalid(format!("{name} takes one fraction; {usage}")));
    };
    // The p-th value counted from the other end.
    let fraction = match descending {
        true => Expr::Nested(Box::new(Expr::BinaryOp {
            left: Box::new(Expr::value(Value::Number("1".to_owned(), false))),
            op: BinaryOperator::Minus,
            right: Box::new(p.clone()),
        })),
        false => p.clone(),
    };
    match name.as_str() {
        "percentile_cont" | "quantile_cont" => function.name = ObjectName::from(vec![Ident::new("percentile_cont")]),
        _ => {
            return Err(Error::unsupported(format!("{name} cannot be used with OVER; percentile_cont can")));
        }
    }
    list.args = [key.expr.clone(), fraction].map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))).to_vec();
    function.within_group.clear();
    Ok(())
}
