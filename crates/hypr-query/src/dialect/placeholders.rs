//! `?` is the next positional parameter, except between an operand and a string, where it asks whether a
//! JSON object has a key: `metadata ? 'book'`.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::Result;

use super::is_blank;
use crate::error;

/// Numbers `?` as `$1`, `$2`, .. and tells the operator from the parameter.
pub(super) fn number_placeholders(mut tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let mut next = 0;
    let mut numbered = None;
    let mut before: Option<usize> = None;
    for at in 0..tokens.len() {
        if is_blank(&tokens[at].token) {
            continue;
        }
        if let Token::Placeholder(name) = &tokens[at].token {
            let position = tokens[at].span.start;
            let replacement = if name == "?" {
                if before.is_some_and(|before| ends_operand(&tokens[before].token)) && string_follows(&tokens, at) {
                    Token::Question
                } else {
                    next += 1;
                    Token::Placeholder(format!("${next}"))
                }
            } else {
                numbered = Some(position);
                Token::Placeholder(name.replacen('?', "$", 1))
            };
            tokens[at].token = replacement;
            if let (Some(at), true) = (numbered, next > 0) {
                return Err(error::syntax(
                    "use either ? or numbered parameters ($1, $2, ..), not both",
                    at.line,
                    at.column,
                ));
            }
        }
        before = Some(at);
    }
    Ok(tokens)
}

fn string_follows(tokens: &[TokenWithSpan], at: usize) -> bool {
    let next = tokens[at + 1..].iter().find(|token| !is_blank(&token.token));
    matches!(next.map(|token| &token.token), Some(Token::SingleQuotedString(_) | Token::EscapedStringLiteral(_)))
}

/// True when an operand can end with `token`, so that an operator may follow.
fn ends_operand(token: &Token) -> bool {
    match token {
        Token::Word(word) => word.quote_style.is_some() || !precedes_operand(word.keyword),
        Token::RParen | Token::RBracket | Token::SingleQuotedString(_) | Token::Placeholder(_) => true,
        _ => false,
    }
}

/// Words after which an operand begins.
#[rustfmt::skip]
fn precedes_operand(keyword: Keyword) -> bool {
    use Keyword as K;
    matches!(
        keyword,
        K::ALL | K::AND | K::ANY | K::AS | K::BETWEEN | K::BY | K::CASE | K::DISTINCT | K::ELSE | K::ESCAPE | K::FROM
            | K::HAVING | K::ILIKE | K::IN | K::IS | K::LIKE | K::LIMIT | K::NOT | K::OFFSET | K::ON | K::OR
            | K::QUALIFY | K::RETURNING | K::SELECT | K::SET | K::SIMILAR | K::SOME | K::THEN | K::TO | K::USING
            | K::VALUES | K::WHEN | K::WHERE
    )
}
