//! The configurations of models that see: ViT, and CLIP with its two towers.
//!
//! What a file leaves out has the value that Hugging Face's classes give it.

use std::collections::BTreeMap;

use arrow_buffer::Buffer;
use hypr_common::{Error, Result};
use serde_json::{Value as Json, json};

use super::safetensors::{float, ids, json as read, network, size};
use crate::api::Task;
use crate::config::{ImageConfig, ModelConfig, Pooling};
use crate::families::Family;
use crate::image_processor::PREPROCESSOR_FILE;

/// Where newer checkpoints keep the image processor's settings, under `image_processor`.
const PROCESSOR_FILE: &str = "processor_config.json";

/// A vision transformer.
pub(super) fn vit(source: &Json, files: &BTreeMap<String, Buffer>) -> Result<ModelConfig> {
    let defaults = json!({"layer_norm_eps": 1e-12, "hidden_act": "gelu"});
    let side = json!({"size": size(source, "image_size")?, "resample": 2});
    let mut config = tower(Family::Vit, &filled(source, &defaults), &preprocessor(files)?.unwrap_or(side))?;
    config.tasks = vec![Task::EmbedImage.name().to_owned()];
    config.pooling = Some(Pooling::Cls);
    Ok(config)
}

/// Text and pictures in one space. The vision tower is [`ModelConfig::vision`].
pub(super) fn clip(source: &Json, files: &BTreeMap<String, Buffer>) -> Result<ModelConfig> {
    let part = |key: &str| source.get(key).cloned().unwrap_or_else(|| json!({}));
    let text = filled(
        &part("text_config"),
        &json!({"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 8, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
            "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407}),
    );
    let sight = filled(
        &part("vision_config"),
        &json!({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}),
    );
    let side = size(&sight, "image_size")?;
    let settings = json!({"size": {"shortest_edge": side}, "resample": 3, "crop_size": side,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]});
    let joint = size(&filled(source, &json!({"projection_dim": 512})), "projection_dim")?;
    let mut vision = tower(Family::Vit, &sight, &preprocessor(files)?.unwrap_or(settings))?;
    vision.family = Family::Clip;
    vision.embedding_size = Some(joint);
    vision.pooling = Some(Pooling::Cls);

    let mut config = network(Family::Clip, &text)?;
    config.tasks = vec![Task::Embed.name().to_owned(), Task::EmbedImage.name().to_owned()];
    config.norm_eps = float(&text, "layer_norm_eps").unwrap_or(1e-5);
    // The first checkpoints say 2 and mean the last of the vocabulary, as Hugging Face's class knows too.
    config.eos_token_ids = match ids(&text, "eos_token_id")[..] {
        [2] => vec![config.vocab_size.saturating_sub(1) as u32],
        ref ids => ids.to_vec(),
    };
    config.embedding_size = Some(joint);
    config.pooling = Some(Pooling::Eos);
    config.max_input_tokens = Some(config.context_length);
    config.vision = Some(Box::new(vision));
    Ok(config)
}

/// `source` with `defaults` where it says nothing.
fn filled(source: &Json, defaults: &Json) -> Json {
    let mut filled = defaults.clone();
    if let (Some(filled), Some(source)) = (filled.as_object_mut(), source.as_object()) {
        filled.extend(
            source.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
        );
    }
    filled
}

fn preprocessor(files: &BTreeMap<String, Buffer>) -> Result<Option<Json>> {
    if let Some(settings) = read(files, PREPROCESSOR_FILE)? {
        return Ok(Some(settings));
    }
    Ok(read(files, PROCESSOR_FILE)?.and_then(|settings| settings.get("image_processor").cloned()))
}

/// A transformer over patches.
fn tower(family: Family, source: &Json, preprocessor: &Json) -> Result<ModelConfig> {
    if source.get("num_channels").and_then(Json::as_u64).is_some_and(|channels| channels != 3) {
        return Err(Error::unsupported("pictures of other than three channels are not supported"));
    }
    let mut config = network(family, source)?;
    let image = ImageConfig {
        image_size: size(source, "image_size")?,
        patch_size: size(source, "patch_size")?,
        preprocessor: preprocessor.clone(),
    };
    config.norm_eps = float(source, "layer_norm_eps").unwrap_or(1e-12);
    image.check()?;
    config.context_length = image.tokens();
    config.image = Some(image);
    Ok(config)
}
