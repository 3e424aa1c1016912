//! What happens to ASOF joins before planning: tokens that sqlparser does not take, and parentheses.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{JoinOperator, Select, TableFactor, TableWithJoins, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use hypr_common::{Error, Result};

use crate::dialect::is_blank;

/// The condition that marks an `ASOF INNER JOIN`.
pub(super) const INNER: &str = "__asof_inner";

/// Takes `LEFT` and `INNER` out of `ASOF LEFT JOIN` and `ASOF INNER JOIN`, and marks the condition of the latter.
pub(crate) fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    if !tokens.iter().any(|token| is_word(&token.token, "ASOF")) {
        return Ok(tokens);
    }
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    // The depth of parentheses at which a MATCH_CONDITION belongs to an inner join.
    let mut inner: Vec<usize> = Vec::new();
    let (mut depth, mut mark_next) = (0_usize, false);
    for (at, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        let kind = ["LEFT", "INNER"].iter().position(|kind| is_word(&token.token, kind));
        if let Some(kind) = kind
            && before(&tokens, at).is_some_and(|word| is_word(word, "ASOF"))
        {
            if kind == 1 {
                inner.push(depth);
            }
            continue;
        }
        if is_word(&token.token, "MATCH_CONDITION") && inner.last() == Some(&depth) {
            inner.pop();
            mark_next = true;
        }
        out.push(token.clone());
        if mark_next && token.token == Token::LParen {
            mark_next = false;
            let mark = [word(INNER), Token::LParen, Token::RParen, space(), word("AND"), space()];
            out.extend(mark.into_iter().map(|mark| TokenWithSpan { token: mark, span: token.span }));
        }
    }
    match inner.is_empty() {
        true => Ok(out),
        false => Err(Error::invalid("ASOF INNER JOIN needs MATCH_CONDITION (left.ts >= right.ts)")),
    }
}

fn before(tokens: &[TokenWithSpan], at: usize) -> Option<&Token> {
    tokens[..at].iter().rev().map(|token| &token.token).find(|token| !is_blank(token))
}

fn is_word(token: &Token, text: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

fn word(text: &str) -> Token {
    match Token::make_keyword(text) {
        Token::Word(Word { value, keyword, .. }) => Token::Word(Word { value, quote_style: None, keyword }),
        other => other,
    }
}

fn space() -> Token {
    Token::Whitespace(datafusion::sql::sqlparser::tokenizer::Whitespace::Space)
}

/// Puts every ASOF join, with all that is joined before it, in parentheses: a hook plans those.
pub(crate) fn rewrite_statement(statement: &mut Statement) {
    let sql = match statement {
        Statement::Statement(sql) => sql,
        Statement::Explain(explain) => return rewrite_statement(&mut explain.statement),
        _ => return,
    };
    let _ = sql.visit(&mut Nest);
}

struct Nest;

impl VisitorMut for Nest {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        select.from.iter_mut().for_each(nest);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::NestedJoin { table_with_joins, .. } = factor
            && !is_nested(table_with_joins)
        {
            nest(table_with_joins);
        }
        ControlFlow::Continue(())
    }
}

/// True for the form that [`nest`] makes: one join, an ASOF join.
fn is_nested(joins: &TableWithJoins) -> bool {
    matches!(joins.joins.as_slice(), [only] if matches!(only.join_operator, JoinOperator::AsOf { .. }))
}

fn nest(joins: &mut TableWithJoins) {
    while let Some(at) = joins.joins.iter().position(|join| matches!(join.join_operator, JoinOperator::AsOf { .. })) {
        let rest = joins.joins.split_off(at + 1);
        let asof = joins.joins.split_off(at);
        let mut left = std::mem::replace(&mut joins.relation, placeholder());
        if !joins.joins.is_empty() {
            let table_with_joins = TableWithJoins { relation: left, joins: std::mem::take(&mut joins.joins) };
            left = TableFactor::NestedJoin { table_with_joins: Box::new(table_with_joins), alias: None };
        }
        let nested = TableWithJoins { relation: left, joins: asof };
        joins.relation = TableFactor::NestedJoin { table_with_joins: Box::new(nested), alias: None };
        joins.joins = rest;
    }
}

fn placeholder() -> TableFactor {
    TableFactor::UNNEST {
        alias: None,
        array_exprs: Vec::new(),
        with_offset: false,
        with_offset_alias: None,
        with_ordinality: false,
    }
}
