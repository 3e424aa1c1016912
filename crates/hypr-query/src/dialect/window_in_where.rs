//! Window functions in `WHERE`: the conditions with one are moved to `QUALIFY`, which is what they mean. The
//! other conditions stay and choose the rows that the windows see.
//!
//! `OVER name` in `QUALIFY` and `ORDER BY` is replaced by the window it names; DataFusion does that for the
//! columns of the `SELECT` alone.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, NamedWindowDefinition, NamedWindowExpr, OrderByKind, Query, Select, SetExpr, Visit,
    VisitMut, Visitor, VisitorMut, WindowSpec, WindowType,
};
use hypr_common::{Error, Result};

use super::ddl::normalize;
use super::visit_statement;

/// Rewrites every `SELECT` of the statement.
pub(super) fn to_qualify(statement: &mut Statement) -> Result<()> {
    visit_statement(statement, &mut Windows)
}

struct Windows;

impl VisitorMut for Windows {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        if let (SetExpr::Select(select), Some(order_by)) = (query.body.as_ref(), &mut query.order_by)
            && let OrderByKind::Expressions(keys) = &mut order_by.kind
        {
            for key in keys {
                name_windows(&mut key.expr, &select.named_window)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        if let Some(condition) = select.selection.take_if(|condition| has_window(condition)) {
            let (mut rows, mut windows) = (None, select.qualify.take());
            for part in conjuncts(condition) {
                let side = if has_window(&part) { &mut windows } else { &mut rows };
                *side = Some(and(side.take(), part));
            }
            (select.selection, select.qualify) = (rows, windows);
        }
        match &mut select.qualify {
            Some(condition) => name_windows(condition, &select.named_window),
            None => ControlFlow::Continue(()),
        }
    }
}

fn and(left: Option<Expr>, right: Expr) -> Expr {
    match left {
        Some(left) => Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) },
        None => right,
    }
}

/// The conditions that `AND` joins, in order.
fn conjuncts(condition: Expr) -> Vec<Expr> {
    let (mut pending, mut parts) = (vec![condition], Vec::new());
    while let Some(next) = pending.pop() {
        match next {
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => pending.extend([*right, *left]),
            // AND binds looser than what stands beside it, but BETWEEN and OR in parentheses need them.
            Expr::Nested(inner) if matches!(*inner, Expr::BinaryOp { op: BinaryOperator::And, .. }) => {
                pending.push(*inner);
            }
            part => parts.push(part),
        }
    }
    parts
}

/// True when a window function is called, subqueries apart.
fn has_window(expr: &Expr) -> bool {
    struct Find(usize);
    impl Visitor for Find {
        type Break = ();

        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(function) if self.0 == 0 && function.over.is_some() => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expr.visit(&mut Find(0)).is_break()
}

/// Replaces `OVER name` by the window that `definitions` give the name.
fn name_windows(expr: &mut Expr, definitions: &[NamedWindowDefinition]) -> ControlFlow<Error> {
    struct Names<'a>(&'a [NamedWindowDefinition], usize);
    impl VisitorMut for Names<'_> {
        type Break = Error;

        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
            self.1 += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
            self.1 -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
            let (Expr::Function(function), 0) = (expr, self.1) else {
                return ControlFlow::Continue(());
            };
            if let Some(WindowType::NamedWindow(name)) = &function.over {
                match definition(name, self.0, 0) {
                    Some(spec) => function.over = Some(WindowType::WindowSpec(spec)),
                    None => return ControlFlow::Break(undefined(name, self.0)),
                }
            }
            ControlFlow::Continue(())
        }
    }
    expr.visit(&mut Names(definitions, 0))
}

fn definition(name: &Ident, definitions: &[NamedWindowDefinition], depth: usize) -> Option<WindowSpec> {
    let found = definitions.iter().find(|definition| normalize(&definition.0) == normalize(name))?;
    match &found.1 {
        NamedWindowExpr::WindowSpec(spec) => Some(spec.clone()),
        // A chain of names is as long as the list, unless it is a circle.
        NamedWindowExpr::NamedWindow(other) if depth < definitions.len() => definition(other, definitions, depth + 1),
        NamedWindowExpr::NamedWindow(_) => None,
    }
}

fn undefined(name: &Ident, definitions: &[NamedWindowDefinition]) -> Error {
    let known: Vec<String> = definitions.iter().map(|definition| normalize(&definition.0)).collect();
    let hint = match known.as_slice() {
        [] => "write WINDOW name AS (..)".to_owned(),
        known => format!("the query defines {}", known.join(", ")),
    };
    Error::invalid(format!("window \"{}\" is not defined; {hint}", normalize(name)))
}
