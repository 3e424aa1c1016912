//! The one place where our SQL differs from DataFusion's: text becomes a statement that DataFusion plans.
//!
//! 1. The token pass ([`TOKEN_PASSES`]) rewrites what no grammar of sqlparser takes; tokens keep the
//!    positions of the text, so errors point into what the user wrote.
//! 2. sqlparser parses the tokens with [`sql_dialect`].
//! 3. [`guards`] refuses what DataFusion would run and a database server must not (files, settings), and the
//!    tree pass ([`AST_PASSES`]) rewrites what parses and would be planned wrongly.
//! 4. [`types`], [`ddl`] and [`operators`] are hooks that planning calls.
//!
//! Invariant: a rewrite is a file of its own with an `.slt` file of its own.

mod array_blanks;
mod assignments;
pub(crate) mod clustering;
pub(crate) mod constraints;
pub(crate) mod ddl;
pub(crate) mod guards;
mod later_parts;
mod named_arguments;
pub(crate) mod operators;
mod ordered_set_windows;
mod placeholders;
pub(crate) mod procedure;
pub(crate) mod split;
pub(crate) mod sql_dialect;
mod table_clauses;
pub(crate) mod types;
pub(crate) mod vector_index;
mod window_clause;
mod window_in_where;

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{Expr, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use hypr_common::{Error, ErrorKind, Result};

use crate::series::asof::rewrite as asof;
use crate::series::statement as series;
use crate::{ai, copy, error, sql_functions, versions};
pub(crate) use sql_dialect::HyprDialect;

/// Statements nested deeper than this are refused; the parser recurses.
const RECURSION_LIMIT: usize = 128;

/// A rewrite of the token stream.
type TokenPass = fn(Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>>;

/// In the order they run.
const TOKEN_PASSES: &[TokenPass] = &[
    array_blanks::as_parameters,
    placeholders::number_placeholders,
    window_clause::move_behind_where,
    table_clauses::as_constraints,
    ai::using_context::rewrite_tokens,
    asof::rewrite_tokens,
    series::rewrite_tokens,
    versions::grammar::rewrite_tokens,
    copy::grammar::rewrite_tokens,
    sql_functions::grammar::rewrite_tokens,
];

/// A rewrite of the syntax tree.
type AstPass = fn(&mut Statement, &dyn Names) -> Result<()>;

/// In the order they run.
const AST_PASSES: &[AstPass] = &[
    |statement, _| later_parts::refuse(statement),
    |statement, _| versions::grammar::rewrite_statement(statement),
    |statement, _| assignments::fold_case(statement),
    |statement, _| named_arguments::spell_with_arrow(statement),
    |statement, _| window_in_where::to_qualify(statement),
    |statement, _| ordered_set_windows::to_arguments(statement),
    |statement, _| {
        asof::rewrite_statement(statement);
        Ok(())
    },
    |statement, _| {
        ai::weights_form::rewrite_statement(statement);
        ai::aggregate::rewrite_statement(statement);
        Ok(())
    },
    |statement, names| {
        ai::using_context::rewrite_statement(statement, &|name| names.is_table(name), &|name| names.is_model(name))
    },
];

/// What names mean while a statement is rewritten.
pub(crate) trait Names: Sync {
    /// True for a table of the default schema.
    fn is_table(&self, name: &str) -> bool;
    /// True for a model that generates.
    fn is_model(&self, name: &str) -> bool;
    /// The longest statement accepted, in bytes.
    fn statement_bytes(&self) -> usize {
        16 << 20
    }
}

/// Parses one statement.
///
/// # Errors
/// `InvalidInput` with line and column for text that is no statement, or more than one.
pub(crate) fn parse(sql: &str, names: &dyn Names) -> Result<Statement> {
    if sql.len() > names.statement_bytes() {
        let message = format!(
            "the statement has {} bytes, more than query.max_statement_kb = {} allows; bind large values as parameters",
            sql.len(),
            names.statement_bytes() >> 10
        );
        return Err(Error::new(ErrorKind::ResourceExhausted, message));
    }
    let mut tokens = tokenize(&HyprDialect::default(), sql)?;
    let dialect = HyprDialect::default().with_versions(versions::grammar::names_versions(&tokens));
    for pass in TOKEN_PASSES {
        tokens = pass(tokens)?;
    }
    let end = tokens.iter().rev().find(|token| !is_blank(&token.token)).map(|token| token.span.end);
    let mut parser = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(RECURSION_LIMIT)
        .build()
        .map_err(error::from_datafusion)?;
    let mut statements = parser.parse_statements().map_err(|e| error::at_end(error::from_datafusion(e), end))?;
    match (statements.pop_front(), statements.len()) {
        (Some(mut statement), 0) => {
            guards::check(&statement)?;
            for pass in AST_PASSES {
                pass(&mut statement, names)?;
            }
            Ok(statement)
        }
        (None, _) => Err(Error::invalid("the statement is empty")),
        (Some(_), more) => {
            Err(Error::invalid(format!("the text has {} statements; send one statement at a time", more + 1)))
        }
    }
}

/// Parses a statement that we wrote, without the passes for what users write.
///
/// # Errors
/// `InvalidInput` for text that is not one statement.
pub(crate) fn parse_plain(sql: &str) -> Result<Statement> {
    let dialect = HyprDialect::default();
    let mut parser = DFParserBuilder::new(sql)
        .with_dialect(&dialect)
        .with_recursion_limit(RECURSION_LIMIT)
        .build()
        .map_err(error::from_datafusion)?;
    let mut statements = parser.parse_statements().map_err(error::from_datafusion)?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => Ok(statement),
        _ => Err(Error::invalid("one statement was expected")),
    }
}

/// Parses an expression that the catalog keeps.
///
/// # Errors
/// `InvalidInput` for text that is no expression.
pub(crate) fn parse_expression(sql: &str) -> Result<Expr> {
    let dialect = HyprDialect::default();
    let refused = |error| error::from_datafusion(DataFusionError::SQL(Box::new(error), None));
    let mut parser = Parser::new(&dialect).with_recursion_limit(RECURSION_LIMIT).try_with_sql(sql).map_err(refused)?;
    let expr = parser.parse_expr().map_err(refused)?;
    parser.expect_token(&Token::EOF).map_err(refused)?;
    Ok(expr)
}

/// Shows `visitor` every part of the statement that `EXPLAIN` may stand before.
fn visit_statement<V: VisitorMut<Break = Error>>(statement: &mut Statement, visitor: &mut V) -> Result<()> {
    match statement {
        Statement::Statement(sql) => match sql.visit(visitor) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(()),
        },
        Statement::Explain(explain) => visit_statement(&mut explain.statement, visitor),
        _ => Ok(()),
    }
}

fn tokenize(dialect: &HyprDialect, sql: &str) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(dialect, sql)
        .tokenize_with_location()
        .map_err(|error| error::syntax(&error.message, error.location.line, error.location.column))
}

/// True for blanks and comments.
pub(crate) fn is_blank(token: &Token) -> bool {
    matches!(token, Token::Whitespace(_))
}

#[cfg(test)]
mod tests;
