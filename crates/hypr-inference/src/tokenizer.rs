//! Text to tokens and back, by the model's own tokenizer.
//!
//! Invariant: truncation and padding that the tokenizer's file asks for are off; the engine decides lengths, and
//! the same text gives the same tokens whatever it is batched with.

use hypr_common::{Error, Result};
use tokenizers::Tokenizer;

/// A model's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    /// Reads the JSON of the `tokenizers` library.
    ///
    /// # Errors
    /// `Corrupted` where it is not a tokenizer.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let damaged =
            |error| Error::corrupted(format!("the model's tokenizer does not load: {error}; import it again"));
        let mut inner = Tokenizer::from_bytes(json).map_err(damaged)?;
        inner.with_truncation(None).map_err(damaged)?;
        inner.with_padding(None);
        Ok(Self { inner })
    }

    /// The tokens of `text`; `special` adds those that start and end a text of this model.
    ///
    /// # Errors
    /// `InvalidInput` for text that the tokenizer refuses.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, special)
            .map_err(|error| Error::invalid(format!("the text cannot be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// `Internal` where the tokenizer cannot decode what it encodes.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| Error::internal(format!("decoding tokens: {error}")))
    }

    /// How many tokens a text gets around it.
    pub fn special_tokens(&self) -> usize {
        use tokenizers::PostProcessor;
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false))
    }

    /// The token's own text, such as `<s>`; empty for an unknown one.
    pub fn token_text(&self, token: u32) -> String {
        self.inner.id_to_token(token).unwrap_or_default()
    }

    /// Whether `text` is a token that is not part of any text, such as `<|im_end|>`.
    pub fn is_special(&self, text: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(text)
    }

    /// Whether `other` has the same tokens under the same numbers.
    pub fn has_tokens_of(&self, other: &Self) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// The highest token plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }
}

/// Turns a sequence of tokens into whole characters as they arrive, and ends at stop strings, also those that
/// lie across token borders.
///
/// Invariant: the texts returned concatenate to the decoded text up to the first stop string; text that might be
/// the start of a stop string is held back.
#[derive(Debug, Default)]
pub struct TextStream {
    tokens: Vec<u32>,
    /// Tokens before it are settled and only give context to the decoder.
    prefix: usize,
    /// Tokens before it are in the text already.
    read: usize,
    stop: Vec<String>,
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before any of `stop`; empty strings among them count for nothing.
    pub fn new(mut stop: Vec<String>) -> Self {
        stop.retain(|stop| !stop.is_empty());
        Self { stop, ..Self::default() }
    }

    /// Whether a stop string was reached.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes one more token and returns the text that is now certain.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn push(&mut self, tokenizer: &TextTokenizer, token: u32) -> Result<String> {
        self.tokens.push(token);
        let known = tokenizer.decode(&self.tokens[self.prefix..self.read])?;
        let text = tokenizer.decode(&self.tokens[self.prefix..])?;
        // A replacement character at the end is the start of a character that later tokens complete.
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let added = text.get(known.len()..).unwrap_or_default().to_owned();
        self.prefix = self.read;
        self.read = self.tokens.len();
        Ok(self.release(&added))
    }

    /// The rest of the text, when no more tokens come.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn finish(&mut self, tokenizer: &TextTokenizer) -> Result<String> {
        let known = tokenizer.decode(&self.tokens[self.prefix..self.read])?;
        let text = tokenizer.decode(&self.tokens[self.prefix..])?;
        self.prefix = self.tokens.len();
        self.read = self.tokens.len();
        let mut released = self.release(text.get(known.len()..).unwrap_or_default());
        if !self.stopped {
            released.push_str(&std::mem::take(&mut self.held));
        }
        Ok(released)
    }

    fn release(&mut self, added: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(added);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_stop_start();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end of the held text that a stop string may start with.
    fn longest_stop_start(&self) -> usize {
        let starts = |stop: &String| {
            (1..stop.len().min(self.held.len() + 1))
                .rev()
                .find(|&len| self.held.as_bytes().ends_with(&stop.as_bytes()[..len]))
                .unwrap_or(0)
        };
        let len = self.stop.iter().map(starts).max().unwrap_or(0);
        // A stop string's first bytes start at a character's first byte, so this is a boundary of the held text.
        if self.held.is_char_boundary(self.held.len() - len) { len } else { self.held.len() }
    }
}

#[cfg(test)]
mod tests;
