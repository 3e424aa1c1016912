//! `ai_agg(text, instruction)` is an AI call over the list that `array_agg` makes of a group:
//! `ai_agg(array_agg(text ORDER BY text), instruction)`.
//!
//! The order is part of what the model reads, so it is never left to how the rows were read: that of the call's own
//! `ORDER BY`, in a window that of its frame, else that of the texts themselves.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArgumentList, FunctionArguments,
    Ident, ObjectName, ObjectNamePart, OrderByExpr, OrderByOptions, VisitMut, VisitorMut,
};

use super::function::AiFunction;

const GATHERING: &str = "array_agg";

/// Puts the aggregate into calls of `ai_agg`; one that has it already stays as it is.
pub(crate) fn rewrite_statement(statement: &mut Statement) {
    match statement {
        Statement::Statement(sql) => {
            let _ = sql.visit(&mut Calls);
        }
        Statement::Explain(explain) => rewrite_statement(&mut explain.statement),
        _ => {}
    }
}

struct Calls;

impl VisitorMut for Calls {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && is_called(function, AiFunction::Aggregate.name())
        {
            gather(function);
        }
        ControlFlow::Continue(())
    }
}

fn is_called(function: &Function, name: &str) -> bool {
    matches!(
        function.name.0.as_slice(),
        [ObjectNamePart::Identifier(ident)] if ident.value.eq_ignore_ascii_case(name)
    )
}

fn gather(function: &mut Function) {
    let FunctionArguments::List(list) = &mut function.args else { return };
    let first = list.args.iter_mut().find_map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    });
    let Some(first) = first else { return };
    if matches!(first, Expr::Function(inner) if is_called(inner, GATHERING)) {
        return;
    }
    let mut clauses = std::mem::take(&mut list.clauses);
    let is_ordered = clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_)));
    if !is_ordered && function.over.is_none() {
        let options = OrderByOptions { asc: None, nulls_first: None };
        let key = OrderByExpr { expr: first.clone(), options, with_fill: None };
        clauses.push(FunctionArgumentClause::OrderBy(vec![key]));
    }
    let arguments = FunctionArgumentList {
        duplicate_treatment: list.duplicate_treatment.take(),
        args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(first.clone()))],
        clauses,
    };
    *first = Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(GATHERING)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(arguments),
        filter: function.filter.take(),
        null_treatment: function.null_treatment.take(),
        over: function.over.take(),
        within_group: std::mem::take(&mut function.within_group),
    });
}
