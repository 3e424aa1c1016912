//! `f(name := value)` is `f(name => value)`.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgOperator, FunctionArguments, TableFactor, VisitorMut,
};
use hypr_common::{Error, Result};

use super::visit_statement;

/// Spells every named argument with `=>`, the form that planning knows.
pub(super) fn spell_with_arrow(statement: &mut Statement) -> Result<()> {
    visit_statement(statement, &mut Arguments)
}

struct Arguments;

impl VisitorMut for Arguments {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        if let Expr::Function(function) = expr
            && let FunctionArguments::List(list) = &mut function.args
        {
            list.args.iter_mut().for_each(spell);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, relation: &mut TableFactor) -> ControlFlow<Error> {
        match relation {
            TableFactor::Table { args: Some(list), .. } => list.args.iter_mut().for_each(spell),
            TableFactor::Function { args, .. } => args.iter_mut().for_each(spell),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn spell(argument: &mut FunctionArg) {
    if let FunctionArg::Named { operator, .. } = argument
        && *operator == FunctionArgOperator::Assignment
    {
        *operator = FunctionArgOperator::RightArrow;
    }
    if let FunctionArg::ExprNamed { name: Expr::Identifier(name), arg, operator: FunctionArgOperator::Assignment } =
        argument
    {
        *argument =
            FunctionArg::Named { name: name.clone(), arg: arg.clone(), operator: FunctionArgOperator::RightArrow };
    }
}
