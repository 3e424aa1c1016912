//! LLaMA (arXiv:2302.13971, arXiv:2407.21783): RMS norm before each part, rotary positions, grouped queries, a
//! gated SiLU network, no biases. SmolLM has the same form.

use hypr_common::model::EMBEDDING_LAYER;

use super::{Architecture, FeedForward, Norm, NormPosition, Position, Slot, layer_index};
use crate::config::{ModelConfig, RopeStyle};

/// The network.
pub fn architecture(config: &ModelConfig) -> Architecture {
    let style = match config.rope {
        Some(RopeStyle::Interleaved) => hypr_tensor::RopeStyle::Interleaved,
        Some(RopeStyle::Neox) | None => hypr_tensor::RopeStyle::HalfSplit,
    };
    Architecture {
        norm: Norm::Rms,
        norm_position: NormPosition::Pre,
        embedding_norm: false,
        feed_forward: FeedForward::GatedSilu,
        position: Position::Rope { style, base: config.rope_base.unwrap_or(10_000.0) },
        causal: true,
        qk_norm: false,
        output_head: true,
    }
}

/// Where Hugging Face checkpoints keep the weights.
pub fn slot(name: &str, layers: i32) -> Option<Slot> {
    let (stem, kind) = name.rsplit_once('.')?;
    let stem = stem.strip_prefix("model.").unwrap_or(stem);
    match stem {
        "embed_tokens" => return Slot::new(EMBEDDING_LAYER, "embedding", stem, kind),
        "norm" => return Slot::new(layers, "norm", stem, kind),
        "lm_head" => return Slot::new(layers, "output", stem, kind),
        _ => {}
    }
    let (layer, stem) = stem.strip_prefix("layers.")?.split_once('.')?;
    let name = stem.rsplit('.').next()?;
    let parameter_type = match stem {
        "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" | "self_attn.o_proj" => "attention",
        "mlp.gate_proj" | "mlp.up_proj" | "mlp.down_proj" => "ffn",
        "input_layernorm" | "post_attention_layernorm" | "self_attn.q_norm" | "self_attn.k_norm" => "norm",
        _ => return None,
    };
    Slot::new(layer_index(layer, layers)?, parameter_type, name, kind)
}
