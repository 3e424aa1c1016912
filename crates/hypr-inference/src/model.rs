//! A model opened for use: its network, tokenizer and chat template over one version of its tables.

use std::sync::{Arc, OnceLock};

use hypr_common::model::{ModelMetadata, ModelTables};
use hypr_common::{Error, Result};
use hypr_tensor::{Kernels, Scratch, WeightArray};

use crate::api::{ChatMessage, Task, Tool};
use crate::chat::{self, ChatTemplate};
use crate::config::{ModelConfig, Pooling};
use crate::grammar::Grammars;
use crate::paging::Paging;
use crate::tokenizer::TextTokenizer;
use crate::tools::ToolFormat;
use crate::transformer::{Chunk, Transformer, Workspace};
use crate::weights::Weights;

/// One version of a model.
#[derive(Debug)]
pub struct Model {
    tables: Arc<ModelTables>,
    tokenizer: Arc<TextTokenizer>,
    /// Made when the first grammar is asked for.
    grammars: OnceLock<Grammars>,
    chat: Option<ChatTemplate>,
    transformer: Transformer,
    /// `[joint, hidden]`, where the model has a joint space.
    projection: Option<WeightArray>,
}

impl Model {
    /// Opens `tables` for sequences of up to `max_positions` tokens.
    ///
    /// # Errors
    /// `Corrupted` where weights, tokenizer or template are missing or damaged.
    pub fn open(tables: Arc<ModelTables>, max_positions: usize) -> Result<Self> {
        Self::open_within(tables, max_positions, None)
    }

    /// As [`Model::open`]; with a `limit` no more bytes of its mapped weights are in memory at a time.
    ///
    /// # Errors
    /// As [`Model::open`], and as [`Paging::new`].
    pub fn open_within(tables: Arc<ModelTables>, max_positions: usize, limit: Option<usize>) -> Result<Self> {
        let weights = Weights::new(&tables)?;
        let mut transformer =
            Transformer::of_weights(&weights, ModelConfig::from_metadata(&tables.metadata)?, max_positions)?;
        if let Some(limit) = limit {
            transformer.page(Paging::new(&tables, limit)?);
        }
        let config = transformer.config();
        let after = config.num_hidden_layers as i32;
        let projection = match config.embedding_size {
            Some(joint) => Some(weights.matrix(after, "projection", joint, config.hidden_size)?),
            None => None,
        };
        let file = |name: &str| {
            tables.files.get(name).ok_or_else(|| {
                Error::corrupted(format!("model {} has no file {name}; import it again", tables.metadata.model_id))
            })
        };
        let tokenizer = config.tokenizer.as_deref().ok_or_else(|| {
            Error::invalid(format!("model {} was imported without a tokenizer.json", tables.metadata.model_id))
        })?;
        let tokenizer = TextTokenizer::from_json(file(tokenizer)?.as_slice())?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::corrupted(format!(
                "the tokenizer of model {} knows {} tokens and the network {}",
                tables.metadata.model_id,
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        let chat = match config.chat_template.as_deref() {
            None => None,
            Some(name) => {
                let source = std::str::from_utf8(file(name)?.as_slice())
                    .map_err(|error| Error::corrupted(format!("the model's chat template is not UTF-8: {error}")))?;
                Some(ChatTemplate::new(source)?)
            }
        };
        Ok(Self { tokenizer: Arc::new(tokenizer), grammars: OnceLock::new(), chat, transformer, projection, tables })
    }

    /// The tables it runs on.
    pub fn tables(&self) -> &Arc<ModelTables> {
        &self.tables
    }

    /// The row of `model_metadata`.
    pub fn metadata(&self) -> &ModelMetadata {
        &self.tables.metadata
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.transformer.config()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The network.
    pub fn transformer(&self) -> &Transformer {
        &self.transformer
    }

    /// What compiles grammars for its tokens.
    ///
    /// # Errors
    /// `InvalidInput` for a tokenizer whose tokens are not bytes.
    pub fn grammars(&self) -> Result<&Grammars> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let config = self.config();
        let json = config.tokenizer.as_deref().and_then(|name| self.tables.files.get(name));
        let json = json.ok_or_else(|| Error::internal("the file of an opened tokenizer is gone"))?;
        let tokenizer = Arc::clone(&self.tokenizer);
        let grammars = Grammars::new(tokenizer, json.as_slice(), config.vocab_size, &config.eos_token_ids)?;
        Ok(self.grammars.get_or_init(|| grammars))
    }

    /// Whether `other` has the same tokens under the same numbers.
    pub fn has_tokens_of(&self, other: &Self) -> bool {
        let file = |model: &Self| {
            let name = model.config().tokenizer.as_deref()?;
            model.tables.files.get(name).cloned()
        };
        file(self) == file(other) || self.tokenizer.has_tokens_of(&other.tokenizer)
    }

    /// How it writes calls of tools.
    pub fn tool_format(&self) -> ToolFormat {
        self.chat.as_ref().map_or(ToolFormat::Hermes, ChatTemplate::tool_format)
    }

    /// Whether a conversation can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// Refuses a task that the model cannot do.
    ///
    /// # Errors
    /// `InvalidInput`, saying what the model can do.
    pub fn check_task(&self, task: Task) -> Result<()> {
        check_task(self.metadata(), task)
    }

    /// The text of a conversation, ending where the answer begins; without a template the messages as paragraphs.
    ///
    /// # Errors
    /// `InvalidInput` where the template refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        self.render_with_tools(messages, &[])
    }

    /// As [`Model::render`], offering `tools`.
    ///
    /// # Errors
    /// As [`Model::render`].
    pub fn render_with_tools(&self, messages: &[ChatMessage], tools: &[Tool]) -> Result<String> {
        match &self.chat {
            Some(chat) => {
                let config = self.config();
                let bos = config.bos_token_id.map(|id| self.tokenizer.token_text(id)).unwrap_or_default();
                let eos = config.eos_token_ids.first().map(|&id| self.tokenizer.token_text(id)).unwrap_or_default();
                chat.render_with_tools(messages, tools, &bos, &eos)
            }
            None if tools.is_empty() => {
                Ok(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n"))
            }
            None => self.render_with_tools(&chat::with_instruction(messages, tools), &[]),
        }
    }

    /// The tokens of a prompt, with the token that starts a text where the model wants one.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(text, false)?;
        if let (true, Some(bos)) = (self.config().add_bos_token, self.config().bos_token_id)
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// The tokens of a text to embed, cut to the longest that the model takes; its special tokens stay.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_input(&self, text: &str) -> Result<Vec<u32>> {
        let config = self.config();
        let longest = config.max_input_tokens.unwrap_or(usize::MAX).min(self.transformer.max_positions());
        let mut tokens = self.tokenizer.encode(text, true)?;
        if tokens.len() > longest {
            // The last special token ends the text also where it is cut.
            let end = if self.tokenizer.special_tokens() > 1 { tokens.last().copied() } else { None };
            tokens.truncate(longest);
            if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
                *last = end;
            }
        }
        if tokens.is_empty() {
            tokens.push(config.bos_token_id.unwrap_or(0));
        }
        Ok(tokens)
    }

    /// Embeds texts of [`Model::encode_input`] in one pass; a vector of `[hidden]` each, or of the joint space.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn embed(
        &self,
        kernels: &Kernels,
        inputs: &[&[u32]],
        normalize: bool,
        work: &mut Workspace,
    ) -> Result<Vec<Vec<f32>>> {
        let mut batch: Vec<Chunk<'_>> =
            inputs.iter().map(|tokens| Chunk { tokens, cache: None, logits: false }).collect();
        self.transformer.forward(kernels, &mut batch, work)?;
        let hidden = self.config().hidden_size;
        let mut states = work.hidden();
        let mut vectors = Vec::with_capacity(inputs.len());
        for tokens in inputs {
            let (own, rest) = states.split_at(tokens.len() * hidden);
            states = rest;
            vectors.push(match self.config().pooling {
                Some(Pooling::Cls) => own[..hidden].to_vec(),
                Some(Pooling::Eos) => own[self.end(tokens) * hidden..][..hidden].to_vec(),
                Some(Pooling::Mean) | None => mean(own, hidden),
            });
        }
        let mut vectors = projected(kernels, self.projection.as_ref(), vectors);
        if normalize {
            vectors.iter_mut().for_each(|vector| to_length_one(vector));
        }
        Ok(vectors)
    }

    /// The first token that ends a text, or the last.
    fn end(&self, tokens: &[u32]) -> usize {
        let ends = |token: &u32| self.config().eos_token_ids.contains(token);
        tokens.iter().position(ends).unwrap_or(tokens.len().saturating_sub(1))
    }
}

/// `vectors` in a joint space, by a matrix of `[joint, hidden]`; as they are where there is none.
pub(crate) fn projected(kernels: &Kernels, matrix: Option<&WeightArray>, vectors: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let Some(matrix) = matrix else { return vectors };
    let mut out = vec![0.0; vectors.len() * matrix.rows()];
    kernels.linear(&vectors.concat(), vectors.len(), matrix, None, &mut out, &mut Scratch::default());
    out.chunks_exact(matrix.rows()).map(<[f32]>::to_vec).collect()
}

/// The mean of the rows of `states`, `[n, hidden]`.
pub(crate) fn mean(states: &[f32], hidden: usize) -> Vec<f32> {
    let mut sum = vec![0.0; hidden];
    for row in states.chunks_exact(hidden) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let n = (states.len() / hidden) as f32;
    sum.iter_mut().for_each(|sum| *sum /= n);
    sum
}

pub(crate) fn to_length_one(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

/// Values of the vectors that a model embeds to: the joint space's where it has one, else the residual stream's.
pub fn embedding_width(metadata: &ModelMetadata) -> i32 {
    let size = metadata.architecture_config.get("embedding_size").and_then(serde_json::Value::as_i64);
    size.and_then(|size| i32::try_from(size).ok()).unwrap_or(metadata.hidden_size)
}

/// Whether the metadata lists `task`.
pub fn can(metadata: &ModelMetadata, task: Task) -> bool {
    let tasks = metadata.architecture_config.get("tasks").and_then(|tasks| tasks.as_array());
    tasks.is_some_and(|tasks| tasks.iter().any(|name| name.as_str() == Some(task.name())))
}

/// Refuses a task that the metadata does not list.
///
/// # Errors
/// `InvalidInput`, naming the model.
pub fn check_task(metadata: &ModelMetadata, task: Task) -> Result<()> {
    if can(metadata, task) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "model '{}' is a {} and cannot {task}; name a model that can",
        metadata.model_id, metadata.model_type
    )))
}
