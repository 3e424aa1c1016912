//! CLIP (arXiv:2103.00020): a transformer over text, in which a token sees what came before it, and a vision
//! transformer; a matrix takes the state at the text's end and the class token of the picture into one space, where what
//! belongs together lies close. Both towers have layer norms before each part and a network with the logistic
//! approximation of GELU; the vision tower normalises its embeddings too.

use hypr_common::model::EMBEDDING_LAYER;

use super::{Architecture, FeedForward, Norm, NormPosition, Position, Slot, VISION, layer_index};
use crate::config::ModelConfig;

/// The network of one tower: the one over pictures is that with an image size.
pub fn architecture(config: &ModelConfig) -> Architecture {
    let sees = config.image.is_some();
    Architecture {
        norm: Norm::Layer,
        norm_position: NormPosition::Pre,
        embedding_norm: sees,
        feed_forward: FeedForward::plain(config.activation),
        position: Position::Learned,
        causal: !sees,
        qk_norm: false,
        output_head: false,
    }
}

/// Where Hugging Face checkpoints keep the weights; the towers have `layers` and `vision_layers` blocks.
pub fn slot(name: &str, layers: i32, vision_layers: i32) -> Option<Slot> {
    match name {
        "text_projection.weight" => return Slot::new(layers, "output", "projection", "weight"),
        "visual_projection.weight" => return Slot::vision(Slot::new(vision_layers, "output", "projection", "weight")?),
        "vision_model.embeddings.class_embedding" => {
            return Slot::vision(Slot::new(EMBEDDING_LAYER, "embedding", "class_token", "weight")?);
        }
        _ => {}
    }
    if let Some(name) = name.strip_prefix("vision_model.") {
        return Slot::vision(tower(name, vision_layers)?);
    }
    tower(name.strip_prefix("text_model.")?, layers)
}

/// The names that both towers have.
fn tower(name: &str, layers: i32) -> Option<Slot> {
    let (stem, kind) = name.rsplit_once('.')?;
    match stem {
        "embeddings.token_embedding" => return Slot::new(EMBEDDING_LAYER, "embedding", "embed_tokens", kind),
        "embeddings.patch_embedding" => return Slot::new(EMBEDDING_LAYER, "embedding", "patch_proj", kind),
        "embeddings.position_embedding" => return Slot::new(EMBEDDING_LAYER, "embedding", "embed_positions", kind),
        // The name that the published checkpoints have.
        "pre_layrnorm" => return Slot::new(EMBEDDING_LAYER, "norm", "embed_layernorm", kind),
        "final_layer_norm" | "post_layernorm" => return Slot::new(layers, "norm", "norm", kind),
        _ => {}
    }
    let (layer, stem) = stem.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (parameter_type, name) = match stem {
        "self_attn.q_proj" => ("attention", "q_proj"),
        "self_attn.k_proj" => ("attention", "k_proj"),
        "self_attn.v_proj" => ("attention", "v_proj"),
        "self_attn.out_proj" => ("attention", "o_proj"),
        "layer_norm1" => ("norm", "input_layernorm"),
        "layer_norm2" => ("norm", "post_attention_layernorm"),
        "mlp.fc1" => ("ffn", "up_proj"),
        "mlp.fc2" => ("ffn", "down_proj"),
        _ => return None,
    };
    Slot::new(layer_index(layer, layers)?, parameter_type, name, kind)
}

impl Slot {
    /// The same place in the vision tower.
    fn vision(slot: Self) -> Option<Self> {
        Some(Self { name: format!("{VISION}{}", slot.name), ..slot })
    }
}
