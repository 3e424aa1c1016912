//! Named and default arguments of SQL functions, put in their places before planning.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart, TableAlias, TableFactor, VisitMut,
    VisitorMut,
};
use datafusion::sql::sqlparser::parser::Parser;
use hypr_common::{Error, Result};

use super::{SqlFunction, Templates, function_name};
use crate::dialect::ddl::normalize;
use crate::dialect::sql_dialect::HyprDialect;

/// Gives every call of a function in `templates` one argument a parameter, in order.
///
/// # Errors
/// `InvalidInput` for an unknown, repeated or missing argument.
pub(crate) fn place(statement: &mut Statement, templates: &Templates) -> Result<()> {
    let sql = match statement {
        Statement::Statement(sql) => sql,
        Statement::Explain(explain) => return place(&mut explain.statement, templates),
        _ => return Ok(()),
    };
    match sql.visit(&mut Calls(templates)) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Calls<'a>(&'a Templates);

impl Calls<'_> {
    fn place(&self, name: Option<String>, args: &mut Vec<FunctionArg>) -> ControlFlow<Error> {
        let Some(template) = name.and_then(|name| self.0.get(&name)) else {
            return ControlFlow::Continue(());
        };
        match placed(template.function(), std::mem::take(args)) {
            Ok(placed) => {
                *args = placed;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl VisitorMut for Calls<'_> {
    type Break = Error;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        match expr {
            Expr::Function(function) => match &mut function.args {
                FunctionArguments::List(list) => self.place(function_name(&function.name), &mut list.args),
                _ => ControlFlow::Continue(()),
            },
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, relation: &mut TableFactor) -> ControlFlow<Error> {
        match relation {
            TableFactor::Table { name, args: Some(list), alias, .. } => {
                // Columns can be called by the function's name.
                if let ([ObjectNamePart::Identifier(ident)], None) = (name.0.as_slice(), &alias)
                    && self.0.contains_key(&normalize(ident))
                {
                    let (name, columns) = (ident.clone(), Vec::new());
                    *alias = Some(TableAlias { explicit: true, name, columns, at: None });
                }
                self.place(function_name(name), &mut list.args)
            }
            TableFactor::Function { name, args, .. } => self.place(function_name(name), args),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn placed(function: &SqlFunction, args: Vec<FunctionArg>) -> Result<Vec<FunctionArg>> {
    let name = &function.name;
    let mut values: Vec<Option<Expr>> = vec![None; function.parameters.len()];
    let mut named = false;
    let given = args.len();
    for (index, argument) in args.into_iter().enumerate() {
        let (at, value) = match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) if !named => (index, value),
            FunctionArg::Named { name: parameter, arg: FunctionArgExpr::Expr(value), .. } => {
                named = true;
                (position(function, &parameter)?, value)
            }
            other => return Err(Error::invalid(format!("{name}: {other} is no argument, or follows a named one"))),
        };
        match values.get_mut(at) {
            Some(place @ None) => *place = Some(value),
            Some(Some(_)) => {
                return Err(Error::invalid(format!("{name}: \"{}\" is given twice", function.parameters[at].name)));
            }
            None => {
                let takes = function.parameters.len();
                return Err(Error::invalid(format!("{name} takes {takes} arguments and {given} were given")));
            }
        }
    }
    let filled =
        values.into_iter().zip(&function.parameters).map(|(value, parameter)| match (value, &parameter.default) {
            (Some(value), _) => Ok(value),
            (None, Some(default)) => parse(default),
            (None, None) => Err(Error::invalid(format!("{name}: argument \"{}\" is missing", parameter.name))),
        });
    filled.map(|value| Ok(FunctionArg::Unnamed(FunctionArgExpr::Expr(value?)))).collect()
}

fn position(function: &SqlFunction, parameter: &Ident) -> Result<usize> {
    let wanted = normalize(parameter);
    function.parameters.iter().position(|parameter| parameter.name == wanted).ok_or_else(|| {
        let names: Vec<&str> = function.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        Error::invalid(format!("{} has no parameter \"{wanted}\"; it has {}", function.name, names.join(", ")))
    })
}

fn parse(default: &str) -> Result<Expr> {
    let dialect = HyprDialect::default();
    let parsed = Parser::new(&dialect).try_with_sql(default).and_then(|mut parser| parser.parse_expr());
    parsed.map_err(|e| Error::corrupted(format!("the default {default} of a parameter does not parse")).with_source(e))
}
