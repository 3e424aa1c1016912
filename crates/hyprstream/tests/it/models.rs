//! `model`, as far as it goes without real weights: the demo pulls those.

use std::fs;
use std::path::Path;

use crate::process::{run, stderr, stdout};

/// A one-block BERT with four tokens and random-looking weights: a directory as the hub would give it.
fn bert(dir: &Path) {
    let config = serde_json::json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32,
        "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 16, "num_attention_heads": 2,
        "num_hidden_layers": 1, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 6,
        "position_embedding_type": "absolute",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hello": 4, "world": 5}},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(&bert_tensors())).unwrap();
}

fn bert_tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![6, 32]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![16, 32]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 32]),
    ];
    let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_owned(), shape.to_vec()));
    let layer = "encoder.layer.0";
    for (name, rows, cols) in [
        ("attention.self.query", 32, 32),
        ("attention.self.key", 32, 32),
        ("attention.self.value", 32, 32),
        ("attention.output.dense", 32, 32),
        ("intermediate.dense", 64, 32),
        ("output.dense", 32, 64),
    ] {
        add(&format!("{layer}.{name}.weight"), &[rows, cols]);
        add(&format!("{layer}.{name}.bias"), &[rows]);
    }
    for name in ["embeddings".to_owned(), format!("{layer}.attention.output"), format!("{layer}.output")] {
        add(&format!("{name}.LayerNorm.weight"), &[32]);
        add(&format!("{name}.LayerNorm.bias"), &[32]);
    }
    tensors
}

/// The safetensors format: length of a JSON header, the header, the values (little-endian `f32`).
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (at, (name, shape)) in tensors.iter().enumerate() {
        let start = data.len();
        for value in 0..shape.iter().product::<usize>() {
            data.extend((((value * 37 + at * 11) % 19) as f32 / 19.0 - 0.5).to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

#[test]
fn an_imported_model_is_listed_queried_used_and_removed() {
    let files = tempfile::tempdir().unwrap();
    bert(files.path());
    let data = tempfile::tempdir().unwrap();
    let (files, data) = (files.path().to_str().unwrap(), data.path().to_str().unwrap());
    let import = ["model", "import", "--name", "tiny", files, "--data-dir", data];
    assert!(stdout(&run(&import)).starts_with("imported 'tiny' (version 1, bert"));
    assert!(stdout(&run(&import)).starts_with("imported 'tiny' (version 2, bert"));
    let list = stdout(&run(&["model", "list", "--data-dir", data]));
    assert!(list.contains("| tiny     | 2       | bert"), "{list}");

    let sql = |statement: &str| stdout(&run(&["sql", "--data-dir", data, "--format", "csv", statement]));
    assert_eq!(sql("SELECT model_id, hidden_size FROM model_metadata"), "model_id,hidden_size\ntiny,32\n");
    assert_eq!(sql("SELECT count(*) > 5 AS many FROM model_weights WHERE model_id = 'tiny'"), "many\ntrue\n");
    let length =
        "SELECT round(inner_product(e, e) * 1000) AS n FROM (SELECT embed('hello world', model => 'tiny') AS e)";
    assert_eq!(sql(length), "n\n1000.0\n", "embeddings have length 1");

    assert_eq!(stdout(&run(&["model", "remove", "tiny", "--data-dir", data])), "removed 'tiny'\n");
    assert_eq!(sql("SELECT count(*) AS n FROM model_metadata"), "n\n0\n");
}

#[test]
fn what_is_no_model_is_refused_with_the_reason() {
    let files = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    fs::write(files.path().join("model.gguf"), "GGUF but no more").unwrap();
    fs::write(files.path().join("weights.bin"), "x").unwrap();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    for (path, said) in
        [(path("model.gguf"), "model.gguf"), (path("weights.bin"), "weights.bin"), (path(""), "config.json")]
    {
        let output = run(&["model", "import", "--name", "x", &path, "--data-dir", data.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(stderr(&output).contains(said), "{path}: {}", stderr(&output));
    }
}

#[test]
fn a_converted_model_is_smaller_and_embeds_nearly_the_same() {
    let files = tempfile::tempdir().unwrap();
    bert(files.path());
    let data = tempfile::tempdir().unwrap();
    let (files, data) = (files.path().to_str().unwrap(), data.path().to_str().unwrap());
    stdout(&run(&["model", "import", "--name", "tiny", files, "--data-dir", data]));
    let converted = stdout(&run(&["model", "convert", "tiny", "--to", "q8_0", "--data-dir", data]));
    assert!(converted.starts_with("converted 'tiny' to 'tiny_q8_0' (version 1, "), "{converted}");
    let query = "SELECT cosine_similarity(embed('hello world', model => 'tiny'), embed('hello world', model => 'tiny_q8_0')) > 0.999 AS near, \
                 (SELECT count(*) FROM model_weights WHERE model_id = 'tiny_q8_0' AND encoding = 'Q8_0') AS matrices";
    let answer = stdout(&run(&["sql", "--data-dir", data, "--format", "csv", query]));
    assert_eq!(answer.trim(), "near,matrices\ntrue,7", "six of the layer and the embedding");
    let twice = run(&["model", "convert", "tiny_q8_0", "--to", "Q4_0", "--data-dir", data]);
    assert_eq!(twice.status.code(), Some(1));
    assert!(stderr(&twice).contains("is Q8_0 already and would lose twice"), "{}", stderr(&twice));
    let unknown = run(&["model", "convert", "tiny", "--to", "Q3_K", "--data-dir", data]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("convert the tensor to one of"), "{}", stderr(&unknown));
}

#[test]
fn an_onnx_file_is_imported_with_what_describes_it_and_sees() {
    let fixtures = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../hypr-inference/tests/fixtures");
    let files = tempfile::tempdir().unwrap();
    let graph = files.path().join("eyes.onnx");
    fs::copy(fixtures.join("tiny-onnx/model.onnx"), &graph).unwrap();
    let data = tempfile::tempdir().unwrap();
    let (graph, data) = (graph.to_str().unwrap(), data.path().to_str().unwrap());
    let import = ["model", "import", "--name", "eyes", graph, "--data-dir", data];
    let alone = run(&import);
    assert_eq!(alone.status.code(), Some(1));
    assert!(stderr(&alone).contains("put encoder.json or preprocessor_config.json beside it"), "{}", stderr(&alone));

    fs::copy(fixtures.join("tiny-onnx/encoder.json"), files.path().join("encoder.json")).unwrap();
    let imported = stdout(&run(&import));
    assert!(imported.starts_with("imported 'eyes' (version 1, onnx, 448 parameters"), "{imported}");
    let sql = |statement: &str| stdout(&run(&["sql", "--data-dir", data, "--format", "csv", statement]));
    let weights = "SELECT parameter_name, shape FROM model_weights WHERE layer_id = 0 AND parameter_name LIKE 'patch%' ORDER BY 1";
    assert_eq!(sql(weights), "parameter_name,shape\npatch.bias,[8]\npatch.weight,\"[8,3,4,4]\"\n");
    let picture: String =
        fs::read(fixtures.join("picture.png")).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let length = format!("SELECT round(inner_product(e, e) * 1000) AS n FROM (SELECT embed(X'{picture}') AS e)");
    assert_eq!(sql(&length), "n\n1000.0\n", "embeddings have length 1");

    let converted = run(&["model", "convert", "eyes", "--to", "Q8_0", "--data-dir", data]);
    assert!(stderr(&converted).contains("an ONNX graph keeps its formats"), "{}", stderr(&converted));
}
