//! The grammar of `COPY`.
//!
//! ```text
//! COPY table [(column, ..)] FROM 'source' [[WITH] (option, ..)]
//! COPY table [(column, ..)] TO 'target' [[WITH] (option, ..)]
//! COPY (query) TO 'target' [[WITH] (option, ..)]
//! option = name [=] [value]      a value is a word, a text, a number or a truth value; none means true
//! ```
//! DataFusion's parser takes the word `COPY` for a statement of its own, so the token pass makes it an ordinary
//! word; then the grammar here is tried before sqlparser's.

use datafusion::sql::sqlparser::ast::{Expr, Ident, ObjectName, Statement as Sql};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::Result;

use crate::dialect::procedure::{Call, literal, name_expr, take_word};
use crate::dialect::{HyprDialect, is_blank};

pub(super) const COPY_FROM: &str = "copy_from";
pub(super) const COPY_TO: &str = "copy_to";

/// See the module documentation.
pub(crate) fn rewrite_tokens(mut tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    if let Some(first) = tokens.iter_mut().find(|token| !is_blank(&token.token))
        && let Token::Word(word) = &mut first.token
        && word.keyword == Keyword::COPY
    {
        word.keyword = Keyword::NoKeyword;
    }
    Ok(tokens)
}

/// `COPY`; `None` for any other statement.
pub(crate) fn parse_statement(parser: &mut Parser) -> Option<Result<Sql, ParserError>> {
    take_word(parser, "COPY").then(|| copy(parser))
}

fn copy(parser: &mut Parser) -> Result<Sql, ParserError> {
    if parser.consume_token(&Token::LParen) {
        let query = parser.parse_query()?;
        parser.expect_token(&Token::RParen)?;
        parser.expect_keyword(Keyword::TO)?;
        let call = Call::new(COPY_TO).arg(Expr::Subquery(query)).arg(literal(parser.parse_literal_string()?));
        return Ok(options(parser, call)?.build());
    }
    let table = parser.parse_object_name(false)?;
    let columns = if parser.consume_token(&Token::LParen) {
        let columns = parser.parse_comma_separated(Parser::parse_identifier)?;
        parser.expect_token(&Token::RParen)?;
        columns
    } else {
        Vec::new()
    };
    let call = if take_word(parser, "FROM") {
        let columns = columns.into_iter().map(Expr::Identifier).collect();
        let source = literal(parser.parse_literal_string()?);
        Call::new(COPY_FROM).arg(name_expr(table)).arg(source).arg(Expr::Tuple(columns))
    } else if take_word(parser, "TO") {
        let query = whole_table(&table, &columns)?;
        Call::new(COPY_TO).arg(query).arg(literal(parser.parse_literal_string()?))
    } else {
        return parser.expected_ref("FROM or TO", parser.peek_token_ref());
    };
    Ok(options(parser, call)?.build())
}

/// `SELECT columns FROM table`.
fn whole_table(table: &ObjectName, columns: &[Ident]) -> Result<Expr, ParserError> {
    let list = match columns {
        [] => "*".to_owned(),
        columns => columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let dialect = HyprDialect::default();
    let query = Parser::new(&dialect).try_with_sql(&format!("SELECT {list} FROM {table}"))?.parse_query()?;
    Ok(Expr::Subquery(query))
}

fn options(parser: &mut Parser, mut call: Call) -> Result<Call, ParserError> {
    take_word(parser, "WITH");
    if !parser.consume_token(&Token::LParen) {
        return Ok(call);
    }
    loop {
        let name = parser.parse_identifier()?.value.to_lowercase();
        // The sign may be left out.
        let _ = parser.consume_token(&Token::Eq);
        call = call.option(name, option_value(parser)?);
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(call)
}

fn option_value(parser: &mut Parser) -> Result<Expr, ParserError> {
    let value = match &parser.peek_token_ref().token {
        Token::Comma | Token::RParen => return Ok(literal("true")),
        Token::Word(word) => word.value.clone(),
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text.clone(),
        Token::Number(number, _) => number.clone(),
        _ => return parser.expected_ref("a value", parser.peek_token_ref()),
    };
    parser.next_token();
    Ok(literal(value))
}
