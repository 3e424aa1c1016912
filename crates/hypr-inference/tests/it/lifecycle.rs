//! Models come and go: loading, pinning, unloading under load, a budget over several, layers that come and go, draining.

#[cfg(target_os = "linux")]
use std::fs::File;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use arrow_buffer::Buffer;
use futures::executor::block_on;
use futures::{FutureExt, StreamExt};
use hypr_common::ErrorKind;
use hypr_common::model::{ModelSource, ModelTables};
use hypr_inference::{EmbedRequest, EngineHandle, EngineOptions, GenerateRequest, Inference, LoadedModel, paging};

use crate::engine::{model, request, tokenizer};
use crate::support::*;

fn options(model_memory_bytes: Option<usize>) -> EngineOptions {
    EngineOptions { threads: 1, max_context_tokens: 1 << 20, model_memory_bytes, ..EngineOptions::default() }
}

fn of(id: &str, prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { model: Some(id.into()), ..request(prompt, max_tokens) }
}

fn loaded(engine: &EngineHandle) -> Vec<LoadedModel> {
    block_on(engine.loaded_models()).unwrap()
}

fn names(engine: &EngineHandle) -> Vec<String> {
    loaded(engine).into_iter().map(|model| model.model_id).collect()
}

/// Three models of one size.
fn three() -> Arc<Models> {
    Models::new(["a", "b", "c"].map(|id| model("tiny-llama", id, 4096)))
}

fn bytes() -> usize {
    paging::weight_bytes(&model("tiny-llama", "a", 64))
}

#[test]
fn a_model_is_loaded_pinned_unpinned_and_unloaded_by_name() {
    let source = three();
    let (handle, _service) = start(source.clone(), options(None));
    assert_eq!(loaded(&handle), []);
    assert!(block_on(handle.load_model("a", false)).unwrap());
    assert!(!block_on(handle.load_model("a", false)).unwrap());
    assert!(block_on(handle.load_model("a", true)).unwrap());
    assert!(!block_on(handle.load_model("a", true)).unwrap());
    let [shown] = loaded(&handle).try_into().unwrap();
    assert_eq!((shown.pinned, shown.drains, shown.requests, shown.bytes), (true, false, 0, bytes()));
    // The weights are on the heap here, in no mapped file.
    assert_eq!((shown.limit_bytes, shown.version), (None, 0));
    assert!(block_on(handle.unpin_model("a")).unwrap());
    assert!(!block_on(handle.unpin_model("a")).unwrap());
    assert!(!loaded(&handle)[0].pinned);

    let tables = Arc::downgrade(&source.open("a").unwrap());
    assert!(block_on(handle.unload_model("a")).unwrap());
    assert!(!block_on(handle.unload_model("a")).unwrap());
    assert_eq!(loaded(&handle), []);
    source.remove("a");
    assert!(tables.upgrade().is_none(), "the engine holds the tables of an unloaded model");
    for asked in [handle.load_model("x", false), handle.unpin_model("x"), handle.unload_model("x")] {
        let error = block_on(asked).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.message().contains("there are: b, c"), "{error}");
    }
}

#[test]
fn a_model_that_is_unloaded_finishes_what_it_answers_and_then_gives_its_memory_back() {
    let source = three();
    let (handle, _service) = start(source.clone(), options(None));
    let alone = block_on(handle.generate(of("a", "w1 w2", 1500))).unwrap().text;
    let mut stream = handle.generate_stream(of("a", "w1 w2", 1500));
    let first = block_on(stream.next()).unwrap().unwrap().text;
    let mut unloaded = handle.unload_model("a");
    assert!(unloaded.as_mut().now_or_never().is_none(), "it still answers");
    let [draining] = loaded(&handle).try_into().unwrap();
    assert_eq!((draining.drains, draining.requests), (true, 1));
    // New requests get a copy of their own, also while the old one drains.
    assert_eq!(block_on(handle.generate(of("a", "w1 w2", 3))).unwrap().completion_tokens, 3);
    let copies: Vec<(bool, usize)> = loaded(&handle).iter().map(|model| (model.drains, model.requests)).collect();
    assert_eq!(copies, [(false, 0), (true, 1)]);
    let rest: Vec<_> = block_on(stream.collect());
    let rest: String = rest.into_iter().map(|token| token.unwrap().text).collect();
    assert_eq!(first + &rest, alone);
    assert!(block_on(unloaded).unwrap());
    assert_eq!(names(&handle), ["a"]);
    assert!(!loaded(&handle)[0].drains);
    assert!(block_on(handle.unload_model("a")).unwrap());
    let kv = handle.metrics().kv;
    assert_eq!((kv.used_bytes, kv.cached_bytes), (0, 0), "keys and values of an unloaded model are gone");
}

#[test]
fn newer_weights_take_over_the_pin_and_the_old_ones_drain() {
    let source = three();
    let (handle, _service) = start(source.clone(), options(None));
    block_on(handle.load_model("a", true)).unwrap();
    let mut stream = handle.generate_stream(of("a", "w1 w2", 1000));
    block_on(stream.next()).unwrap().unwrap();
    source.publish(ModelTables { version: 7, ..model("tiny-llama1", "a", 4096) });
    assert_eq!(block_on(handle.generate(of("a", "w1", 2))).unwrap().model_version, 7);
    let copies: Vec<(u64, bool, bool)> =
        loaded(&handle).iter().map(|model| (model.version, model.drains, model.pinned)).collect();
    assert_eq!(copies, [(7, false, true), (0, true, false)]);
    assert_eq!(block_on(stream.count()), 999);
    assert_eq!(loaded(&handle).len(), 1);
}

#[test]
fn the_longest_unused_makes_room_within_the_budget() {
    let (handle, _service) = start(three(), options(Some(2 * bytes() + 10)));
    for id in ["a", "b", "a"] {
        block_on(handle.generate(of(id, "w1", 2))).unwrap();
    }
    assert_eq!(names(&handle), ["a", "b"]);
    block_on(handle.generate(of("c", "w1", 2))).unwrap();
    assert_eq!(names(&handle), ["a", "c"], "b was used longest ago");
    // A pinned one stays, however long it is unused.
    block_on(handle.load_model("a", true)).unwrap();
    for id in ["c", "b", "c", "b"] {
        block_on(handle.generate(of(id, "w1", 2))).unwrap();
    }
    assert_eq!(names(&handle), ["a", "b"]);
    let total: usize = loaded(&handle).iter().map(|model| model.bytes).sum();
    assert!(total <= 2 * bytes() + 10);
}

#[test]
fn a_full_budget_says_what_holds_it_and_whether_waiting_helps() {
    let (handle, _service) = start(three(), options(Some(2 * bytes())));
    block_on(handle.load_model("a", true)).unwrap();
    let mut stream = handle.generate_stream(of("b", "w1", 3000));
    block_on(stream.next()).unwrap().unwrap();
    let error = block_on(handle.generate(of("c", "w1", 2))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    for part in ["model 'c'", "'a'", "(pinned)", "'b'", "(answers 1)", "engine.model_memory_mb"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    drop(stream);
    // Its request is dropped at the next step, and then there is room.
    while block_on(handle.generate(of("c", "w1", 2))).is_err() {}
    assert_eq!(names(&handle), ["a", "c"]);
    block_on(handle.load_model("c", true)).unwrap();
    let error = block_on(handle.generate(of("b", "w1", 2))).unwrap_err();
    assert!(error.kind() == ErrorKind::ResourceExhausted && error.message().contains("unpin"), "{error}");
    block_on(handle.unload_model("a")).unwrap();
    block_on(handle.generate(of("b", "w1", 2))).unwrap();
}

#[test]
fn a_pin_outlasts_newer_weights_that_find_no_room() {
    let source = three();
    let (handle, _service) = start(source.clone(), options(Some(2 * bytes())));
    block_on(handle.load_model("a", true)).unwrap();
    let streams = ["a", "b"].map(|id| {
        let mut stream = handle.generate_stream(of(id, "w1", 3000));
        block_on(stream.next()).unwrap().unwrap();
        stream
    });
    source.publish(ModelTables { version: 7, ..model("tiny-llama1", "a", 4096) });
    let error = block_on(handle.generate(of("a", "w1", 2))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(streams);
    while block_on(handle.generate(of("a", "w1", 2))).is_err() {}
    let pinned: Vec<(String, bool)> = loaded(&handle).into_iter().map(|m| (m.model_id, m.pinned)).collect();
    assert!(pinned.contains(&("a".to_owned(), true)), "{pinned:?}");
    assert!(block_on(handle.unpin_model("a")).unwrap());
}

#[test]
fn encoders_have_the_same_budget() {
    let source = Models::new([model("tiny-llama", "a", 64), model("tiny-bert", "bert", 64)]);
    let both = ["a", "bert"].map(|id| paging::weight_bytes(&source.open(id).unwrap()));
    let (handle, _service) = start(source, options(Some(both[0].max(both[1]))));
    let embed = || EmbedRequest { inputs: vec!["w1 w2".into()], ..EmbedRequest::default() };
    let first = block_on(handle.embed(embed())).unwrap();
    assert_eq!(names(&handle), ["bert"]);
    block_on(handle.generate(of("a", "w1", 2))).unwrap();
    assert_eq!(names(&handle), ["a"]);
    assert_eq!(block_on(handle.embed(embed())).unwrap(), first);
    assert_eq!(names(&handle), ["bert"]);
}

#[test]
fn a_draining_engine_finishes_what_it_has_and_refuses_the_rest() {
    let source = Models::new(
        [("tiny-llama", "a"), ("tiny-llama", "b"), ("tiny-bert", "bert")].map(|(network, id)| model(network, id, 4096)),
    );
    let (handle, service) = start(source, EngineOptions { max_sequences: 1, ..options(None) });
    let mut stream = handle.generate_stream(of("a", "w1", 2000));
    block_on(stream.next()).unwrap().unwrap();
    let waiting = handle.generate(of("b", "w1", 5));
    handle.drain();
    let refused = handle.generate(of("a", "w1", 1));
    let embedded = handle.embed(EmbedRequest { inputs: vec!["w1".into()], ..EmbedRequest::default() });
    assert_eq!(block_on(refused).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(block_on(embedded).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(block_on(stream.filter(|token| futures::future::ready(token.is_ok())).count()), 1999);
    assert_eq!(block_on(waiting).unwrap().completion_tokens, 5);
    service.join().unwrap();
    assert_eq!(block_on(handle.generate(of("a", "w1", 1))).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(block_on(handle.load_model("a", false)).unwrap_err().kind(), ErrorKind::Unavailable);
}

/// A LLaMA of twelve layers of 2.6 MB with weights from a generator, mapped from a file a layer as the store keeps it.
#[cfg(target_os = "linux")]
fn mapped(directory: &std::path::Path) -> ModelTables {
    let (hidden, inner, layers) = (256, 512, 12);
    let outer = vec![("embed_tokens".to_owned(), vec![64, hidden]), ("norm".to_owned(), vec![hidden])];
    let block = |layer: i32| -> Vec<(String, Vec<usize>)> {
        let tensor = |part: &str, shape: &[usize]| (format!("layers.{layer}.{part}"), shape.to_vec());
        let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
        let mut tensors = attention.map(|part| tensor(&format!("self_attn.{part}"), &[hidden, hidden])).to_vec();
        tensors.extend(["gate_proj", "up_proj"].map(|part| tensor(&format!("mlp.{part}"), &[inner, hidden])));
        tensors.push(tensor("mlp.down_proj", &[hidden, inner]));
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|part| tensor(part, &[hidden])));
        tensors
    };
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 256, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let config = Buffer::from_vec(config.to_string().into_bytes());
    let mut files = std::collections::BTreeMap::from([
        ("config.json".to_owned(), config),
        ("tokenizer.json".to_owned(), tokenizer()),
    ]);
    let parts = std::iter::once(outer).chain((0..layers).map(block));
    for (at, tensors) in parts.enumerate() {
        let name = format!("model-{at:02}.safetensors");
        let path = directory.join(&name);
        std::fs::write(&path, checkpoint_of(tensors, at as u32)).unwrap();
        files.insert(name, hypr_tensor::map_file(&File::open(&path).unwrap()).unwrap());
    }
    hypr_inference::import::safetensors(&files, "a").unwrap()
}

/// A safetensors file of matrices of numbers between -0.1 and 0.1, and vectors of ones.
#[cfg(target_os = "linux")]
fn checkpoint_of(tensors: Vec<(String, Vec<usize>)>, seed: u32) -> Vec<u8> {
    let (mut header, mut values, mut state) = (serde_json::Map::new(), Vec::new(), seed);
    for (name, shape) in tensors {
        let start = values.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = if shape.len() == 1 { 1.0 } else { (state >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1 };
            values.extend(value.to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, values.len()]});
        header.insert(format!("model.{name}.weight"), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values].concat()
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_larger_than_the_budget_runs_layer_by_layer_with_the_same_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, paged) = (mapped(directory.path()), mapped(directory.path()));
    let bytes = paging::weight_bytes(&whole);
    let (budget, layer) = (bytes / 3, paging::least_bytes(&whole));
    assert!(bytes > 30_000_000 && 3 * layer < budget);

    let (handle, _service) = start(Models::new([whole]), options(None));
    let expected = block_on(handle.generate(of("a", "w1 w2 w3", 40))).unwrap().text;
    let resident = loaded(&handle)[0].resident_bytes.unwrap() as usize;
    assert!(resident >= bytes, "{resident} of {bytes}");

    let (handle, _service) = start(Models::new([paged]), options(Some(budget)));
    let mut stream = handle.generate_stream(of("a", "w1 w2 w3", 40));
    let (mut text, mut most) = (String::new(), 0);
    while let Some(token) = block_on(stream.next()) {
        text.push_str(&token.unwrap().text);
        most = most.max(loaded(&handle)[0].resident_bytes.unwrap() as usize);
    }
    assert_eq!(text, expected);
    let [shown] = loaded(&handle).try_into().unwrap();
    assert_eq!((shown.bytes, shown.limit_bytes), (bytes, Some(budget)));
    assert!(most > layer && most <= budget, "{most} of {budget}");
    let at_rest = shown.resident_bytes.unwrap() as usize;
    assert!(at_rest <= budget - layer, "{at_rest} of {budget}");
    println!("weights {bytes}, budget {budget}, a layer {layer}, resident at most {most}");

    // With room for a single layer it still runs, and with less it says how much it needs.
    let (handle, _service) = start(Models::new([mapped(directory.path())]), options(Some(layer)));
    assert_eq!(block_on(handle.generate(of("a", "w1 w2 w3", 40))).unwrap().text, expected);
    let at_rest = loaded(&handle)[0].resident_bytes.unwrap() as usize;
    assert!(at_rest < layer, "{at_rest} of {layer}");
    let (handle, _service) = start(Models::new([mapped(directory.path())]), options(Some(layer - 1)));
    let error = block_on(handle.generate(of("a", "w1", 1))).unwrap_err();
    assert!(error.kind() == ErrorKind::ResourceExhausted && error.message().contains("one layer"), "{error}");
}
