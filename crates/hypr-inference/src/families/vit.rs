//! ViT (arXiv:2010.11929): a picture is a sequence of patches behind a class token, with learned positions; layer norm
//! before each part, every patch sees every other, a GELU network. The class token's last state is the embedding.

use hypr_common::model::EMBEDDING_LAYER;

use super::{Architecture, FeedForward, Norm, NormPosition, Position, Slot, layer_index};
use crate::config::ModelConfig;

/// The network, after the patches.
pub fn architecture(config: &ModelConfig) -> Architecture {
    Architecture {
        norm: Norm::Layer,
        norm_position: NormPosition::Pre,
        embedding_norm: false,
        feed_forward: FeedForward::plain(config.activation),
        position: Position::Learned,
        causal: false,
        qk_norm: false,
        output_head: false,
    }
}

/// Where Hugging Face checkpoints keep the weights.
pub fn slot(name: &str, layers: i32) -> Option<Slot> {
    let name = name.strip_prefix("vit.").unwrap_or(name);
    match name {
        "embeddings.cls_token" => return Slot::new(EMBEDDING_LAYER, "embedding", "class_token", "weight"),
        "embeddings.position_embeddings" => {
            return Slot::new(EMBEDDING_LAYER, "embedding", "embed_positions", "weight");
        }
        _ => {}
    }
    let (stem, kind) = name.rsplit_once('.')?;
    match stem {
        "embeddings.patch_embeddings.projection" => {
            return Slot::new(EMBEDDING_LAYER, "embedding", "patch_proj", kind);
        }
        "layernorm" => return Slot::new(layers, "norm", "norm", kind),
        "pooler.dense" => return Slot::new(layers, "pooler", "pooler", kind),
        _ => {}
    }
    let (layer, stem) = stem.strip_prefix("encoder.layer.")?.split_once('.')?;
    let (parameter_type, name) = match stem {
        "attention.attention.query" => ("attention", "q_proj"),
        "attention.attention.key" => ("attention", "k_proj"),
        "attention.attention.value" => ("attention", "v_proj"),
        "attention.output.dense" => ("attention", "o_proj"),
        "layernorm_before" => ("norm", "input_layernorm"),
        "layernorm_after" => ("norm", "post_attention_layernorm"),
        "intermediate.dense" => ("ffn", "up_proj"),
        "output.dense" => ("ffn", "down_proj"),
        _ => return None,
    };
    Slot::new(layer_index(layer, layers)?, parameter_type, name, kind)
}
