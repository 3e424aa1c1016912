//! `ARRAY[...]`, with the three dots: a vector that is still to be written, so it is a parameter like `?`.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::Result;

use super::is_blank;

/// Puts a `?` where `ARRAY[...]` stands.
pub(super) fn as_parameters(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    if (0..tokens.len()).all(|at| end_of_blank(&tokens[at..]).is_none()) {
        return Ok(tokens);
    }
    let mut rewritten = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        match end_of_blank(&tokens[at..]) {
            Some(length) => {
                rewritten.push(TokenWithSpan::new(Token::Placeholder("?".to_owned()), tokens[at].span));
                at += length;
            }
            None => {
                rewritten.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    Ok(rewritten)
}

/// How many tokens `ARRAY[...]` takes, if `tokens` begin with it.
fn end_of_blank(tokens: &[TokenWithSpan]) -> Option<usize> {
    const REST: [Token; 5] = [Token::LBracket, Token::Period, Token::Period, Token::Period, Token::RBracket];
    let is_array = matches!(&tokens.first()?.token, Token::Word(word) if word.value.eq_ignore_ascii_case("array"));
    let mut solid = tokens.iter().enumerate().skip(1).filter(|(_, token)| !is_blank(&token.token));
    is_array.then_some(())?;
    let mut end = 0;
    for expected in &REST {
        let (at, token) = solid.next()?;
        (token.token == *expected).then_some(())?;
        end = at + 1;
    }
    Some(end)
}
