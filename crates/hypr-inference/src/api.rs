//! What callers ask of the engine and what they get back: [`Inference`] and its requests.
//!
//! Invariant: plain data and one object-safe trait, so that a caller can put a counting or caching layer
//! around the real engine.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hypr_common::model::ModelMetadata;
use hypr_common::prefix::Prefix;
use hypr_common::{Error, Result};

use crate::kv_table::KvSequence;
use crate::window::Window;

pub use crate::block_pool::CacheIdentity;
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

    /// Generates `n` texts for one prompt, which is computed once. Text `i` has the request's seed and `i` more, so that at
    /// temperature 0 all are equal.
    ///
    /// # Errors
    /// As [`Inference::generate`], of the first that fails.
    fn generate_n(&self, request: GenerateRequest, n: usize) -> BoxFuture<'static, Result<Vec<Generation>>> {
        let one = |i: u64| {
            let seed = request.sampling.seed.wrapping_add(i);
            self.generate(GenerateRequest { sampling: Sampling { seed, ..request.sampling }, ..request.clone() })
        };
        Box::pin(futures::future::try_join_all((0..n as u64).map(one).collect::<Vec<_>>()))
    }

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

    /// Which weights would answer a request for `task` now; `None` where that is not known, so that no answer may be
    /// kept for later.
    ///
    /// # Errors
    /// As [`Inference::resolve`].
    fn identity(&self, task: Task, name: Option<&str>) -> Result<Option<CacheIdentity>> {
        self.resolve(task, name).map(|_| None)
    }

    /// The sequences whose keys and values there are, running, waiting and ended, as between two steps. Reading them does
    /// not stop the engine.
    ///
    /// # Errors
    /// `Unavailable` when the engine is shutting down.
    fn sequences(&self) -> BoxFuture<'static, Result<Vec<KvSequence>>> {
        Box::pin(futures::future::ready(Ok(Vec::new())))
    }

    /// What the model computes of the beginning of a request's prompt, in whole blocks before its last token; computed where
    /// it is not there.
    ///
    /// # Errors
    /// As [`Inference::generate`], and `InvalidInput` for a prompt that fills no block.
    fn prefix(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Prefix>> {
        drop(request);
        Box::pin(futures::future::ready(Err(Error::unsupported("prefixes are not kept here"))))
    }

    /// Puts a prefix where requests that begin alike find it, until its memory is needed for others. Returns its number of
    /// tokens.
    ///
    /// # Errors
    /// `NotFound` for an unknown model, `Conflict` where its weights, its adapter or the kernels are not those that the
    /// prefix was computed with, `Corrupted` where it is not what it says, `ResourceExhausted` where there is no room.
    fn restore_prefix(&self, prefix: Prefix) -> BoxFuture<'static, Result<usize>> {
        drop(prefix);
        Box::pin(futures::future::ready(Err(Error::unsupported("prefixes are not kept here"))))
    }

    /// Opens a model where it is not open, and with `pin` keeps it open whatever else needs its memory. Returns whether
    /// that changed anything.
    ///
    /// # Errors
    /// `NotFound` for an unknown model, `Corrupted` for a damaged one, `Busy` where the memory for it is in use, and
    /// `ResourceExhausted` where it never becomes free.
    fn load_model(&self, model_id: &str, pin: bool) -> BoxFuture<'static, Result<bool>> {
        let _ = (model_id, pin);
        not_here()
    }

    /// Lets a model be unloaded again when its memory is needed. Returns whether it was pinned.
    ///
    /// # Errors
    /// `NotFound` for an unknown model.
    fn unpin_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        let _ = model_id;
        not_here()
    }

    /// Takes a model away from new requests, which load it again, waits for those that it answers, and frees its memory,
    /// also where it is pinned. Returns whether it was loaded. Dropping the future leaves it to end by itself.
    ///
    /// # Errors
    /// `NotFound` for an unknown model.
    fn unload_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        let _ = model_id;
        not_here()
    }

    /// The models that are open, by id, the oldest copy of one last.
    ///
    /// # Errors
    /// `Unavailable` when the engine is shutting down.
    fn loaded_models(&self) -> BoxFuture<'static, Result<Vec<LoadedModel>>> {
        Box::pin(futures::future::ready(Ok(Vec::new())))
    }

    /// What fits one request to the model that generates.
    ///
    /// # Errors
    /// As [`Inference::resolve`], and `Unsupported` where that is not known.
    fn window(&self, name: Option<&str>) -> Result<Arc<Window>> {
        let model = self.resolve(Task::Generate, name)?.model_id;
        Err(Error::unsupported(format!("what fits the context of {model} is not known here")))
    }
}

/// The answer of what opens models by itself.
fn not_here() -> BoxFuture<'static, Result<bool>> {
    Box::pin(futures::future::ready(Err(Error::unsupported("models are not loaded and unloaded here"))))
}

/// A copy of a model in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModel {
    /// The model's id.
    pub model_id: String,
    /// The version of its weights.
    pub version: u64,
    /// Whether new requests find it; one that does not ends with the requests that it answers.
    pub drains: bool,
    /// Whether it stays whatever else needs its memory.
    pub pinned: bool,
    /// Bytes of its weights.
    pub bytes: usize,
    /// Bytes of them that may be in memory, where that is less than all: its layers come and go as they are computed.
    pub limit_bytes: Option<usize>,
    /// Bytes of them that are in this process's memory; `None` where the system does not tell.
    pub resident_bytes: Option<u64>,
    /// Requests that it answers.
    pub requests: usize,
    /// When a request last asked for it, in microseconds since 1970.
    pub last_used_us: i64,
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

/// What an answer must look like; see `crate::grammar`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// A JSON object.
    JsonObject,
    /// JSON that a JSON Schema (the schema's text) accepts.
    JsonSchema(Arc<str>),
    /// Text that a regular expression, in Rust's syntax, matches as a whole.
    Regex(Arc<str>),
    /// Text of a grammar in Lark's syntax as `llguidance` has it; `start` is its first rule.
    Lark(Arc<str>),
}

/// How to guess tokens before they are computed; see `crate::engine`. It changes how fast an answer comes and never what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speculative {
    /// What followed the last tokens, at most `max_ngram` of them, where they stood before: for answers that repeat the
    /// prompt.
    PromptLookup {
        /// At least 1.
        max_ngram: usize,
        /// The most tokens to guess at once, at least 1.
        tokens: usize,
    },
    /// What a smaller model with the same tokens says.
    Draft {
        /// The model's id.
        model: String,
        /// The most tokens to guess at once, at least 1.
        tokens: usize,
    },
}

impl Speculative {
    /// The most tokens that may be guessed at once.
    pub const MAX_TOKENS: usize = 64;
}

/// A function that the model may ask its caller to call.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(from = "wire::Tool", into = "wire::Tool")]
pub struct Tool {
    /// What the model calls it.
    pub name: String,
    /// What it does, for the model to read.
    pub description: String,
    /// A JSON Schema of the object that it takes; null for nothing.
    pub parameters: serde_json::Value,
}

/// Which tools the model may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Any or none.
    #[default]
    Auto,
    /// None; the model is not told of them.
    None,
    /// One of them; the answer is nothing else, and its arguments follow the schema.
    Required,
    /// This one, as with `Required`.
    Named(String),
}

/// A call that the model asks for. In JSON it has OpenAI's shape.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "wire::ToolCall", into = "wire::ToolCall")]
pub struct ToolCall {
    /// Tells the calls of one answer apart.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

/// OpenAI's shapes of what has a simpler one here.
mod wire {
    use serde::{Deserialize, Serialize};
    use serde_json::Value;

    fn function() -> String {
        "function".to_owned()
    }

    #[derive(Serialize, Deserialize)]
    pub struct Tool {
        #[serde(rename = "type", default = "function")]
        kind: String,
        function: Function,
    }

    #[derive(Serialize, Deserialize)]
    struct Function {
        name: String,
        #[serde(default)]
        description: String,
        #[serde(default)]
        parameters: Value,
    }

    impl From<Tool> for super::Tool {
        fn from(Tool { function, .. }: Tool) -> Self {
            Self { name: function.name, description: function.description, parameters: function.parameters }
        }
    }

    impl From<super::Tool> for Tool {
        fn from(super::Tool { name, description, parameters }: super::Tool) -> Self {
            Self { kind: function(), function: Function { name, description, parameters } }
        }
    }

    #[derive(Serialize, Deserialize)]
    pub struct ToolCall {
        #[serde(default)]
        id: String,
        #[serde(rename = "type", default = "function")]
        kind: String,
        function: Call,
    }

    #[derive(Serialize, Deserialize)]
    struct Call {
        name: String,
        arguments: String,
    }

    impl From<ToolCall> for super::ToolCall {
        fn from(ToolCall { id, function, .. }: ToolCall) -> Self {
            Self { id, name: function.name, arguments: function.arguments }
        }
    }

    impl From<super::ToolCall> for ToolCall {
        fn from(super::ToolCall { id, name, arguments }: super::ToolCall) -> Self {
            Self { id, kind: function(), function: Call { name, arguments } }
        }
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
    /// Added to the logits of single tokens before anything else; negative infinity forbids a token. Tokens outside the
    /// model's vocabulary count for nothing.
    pub logit_bias: Vec<(u32, f32)>,
    /// Asks how likely each token was, and for so many of the likeliest in its place; at most
    /// [`GenerateRequest::MAX_LOGPROBS`].
    pub logprobs: Option<usize>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Guesses of tokens, for a faster answer.
    pub speculative: Option<Speculative>,
    /// What the model may call. Its calls are in [`Generation::tool_calls`]; a stream has them as they were written.
    pub tools: Vec<Tool>,
    /// Whether it may, or must.
    pub tool_choice: ToolChoice,
    /// Answers that are allowed, and no others; any where there are none. Then `max_tokens` is as many as the longest
    /// takes.
    pub choices: Vec<String>,
    /// Who asks: a query, a session. Callers take turns by the tokens that each has been served, however many requests
    /// each has.
    pub caller: String,
    /// The lower, the earlier, before any turns; a request may take the memory of one whose number is higher. What is
    /// answered does not change.
    pub priority: i32,
}

impl GenerateRequest {
    /// The most that [`GenerateRequest::logprobs`] may ask for, as in OpenAI's and vLLM's interfaces.
    pub const MAX_LOGPROBS: usize = 20;
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
            choices: Vec::new(),
            logit_bias: Vec::new(),
            logprobs: None,
            constraint: None,
            speculative: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said, or what a tool answered.
    #[serde(default)]
    pub content: String,
    /// Calls that the assistant asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The tool whose answer it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of nothing but text.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), ..Self::default() }
    }
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// The text this token completes; empty inside a UTF-8 character or a possible stop string.
    pub text: String,
    /// The token's number in the model's vocabulary.
    pub id: u32,
    /// How likely it was, where the request asks.
    pub logprobs: Option<TokenLogprobs>,
}

/// How likely the model found a token: before bias, grammar, penalty, temperature and cuts.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub token: Logprob,
    /// The likeliest in its place, the likeliest first.
    pub top: Vec<Logprob>,
}

/// The natural logarithm of a token's probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprob {
    /// The token's number in the model's vocabulary.
    pub id: u32,
    /// At most 0.
    pub logprob: f32,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string was reached.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The model asks for tools to be called.
    ToolCalls,
    /// The caller stopped waiting.
    Cancelled,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The generated text, without the prompt, the stop string and calls of tools.
    pub text: String,
    /// Calls that the model asks for; the answers go into a conversation as messages of role `tool`.
    pub tool_calls: Vec<ToolCall>,
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
    /// Of each generated token, the one that ended the text included; empty unless the request asks.
    pub logprobs: Vec<TokenLogprobs>,
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
