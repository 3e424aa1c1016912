//! `WINDOW w AS (..)` before `WHERE`: the grammar wants it after `HAVING`, so the clause moves there.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::Result;

use super::is_blank;

/// Moves every `WINDOW` clause that stands before `WHERE`, `GROUP BY` or `HAVING` behind them. Tokens keep the
/// positions of the text.
pub(super) fn move_behind_where(mut tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let mut from = 0;
    while let Some((start, end)) = misplaced(&tokens, from) {
        let target = end_of_clauses(&tokens, end);
        tokens[start..target].rotate_left(end - start);
        // What follows the moved clause, and the queries inside the clauses it moved behind, come next.
        from = start;
    }
    Ok(tokens)
}

/// The first clause after `from` that stands too early: its tokens, blanks behind it included.
fn misplaced(tokens: &[TokenWithSpan], from: usize) -> Option<(usize, usize)> {
    (from..tokens.len()).filter(|at| keyword(tokens, *at) == Some(Keyword::WINDOW)).find_map(|start| {
        let end = end_of_definitions(tokens, start + 1)?;
        matches!(keyword(tokens, end), Some(Keyword::WHERE | Keyword::GROUP | Keyword::HAVING)).then_some((start, end))
    })
}

/// The token after `a AS (..), b AS (..)` and the blanks behind it; none if this is something else.
fn end_of_definitions(tokens: &[TokenWithSpan], mut at: usize) -> Option<usize> {
    loop {
        at = solid(tokens, at)?;
        matches!(tokens[at].token, Token::Word(_)).then_some(())?;
        at = solid(tokens, at + 1)?;
        (keyword(tokens, at)? == Keyword::AS).then_some(())?;
        at = solid(tokens, at + 1)?;
        at = match tokens[at].token {
            Token::LParen => closing(tokens, at)? + 1,
            Token::Word(_) => at + 1,
            _ => return None,
        };
        match solid(tokens, at) {
            Some(comma) if tokens[comma].token == Token::Comma => at = comma + 1,
            Some(next) => return Some(next),
            None => return Some(tokens.len()),
        }
    }
}

/// Where the clauses that begin at `at` end: what ends them belongs to the query around, or follows `WINDOW`.
fn end_of_clauses(tokens: &[TokenWithSpan], mut at: usize) -> usize {
    use Keyword as K;
    while at < tokens.len() {
        match &tokens[at].token {
            Token::LParen => at = closing(tokens, at).unwrap_or(tokens.len()),
            Token::RParen | Token::SemiColon | Token::EOF => return at,
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                K::QUALIFY | K::ORDER | K::LIMIT | K::OFFSET | K::FETCH | K::UNION | K::INTERSECT | K::EXCEPT => {
                    return at;
                }
                _ => {}
            },
            _ => {}
        }
        at += 1;
    }
    at
}

fn solid(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    (from..tokens.len()).find(|at| !is_blank(&tokens[*at].token))
}

fn keyword(tokens: &[TokenWithSpan], at: usize) -> Option<Keyword> {
    match &tokens.get(at)?.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.keyword),
        _ => None,
    }
}

/// The parenthesis that closes the one at `open`.
fn closing(tokens: &[TokenWithSpan], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}
