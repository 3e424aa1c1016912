//! Checkpoints of true size that are holes of the file system: all is imported, mapped and planned, and no weight is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use arrow_buffer::Buffer;
use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::Transformer;
use serde_json::{Map, Value, json};

/// A checkpoint's tensors by name and shape.
type Tensors = Vec<(String, Vec<usize>)>;

fn llama(config: &Value) -> Tensors {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, inner, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let kv = size("num_key_value_heads") * hidden / size("num_attention_heads");
    let mut tensors: Tensors = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
        ("lm_head.weight".into(), vec![vocab, hidden]),
    ];
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}

/// Writes the head of a safetensors file in half precision and leaves its data to be a hole.
fn write(path: &Path, tensors: &Tensors) -> u64 {
    let (mut header, mut end) = (Map::new(), 0_u64);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().map(|&dim| dim as u64).product::<u64>() * 2;
        header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    end
}

/// The documents' LLaMA-7B, whose parameters the paper's authors count, and Llama 3.1 8B with shared keys and
/// stretched wavelengths.
#[test]
fn seven_and_eight_billion_parameters_are_planned_without_reading_them() {
    let common = json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "hidden_act": "silu", "rms_norm_eps": 1e-5});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let seven = json!({"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 2048});
    let eight = json!({"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rope_scaling": llama3});
    for (own, parameters, kv_bytes) in [(seven, 6_738_415_616_i64, 524_288), (eight, 8_030_261_248, 131_072)] {
        let mut config = common.clone();
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let bytes = write(&path, &llama(&config));
        let mapped = hypr_tensor::map_file(&File::open(&path).unwrap()).unwrap();
        let files = BTreeMap::from([
            ("model.safetensors".to_owned(), mapped),
            ("config.json".to_owned(), Buffer::from_vec(config.to_string().into_bytes())),
        ]);
        let before = resident();
        let tables = import::safetensors(&files, "large").unwrap();
        assert_eq!(tables.metadata.total_parameters, parameters);
        assert_eq!(tables.layers.len(), 34);
        let transformer = Transformer::open(&tables, 2048).unwrap();
        let shape = transformer.kv_shape(KvPrecision::F16);
        assert_eq!(shape.layers * shape.width * 2 * 2, kv_bytes, "bytes of a token's keys and values");
        let grown = resident().saturating_sub(before);
        assert!(grown < bytes / 100, "{grown} of {bytes} bytes were read");
    }
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
