//! `CREATE AGGREGATE FUNCTION` and `DROP AGGREGATE`, which sqlparser has no form for.
//!
//! ```text
//! CREATE [OR REPLACE] AGGREGATE [FUNCTION] name (parameter type [NOT AGGREGATE], ..) ..
//! DROP AGGREGATE [FUNCTION] [IF EXISTS] name [(types)], ..
//! ```
//! The rest is that of `CREATE FUNCTION`. The word is taken out, and the setting [`MARK`] says that it was there.
//! `NOT AGGREGATE` is BigQuery's word for a parameter that stands outside of the aggregates; which do is seen in the body.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Whitespace, Word};
use hypr_common::Result;

use crate::dialect::is_blank;

/// Marks the tree of an aggregate function.
pub(super) const MARK: &str = "hyprstream_aggregate";

/// See the module documentation.
pub(crate) fn rewrite_tokens(mut tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let solid: Vec<usize> = (0..tokens.len()).filter(|at| !is_blank(&tokens[*at].token)).collect();
    let is = |at: usize, word: &str| {
        let token = solid.get(at).map(|at| &tokens[*at].token);
        matches!(token, Some(Token::Word(Word { value, quote_style: None, .. })) if value.eq_ignore_ascii_case(word))
    };
    let creates = is(0, "CREATE");
    let at = if creates && is(1, "OR") && is(2, "REPLACE") { 3 } else { 1 };
    if !(is(at, "AGGREGATE") && (creates || is(0, "DROP"))) {
        return Ok(tokens);
    }
    let has_function = is(at + 1, "FUNCTION");
    let not_aggregate: Vec<usize> =
        (at + 1..solid.len()).filter(|at| creates && is(*at, "NOT") && is(at + 1, "AGGREGATE")).collect();
    let space = Token::Whitespace(Whitespace::Space);
    tokens[solid[at]].token = if has_function { space.clone() } else { Token::make_word("FUNCTION", None) };
    for at in not_aggregate.into_iter().flat_map(|at| [solid[at], solid[at + 1]]) {
        tokens[at].token = space.clone();
    }
    if creates {
        let is_end = |at: &&usize| matches!(tokens[**at].token, Token::SemiColon | Token::EOF);
        let end = solid.iter().rev().find(|at| !is_end(at)).map_or(tokens.len(), |at| at + 1);
        let span = tokens[end - 1].span;
        let mark = [
            space.clone(),
            Token::make_word("SET", None),
            space,
            Token::make_word(MARK, None),
            Token::Eq,
            Token::SingleQuotedString("on".to_owned()),
        ];
        tokens.splice(end..end, mark.into_iter().map(|token| TokenWithSpan::new(token, span)));
    }
    Ok(tokens)
}
