//! A request's prompt and passages become the tokens that the model reads.
//!
//! The rule: the prompt may take the context length less `max_tokens`. Passages are added in order, a paragraph
//! each, while they fit; the last that fits is cut at a token. If the prompt alone is too long, the oldest
//! exchanges, each from one user's message to the next, and then its own beginning are cut. Invariant: the answer is never longer than the room, and
//! whatever is cut, the end of the prompt stays. `max_tokens` reserves at most three quarters of the context.

use hypr_common::{Error, Result};

use crate::api::{ChatMessage, GenerateRequest, Prompt, Tool};
use crate::model::Model;
use crate::tools;

/// What the model reads.
#[derive(Debug, PartialEq, Eq)]
pub struct BuiltPrompt {
    /// At least one token.
    pub tokens: Vec<u32>,
    /// Passages that are in it, the one that was cut included.
    pub context_passages_used: usize,
}

/// Stands before the passages of an instruction.
pub(crate) const CONTEXT_HEADING: &str = "Context:";

/// A prompt whose passages and length are still open.
enum Shape {
    Raw(String),
    Chat(Vec<ChatMessage>),
}

impl Shape {
    fn of(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Raw(text) => Self::Raw(text.clone()),
            Prompt::Chat(messages) => Self::Chat(messages.clone()),
            Prompt::Instruction(text) => Self::Chat(vec![ChatMessage::new("user", text)]),
        }
    }

    /// The part that passages stand before and that is cut from its beginning.
    fn text_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Raw(text) => Some(text),
            Self::Chat(messages) => match messages.iter().rposition(|message| message.role == "user") {
                Some(at) => Some(&mut messages[at].content),
                None => messages.last_mut().map(|message| &mut message.content),
            },
        }
    }

    fn tokens(&mut self, model: &Model, tools: &[Tool], passages: &[String]) -> Result<Vec<u32>> {
        let mut filled = match self {
            Self::Raw(text) => Self::Raw(text.clone()),
            Self::Chat(messages) => Self::Chat(messages.clone()),
        };
        let heading = matches!(filled, Self::Chat(_)).then_some(CONTEXT_HEADING);
        if let (false, Some(text)) = (passages.is_empty(), filled.text_mut()) {
            let paragraphs: Vec<&str> =
                heading.into_iter().chain(passages.iter().map(String::as_str)).chain([text.as_str()]).collect();
            *text = paragraphs.join("\n\n");
        }
        match filled {
            Self::Raw(text) => model.encode_prompt(&text),
            Self::Chat(messages) => model.encode_prompt(&model.render_with_tools(&messages, tools)?),
        }
    }
}

/// Builds the prompt of `request` for `model`.
///
/// # Errors
/// `InvalidInput` for an empty prompt and where the chat template refuses the conversation.
pub fn build(model: &Model, request: &GenerateRequest) -> Result<BuiltPrompt> {
    let context_length = model.transformer().max_positions();
    let reserved = request.max_tokens.min(context_length * 3 / 4);
    let room = (context_length - reserved).max(1);
    let tools = tools::offered(request);
    let mut shape = Shape::of(&request.prompt);
    let mut tokens = fit_prompt(model, tools, &mut shape, room)?;
    let mut used = 0;
    if !request.context.is_empty() && tokens.len() < room {
        let passages = fit_passages(model, tools, &mut shape, &request.context, room)?;
        used = passages.len();
        tokens = shape.tokens(model, tools, &passages)?;
    }
    if tokens.is_empty() {
        return Err(Error::invalid("the prompt is empty; give the model something to continue"));
    }
    // Cutting texts and joining them again can move a token border.
    tokens.drain(..tokens.len().saturating_sub(room));
    Ok(BuiltPrompt { tokens, context_passages_used: used })
}

/// Cuts the prompt until it fits the room, and returns its tokens.
fn fit_prompt(model: &Model, tools: &[Tool], shape: &mut Shape, room: usize) -> Result<Vec<u32>> {
    let mut tokens = shape.tokens(model, tools, &[])?;
    if tokens.len() > room
        && let Shape::Chat(messages) = shape
    {
        let later = later_beginnings(messages);
        // The later it begins, the shorter it is: the first that fits is found in a few steps, or the last is taken.
        let (mut first, mut last) = (0, later.len().saturating_sub(1));
        while first < last {
            let middle = first.midpoint(last);
            let shorter = beginning_at(messages, later[middle]);
            let fits = Shape::Chat(shorter).tokens(model, tools, &[])?.len() <= room;
            (first, last) = if fits { (first, middle) } else { (middle + 1, last) };
        }
        if let Some(start) = later.get(first) {
            *messages = beginning_at(messages, *start);
            tokens = shape.tokens(model, tools, &[])?;
        }
    }
    if tokens.len() > room
        && let Some(text) = shape.text_mut()
    {
        let text_tokens = model.tokenizer().encode(text, false)?;
        let cut = (tokens.len() - room).min(text_tokens.len());
        *text = model.tokenizer().decode(&text_tokens[cut..])?.trim_start_matches('\u{fffd}').to_owned();
        tokens = shape.tokens(model, tools, &[])?;
    }
    Ok(tokens)
}

/// Where a conversation may begin when its oldest part is dropped: with a user's message, as templates want it.
fn later_beginnings(messages: &[ChatMessage]) -> Vec<usize> {
    let is_user = |at: &usize| messages[*at].role == "user";
    let first = messages.iter().position(|message| message.role != "system").unwrap_or(messages.len());
    (first + 1..messages.len()).filter(is_user).collect()
}

/// The messages from `start` on, and the system's before it.
fn beginning_at(messages: &[ChatMessage], start: usize) -> Vec<ChatMessage> {
    let kept = |(at, message): &(usize, &ChatMessage)| *at >= start || message.role == "system";
    messages.iter().enumerate().filter(kept).map(|(_, message)| message.clone()).collect()
}

/// The passages that fit, the last cut.
fn fit_passages(
    model: &Model,
    tools: &[Tool],
    shape: &mut Shape,
    context: &[String],
    room: usize,
) -> Result<Vec<String>> {
    // A first passage of nothing measures the heading and the paragraph's end.
    let mut left = room.saturating_sub(shape.tokens(model, tools, &[String::new()])?.len());
    let separator = model.tokenizer().encode("\n\n", false)?.len();
    let mut passages = Vec::new();
    for passage in context {
        let tokens = model.tokenizer().encode(passage, false)?;
        let own_separator = if passages.is_empty() { 0 } else { separator };
        if tokens.len() + own_separator <= left {
            left -= tokens.len() + own_separator;
            passages.push(passage.clone());
            continue;
        }
        let kept = left.saturating_sub(own_separator);
        let cut = model.tokenizer().decode(&tokens[..kept.min(tokens.len())])?;
        let cut = cut.trim_end_matches('\u{fffd}').trim_end();
        if !cut.is_empty() {
            passages.push(cut.to_owned());
        }
        break;
    }
    // Token borders at the joints may cost a token more than the parts.
    while !passages.is_empty() {
        let over = shape.tokens(model, tools, &passages)?.len().saturating_sub(room);
        if over == 0 {
            break;
        }
        let tokens = model.tokenizer().encode(passages.last().map_or("", String::as_str), false)?;
        let kept = model.tokenizer().decode(&tokens[..tokens.len().saturating_sub(over)])?;
        let kept = kept.trim_end_matches('\u{fffd}').trim_end().to_owned();
        passages.pop();
        if !kept.is_empty() {
            passages.push(kept);
        }
    }
    Ok(passages)
}
