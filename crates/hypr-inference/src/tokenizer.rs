//! Text to tokens and back, by the model's own tokenizer.
//!
//! Invariant: truncation and padding that the tokenizer's file asks for are off; the engine decides lengths, and
//! the same text gives the same tokens whatever it is batched with. A file that makes no sense is an error, also where the
//! `tokenizers` library panics on it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hypr_common::{Error, Result};
use serde::Deserialize;
use serde_json::Value as Json;
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
        let damaged = |error: String| {
            Error::corrupted(format!("the model's tokenizer.json does not load: {error}; import it again"))
        };
        check(json).map_err(damaged)?;
        let mut inner = guarded(|| Tokenizer::from_bytes(json)).map_err(damaged)?;
        inner.with_truncation(None).map_err(|error| damaged(error.to_string()))?;
        inner.with_padding(None);
        // What stands around a text may name tokens that there are not.
        guarded(|| inner.encode_fast("", true)).map_err(damaged)?;
        Ok(Self { inner })
    }

    /// The tokens of `text`; `special` adds those that start and end a text of this model.
    ///
    /// # Errors
    /// `InvalidInput` for text that the tokenizer refuses.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, special))
            .map_err(|error| Error::invalid(format!("the text cannot be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// `Internal` where the tokenizer cannot decode what it encodes.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(tokens, true))
            .map_err(|error| Error::internal(format!("decoding tokens: {error}")))
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

/// The parts of a tokenizer's file that are looked at before the library reads it.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    decoder: Json,
    model: FileModel,
}

#[derive(Deserialize)]
struct FileModel {
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// How much longer a normalizer or decoder may make a text.
const MAX_GROWTH: f64 = 4096.0;

/// How many times longer a normalizer or decoder can make a text by what it puts in place of something else.
fn growth(part: &Json) -> f64 {
    let steps = ["normalizers", "decoders"].into_iter().filter_map(|key| part.get(key)?.as_array()).flatten();
    let steps: f64 = steps.map(growth).product();
    let length = |text: Option<&Json>| text.and_then(Json::as_str).map_or(0, str::len) as f64;
    let content = length(part.get("content"));
    let own = match length(part.pointer("/pattern/String")) {
        // A regular expression may match next to nothing, and no text is everywhere.
        0.0 => 1.0 + content,
        pattern => content / pattern,
    };
    steps * if part.get("pattern").is_some() { own.max(1.0) } else { 1.0 }
}

/// Whether a part with a table of characters says that the table is longer than it is.
fn lies_about_its_table(part: &Json) -> bool {
    let steps = ["normalizers", "decoders"].into_iter().filter_map(|key| part.get(key)?.as_array()).flatten();
    // Base64 of a length of four bytes, little endian, and as many bytes or more (sentencepiece's `normalizer.cc`).
    let own = part.get("precompiled_charsmap").and_then(Json::as_str).is_some_and(|table| {
        let digit = |byte: u8| match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let head = table.bytes().take(6).fold(0_u64, |bits, byte| bits << 6 | u64::from(digit(byte)));
        let length = ((head >> 4) as u32).swap_bytes();
        table.len() >= 6 && u64::from(length) + 4 > table.len() as u64 / 4 * 3
    });
    own || steps.into_iter().any(lies_about_its_table)
}

/// What the library takes on trust: a table of as many bytes as it says, merges whose second part has the prefix that is cut off it, and replacements that do
/// not make each other's texts longer and longer.
fn check(json: &[u8]) -> std::result::Result<(), String> {
    let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    for (name, part) in [("normalizer", &file.normalizer), ("decoder", &file.decoder)] {
        if growth(part) > MAX_GROWTH {
            return Err(format!("its {name} makes texts more than {MAX_GROWTH} times longer"));
        }
    }
    if lies_about_its_table(&file.normalizer) {
        return Err("its precompiled_charsmap is shorter than it says".to_owned());
    }
    let prefix = file.model.continuing_subword_prefix.unwrap_or_default();
    if prefix.is_empty() {
        return Ok(());
    }
    let json: Json = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    for merge in json.pointer("/model/merges").and_then(Json::as_array).into_iter().flatten() {
        let second = match merge {
            Json::String(pair) => pair.split_once(' ').map(|(_, second)| second),
            pair => pair.get(1).and_then(Json::as_str),
        };
        if !second.is_some_and(|second| second.starts_with(&prefix)) {
            return Err(format!("the merge {merge} goes on without the prefix {prefix:?}"));
        }
    }
    Ok(())
}

/// Turns a panic of the library into an error.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("its parts contradict one another".to_owned()),
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
