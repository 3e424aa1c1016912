//! The grammar of versions.
//!
//! ```text
//! at          = [FOR] VERSION AS OF (number | 'tag' | tag)      a version by number or by a tag
//!             | [FOR] TIMESTAMP AS OF expression                the newest version of that time
//! table       = name at [[AS] alias]                            in FROM
//! RESTORE TABLE name TO at
//! ALTER TABLE name CREATE [OR REPLACE] TAG [IF NOT EXISTS] tag [at | AS OF VERSION number]
//! ALTER TABLE name DROP TAG [IF EXISTS] tag
//! ```
//! sqlparser takes `TIMESTAMP AS OF expression` after a table, and `VERSION AS OF` with a number only. So the token
//! pass drops `FOR` and writes `VERSION AS OF x` as `TIMESTAMP AS OF hyprstream_version(x)`, and the tree pass puts
//! the version into the name of the table.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Statement as Sql,
    TableAlias, TableFactor, TableVersion, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use hypr_common::{Error, Result};

use super::name::{self, At};
use crate::dialect::is_blank;
use crate::dialect::procedure::{Call, expect_word, literal, name_expr, take_word, take_words};
use crate::error;

/// The function that stands for a version where sqlparser expects a time.
const VERSION_OF: &str = "hyprstream_version";
pub(super) const RESTORE: &str = "restore";
pub(super) const CREATE_TAG: &str = "create_tag";
pub(super) const DROP_TAG: &str = "drop_tag";

/// True when a version may be named, so that sqlparser should look for one. `at` and `changes` stay free as
/// aliases everywhere else.
pub(crate) fn names_versions(tokens: &[TokenWithSpan]) -> bool {
    let words: Vec<&Token> = tokens.iter().map(|token| &token.token).filter(|token| !is_blank(token)).collect();
    words.windows(2).any(|pair| is_word(pair[0], "AS") && is_word(pair[1], "OF"))
}

fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(next) if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word))
}

/// See the module documentation.
pub(crate) fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    if !names_versions(&tokens) {
        return Ok(tokens);
    }
    let solid: Vec<usize> = (0..tokens.len()).filter(|at| !is_blank(&tokens[*at].token)).collect();
    let word_at = |at: usize, word: &str| solid.get(at).is_some_and(|at| is_word(&tokens[*at].token, word));
    let mut drop_for = Vec::new();
    let mut versions = Vec::new();
    for at in 0..solid.len() {
        let as_of = word_at(at + 1, "AS") && word_at(at + 2, "OF");
        if as_of && (word_at(at, "VERSION") || word_at(at, "TIMESTAMP")) {
            if at > 0 && word_at(at - 1, "FOR") {
                drop_for.push(solid[at - 1]);
            }
            if word_at(at, "VERSION") {
                let value = solid.get(at + 3).copied();
                versions.push((solid[at], checked_version(&tokens, solid[at], value)?));
            }
        }
    }
    let mut out = Vec::with_capacity(tokens.len() + 4 * versions.len());
    for (at, mut token) in tokens.into_iter().enumerate() {
        let span = token.span;
        if drop_for.contains(&at) {
            continue;
        }
        if versions.iter().any(|(keyword, _)| *keyword == at) {
            token.token = Token::make_word("TIMESTAMP", None);
        }
        let is_value = versions.iter().any(|(_, value)| *value == at);
        if is_value {
            out.push(TokenWithSpan::new(Token::make_word(VERSION_OF, None), span));
            out.push(TokenWithSpan::new(Token::LParen, span));
            if let Token::Word(Word { value, .. }) = &token.token {
                token.token = Token::SingleQuotedString(value.clone());
            }
        }
        out.push(token);
        if is_value {
            out.push(TokenWithSpan::new(Token::RParen, span));
        }
    }
    Ok(out)
}

/// The token after `VERSION AS OF`, if it can be a version.
fn checked_version(tokens: &[TokenWithSpan], keyword: usize, value: Option<usize>) -> Result<usize> {
    let found = value.map(|at| &tokens[at]);
    match (found.map(|found| &found.token), value) {
        (Some(Token::Number(..) | Token::SingleQuotedString(_) | Token::Word(_)), Some(at)) => Ok(at),
        (found, _) => {
            let last = || tokens[keyword..].iter().rev().find(|token| !is_blank(&token.token));
            let end = || last().unwrap_or(&tokens[keyword]).span.end;
            let at = value.map_or_else(end, |at| tokens[at].span.start);
            let found = found.map_or("the end".to_owned(), ToString::to_string);
            let message = format!("VERSION AS OF takes a number or a tag's name, found: {found}");
            Err(error::syntax(&message, at.line, at.column))
        }
    }
}

/// Puts versions into the names of tables.
pub(crate) fn rewrite_statement(statement: &mut Statement) -> Result<()> {
    let Statement::Statement(sql) = statement else {
        if let Statement::Explain(explain) = statement {
            return rewrite_statement(&mut explain.statement);
        }
        return Ok(());
    };
    match sql.visit(&mut Versioned) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Versioned;

impl VisitorMut for Versioned {
    type Break = Error;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        let TableFactor::Table { name, alias, version, .. } = factor else {
            return ControlFlow::Continue(());
        };
        let Some(asked) = version.take() else {
            return ControlFlow::Continue(());
        };
        match versioned(name, asked) {
            Ok(table) => {
                alias.get_or_insert_with(|| TableAlias { explicit: true, name: table, columns: Vec::new(), at: None });
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// Renames the table and returns its plain name.
fn versioned(table: &mut ObjectName, version: TableVersion) -> Result<Ident> {
    let at = match version {
        TableVersion::TimestampAsOf(expr) | TableVersion::ForSystemTimeAsOf(expr) => at_of(expr)?,
        TableVersion::VersionAsOf(expr) => At::version(&expr)?,
        other => {
            return Err(Error::unsupported(format!(
                "{other} is not available; use FOR VERSION AS OF or FOR TIMESTAMP AS OF"
            )));
        }
    };
    let Some(ObjectNamePart::Identifier(last)) = table.0.last_mut() else {
        return Err(Error::invalid("only a table has versions"));
    };
    let plain = last.clone();
    last.value = name::encode(&crate::dialect::ddl::normalize(last), &at);
    last.quote_style = Some('"');
    Ok(plain)
}

/// What `TIMESTAMP AS OF expr` means after the token pass.
pub(super) fn at_of(expr: Expr) -> Result<At> {
    if let Expr::Function(call) = &expr
        && call.name.to_string() == VERSION_OF
        && let FunctionArguments::List(list) = &call.args
        && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(version))] = list.args.as_slice()
    {
        return At::version(version);
    }
    Ok(At::Time(expr.to_string()))
}

/// The statements of this module; `None` for any other.
pub(crate) fn parse_statement(parser: &mut Parser) -> Option<Result<Sql, ParserError>> {
    if take_words(parser, &["RESTORE", "TABLE"]) {
        return Some(restore(parser));
    }
    if !is_word(&parser.peek_token_ref().token, "ALTER") {
        return None;
    }
    let tag = parser.maybe_parse(|parser| {
        parser.expect_keywords(&[Keyword::ALTER, Keyword::TABLE])?;
        let table = parser.parse_object_name(false)?;
        if take_words(parser, &["CREATE", "OR", "REPLACE", "TAG"]) {
            Ok((table, Some("replace")))
        } else if take_words(parser, &["CREATE", "TAG"]) {
            Ok((table, Some("create")))
        } else if take_words(parser, &["DROP", "TAG"]) {
            Ok((table, None))
        } else {
            parser.expected_ref("TAG", parser.peek_token_ref())
        }
    });
    match tag {
        Ok(Some((table, Some(how)))) => Some(create_tag(parser, table, how)),
        Ok(Some((table, None))) => Some(drop_tag(parser, table)),
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    }
}

fn restore(parser: &mut Parser) -> Result<Sql, ParserError> {
    let table = parser.parse_object_name(false)?;
    expect_word(parser, "TO")?;
    let call = Call::new(RESTORE).arg(name_expr(table));
    match at(parser)? {
        Some(at) => Ok(call.option("at", at).build()),
        None => parser.expected_ref("VERSION AS OF or TIMESTAMP AS OF", parser.peek_token_ref()),
    }
}

fn create_tag(parser: &mut Parser, table: ObjectName, how: &str) -> Result<Sql, ParserError> {
    let mut call = Call::new(CREATE_TAG).arg(name_expr(table));
    if take_words(parser, &["IF", "NOT", "EXISTS"]) {
        call = call.option("if_not_exists", literal("true"));
    }
    if how == "replace" {
        call = call.option("replace", literal("true"));
    }
    call = call.arg(literal(tag_name(parser)?));
    if let Some(at) = at(parser)? {
        call = call.option("at", at);
    } else if take_words(parser, &["AS", "OF", "VERSION"]) {
        call = call.option("version", Expr::Value(parser.parse_value()?));
    }
    Ok(call.build())
}

fn drop_tag(parser: &mut Parser, table: ObjectName) -> Result<Sql, ParserError> {
    let mut call = Call::new(DROP_TAG).arg(name_expr(table));
    if take_words(parser, &["IF", "EXISTS"]) {
        call = call.option("if_exists", literal("true"));
    }
    Ok(call.arg(literal(tag_name(parser)?)).build())
}

/// A tag is written as a name or, with characters that names do not have, as a text.
fn tag_name(parser: &mut Parser) -> Result<String, ParserError> {
    let token = parser.next_token();
    match token.token {
        Token::Word(word) => Ok(word.value),
        Token::SingleQuotedString(text) => Ok(text),
        _ => parser.expected("a tag's name", token),
    }
}

/// `TIMESTAMP AS OF ..`, which the token pass has made of both forms.
fn at(parser: &mut Parser) -> Result<Option<Expr>, ParserError> {
    take_word(parser, "FOR");
    if take_words(parser, &["TIMESTAMP", "AS", "OF"]) { parser.parse_expr().map(Some) } else { Ok(None) }
}
