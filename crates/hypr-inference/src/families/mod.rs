//! The model families: a short file each, that says how its network is put together.
//!
//! A family file names the [`Architecture`] of its network and where its published checkpoints keep each
//! weight. Everything else is [`crate::transformer`], shared by all.

pub mod bert;
pub mod clip;
pub mod llama;
pub mod qwen2;
pub mod qwen3;
pub mod vit;

use hypr_common::model::EMBEDDING_LAYER;
use serde::{Deserialize, Serialize};

use crate::config::{ActivationName, ModelConfig};

/// Before the names of the weights of a model's second tower, which sees.
pub const VISION: &str = "vision.";

/// A family of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// LLaMA 1 to 3, SmolLM, Mistral without sliding window.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// BERT encoders, MiniLM among them.
    Bert,
    /// Vision transformers.
    Vit,
    /// Text and pictures in one space.
    Clip,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 6] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Bert, Self::Vit, Self::Clip];

    /// The name in `model_type`; Hugging Face's `model_type` is the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Bert => "bert",
            Self::Vit => "vit",
            Self::Clip => "clip",
        }
    }

    /// The name in a GGUF file's `general.architecture`.
    pub fn gguf_name(self) -> &'static str {
        self.name()
    }

    /// Whether it continues text.
    pub fn generates(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen2 | Self::Qwen3)
    }

    /// How the network of this configuration is put together.
    pub fn architecture(self, config: &ModelConfig) -> Architecture {
        match self {
            Self::Llama => llama::architecture(config),
            Self::Qwen2 => qwen2::architecture(config),
            Self::Qwen3 => qwen3::architecture(config),
            Self::Bert => bert::architecture(config),
            Self::Vit => vit::architecture(config),
            Self::Clip => clip::architecture(config),
        }
    }

    /// Where the tensor `name` of a Hugging Face checkpoint belongs, in the network of `config`; `None` for a name that
    /// the family does not have.
    pub fn slot_of_checkpoint_name(self, name: &str, config: &ModelConfig) -> Option<Slot> {
        let layers = config.num_hidden_layers as i32;
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 => llama::slot(name, layers),
            Self::Bert => bert::slot(name, layers),
            Self::Vit => vit::slot(name, layers),
            Self::Clip => {
                let vision_layers = config.vision.as_ref().map_or(0, |vision| vision.num_hidden_layers as i32);
                clip::slot(name, layers, vision_layers)
            }
        }
    }
}

/// How a transformer is put together: what the shared engine asks about a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// What scales the residual stream.
    pub norm: Norm,
    /// Where the norms stand.
    pub norm_position: NormPosition,
    /// Whether the embeddings are normalised before the first block.
    pub embedding_norm: bool,
    /// The feed-forward network.
    pub feed_forward: FeedForward,
    /// How a token knows its place.
    pub position: Position,
    /// Whether a token sees only what came before it.
    pub causal: bool,
    /// Whether queries and keys are normalised per head before they rotate.
    pub qk_norm: bool,
    /// Whether the output ends in logits over the vocabulary.
    pub output_head: bool,
}

/// What scales the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// By the root mean square (arXiv:1910.07467).
    Rms,
    /// By mean and variance, with a bias (arXiv:1607.06450).
    Layer,
}

/// Where the norms stand (arXiv:2002.04745).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPosition {
    /// Before attention and feed-forward network, and once at the end.
    Pre,
    /// After each residual addition.
    Post,
}

/// The feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `down(silu(gate(x)) * up(x))` (arXiv:2002.05202).
    GatedSilu,
    /// `down(gelu(up(x)))`, by the error function.
    Gelu,
    /// `down(gelu(up(x)))`, by the tanh approximation.
    GeluTanh,
    /// `down(gelu(up(x)))`, by the logistic approximation.
    QuickGelu,
}

impl FeedForward {
    /// The network without a gate that has this activation.
    pub(crate) fn plain(activation: ActivationName) -> Self {
        match activation {
            ActivationName::GeluTanh => Self::GeluTanh,
            ActivationName::QuickGelu => Self::QuickGelu,
            ActivationName::Gelu | ActivationName::Silu => Self::Gelu,
        }
    }
}

/// How a token knows its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// Queries and keys rotate (arXiv:2104.09864).
    Rope {
        /// Which values of a head form pairs.
        style: hypr_tensor::RopeStyle,
        /// Base of the wavelengths.
        base: f32,
    },
    /// A learned vector per position is added to the embedding.
    Learned,
}

/// Where a tensor belongs in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// See `hypr_common::model` for the numbering.
    pub layer_id: i32,
    /// `embedding`, `attention`, `ffn`, `norm`, `output` or `pooler`.
    pub parameter_type: &'static str,
    /// The tensor's name without prefix and without `.weight`; biases end in `.bias`.
    pub name: String,
}

impl Slot {
    /// `name` in `layer_id`, with `.bias` where `kind` is `bias`. `None` for another kind.
    pub(crate) fn new(layer_id: i32, parameter_type: &'static str, name: &str, kind: &str) -> Option<Self> {
        let name = match kind {
            "weight" => name.to_owned(),
            "bias" => format!("{name}.bias"),
            _ => return None,
        };
        Some(Self { layer_id, parameter_type, name })
    }

    /// Where the tensor `name` of a GGUF file belongs, in a decoder of `layers` blocks.
    pub fn of_gguf_name(name: &str, layers: i32) -> Option<Self> {
        let (stem, kind) = name.rsplit_once('.')?;
        match stem {
            "token_embd" => return Self::new(EMBEDDING_LAYER, "embedding", "embed_tokens", kind),
            "rope_freqs" => return Self::new(EMBEDDING_LAYER, "embedding", "rope_freqs", kind),
            "output_norm" => return Self::new(layers, "norm", "norm", kind),
            "output" => return Self::new(layers, "output", "lm_head", kind),
            _ => {}
        }
        let (layer, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
        let (parameter_type, name) = match stem {
            "attn_norm" => ("norm", "input_layernorm"),
            "attn_q" => ("attention", "q_proj"),
            "attn_k" => ("attention", "k_proj"),
            "attn_v" => ("attention", "v_proj"),
            "attn_output" => ("attention", "o_proj"),
            "attn_q_norm" => ("norm", "q_norm"),
            "attn_k_norm" => ("norm", "k_norm"),
            "ffn_norm" => ("norm", "post_attention_layernorm"),
            "ffn_gate" => ("ffn", "gate_proj"),
            "ffn_up" => ("ffn", "up_proj"),
            "ffn_down" => ("ffn", "down_proj"),
            _ => return None,
        };
        Self::new(layer_index(layer, layers)?, parameter_type, name, kind)
    }
}

/// The number of a block, if the network has it.
pub(crate) fn layer_index(text: &str, layers: i32) -> Option<i32> {
    text.parse::<i32>().ok().filter(|layer| (0..layers).contains(layer))
}
