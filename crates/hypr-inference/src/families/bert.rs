//! BERT (arXiv:1810.04805): layer norm after each part, learned positions, every token sees every other, a GELU
//! network. Sentence encoders such as MiniLM add a pooling over the last states.

use hypr_common::model::EMBEDDING_LAYER;

use super::{Architecture, FeedForward, Norm, NormPosition, Position, Slot, layer_index};
use crate::config::ModelConfig;

/// The network.
pub fn architecture(config: &ModelConfig) -> Architecture {
    Architecture {
        norm: Norm::Layer,
        norm_position: NormPosition::Post,
        embedding_norm: true,
        feed_forward: FeedForward::plain(config.activation),
        position: Position::Learned,
        causal: false,
        qk_norm: false,
        output_head: false,
    }
}

/// Where Hugging Face checkpoints keep the weights.
pub fn slot(name: &str, layers: i32) -> Option<Slot> {
    let (stem, kind) = name.rsplit_once('.')?;
    let stem = stem.strip_prefix("bert.").unwrap_or(stem);
    let embedding = |name| Slot::new(EMBEDDING_LAYER, "embedding", name, kind);
    match stem {
        "embeddings.word_embeddings" => return embedding("embed_tokens"),
        "embeddings.position_embeddings" => return embedding("embed_positions"),
        "embeddings.token_type_embeddings" => return embedding("embed_token_types"),
        "embeddings.LayerNorm" => return Slot::new(EMBEDDING_LAYER, "norm", "embed_layernorm", kind),
        "pooler.dense" => return Slot::new(layers, "pooler", "pooler", kind),
        _ => {}
    }
    let (layer, stem) = stem.strip_prefix("encoder.layer.")?.split_once('.')?;
    let (parameter_type, name) = match stem {
        "attention.self.query" => ("attention", "q_proj"),
        "attention.self.key" => ("attention", "k_proj"),
        "attention.self.value" => ("attention", "v_proj"),
        "attention.output.dense" => ("attention", "o_proj"),
        "attention.output.LayerNorm" => ("norm", "post_attention_layernorm"),
        "intermediate.dense" => ("ffn", "up_proj"),
        "output.dense" => ("ffn", "down_proj"),
        "output.LayerNorm" => ("norm", "output_layernorm"),
        _ => return None,
    };
    Slot::new(layer_index(layer, layers)?, parameter_type, name, kind)
}
