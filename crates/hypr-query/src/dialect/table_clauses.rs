//! `TIMESERIES KEY (ts)` and `CLUSTER BY expr` among the columns of `CREATE TABLE`. No grammar takes them there,
//! so they become constraints with a marked name, which [`super::ddl`] reads; the mark has a character that no name
//! typed by accident has.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::Result;

use super::is_blank;
use crate::error;

/// The name of the constraint that `TIMESERIES KEY (ts)` becomes: `UNIQUE (ts)`.
pub(super) const TIMESERIES_KEY: &str = "hyprstream\u{1}timeseries key";
/// The name of the constraint that `CLUSTER BY expr` becomes: `CHECK (expr)`.
pub(super) const CLUSTER_BY: &str = "hyprstream\u{1}cluster by";

/// Rewrites the clauses; tokens keep the positions of the text.
pub(super) fn as_constraints(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let Some(open) = column_list(&tokens) else {
        return Ok(tokens);
    };
    let mut rewritten = Vec::with_capacity(tokens.len() + 8);
    let (mut depth, mut at_start, mut closes) = (0_usize, false, false);
    let mut skipped = 0;
    for (at, token) in tokens.iter().enumerate() {
        let span = token.span;
        let push = |rewritten: &mut Vec<TokenWithSpan>, token| rewritten.push(TokenWithSpan::new(token, span));
        if skipped > 0 {
            skipped -= 1;
            continue;
        }
        match token.token {
            Token::LParen if at >= open => depth += 1,
            Token::RParen if depth > 0 => {
                depth -= 1;
                if depth == 0 && std::mem::take(&mut closes) {
                    push(&mut rewritten, Token::RParen);
                }
            }
            Token::Comma if depth == 1 && std::mem::take(&mut closes) => push(&mut rewritten, Token::RParen),
            _ => {}
        }
        if at_start && let Some((clause, words)) = clause(&tokens[at..]) {
            skipped = words - 1;
            push(&mut rewritten, Token::make_keyword("CONSTRAINT"));
            let (name, kind) = match clause {
                Clause::TimeSeriesKey => (TIMESERIES_KEY, "UNIQUE"),
                Clause::ClusterBy => (CLUSTER_BY, "CHECK"),
            };
            push(&mut rewritten, Token::make_word(name, Some('"')));
            push(&mut rewritten, Token::make_keyword(kind));
            if clause == Clause::ClusterBy {
                push(&mut rewritten, Token::LParen);
                closes = true;
                if tokens[at + words..]
                    .iter()
                    .find(|token| !is_blank(&token.token))
                    .is_none_or(|next| matches!(next.token, Token::Comma | Token::RParen))
                {
                    let message = "CLUSTER BY needs a column or an expression, such as time_bucket('1 hour', ts)";
                    return Err(error::syntax(message, span.start.line, span.start.column));
                }
            }
            at_start = false;
            continue;
        }
        if !is_blank(&token.token) {
            at_start = depth == 1 && matches!(token.token, Token::LParen | Token::Comma);
        }
        rewritten.push(token.clone());
    }
    Ok(rewritten)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clause {
    TimeSeriesKey,
    ClusterBy,
}

/// The clause that `tokens` begin with, and how many tokens its words take.
fn clause(tokens: &[TokenWithSpan]) -> Option<(Clause, usize)> {
    let mut solid = tokens.iter().enumerate().filter(|(_, token)| !is_blank(&token.token));
    let (first, second) = (solid.next()?, solid.next()?);
    let words = second.0 + 1;
    if is_word(first.1, "TIMESERIES") && is_word(second.1, "KEY") && solid.next()?.1.token == Token::LParen {
        return Some((Clause::TimeSeriesKey, words));
    }
    (is_word(first.1, "CLUSTER") && is_word(second.1, "BY")).then_some((Clause::ClusterBy, words))
}

fn is_word(token: &TokenWithSpan, text: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

/// The parenthesis that opens the columns of `CREATE TABLE`.
fn column_list(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut solid = tokens.iter().enumerate().filter(|(_, token)| !is_blank(&token.token));
    is_word(solid.next()?.1, "CREATE").then_some(())?;
    let mut is_table = false;
    for (at, token) in solid {
        match &token.token {
            Token::LParen => return is_table.then_some(at),
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::TABLE => is_table = true,
                // What precedes TABLE, and IF NOT EXISTS; other statements have their own parentheses.
                Keyword::VIEW | Keyword::FUNCTION | Keyword::INDEX | Keyword::AS => return None,
                _ => {}
            },
            _ => {}
        }
    }
    None
}
