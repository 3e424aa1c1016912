//! Hugging Face checkpoints: safetensors files beside `config.json`, `tokenizer.json` and their like.
//!
//! Invariant: a tensor that the family does not know is an error, apart from the few that checkpoints carry and
//! no network needs ([`is_ignored`]). Deliberately absent: pickled checkpoints.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use arrow_buffer::Buffer;
use hypr_common::model::{CHAT_TEMPLATE_FILE, ModelTables, TOKENIZER_FILE};
use hypr_common::{Error, Result};
use hypr_tensor::DType;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value as Json;

use super::tables::{self, Tensor};
use super::vision;
use crate::config::{ActivationName, ModelConfig, Pooling, RopeScaling, RopeStyle};
use crate::families::Family;

/// Reads a checkpoint from its files by name: `*.safetensors`, `config.json`, and where they exist
/// `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`,
/// `sentence_bert_config.json`, `1_Pooling/config.json` and `preprocessor_config.json`. The tensors of the answer are slices of the buffers.
///
/// # Errors
/// `InvalidInput` for a missing file, `Corrupted` for damaged ones, `Unsupported` for architectures and
/// encodings that the engine does not run.
pub fn safetensors(files: &BTreeMap<String, Buffer>, model_id: &str) -> Result<ModelTables> {
    let source = json(files, "config.json")?.ok_or_else(|| {
        Error::invalid(format!("model {model_id} has no config.json; put it beside model.safetensors"))
    })?;
    let mut config = config(&source, files)?;
    let mut tensors = Vec::new();
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        read(name, bytes, &config, &mut tensors)?;
    }
    if tensors.is_empty() {
        return Err(Error::invalid(format!("model {model_id} has no tensors; give its model.safetensors")));
    }
    tensors.sort_by(|a: &Tensor, b| (a.slot.layer_id, &a.slot.name).cmp(&(b.slot.layer_id, &b.slot.name)));
    config.tie_word_embeddings = !tensors.iter().any(|tensor| tensor.slot.name == "lm_head");

    let mut side_files = BTreeMap::new();
    if let Some(tokenizer) = files.get(TOKENIZER_FILE) {
        side_files.insert(TOKENIZER_FILE.to_owned(), tokenizer.clone());
        config.tokenizer = Some(TOKENIZER_FILE.to_owned());
    }
    if let Some(template) = chat_template(files)? {
        side_files.insert(CHAT_TEMPLATE_FILE.to_owned(), template);
        config.chat_template = Some(CHAT_TEMPLATE_FILE.to_owned());
    }
    config.check()?;
    tables::assemble(model_id, &config, &tensors, side_files)
}

pub(super) fn json(files: &BTreeMap<String, Buffer>, name: &str) -> Result<Option<Json>> {
    let Some(bytes) = files.get(name) else { return Ok(None) };
    serde_json::from_slice(bytes.as_slice())
        .map(Some)
        .map_err(|error| Error::corrupted(format!("{name} is not valid JSON: {error}")))
}

pub(super) fn size(config: &Json, key: &str) -> Result<usize> {
    optional_size(config, key)?.ok_or_else(|| Error::corrupted(format!("config.json does not say its {key}")))
}

fn optional_size(config: &Json, key: &str) -> Result<Option<usize>> {
    match config.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .map(Some)
            .ok_or_else(|| Error::corrupted(format!("config.json says {key} is {value}"))),
    }
}

pub(super) fn float(config: &Json, key: &str) -> Option<f32> {
    config.get(key).and_then(Json::as_f64).map(|value| value as f32)
}

/// One id or a list of ids.
pub(super) fn ids(config: &Json, key: &str) -> Vec<u32> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(key) {
        Some(Json::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn config(source: &Json, files: &BTreeMap<String, Buffer>) -> Result<ModelConfig> {
    let name = source.get("model_type").and_then(Json::as_str).unwrap_or("unknown");
    let family = Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
        let known = Family::ALL.map(Family::name).join(", ");
        Error::unsupported(format!("models of type {name} are not supported; use one of {known}"))
    })?;
    match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 => {
            let mut config = network(family, source)?;
            decoder(&mut config, source, files)?;
            Ok(config)
        }
        Family::Bert => {
            let mut config = network(family, source)?;
            encoder(&mut config, source, files)?;
            Ok(config)
        }
        Family::Vit => vision::vit(source, files),
        Family::Clip => vision::clip(source, files),
    }
}

/// What every family's configuration says; the rest as it is where nothing is said.
pub(super) fn network(family: Family, source: &Json) -> Result<ModelConfig> {
    let hidden_size = size(source, "hidden_size")?;
    let heads = size(source, "num_attention_heads")?;
    Ok(ModelConfig {
        family,
        tasks: Vec::new(),
        vocab_size: if family == Family::Vit { 0 } else { size(source, "vocab_size")? },
        hidden_size,
        intermediate_size: size(source, "intermediate_size")?,
        num_hidden_layers: size(source, "num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: optional_size(source, "num_key_value_heads")?.unwrap_or(heads),
        head_dim: match optional_size(source, "head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(heads).unwrap_or_default(),
        },
        norm_eps: 1e-5,
        context_length: if family == Family::Vit { 1 } else { size(source, "max_position_embeddings")? },
        activation: activation(source)?,
        rope: None,
        rope_base: None,
        rope_scaling: None,
        embedding_size: None,
        image: None,
        vision: None,
        tie_word_embeddings: false,
        bos_token_id: ids(source, "bos_token_id").first().copied(),
        eos_token_ids: Vec::new(),
        add_bos_token: false,
        tokenizer: None,
        chat_template: None,
        pooling: None,
        max_input_tokens: None,
    })
}

fn activation(source: &Json) -> Result<ActivationName> {
    match source.get("hidden_act").and_then(Json::as_str) {
        Some("silu" | "swish") => Ok(ActivationName::Silu),
        Some("gelu") => Ok(ActivationName::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(ActivationName::GeluTanh),
        Some("quick_gelu") => Ok(ActivationName::QuickGelu),
        other => Err(Error::unsupported(format!(
            "the activation {other:?} is not supported; use silu, gelu, gelu_new or quick_gelu"
        ))),
    }
}

fn decoder(config: &mut ModelConfig, source: &Json, files: &BTreeMap<String, Buffer>) -> Result<()> {
    // Newer checkpoints keep the base inside `rope_parameters`, older ones beside `rope_scaling`.
    let rope = source.get("rope_parameters").or_else(|| source.get("rope_scaling")).filter(|rope| rope.is_object());
    config.rope_scaling = rope.map(rope_scaling).transpose()?.flatten();
    if source.get("use_sliding_window").and_then(Json::as_bool) == Some(true) {
        return Err(Error::unsupported("attention with a sliding window is not supported"));
    }
    config.tasks = vec!["generate".to_owned()];
    config.norm_eps = float(source, "rms_norm_eps").unwrap_or(1e-6);
    config.rope = Some(RopeStyle::Neox);
    config.rope_base = Some(float(source, "rope_theta").or_else(|| float(rope?, "rope_theta")).unwrap_or(10_000.0));
    let generation = json(files, "generation_config.json")?.unwrap_or_default();
    config.eos_token_ids = ids(source, "eos_token_id");
    config.eos_token_ids.extend(ids(&generation, "eos_token_id"));
    config.eos_token_ids.sort_unstable();
    config.eos_token_ids.dedup();
    let tokenizer = json(files, "tokenizer_config.json")?.unwrap_or_default();
    config.add_bos_token = tokenizer.get("add_bos_token").and_then(Json::as_bool).unwrap_or(false);
    Ok(())
}

/// `None` for wavelengths that are not stretched.
fn rope_scaling(rope: &Json) -> Result<Option<RopeScaling>> {
    let number = |key: &str| {
        float(rope, key).ok_or_else(|| Error::corrupted(format!("config.json does not say its rope scaling's {key}")))
    };
    match rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str) {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        })),
        Some(kind) => {
            Err(Error::unsupported(format!("rope scaling of type {kind} is not supported; use linear or llama3")))
        }
    }
}

fn encoder(config: &mut ModelConfig, source: &Json, files: &BTreeMap<String, Buffer>) -> Result<()> {
    if source.get("position_embedding_type").and_then(Json::as_str).is_some_and(|kind| kind != "absolute") {
        return Err(Error::unsupported("only absolute position embeddings are supported for BERT"));
    }
    config.tasks = vec!["embed".to_owned()];
    config.norm_eps = float(source, "layer_norm_eps").unwrap_or(1e-12);
    let pooling = json(files, "1_Pooling/config.json")?.unwrap_or_default();
    let mode = |key: &str| pooling.get(key).and_then(Json::as_bool).unwrap_or(false);
    config.pooling = Some(if mode("pooling_mode_cls_token") {
        Pooling::Cls
    } else if mode("pooling_mode_max_tokens") || mode("pooling_mode_mean_sqrt_len_tokens") {
        return Err(Error::unsupported("only mean and first-token pooling are supported"));
    } else {
        Pooling::Mean
    });
    let sentence = json(files, "sentence_bert_config.json")?.unwrap_or_default();
    config.max_input_tokens =
        Some(optional_size(&sentence, "max_seq_length")?.unwrap_or(config.context_length).min(config.context_length));
    Ok(())
}

fn chat_template(files: &BTreeMap<String, Buffer>) -> Result<Option<Buffer>> {
    if let Some(template) = files.get(CHAT_TEMPLATE_FILE) {
        return Ok(Some(template.clone()));
    }
    let tokenizer = json(files, "tokenizer_config.json")?.unwrap_or_default();
    let template = match tokenizer.get("chat_template") {
        Some(Json::String(template)) => Some(template.as_str()),
        Some(Json::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|entry| entry.get("template"))
            .and_then(Json::as_str),
        _ => None,
    };
    Ok(template.map(|template| Buffer::from_slice_ref(template.as_bytes())))
}

/// Tensors that checkpoints carry and no network needs: counters, tables that are computed, heads of the
/// pre-training task.
fn is_ignored(name: &str) -> bool {
    name.ends_with("embeddings.position_ids")
        || name.ends_with("rotary_emb.inv_freq")
        || name.starts_with("cls.")
        || name.starts_with("classifier.")
        || name == "logit_scale"
        || name.ends_with("embeddings.mask_token")
}

/// A convolution's kernel as the matrix that it is, and what has a batch in front without it.
fn matrix(shape: &[usize]) -> Vec<usize> {
    match shape {
        [1, 1, values] => vec![*values],
        [1, rows, cols] => vec![*rows, *cols],
        [rows, kernel @ ..] if kernel.len() > 1 => vec![*rows, kernel.iter().product()],
        shape => shape.to_vec(),
    }
}

/// The first name that a header has twice; a map of it would have the last.
struct Names {
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
                let (mut known, mut twice) = (HashSet::new(), None);
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if let Some(name) = known.replace(name) {
                        twice = Some(name);
                    }
                }
                Ok(Names { twice })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

fn read(file: &str, bytes: &Buffer, config: &ModelConfig, tensors: &mut Vec<Tensor>) -> Result<()> {
    let damaged =
        |error| Error::corrupted(format!("{file} is not a valid safetensors file ({error}); download it again"));
    // `deserialize` also checks that the tensors cover the file.
    SafeTensors::deserialize(bytes.as_slice()).map_err(|error| damaged(error.to_string()))?;
    let (header, metadata) =
        SafeTensors::read_metadata(bytes.as_slice()).map_err(|error| damaged(error.to_string()))?;
    let data_start = header + 8;
    let names: Names = serde_json::from_slice(&bytes[8..data_start]).map_err(|error| damaged(error.to_string()))?;
    if let Some(twice) = names.twice {
        return Err(damaged(format!("it has {twice} twice")));
    }
    for (name, info) in metadata.tensors() {
        if is_ignored(&name) {
            continue;
        }
        let slot = config.family.slot_of_checkpoint_name(&name, config).ok_or_else(|| {
            Error::unsupported(format!("tensor {name} of {file} is not part of the {} family", config.family.name()))
        })?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::unsupported(format!("tensor {name} of {file} is {other:?}; use F32, F16 or BF16")));
            }
        };
        let (start, end) = info.data_offsets;
        if start > end || data_start + end > bytes.len() {
            return Err(damaged(format!("tensor {name} lies outside the file")));
        }
        let data = bytes.slice_with_length(data_start + start, end - start);
        tensors.push(Tensor { slot, dtype, shape: matrix(&info.shape), data });
    }
    Ok(())
}
