//! all-MiniLM-L6-v2 against PyTorch and sentence-transformers' pooling.

use std::sync::Arc;

use hypr_inference::import;
use hypr_inference::model::Model;
use hypr_inference::transformer::Workspace;

use crate::support::*;

#[test]
fn embeddings_are_those_of_pytorch() {
    let Some(pooling) = real("1_Pooling/config.json") else { return };
    let directory = pooling.parent().and_then(|parent| parent.parent()).unwrap();
    let tables = import::safetensors(&checkpoint(directory), "minilm").unwrap();
    let model = Model::open(Arc::new(tables), 8192).unwrap();
    let expected = json(&fixture("minilm.json"));
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
