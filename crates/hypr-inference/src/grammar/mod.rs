//! Answers of a given form: a grammar says which tokens may come next, and which must.
//!
//! `llguidance` parses the answer byte by byte beside its generation (an Earley parser over a lexer of regular expression
//! derivatives). Before each choice the logits of all tokens that cannot go on are set to negative infinity. Where only
//! one text can follow, its tokens are *forced*: they are appended without being chosen, so that the network reads them
//! in one pass like a piece of a prompt.
//!
//! A grammar is compiled once for a model's tokenizer and kept; sequences of one grammar share what its lexer has
//! learnt. Invariant: every step has a limit of work, so a hostile grammar is an error and not a hang. Deliberately
//! absent: healing of the prompt's last token; the answer begins at a token's border.

mod schema;

pub(crate) use schema::spaced;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use hypr_common::{Error, Result};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use parking_lot::Mutex;

use crate::api::Constraint;
use crate::tokenizer::TextTokenizer;

/// Compiled grammars that one model keeps.
const KEPT: usize = 64;
/// States of one grammar's lexer; 1 to 2 KiB each.
const MAX_LEXER_STATES: usize = 50_000;

/// What a model needs for grammars: its tokens as bytes, and the grammars compiled for them.
pub struct Grammars {
    factory: ParserFactory,
    /// The most recently used last.
    compiled: Mutex<VecDeque<(Constraint, Matcher)>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("compiled", &self.compiled.lock().len()).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For the tokenizer that `json` describes, of a model with `vocab_size` logits whose answers end with any of `ends`.
    ///
    /// # Errors
    /// `InvalidInput` for a tokenizer whose tokens are not bytes.
    pub fn new(tokenizer: Arc<TextTokenizer>, json: &[u8], vocab_size: usize, ends: &[u32]) -> Result<Self> {
        let unfit = |error: &dyn fmt::Display| {
            Error::invalid(format!(
                "the model's tokenizer does not tell the bytes of its tokens ({error}), which a grammar needs; take a \
                 model with a byte-level tokenizer"
            ))
        };
        let json: serde_json::Value = serde_json::from_slice(json).map_err(|error| unfit(&error))?;
        let mut tokens = token_bytes_from_tokenizer_json(&json).map_err(|error| unfit(&error))?;
        tokens.resize(vocab_size, Vec::new());
        let ends: Vec<u32> = ends.iter().copied().filter(|&end| (end as usize) < vocab_size).collect();
        let none = llguidance::toktrie::INVALID_TOKEN;
        let info = TokRxInfo::new(vocab_size as u32, ends.first().copied().unwrap_or(none));
        let mut trie = TokTrie::from(&info, &tokens);
        if ends.len() > 1 {
            trie = trie.with_eos_tokens(&ends);
        }
        let environment: TokEnv = Arc::new(Environment { tokenizer, trie });
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| unfit(&error))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        Ok(Self { factory, compiled: Mutex::default() })
    }

    /// A parser of `constraint` at its beginning.
    ///
    /// # Errors
    /// `InvalidInput` for what is no grammar, naming the place, and for a grammar that nothing satisfies.
    pub fn start(&self, constraint: &Constraint) -> Result<Grammar> {
        let mut compiled = self.compiled.lock();
        let known = compiled.iter().position(|(known, _)| known == constraint);
        let entry = match known.and_then(|at| compiled.remove(at)) {
            Some(entry) => entry,
            None => (constraint.clone(), self.compile(constraint)?),
        };
        // A lexer of its own: one that has run into its limits refuses all that share it, for ever.
        let matcher = entry.1.deep_clone();
        if compiled.len() >= KEPT {
            compiled.pop_front();
        }
        compiled.push_back(entry);
        Ok(Grammar { matcher })
    }

    fn compile(&self, constraint: &Constraint) -> Result<Matcher> {
        let grammar = schema::grammar(constraint)?;
        let parser =
            self.factory.create_parser(grammar).map_err(|error| schema::refusal(constraint, &format!("{error:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        // Also the first use of the lexer, which each sequence gets a copy of.
        match matcher.compute_mask() {
            Ok(_) => Ok(matcher),
            Err(error) => Err(schema::refusal(
                constraint,
                &format!("no token of the model can begin such an answer ({})", first_line(&error)),
            )),
        }
    }
}

/// Checks what can be checked of `constraint` without a model: its syntax, and whether it contradicts itself.
///
/// # Errors
/// `InvalidInput`, naming the place.
pub fn check(constraint: &Constraint) -> Result<()> {
    match schema::validate(schema::grammar(constraint)?) {
        Ok(()) => Ok(()),
        Err(message) => Err(schema::refusal(constraint, &message)),
    }
}

/// The parser of one answer.
pub struct Grammar {
    matcher: Matcher,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("stop_reason", &self.matcher.stop_reason()).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Sets the logits, `[vocab]`, of tokens that cannot come next to negative infinity.
    ///
    /// # Errors
    /// `InvalidInput` where no token can, and where the grammar takes more work than one step may.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask().map_err(|error| stuck(&error))?;
        let words = mask.as_slice();
        let (known, beyond) = logits.split_at_mut(logits.len().min(words.len() * 32));
        for (logits, &word) in known.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        beyond.fill(f32::NEG_INFINITY);
        Ok(())
    }

    /// Goes on by the answer's next token.
    ///
    /// # Errors
    /// `InvalidInput` for a token that cannot come next.
    pub fn consume(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|error| stuck(&error))
    }

    /// Goes on by the tokens that must come next, and returns them; none where there is a choice.
    ///
    /// # Errors
    /// As [`Grammar::consume`].
    pub fn force(&mut self) -> Result<Vec<u32>> {
        if self.is_complete() {
            return Ok(Vec::new());
        }
        let forced = self.matcher.compute_ff_tokens();
        if !forced.is_empty() {
            self.matcher.consume_tokens(&forced).map_err(|error| stuck(&error))?;
        }
        Ok(forced)
    }

    /// How many of `tokens` could come next, in order.
    pub fn admits(&mut self, tokens: &[u32]) -> usize {
        self.matcher.validate_tokens(tokens).unwrap_or(0)
    }

    /// Whether the answer is whole and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn stuck(error: &dyn fmt::Display) -> Error {
    Error::invalid(format!(
        "the answer cannot go on as the grammar wants it ({}); simplify the grammar",
        first_line(error)
    ))
}

/// The library's message without what it adds for its developers.
fn first_line(error: &dyn fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A tokenizer as `llguidance` sees it.
struct Environment {
    tokenizer: Arc<TextTokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode(text, false).unwrap_or_default();
            // A tokenizer may normalise the text, put a space before it or find special tokens in it.
            if self.trie.decode_raw(&tokens) == text.as_bytes() {
                return tokens;
            }
            self.trie.greedy_tokenize(text.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests;
