//! Functions written in SQL: `CREATE [AGGREGATE] FUNCTION .. LANGUAGE SQL`, scalar, table and aggregate, durable in the
//! catalog.
//!
//! A call becomes part of the plan that it is in, so that filters reach the tables of the body and AI calls in it
//! are planned like any others:
//! 1. `definition` reads the statement and keeps the body as text under the catalog kind [`KIND`].
//! 2. `arguments` puts named and default arguments in their places, on the syntax tree.
//! 3. `template` plans the body beside a relation of the parameters, so that a name in it is a column of the
//!    body's tables first and a parameter second, as in PostgreSQL; `$1` is always the parameter.
//! 4. `inline` replaces each call by the template with the arguments in place of the parameters; `aggregate` does for
//!    aggregates.
//!
//! Invariant: a function is resolved when a statement is planned; prepared statements see a replaced function.
//! Deliberately absent: overloading (one function a name), recursion, other languages.

mod aggregate;
mod arguments;
mod definition;
pub(crate) mod grammar;
mod inline;
mod template;

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, ObjectNamePart, Statement as Sql, TableFactor, Visit, Visitor,
};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Database, Replace};

use crate::dialect::ddl::normalize;
use crate::planner::Planner;
use crate::{DEFAULT_SCHEMA, Outcome, Session, statement_state};

pub(crate) use arguments::place as place_arguments;
pub(crate) use definition::{CreateFunction, SqlFunction};
pub(crate) use inline::inline_calls;
pub(crate) use template::Template;

/// What the catalog calls functions.
pub(crate) const KIND: &str = "function";
/// Functions that call one another go no deeper.
const MAX_DEPTH: usize = 16;

/// The functions that a statement calls, by name.
pub(crate) type Templates = HashMap<String, Arc<Template>>;

/// Runs `CREATE FUNCTION`: the body is planned once, so that its mistakes show now.
pub(crate) async fn create(session: &Session, create: &CreateFunction) -> Result<Outcome> {
    let function = &create.function;
    let state = session.statement_state();
    if statement_state::is_built_in(&state, &function.name) {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("\"{}\" is a built-in function; choose another name", function.name),
        ));
    }
    Template::plan(&session.planner(&state), function, &mut vec![function.name.clone()]).await?;
    let replace = match (create.or_replace, create.if_not_exists) {
        (true, _) => Replace::Always,
        (false, true) => Replace::KeepExisting,
        (false, false) => Replace::Never,
    };
    session.engine().database().put_object(function.to_object()?, replace).await?;
    Ok(Outcome::Affected(0))
}

/// Runs `DROP FUNCTION`.
pub(crate) async fn drop_functions(session: &Session, names: &[String], if_exists: bool) -> Result<Outcome> {
    for name in names {
        session.engine().database().drop_object(KIND, DEFAULT_SCHEMA, name, if_exists).await?;
    }
    Ok(Outcome::Affected(0))
}

/// The names of all functions.
pub(crate) fn names(database: &Database) -> Vec<String> {
    database.objects(KIND).into_iter().map(|object| object.name).collect()
}

/// Plans the bodies of the functions that `statement` calls. `calling` are the functions whose bodies led here.
///
/// # Errors
/// `InvalidInput` for a function that calls itself.
pub(crate) async fn templates(
    planner: &Planner<'_>,
    statement: &Statement,
    calling: &mut Vec<String>,
) -> Result<Templates> {
    let mut templates = Templates::new();
    for name in called_names(statement) {
        if calling.contains(&name) {
            return Err(Error::invalid(format!("function \"{name}\" calls itself; recursion is not available")));
        }
        let Some(object) = planner.catalog.database().object(KIND, DEFAULT_SCHEMA, &name) else {
            continue;
        };
        if calling.len() >= MAX_DEPTH {
            return Err(Error::invalid(format!("functions call one another more than {MAX_DEPTH} deep")));
        }
        let function = SqlFunction::from_object(&object)?;
        calling.push(name.clone());
        // The body may call functions in turn.
        let template = Box::pin(Template::plan(planner, &function, calling)).await?;
        calling.pop();
        templates.insert(name, Arc::new(template));
    }
    Ok(templates)
}

/// The name of a function of ours; names with a schema are not.
fn function_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Some(normalize(ident)),
        _ => None,
    }
}

/// Every name that is called in the statement.
fn called_names(statement: &Statement) -> BTreeSet<String> {
    struct Calls(BTreeSet<String>);
    impl Visitor for Calls {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Function(function) = expr {
                self.0.extend(function_name(&function.name));
            }
            ControlFlow::Continue(())
        }

        fn pre_visit_table_factor(&mut self, relation: &TableFactor) -> ControlFlow<()> {
            match relation {
                TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => {
                    self.0.extend(function_name(name));
                }
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut calls = Calls(BTreeSet::new());
    visit(statement, &mut |sql| {
        let _ = sql.visit(&mut calls);
    });
    calls.0
}

fn visit(statement: &Statement, of: &mut dyn FnMut(&Sql)) {
    match statement {
        Statement::Statement(sql) => of(sql),
        Statement::Explain(explain) => visit(&explain.statement, of),
        _ => {}
    }
}
