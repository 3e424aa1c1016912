//! What callers ask of the engine and what they get back: [`Inference`] and its requests.
//!
//! Invariant: plain data and one object-safe trait, so that a caller can put a counting or caching layer
//! around the real engine.

use std::fmt;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hypr_common::Result;
use hypr_common::model::ModelMetadata;

pub use crate::input::{EmbedInput, InputKind};

/// The engine as its callers see it. `EngineHandle` implements it.
pub trait Inference: Send + Sync + fmt::Debug {
    /// Generates text for one prompt. Dropping the future stops the sequence and frees its memory at the
    /// engine's next step.
    ///
    /// # Errors
    /// `Busy` when the queue is full, `NotFound` or `InvalidInput` for a model that cannot do it,
    /// `Unavailable` when the engine is shutting down.
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Generation>>;

    /// Generates text token by token. Concatenating the texts gives [`Generation::text`]; a token that ends
    /// inside a UTF-8 character or inside a possible stop string has an empty text. Dropping the stream
    /// stops the sequence.
    ///
    /// # Errors
    /// As [`Inference::generate`], as the stream's last item.
    fn generate_stream(&self, request: GenerateRequest) -> BoxStream<'static, Result<Token>>;

    /// Embeds texts, pictures or sounds; the answer has one vector of the model's width per input, in order.
    ///
    /// # Errors
    /// As [`Inference::generate`].
    fn embed(&self, request: EmbedRequest) -> BoxFuture<'static, Result<Vec<Vec<f32>>>>;

    /// Finds the model that would serve `task`: the named one, else the configured default, else the only
    /// imported model able to do it.
    ///
    /// # Errors
    /// `NotFound` for an unknown name, `InvalidInput` when the named model cannot do the task or when there
    /// is not exactly one candidate; the message lists the candidates.
    fn resolve(&self, task: Task, name: Option<&str>) -> Result<ModelMetadata>;
}

/// What a model can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Continue text.
    Generate,
    /// Turn text into a vector.
    Embed,
    /// Turn a picture into a vector.
    EmbedImage,
    /// Turn sound into a vector.
    EmbedAudio,
}

impl Task {
    /// The word `architecture_config.tasks` uses.
    pub fn name(self) -> &'static str {
        match self {
            Task::Generate => "generate",
            Task::Embed => "embed",
            Task::EmbedImage => "embed_image",
            Task::EmbedAudio => "embed_audio",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Generate => "generate",
            Task::Embed => "embed text",
            Task::EmbedImage => "embed pictures",
            Task::EmbedAudio => "embed sound",
        })
    }
}

/// One piece of text to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// The model's id; `None` asks for the default.
    pub model: Option<String>,
    /// What to continue or answer.
    pub prompt: Prompt,
    /// Passages to answer from, best first. They are added in order, a paragraph each, until the context
    /// length less `max_tokens` less the prompt is filled; the last that fits is cut at a token.
    pub context: Vec<String>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How to choose each token.
    pub sampling: Sampling,
    /// Generation ends before the first of these strings; it is not part of the text.
    pub stop: Vec<String>,
    /// Who asks: a query, a session. Callers take turns by the tokens that each has been served, however many requests
    /// each has.
    pub caller: String,
    /// The lower, the earlier, before any turns; a request may take the memory of one whose number is higher. What is
    /// answered does not change.
    pub priority: i32,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            model: None,
            prompt: Prompt::Raw(String::new()),
            context: Vec::new(),
            max_tokens: 128,
            sampling: Sampling::default(),
            stop: Vec::new(),
            caller: String::new(),
            priority: 0,
        }
    }
}

/// The prompt and how much of it the model's chat template wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// One instruction; wrapped by the chat template where the model has one.
    Instruction(String),
    /// A conversation; needs a chat template, else the messages become paragraphs.
    Chat(Vec<ChatMessage>),
    /// Text to continue as it is.
    Raw(String),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// How a token is chosen from the logits. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Makes tokens of the prompt and the answer less likely; 1 changes nothing (CTRL, arXiv:1909.05858).
    pub repetition_penalty: f32,
    /// The same seed, request and model give the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The text this token completes; empty inside a UTF-8 character or a possible stop string.
    pub text: String,
    /// The token's number in the model's vocabulary.
    pub id: u32,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string was reached.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The caller stopped waiting.
    Cancelled,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The generated text, without the prompt and without the stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt, with template and context.
    pub prompt_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// How many of [`GenerateRequest::context`] were used, the one that was cut included.
    pub context_passages_used: usize,
    /// The version of the weights that answered.
    pub model_version: u64,
}

/// Inputs to embed, all of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedRequest {
    /// The model's id; `None` asks for the default.
    pub model: Option<String>,
    /// The inputs; a text is cut to the model's longest.
    pub inputs: Vec<EmbedInput>,
    /// Scale every vector to length 1.
    pub normalize: bool,
}

impl Default for EmbedRequest {
    fn default() -> Self {
        Self { model: None, inputs: Vec::new(), normalize: true }
    }
}
