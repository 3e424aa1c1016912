//! Networks with random weights, small enough to build a database around.

use std::collections::BTreeMap;

use arrow::buffer::Buffer;
use hypr_common::model::ModelTables;
use hypr_inference::import;
use serde_json::{Map, Value, json};

use crate::harness::crate_dir;

/// Words `w0` to `w59`, `yes`, `no`, `w62` and `w63`, a token each; every other word is `w0`.
fn tokenizer() -> Buffer {
    let word = |id| match id {
        60 => "yes".to_owned(),
        61 => "no".to_owned(),
        id => format!("w{id}"),
    };
    let vocab: Map<String, Value> = (0..64).map(|id| (word(id), id.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    Buffer::from_vec(json.to_string().into_bytes())
}

/// A network with random weights from the engine's own fixtures.
pub fn tiny(network: &str, id: &str) -> ModelTables {
    let dir = crate_dir().join("../hypr-inference/tests/fixtures").join(network);
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    if network != "tiny-bert" {
        config["max_position_embeddings"] = 256.into();
        config["eos_token_id"] = Value::Null;
    }
    let files = BTreeMap::from([
        ("config.json".to_owned(), Buffer::from_vec(config.to_string().into_bytes())),
        ("model.safetensors".to_owned(), Buffer::from_vec(read("model.safetensors"))),
        ("tokenizer.json".to_owned(), tokenizer()),
    ]);
    import::safetensors(&files, id).unwrap()
}
