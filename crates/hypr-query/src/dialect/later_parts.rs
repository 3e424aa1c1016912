//! Calls of functions that belong to parts which are not built yet: they parse, and the error says what is missing.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, ObjectNamePart, VisitorMut};
use hypr_common::{Error, Result};

use super::visit_statement;

/// A function and what it waits for.
const LATER: [(&str, &str); 1] =
    [("render_nerf", "there is no radiance field to render: training from video frames is not built yet")];

/// Refuses statements that call one.
pub(super) fn refuse(statement: &mut Statement) -> Result<()> {
    visit_statement(statement, &mut Calls)
}

struct Calls;

impl VisitorMut for Calls {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let Expr::Function(function) = expr else {
            return ControlFlow::Continue(());
        };
        let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else {
            return ControlFlow::Continue(());
        };
        match LATER.iter().find(|(later, _)| name.value.eq_ignore_ascii_case(later)) {
            Some((later, missing)) => {
                let at = match name.span.start.line {
                    0 => String::new(),
                    line => format!(" (at line {line}, column {})", name.span.start.column),
                };
                ControlFlow::Break(Error::unsupported(format!("{later} is not available: {missing}{at}")))
            }
            None => ControlFlow::Continue(()),
        }
    }
}
