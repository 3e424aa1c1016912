//! What fits a model's context: texts too long for one request are cut into parts that are not.
//!
//! Invariant: no text is lost (but for blanks where one is cut) and none is reordered; the parts of a list depend on the
//! list, the instruction and the model alone. A part counted here is never cut by [`crate::prompt`]: what is reserved for
//! the template and for token borders that move where texts are joined is counted too.

use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};

use crate::api::ChatMessage;
use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::tokenizer::TextTokenizer;

/// Tokens that borders which move may cost where two texts are joined.
const BORDER: usize = 1;

/// A model's tokenizer, its template, and the longest sequence it takes.
#[derive(Debug)]
pub struct Window {
    tokenizer: TextTokenizer,
    chat: Option<ChatTemplate>,
    context_tokens: usize,
}

impl Window {
    /// The window of a model, at most `max_positions` long.
    ///
    /// # Errors
    /// `InvalidInput` for a model without a tokenizer, `Corrupted` for a damaged one.
    pub fn open(tables: &ModelTables, max_positions: usize) -> Result<Self> {
        let config = ModelConfig::from_metadata(&tables.metadata)?;
        let id = &tables.metadata.model_id;
        let file = |name: &str| {
            tables
                .files
                .get(name)
                .ok_or_else(|| Error::corrupted(format!("model {id} has no file {name}; import it again")))
        };
        let tokenizer = config.tokenizer.as_deref();
        let tokenizer =
            tokenizer.ok_or_else(|| Error::invalid(format!("model {id} was imported without a tokenizer.json")))?;
        let chat = match config.chat_template.as_deref() {
            None => None,
            Some(name) => {
                let source = std::str::from_utf8(file(name)?.as_slice());
                let source = source
                    .map_err(|error| Error::corrupted(format!("the chat template of {id} is not UTF-8: {error}")))?;
                Some(ChatTemplate::new(source)?)
            }
        };
        Ok(Self {
            tokenizer: TextTokenizer::from_json(file(tokenizer)?.as_slice())?,
            chat,
            context_tokens: config.context_length.min(max_positions),
        })
    }

    /// The longest prompt and answer together, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Cuts `texts` into parts, each of which a request with `messages` around it and `max_tokens` of answer takes whole.
    /// A text longer than a part is cut at a token.
    ///
    /// # Errors
    /// `ResourceExhausted` where the messages and the answer leave no room for a text.
    pub fn parts(&self, texts: &[String], messages: &[ChatMessage], max_tokens: usize) -> Result<Vec<Vec<String>>> {
        let around = self.tokens_around(messages)?;
        let joint = self.tokenizer.encode("\n\n", false)?.len() + BORDER;
        let reserved = max_tokens.min(self.context_tokens * 3 / 4);
        let room = self.context_tokens.saturating_sub(reserved + around + 2 * joint);
        if room <= 2 * joint {
            return Err(Error::new(
                hypr_common::ErrorKind::ResourceExhausted,
                format!(
                    "the instruction takes {around} tokens and the answer {reserved} of the {} that the model reads; \
                     shorten the instruction or ask for fewer max_tokens",
                    self.context_tokens
                ),
            ));
        }
        let mut parts: Vec<Vec<String>> = Vec::new();
        let mut left = 0;
        for text in texts {
            for piece in self.pieces(text, room - joint)? {
                let needed = piece.1 + joint;
                match parts.last_mut() {
                    Some(part) if needed <= left => part.push(piece.0),
                    _ => {
                        parts.push(vec![piece.0]);
                        left = room;
                    }
                }
                left = left.saturating_sub(needed);
            }
        }
        Ok(parts)
    }

    /// Tokens of everything but the texts.
    fn tokens_around(&self, messages: &[ChatMessage]) -> Result<usize> {
        let text = match &self.chat {
            // Tokens that begin and end a text are a token each at most; their texts need not be known here.
            Some(chat) => chat.render(messages, "", "")?,
            None => messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n"),
        };
        let heading = self.tokenizer.encode(crate::prompt::CONTEXT_HEADING, false)?.len();
        // One token more where the model wants one before every text.
        Ok(self.tokenizer.encode(&text, false)?.len() + heading + 1)
    }

    /// `text` in pieces of at most `most` tokens, with their numbers of tokens; cut at blanks where there are any.
    fn pieces(&self, text: &str, most: usize) -> Result<Vec<(String, usize)>> {
        let tokens = self.tokenizer.encode(text, false)?.len();
        if tokens <= most {
            return Ok(vec![(text.to_owned(), tokens)]);
        }
        let guess = (text.len() / tokens).max(1) * most;
        let mut pieces = Vec::with_capacity(tokens / most + 1);
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (end, count) = self.fitting(rest, guess, most)?;
            pieces.push((rest[..end].trim_end().to_owned(), count));
            rest = rest[end..].trim_start();
        }
        Ok(pieces)
    }

    /// How many bytes of `text` make at most `most` tokens, near `guess` of them, and how many tokens they make.
    fn fitting(&self, text: &str, guess: usize, most: usize) -> Result<(usize, usize)> {
        let first = text.chars().next().map_or(0, char::len_utf8);
        let mut end = guess;
        loop {
            end = text.floor_char_boundary(end).max(first);
            if end < text.len() {
                // Not in the middle of a word, unless the word is most of it.
                let blank = text[..end].rfind(char::is_whitespace).filter(|blank| blank * 2 > end);
                end = blank.unwrap_or(end);
            }
            let count = self.tokenizer.encode(&text[..end], false)?.len();
            if count <= most || end == first {
                return Ok((end, count));
            }
            end = (end * most / count).min(end - 1);
        }
    }
}
