//! The tokenizer inside a GGUF file, as the JSON of the `tokenizers` library.
//!
//! Invariant: the pre-tokenizer is the one that the model was trained with (`tokenizer.ggml.pre`); an unknown one
//! is an error, because a wrong split gives silently worse answers. Deliberately absent: SentencePiece
//! vocabularies.

use std::collections::HashMap;

use hypr_common::{Error, Result};
use serde_json::{Value as Json, json};

use super::gguf::{Metadata, Value};
use crate::tokenizer::TextTokenizer;

/// The JSON and the special tokens.
pub(super) struct GgufTokenizer {
    pub json: Vec<u8>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    pub add_bos_token: bool,
}

/// `tokenizer.ggml.token_type` of tokens that only templates and the model itself write.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of tokens that were added to the vocabulary.
const USER_DEFINED: i64 = 4;
/// Control tokens that end an answer wherever they appear, as llama.cpp has it.
const ENDS: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>"];

/// The split of Qwen2, and with `{1,3}` digits of Llama 3 (source: their `tokenizer.json`).
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the tokenizer, or `None` where the file has none.
pub(super) fn tokenizer(metadata: &Metadata<'_>) -> Result<Option<GgufTokenizer>> {
    let Some(model) = metadata.str("tokenizer.ggml.model") else { return Ok(None) };
    if model != "gpt2" {
        return Err(Error::unsupported(format!(
            "the GGUF file's tokenizer is of kind {model}; use a model with a byte-level BPE tokenizer (gpt2)"
        )));
    }
    let (Some(Value::Strs(tokens)), Some(Value::Strs(merges))) =
        (metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges"))
    else {
        return Err(Error::corrupted("the GGUF file's tokenizer has no tokens or no merges"));
    };
    let types: &[i64] = match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Ints(types)) if types.len() == tokens.len() => types,
        None => &[],
        Some(_) => return Err(Error::corrupted("the GGUF file's token types do not match its tokens")),
    };
    let added: Vec<Json> = (0..types.len())
        .filter(|&id| types[id] == CONTROL || types[id] == USER_DEFINED)
        .map(|id| added_token(id, tokens[id], types[id] == CONTROL))
        .collect();
    let vocabulary: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let (normalizer, pre_tokenizer) = splitting(metadata.str("tokenizer.ggml.pre").unwrap_or("default"))?;
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    let json = serde_json::to_vec(&json).map_err(|error| Error::internal(format!("writing the tokenizer: {error}")))?;
    TextTokenizer::from_json(&json)
        .map_err(|error| Error::corrupted(format!("the GGUF file's tokenizer cannot be used: {error}")))?;
    let (bos_token_id, eos_token_ids) = special_tokens(metadata, tokens, types);
    let add_bos_token = matches!(metadata.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true)));
    Ok(Some(GgufTokenizer { json, bos_token_id, eos_token_ids, add_bos_token }))
}

fn added_token(id: usize, content: &str, special: bool) -> Json {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

/// The normalizer and pre-tokenizer that `tokenizer.ggml.pre` names.
fn splitting(pre: &str) -> Result<(Json, Json)> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split_first = |regex: &str| {
        let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    Ok(match pre {
        "default" | "gpt-2" => (Json::Null, byte_level(true)),
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            (Json::Null, json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] }))
        }
        "qwen2" | "deepseek-r1-qwen" => (json!({ "type": "NFC" }), split_first(QWEN2_SPLIT)),
        "llama-bpe" | "llama3" | "llama-v3" => (Json::Null, split_first(LLAMA3_SPLIT)),
        _ => {
            return Err(Error::unsupported(format!(
                "the GGUF file's pre-tokenizer {pre} is not supported; known are default, gpt-2, smollm, qwen2, llama-bpe"
            )));
        }
    })
}

fn special_tokens(metadata: &Metadata<'_>, tokens: &[&str], types: &[i64]) -> (Option<u32>, Vec<u32>) {
    let mut ends: Vec<u32> =
        ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
            .into_iter()
            .filter_map(|key| metadata.id(key))
            .collect();
    ends.extend((0..types.len()).filter(|&id| types[id] == CONTROL && ENDS.contains(&tokens[id])).map(|id| id as u32));
    ends.sort_unstable();
    ends.dedup();
    (metadata.id("tokenizer.ggml.bos_token_id"), ends)
}
