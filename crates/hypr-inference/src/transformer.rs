//! The one transformer that every family runs on, parametrised by its [`Architecture`].
//!
//! A pass takes a batch of chunks, one per sequence, packed without padding: the decoding of several sequences
//! and pieces of long prompts share each matrix product, and attention runs per sequence. Invariant: what a
//! sequence gets is the same to the bit whatever it is batched with, because every kernel's result for a row
//! depends on that row alone. Deliberately absent: choosing tokens, and deciding what is batched.

use hypr_common::model::{EMBEDDING_LAYER, ModelTables};
use hypr_common::{Error, ErrorKind, Result};
use hypr_tensor::{Attention, Kernels, KvRows, KvShape, Linear, Mask, RopeTable, Scratch, WeightArray};

use crate::block_pool::BlockPool;
use crate::config::ModelConfig;
use crate::families::{Architecture, FeedForward, Norm, NormPosition, Position};
use crate::kv_cache::{KvCache, KvPrecision};
use crate::paging::Paging;
use crate::weights::{Vector, Weights};

/// A matrix with its bias where the model has one: `y = x W^T + b`.
#[derive(Debug)]
struct Projection {
    /// `[rows, cols]`.
    weight: WeightArray,
    /// `[rows]`.
    bias: Option<Vector>,
}

impl Projection {
    fn open(weights: &Weights, layer: i32, name: &str, rows: usize, cols: usize) -> Result<Self> {
        let bias = weights.optional_vector(layer, &format!("{name}.bias"), rows)?;
        Ok(Self { weight: weights.matrix(layer, name, rows, cols)?, bias })
    }

    fn to<'a>(&'a self, out: &'a mut [f32]) -> Linear<'a> {
        Linear { weight: &self.weight, bias: self.bias.as_ref().map(Vector::values), out }
    }
}

/// Scale, and for a layer norm the bias, `[hidden]` each.
#[derive(Debug)]
struct NormWeights {
    scale: Vector,
    bias: Option<Vector>,
}

impl NormWeights {
    fn open(weights: &Weights, layer: i32, name: &str, norm: Norm, len: usize) -> Result<Self> {
        let scale = weights.vector(layer, name, len)?;
        let bias = match norm {
            Norm::Rms => None,
            Norm::Layer => Some(weights.vector(layer, &format!("{name}.bias"), len)?),
        };
        Ok(Self { scale, bias })
    }

    /// `out = norm(x)`, row by row.
    fn apply(&self, kernels: &Kernels, eps: f32, x: &[f32], out: &mut [f32]) {
        match &self.bias {
            None => kernels.rms_norm(x, self.scale.values(), eps, out),
            Some(bias) => kernels.layer_norm(x, self.scale.values(), bias.values(), eps, out),
        }
    }
}

/// One block: attention and feed-forward network.
#[derive(Debug)]
struct Block {
    /// `[heads * head_dim, hidden]`.
    q_proj: Projection,
    /// `[kv_heads * head_dim, hidden]`.
    k_proj: Projection,
    /// `[kv_heads * head_dim, hidden]`.
    v_proj: Projection,
    /// `[hidden, heads * head_dim]`.
    o_proj: Projection,
    /// `[head_dim]` each.
    qk_norm: Option<(Vector, Vector)>,
    /// Before the attention, or after it where norms stand behind.
    attention_norm: NormWeights,
    /// Before the feed-forward network, or after it.
    feed_forward_norm: NormWeights,
    /// `[intermediate, hidden]`.
    gate_proj: Option<Projection>,
    /// `[intermediate, hidden]`.
    up_proj: Projection,
    /// `[hidden, intermediate]`.
    down_proj: Projection,
}

/// A model's network over its weights.
#[derive(Debug)]
pub struct Transformer {
    config: ModelConfig,
    architecture: Architecture,
    /// `[vocab, hidden]`; none where the states come from pictures.
    embed_tokens: Option<WeightArray>,
    /// `[positions, hidden]`.
    embed_positions: Option<WeightArray>,
    /// `[types, hidden]`; every token is of type 0.
    embed_token_types: Option<WeightArray>,
    /// After the embeddings.
    embedding_norm: Option<NormWeights>,
    blocks: Vec<Block>,
    /// After the last block.
    final_norm: Option<NormWeights>,
    /// `[vocab, hidden]`.
    lm_head: Option<WeightArray>,
    rope: Option<RopeTable>,
    max_positions: usize,
    /// Of a model that is larger than the memory it may take.
    paging: Option<Paging>,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    /// What the sequence has seen; the pass appends to it. `None` for networks that do not continue text.
    pub cache: Option<&'a mut KvCache>,
    /// Whether the logits after the last of `tokens` are wanted.
    pub logits: bool,
}

/// Memory of a pass, kept from one to the next. All but `logits` are `[n, width]` for the packed tokens.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The residual stream, `[n, hidden]`.
    x: Vec<f32>,
    /// Its normed form, `[n, hidden]`.
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n, heads * head_dim]`.
    attended: Vec<f32>,
    /// What a part adds to the residual stream, `[n, hidden]`.
    delta: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[tokens after which logits are wanted, vocab]`.
    logits: Vec<f32>,
    /// After how many of its last tokens each chunk wants logits.
    rows: Vec<usize>,
    positions: Vec<u32>,
    scratch: Scratch,
}

impl Workspace {
    /// Empty; it grows with the first passes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The logits of the last pass, a row of `[vocab]` for each token after which they were wanted, in order.
    pub fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    /// Room for `len` states, for [`Transformer::forward_states`].
    pub fn states(&mut self, len: usize) -> &mut [f32] {
        resize(&mut self.x, len);
        &mut self.x
    }

    /// The final states of the last pass, `[n, hidden]`, chunk after chunk.
    pub fn hidden(&self) -> &[f32] {
        &self.x
    }
}

/// Sets the length without giving memory back; what is new is zero.
fn resize(values: &mut Vec<f32>, len: usize) {
    values.resize(len, 0.0);
}

impl Transformer {
    /// Views the tables as a network that runs up to `max_positions` tokens a sequence.
    ///
    /// # Errors
    /// `Corrupted` where weights are missing or of the wrong shape.
    pub fn open(tables: &ModelTables, max_positions: usize) -> Result<Self> {
        Self::of_weights(&Weights::new(tables)?, ModelConfig::from_metadata(&tables.metadata)?, max_positions)
    }

    /// As [`Transformer::open`], of one tower's weights.
    ///
    /// # Errors
    /// As [`Transformer::open`].
    pub fn of_weights(weights: &Weights, config: ModelConfig, max_positions: usize) -> Result<Self> {
        let architecture = config.family.architecture(&config);
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let max_positions = max_positions.min(config.context_length);
        let after = config.num_hidden_layers as i32;
        let lm_head = match (architecture.output_head, weights.get(after, "lm_head")) {
            (false, _) => None,
            (true, Some(_)) => Some(weights.matrix(after, "lm_head", vocab, hidden)?),
            (true, None) => Some(weights.matrix(EMBEDDING_LAYER, "embed_tokens", vocab, hidden)?),
        };
        let norm = |layer, name: &str| NormWeights::open(weights, layer, name, architecture.norm, hidden);
        let embedding_norm =
            architecture.embedding_norm.then(|| norm(EMBEDDING_LAYER, "embed_layernorm")).transpose()?;
        let final_norm = match architecture.norm_position {
            NormPosition::Pre => Some(norm(after, "norm")?),
            NormPosition::Post => None,
        };
        if config.head_dim > Attention::MAX_HEAD_DIM {
            return Err(Error::unsupported(format!("heads of width {} are not supported", config.head_dim)));
        }
        Ok(Self {
            embed_tokens: match config.image {
                Some(_) => None,
                None => Some(weights.matrix(EMBEDDING_LAYER, "embed_tokens", vocab, hidden)?),
            },
            embed_positions: position_table(weights, &architecture, &config)?,
            embed_token_types: token_types(weights, hidden)?,
            embedding_norm,
            blocks: (0..after)
                .map(|layer| Block::open(weights, layer, &config, &architecture))
                .collect::<Result<_>>()?,
            final_norm,
            lm_head,
            rope: rope_table(weights, &architecture, &config, max_positions)?,
            max_positions,
            paging: None,
            architecture,
            config,
        })
    }

    /// From now on layers are in memory only as `paging` says.
    pub(crate) fn page(&mut self, paging: Paging) {
        self.paging = Some(paging);
    }

    fn enter(&self, layer: i32) {
        if let Some(paging) = &self.paging {
            paging.enter(layer);
        }
    }

    fn leave(&self, layer: i32) {
        if let Some(paging) = &self.paging {
            paging.leave(layer);
        }
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The longest sequence, in tokens.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// What it keeps of a token.
    pub fn kv_shape(&self, precision: KvPrecision) -> KvShape {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        KvShape { layers: self.blocks.len(), width, precision }
    }

    /// An empty cache for a sequence on its own, without a limit.
    pub fn new_cache(&self, precision: KvPrecision) -> KvCache {
        KvCache::new(BlockPool::unlimited(), self.kv_shape(precision))
    }

    /// One pass over the new tokens of every chunk.
    ///
    /// # Errors
    /// `InvalidInput` for an empty chunk, a token outside the vocabulary or a sequence longer than
    /// [`Transformer::max_positions`], `ResourceExhausted` where the pool has no block left; the caches then hold what
    /// they held.
    pub fn forward(&self, kernels: &Kernels, batch: &mut [Chunk<'_>], work: &mut Workspace) -> Result<()> {
        let rows: Vec<usize> = batch.iter().map(|chunk| usize::from(chunk.logits)).collect();
        self.forward_rows(kernels, batch, &rows, work)
    }

    /// As [`Transformer::forward`], with logits after each of the last `rows[i]` tokens of chunk `i`, whatever its `logits`
    /// says.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_rows(
        &self,
        kernels: &Kernels,
        batch: &mut [Chunk<'_>],
        rows: &[usize],
        work: &mut Workspace,
    ) -> Result<()> {
        work.rows.clear();
        work.rows.extend_from_slice(rows);
        self.check(batch)?;
        self.enter(EMBEDDING_LAYER);
        self.embed(kernels, batch, work);
        self.leave(EMBEDDING_LAYER);
        self.blocks(kernels, batch, work);
        Ok(())
    }

    /// One pass over states that stand in for embedded tokens, [`Workspace::states`]: sequences of `lengths`, packed.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_states(&self, kernels: &Kernels, lengths: &[usize], work: &mut Workspace) -> Result<()> {
        // No token is looked up: a chunk only says how many states it has.
        let blank = vec![0; lengths.iter().copied().max().unwrap_or(0)];
        let chunk = |&n: &usize| Chunk { tokens: &blank[..n], cache: None, logits: false };
        let mut batch: Vec<Chunk<'_>> = lengths.iter().map(chunk).collect();
        let n = lengths.iter().sum::<usize>();
        if self.embed_tokens.is_some() || work.x.len() != n * self.config.hidden_size {
            return Err(Error::internal("states were given to a network of another form"));
        }
        self.check(&mut batch)?;
        work.rows.clear();
        self.place(kernels, &batch, work);
        self.blocks(kernels, &mut batch, work);
        Ok(())
    }

    /// The blocks, the last norm, and the logits.
    fn blocks(&self, kernels: &Kernels, batch: &mut [Chunk<'_>], work: &mut Workspace) {
        for (layer, block) in self.blocks.iter().enumerate() {
            self.enter(layer as i32);
            self.attention(kernels, block, layer, batch, work);
            self.feed_forward(kernels, block, work);
            self.leave(layer as i32);
        }
        for chunk in batch.iter_mut() {
            if let Some(cache) = &mut chunk.cache {
                cache.advance(chunk.tokens.len());
            }
        }
        if let Some(norm) = &self.final_norm {
            norm.apply(kernels, self.config.norm_eps, &work.x, &mut work.normed);
            std::mem::swap(&mut work.x, &mut work.normed);
        }
        self.logits(kernels, batch, work);
        self.leave(self.blocks.len() as i32);
    }

    fn check(&self, batch: &mut [Chunk<'_>]) -> Result<()> {
        for chunk in batch {
            let seen = chunk.cache.as_ref().map_or(0, |cache| cache.tokens());
            if chunk.tokens.is_empty() || chunk.cache.is_some() != self.architecture.output_head {
                return Err(Error::invalid(
                    "a chunk needs tokens, and a cache exactly where the network continues text",
                ));
            }
            if seen + chunk.tokens.len() > self.max_positions {
                return Err(Error::invalid(format!(
                    "a sequence of {} tokens is longer than the {} that the model can take",
                    seen + chunk.tokens.len(),
                    self.max_positions
                )));
            }
            let vocab = self.embed_tokens.as_ref().map_or(1, |_| self.config.vocab_size);
            if let Some(token) = chunk.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(Error::invalid(format!(
                    "token {token} is outside the model's vocabulary of {}",
                    self.config.vocab_size
                )));
            }
            if chunk.cache.as_mut().is_some_and(|cache| !cache.reserve(chunk.tokens.len())) {
                return Err(Error::new(ErrorKind::ResourceExhausted, "the key-value cache has no block left"));
            }
        }
        Ok(())
    }

    /// Token and position embeddings of the packed tokens.
    fn embed(&self, kernels: &Kernels, batch: &[Chunk<'_>], work: &mut Workspace) {
        let hidden = self.config.hidden_size;
        let n = batch.iter().map(|chunk| chunk.tokens.len()).sum::<usize>();
        resize(&mut work.x, n * hidden);
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens);
        if let Some(table) = &self.embed_tokens {
            for (&token, row) in tokens.zip(work.x.chunks_exact_mut(hidden)) {
                table.dequantize_row(token as usize, row);
            }
        }
        self.place(kernels, batch, work);
    }

    /// Adds to each state what it has by its place.
    fn place(&self, kernels: &Kernels, batch: &[Chunk<'_>], work: &mut Workspace) {
        work.positions.clear();
        for chunk in batch {
            let first = chunk.cache.as_ref().map_or(0, |cache| cache.tokens()) as u32;
            work.positions.extend(first..first + chunk.tokens.len() as u32);
        }
        let hidden = self.config.hidden_size;
        let n = work.positions.len();
        resize(&mut work.normed, n * hidden);
        resize(&mut work.delta, n * hidden);
        if let Some(table) = &self.embed_token_types {
            work.delta.chunks_exact_mut(hidden).for_each(|out| table.dequantize_row(0, out));
            kernels.add(&mut work.x, &work.delta);
        }
        if let Some(table) = &self.embed_positions {
            for (&position, out) in work.positions.iter().zip(work.delta.chunks_exact_mut(hidden)) {
                table.dequantize_row(position as usize, out);
            }
            kernels.add(&mut work.x, &work.delta);
        }
        if let Some(norm) = &self.embedding_norm {
            norm.apply(kernels, self.config.norm_eps, &work.x, &mut work.normed);
            std::mem::swap(&mut work.x, &mut work.normed);
        }
    }

    /// `x += o(attend(q, k, v))`, with the norm before or after.
    fn attention(&self, kernels: &Kernels, block: &Block, layer: usize, batch: &mut [Chunk<'_>], work: &mut Workspace) {
        let Workspace { x, normed, q, k, v, attended, delta, positions, scratch, .. } = work;
        let config = &self.config;
        let (n, eps) = (positions.len(), config.norm_eps);
        let kv_width = config.num_key_value_heads * config.head_dim;
        let q_width = config.num_attention_heads * config.head_dim;
        resize(q, n * q_width);
        resize(k, n * kv_width);
        resize(v, n * kv_width);
        resize(attended, n * q_width);

        let pre = self.architecture.norm_position == NormPosition::Pre;
        if pre {
            block.attention_norm.apply(kernels, eps, x, normed);
        }
        let input = if pre { &*normed } else { &*x };
        let mut products = [block.q_proj.to(q), block.k_proj.to(k), block.v_proj.to(v)];
        kernels.linear_many(input, n, &mut products, scratch);
        if let Some((q_norm, k_norm)) = &block.qk_norm {
            kernels.rms_norm(q, q_norm.values(), eps, attended);
            q.copy_from_slice(attended);
            let normed_k = &mut attended[..n * kv_width];
            kernels.rms_norm(k, k_norm.values(), eps, normed_k);
            k.copy_from_slice(normed_k);
        }
        if let (Position::Rope { style, .. }, Some(table)) = (self.architecture.position, &self.rope) {
            kernels.rope(q, config.num_attention_heads, positions, table, style);
            kernels.rope(k, config.num_key_value_heads, positions, table, style);
        }
        self.attend(kernels, layer, batch, [q, k, v], attended);
        kernels.linear_many(attended, n, &mut [block.o_proj.to(delta)], scratch);
        kernels.add(x, delta);
        if !pre {
            block.attention_norm.apply(kernels, eps, x, normed);
            std::mem::swap(x, normed);
        }
    }

    /// Attention of every chunk over its own keys; `qkv` and `out` are packed.
    fn attend(&self, kernels: &Kernels, layer: usize, batch: &mut [Chunk<'_>], qkv: [&[f32]; 3], out: &mut [f32]) {
        let config = &self.config;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let q_width = config.num_attention_heads * config.head_dim;
        let [mut queries, mut keys, mut values] = qkv;
        let mut out = out;
        let mut sequences = Vec::with_capacity(batch.len());
        for chunk in batch {
            let n = chunk.tokens.len();
            let (chunk_queries, chunk_keys, chunk_values, chunk_out);
            (chunk_queries, queries) = queries.split_at(n * q_width);
            (chunk_keys, keys) = keys.split_at(n * kv_width);
            (chunk_values, values) = values.split_at(n * kv_width);
            (chunk_out, out) = out.split_at_mut(n * q_width);
            let (keys, values, mask) = match &mut chunk.cache {
                Some(cache) => {
                    cache.append(layer, chunk_keys, chunk_values);
                    let (keys, values) = cache.layer(layer, n);
                    (keys, values, Mask::Causal { start: cache.tokens() })
                }
                None => {
                    let mask = if self.architecture.causal { Mask::Causal { start: 0 } } else { Mask::Full };
                    (KvRows::F32(chunk_keys), KvRows::F32(chunk_values), mask)
                }
            };
            let attention = Attention {
                queries: chunk_queries,
                keys,
                values,
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
                mask,
            };
            sequences.push((attention, chunk_out));
        }
        kernels.attention_many(&mut sequences);
    }

    /// `x += down(activation(x))`, with the norm before or after.
    fn feed_forward(&self, kernels: &Kernels, block: &Block, work: &mut Workspace) {
        let Workspace { x, normed, delta, gate, up, positions, scratch, .. } = work;
        let (n, eps) = (positions.len(), self.config.norm_eps);
        resize(up, n * self.config.intermediate_size);
        let pre = self.architecture.norm_position == NormPosition::Pre;
        if pre {
            block.feed_forward_norm.apply(kernels, eps, x, normed);
        }
        let input = if pre { &*normed } else { &*x };
        let inner = match (&block.gate_proj, self.architecture.feed_forward) {
            (Some(gate_proj), _) => {
                resize(gate, n * self.config.intermediate_size);
                kernels.linear_many(input, n, &mut [gate_proj.to(gate), block.up_proj.to(up)], scratch);
                kernels.silu_mul(gate, up);
                gate
            }
            (None, activation) => {
                kernels.linear_many(input, n, &mut [block.up_proj.to(up)], scratch);
                match activation {
                    FeedForward::GeluTanh => kernels.gelu_tanh(up),
                    FeedForward::QuickGelu => kernels.quick_gelu(up),
                    FeedForward::Gelu | FeedForward::GatedSilu => kernels.gelu(up),
                }
                up
            }
        };
        kernels.linear_many(inner, n, &mut [block.down_proj.to(delta)], scratch);
        kernels.add(x, delta);
        if !pre {
            block.feed_forward_norm.apply(kernels, eps, x, normed);
            std::mem::swap(x, normed);
        }
    }

    /// Logits after the last tokens of every chunk that wants them.
    fn logits(&self, kernels: &Kernels, batch: &[Chunk<'_>], work: &mut Workspace) {
        let Workspace { x, delta, logits, rows: wanted, scratch, .. } = work;
        let hidden = self.config.hidden_size;
        let (mut end, mut rows) = (0, 0);
        for (chunk, wanted) in batch.iter().zip(wanted.drain(..)) {
            end += chunk.tokens.len();
            let wanted = wanted.min(chunk.tokens.len());
            delta[rows * hidden..(rows + wanted) * hidden].copy_from_slice(&x[(end - wanted) * hidden..end * hidden]);
            rows += wanted;
        }
        let rows = if self.lm_head.is_some() { rows } else { 0 };
        resize(logits, rows * self.config.vocab_size);
        if let (Some(head), true) = (&self.lm_head, rows > 0) {
            kernels.linear(&delta[..rows * hidden], rows, head, None, logits, scratch);
        }
    }
}

impl Block {
    fn open(weights: &Weights, layer: i32, config: &ModelConfig, architecture: &Architecture) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let projection = |name: &str, rows, cols| Projection::open(weights, layer, name, rows, cols);
        let norm = |name: &str| NormWeights::open(weights, layer, name, architecture.norm, hidden);
        let (attention_norm, feed_forward_norm) = match architecture.norm_position {
            NormPosition::Pre => (norm("input_layernorm")?, norm("post_attention_layernorm")?),
            NormPosition::Post => (norm("post_attention_layernorm")?, norm("output_layernorm")?),
        };
        Ok(Self {
            q_proj: projection("q_proj", q_width, hidden)?,
            k_proj: projection("k_proj", kv_width, hidden)?,
            v_proj: projection("v_proj", kv_width, hidden)?,
            o_proj: projection("o_proj", hidden, q_width)?,
            qk_norm: match architecture.qk_norm {
                true => Some((
                    weights.vector(layer, "q_norm", config.head_dim)?,
                    weights.vector(layer, "k_norm", config.head_dim)?,
                )),
                false => None,
            },
            attention_norm,
            feed_forward_norm,
            gate_proj: match architecture.feed_forward {
                FeedForward::GatedSilu => Some(projection("gate_proj", inner, hidden)?),
                FeedForward::Gelu | FeedForward::GeluTanh | FeedForward::QuickGelu => None,
            },
            up_proj: projection("up_proj", inner, hidden)?,
            down_proj: projection("down_proj", hidden, inner)?,
        })
    }
}

fn position_table(weights: &Weights, architecture: &Architecture, config: &ModelConfig) -> Result<Option<WeightArray>> {
    match architecture.position {
        Position::Rope { .. } => Ok(None),
        Position::Learned => {
            weights.matrix(EMBEDDING_LAYER, "embed_positions", config.context_length, config.hidden_size).map(Some)
        }
    }
}

fn token_types(weights: &Weights, hidden: usize) -> Result<Option<WeightArray>> {
    let Some(table) = weights.get(EMBEDDING_LAYER, "embed_token_types") else { return Ok(None) };
    weights.matrix(EMBEDDING_LAYER, "embed_token_types", table.rows(), hidden).map(Some)
}

/// Cosines and sines; a model may stretch wavelengths by a rule, or each by a factor (`rope_freqs`, as GGUF has it).
fn rope_table(
    weights: &Weights,
    architecture: &Architecture,
    config: &ModelConfig,
    max_positions: usize,
) -> Result<Option<RopeTable>> {
    let Position::Rope { base, .. } = architecture.position else { return Ok(None) };
    let factors = weights.optional_vector(EMBEDDING_LAYER, "rope_freqs", config.head_dim / 2)?;
    if factors.is_none() && config.rope_scaling.is_none() {
        return Ok(Some(RopeTable::from_base(base, config.head_dim, max_positions)));
    }
    let frequencies = (0..config.head_dim / 2).map(|i| {
        let frequency = f64::from(base).powf(-2.0 * i as f64 / config.head_dim as f64);
        let frequency = frequency / factors.as_ref().map_or(1.0, |factors| f64::from(factors.values()[i]));
        config.rope_scaling.map_or(frequency, |scaling| scaling.apply(frequency)) as f32
    });
    Ok(Some(RopeTable::new(frequencies.collect(), max_positions)))
}
