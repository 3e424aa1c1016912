//! `architecture_config`: everything the engine must know to run a model's weights, as JSON.
//!
//! Invariant: an importer writes it, the engine reads it, and nothing about a model is known from anywhere
//! else. [`ModelConfig::check`] holds for every configuration that leaves this module.

use hypr_common::model::ModelMetadata;
use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::api::Task;
use crate::families::Family;
use crate::image_processor::ImageProcessor;

/// The configuration of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which family file describes the network.
    pub family: Family,
    /// What the model can be asked to do: `generate`, `embed`.
    pub tasks: Vec<String>,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward network.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; fewer than the query heads where they share (GQA, arXiv:2305.13245).
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the variance before its root.
    pub norm_eps: f32,
    /// The longest sequence, in tokens.
    pub context_length: usize,
    /// Feed-forward activation: `silu`, `gelu` or `gelu_tanh`.
    pub activation: ActivationName,
    /// How positions rotate queries and keys; absent where positions are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RopeStyle>,
    /// Base of the rotation's wavelengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_base: Option<f32>,
    /// How the wavelengths are stretched for longer sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// The output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Starts a text where `add_bos_token` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Any of these ends a generated text.
    #[serde(default)]
    pub eos_token_ids: Vec<u32>,
    /// Whether a prompt starts with `bos_token_id`.
    #[serde(default)]
    pub add_bos_token: bool,
    /// The tokenizer's side file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The chat template's side file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Values of a vector, where a matrix takes states into a joint space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_size: Option<usize>,
    /// The pictures, where the model sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// The second tower, which sees, where the model has two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<Box<ModelConfig>>,
    /// How token states become one vector; absent where the model does not embed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// The longest text to embed, in tokens, special ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<usize>,
}

/// What a model sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Height and width of a picture.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// How pictures are made ready, the keys of `preprocessor_config.json`.
    pub preprocessor: serde_json::Value,
}

impl ImageConfig {
    /// Patches and the class token.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// How pictures are made ready.
    ///
    /// # Errors
    /// `InvalidInput` for settings without a meaning, or that give pictures of another size.
    pub fn processor(&self) -> Result<ImageProcessor> {
        let processor = ImageProcessor::from_json(&self.preprocessor)?;
        let [height, width] = processor.size()?;
        if (height, width) != (self.image_size, self.image_size) {
            return Err(Error::invalid(format!(
                "the model sees pictures of {0} x {0} and its preprocessor gives {width} x {height}",
                self.image_size
            )));
        }
        Ok(processor)
    }

    /// Refuses sizes that no network can have.
    pub(crate) fn check(&self) -> Result<()> {
        let (side, patch) = (self.image_size, self.patch_size);
        if patch == 0 || side == 0 || side > MAX_IMAGE_SIZE || !side.is_multiple_of(patch) {
            return Err(Error::corrupted(format!("pictures of {side} x {side} have no patches of {patch} x {patch}")));
        }
        self.processor().map(|_| ())
    }
}

/// How wavelengths are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// All by one factor (arXiv:2306.15595).
    Linear {
        /// Times longer.
        factor: f32,
    },
    /// The long ones by the factor, the short ones not, those between in part (Llama 3.1).
    Llama3 {
        /// Times longer.
        factor: f32,
        /// Wavelengths above the original length by this divisor are stretched whole.
        low_freq_factor: f32,
        /// Wavelengths below the original length by this divisor stay.
        high_freq_factor: f32,
        /// The longest sequence before the stretching.
        original_max_position_embeddings: f32,
    },
}

impl RopeScaling {
    /// The stretched form of a frequency, in radians a token.
    pub fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / f64::from(factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let stretched = frequency / f64::from(factor);
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let turns = f64::from(original_max_position_embeddings) * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * stretched + kept * frequency
            }
        }
    }

    fn check(self) -> Result<()> {
        let sound = match self {
            Self::Linear { factor } => factor.is_finite() && factor >= 1.0,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                factor.is_finite()
                    && factor >= 1.0
                    && 0.0 < low_freq_factor
                    && low_freq_factor < high_freq_factor
                    && high_freq_factor.is_finite()
                    && original_max_position_embeddings >= 1.0
            }
        };
        if sound { Ok(()) } else { Err(Error::corrupted(format!("the model's rope scaling is {self:?}"))) }
    }
}

/// Which values of a head form the pairs that rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeStyle {
    /// Neighbours, as in RoFormer; LLaMA weights inside GGUF files are ordered for it.
    Interleaved,
    /// Value `i` with value `i + head_dim / 2`, as in GPT-NeoX and Hugging Face checkpoints.
    Neox,
}

/// The activation of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationName {
    /// `silu(gate) * up`.
    Silu,
    /// By the error function.
    Gelu,
    /// By the tanh approximation.
    GeluTanh,
    /// By the logistic approximation.
    QuickGelu,
}

/// How token states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The first token that ends a text.
    Eos,
}

/// The largest height and width of pictures that a network sees.
const MAX_IMAGE_SIZE: usize = 4096;
/// No dimension of a model is larger; products of two fit in 64 bits with room.
const MAX_DIM: usize = 1 << 24;

impl ModelConfig {
    /// Reads `architecture_config`.
    ///
    /// # Errors
    /// `Corrupted` for JSON that is not a configuration or holds impossible sizes.
    pub fn from_metadata(metadata: &ModelMetadata) -> Result<Self> {
        let config: Self = serde_json::from_value(metadata.architecture_config.clone()).map_err(|error| {
            Error::corrupted(format!("architecture_config of model {}: {error}; import it again", metadata.model_id))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that no network can have.
    ///
    /// # Errors
    /// `Corrupted`, naming the first wrong value.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            // A network that sees has no vocabulary.
            ("vocab_size", if self.image.is_some() { 1 } else { self.vocab_size }),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("context_length", self.context_length),
            ("embedding_size", self.embedding_size.unwrap_or(1)),
        ];
        for (name, size) in sizes {
            if size == 0 || size > MAX_DIM {
                return Err(Error::corrupted(format!("the model's {name} is {size}; expected 1 to {MAX_DIM}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::corrupted(format!(
                "{} query heads cannot share {} key heads evenly",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(Error::corrupted(format!("heads of width {} cannot rotate in pairs", self.head_dim)));
        }
        self.image.as_ref().map_or(Ok(()), ImageConfig::check)?;
        self.rope_scaling.map_or(Ok(()), RopeScaling::check)?;
        self.vision.as_ref().map_or(Ok(()), |vision| vision.check_tower())?;
        if let Some(base) = self.rope_base.filter(|base| !(base.is_finite() && *base > 0.0)) {
            return Err(Error::corrupted(format!("the model's rope_base is {base}; expected a positive number")));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(Error::corrupted(format!("the model's norm_eps is {}", self.norm_eps)));
        }
        Ok(())
    }

    /// A second tower has none of its own.
    fn check_tower(&self) -> Result<()> {
        if self.vision.is_some() || self.image.is_none() {
            return Err(Error::corrupted("the model's second tower is no vision transformer"));
        }
        self.check()
    }

    /// Whether the model can do `task`.
    pub fn can(&self, task: Task) -> bool {
        self.tasks.iter().any(|name| name == task.name())
    }
}
