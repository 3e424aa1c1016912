//! The packaged MiniLMs, all-MiniLM-L6-v2 and one tuned to questions about operations, against PyTorch and
//! sentence-transformers' pooling.

use std::sync::Arc;

use hypr_common::model::ModelTables;
use hypr_inference::model::Model;
use hypr_inference::transformer::Workspace;
use hypr_inference::{convert, import};
use hypr_tensor::DType;
use serde_json::Value;

use crate::support::*;

/// Where a model is, and what PyTorch says of it.
const MODELS: [(&str, &str); 2] = [("all-minilm-l6-v2", "minilm.json"), ("sre-embedding-model", "sre-embedding.json")];

fn packaged((directory, expected): (&str, &str)) -> Option<(ModelTables, Value)> {
    let config = real(&format!("{directory}/config.json"))?;
    let tables = import::safetensors(&checkpoint(config.parent().unwrap()), directory).unwrap();
    Some((tables, json(&fixture(expected))))
}

#[test]
fn embeddings_are_those_of_pytorch() {
    MODELS.into_iter().filter_map(packaged).for_each(|(tables, expected)| as_pytorch(tables, &expected));
}

fn as_pytorch(tables: ModelTables, expected: &Value) {
    let model = Model::open(Arc::new(tables), 8192).unwrap();
    let expected = expected.as_array().unwrap();
    let inputs: Vec<Vec<u32>> =
        expected.iter().map(|case| model.encode_input(case["text"].as_str().unwrap()).unwrap()).collect();
    for (case, input) in expected.iter().zip(&inputs) {
        assert_eq!(input, &tokens(&case["tokens"]), "{}", case["text"]);
    }
    let inputs: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    for level in levels() {
        let kernels = kernels(level, 2);
        let got = model.embed(&kernels, &inputs, true, &mut Workspace::new()).unwrap();
        for (case, got) in expected.iter().zip(&got) {
            let cosine = cosine(got, &floats(&case["embedding"]));
            assert!(cosine > 0.9999, "{} at {level}: cosine {cosine}", case["text"]);
            let length: f32 = got.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
        let alone = model.embed(&kernels, &inputs[2..3], true, &mut Workspace::new()).unwrap();
        assert_eq!(alone[0], got[2], "batching changes nothing");
    }
}

/// The bar of the eight-bit format: cosine above 0.999 to the embedding of PyTorch in f32.
#[test]
fn eight_bits_embed_nearly_as_pytorch_does() {
    let Some((tables, expected)) = packaged(MODELS[0]) else { return };
    let converted = convert::convert(&tables, "minilm_q8_0", DType::Q8_0).unwrap();
    assert_eq!(converted.metadata.model_id, "minilm_q8_0");
    let model = Model::open(Arc::new(converted), 8192).unwrap();
    for level in levels() {
        let kernels = kernels(level, 2);
        for case in expected.as_array().unwrap() {
            let input = tokens(&case["tokens"]);
            let got = model.embed(&kernels, &[&input], true, &mut Workspace::new()).unwrap();
            let cosine = cosine(&got[0], &floats(&case["embedding"]));
            // Two tokens without a word between them have nothing to average the rounding over.
            let bar = if case["text"] == "" { 0.998 } else { 0.999 };
            assert!(cosine > bar, "{} at {level}: cosine {cosine}", case["text"]);
        }
    }
}
