//! The engine service on tiny networks: batching, queueing, cancelling, failing, the context rule.

use std::sync::Arc;
use std::thread;

use arrow_buffer::Buffer;
use futures::executor::block_on;
use futures::{FutureExt, StreamExt};
use hypr_common::model::{ModelMetadata, ModelSource, ModelTables};
use hypr_common::{ErrorKind, Result};
use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::Transformer;
use hypr_inference::{
    ChatMessage, EmbedRequest, EngineOptions, FinishReason, GenerateRequest, Inference, Prompt, Sampling, Task, engine,
};
use serde_json::{Map, Value, json};

use crate::support::*;

/// Words `w0` to `w63`, a token each.
pub fn tokenizer() -> Buffer {
    let vocab: Map<String, Value> = (0..64).map(|id| (format!("w{id}"), id.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    Buffer::from_vec(json.to_string().into_bytes())
}

pub fn model(fixture_name: &str, id: &str, context_length: usize) -> ModelTables {
    let mut files = checkpoint(&fixture(fixture_name));
    files.insert("tokenizer.json".into(), tokenizer());
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    if fixture_name != "tiny-bert" {
        config["max_position_embeddings"] = context_length.into();
        config["eos_token_id"] = Value::Null;
    }
    files.insert("config.json".into(), Buffer::from_vec(config.to_string().into_bytes()));
    import::safetensors(&files, id).unwrap()
}

fn options() -> EngineOptions {
    EngineOptions { threads: 2, max_context_tokens: 1 << 20, ..EngineOptions::default() }
}

fn llama() -> Arc<Models> {
    Models::new([model("tiny-llama", "llama", 64)])
}

pub fn request(prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Raw(prompt.into()), max_tokens, ..GenerateRequest::default() }
}

/// What the network alone says, greedily.
fn by_hand(prompt: &[u32], n: usize) -> String {
    let transformer = Transformer::open(&model("tiny-llama", "llama", 64), 64).unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let last = logits(&transformer, &kernels, &tokens, tokens.len(), KvPrecision::F16).pop().unwrap();
        tokens.push(hypr_inference::sampler::argmax(&last));
    }
    tokens[prompt.len()..].iter().map(|token| format!("w{token}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn generation_is_what_the_network_says_also_among_many() {
    let (handle, _service) = start(llama(), EngineOptions { max_sequences: 5, ..options() });
    let prompts: Vec<Vec<u32>> = (1..20).map(|i| (0..i).map(|j| (i * 13 + j * 7) % 64).collect()).collect();
    let text = |prompt: &[u32]| prompt.iter().map(|token| format!("w{token}")).collect::<Vec<_>>().join(" ");
    let answers = prompts.iter().map(|prompt| handle.generate(request(&text(prompt), 12)));
    let answers = block_on(futures::future::join_all(answers));
    for (prompt, answer) in prompts.iter().zip(answers) {
        let answer = answer.unwrap();
        assert_eq!(answer.text.trim(), by_hand(prompt, 12));
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (prompt.len(), 12));
        assert_eq!((answer.finish_reason, answer.model_version), (FinishReason::Length, 0));
    }
}

#[test]
fn a_stream_is_the_text_and_seeds_repeat() {
    let (handle, _service) = start(llama(), options());
    let warm = |seed| GenerateRequest {
        sampling: Sampling { temperature: 1.5, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, seed },
        ..request("w1 w2 w3", 20)
    };
    let whole = block_on(handle.generate(warm(5))).unwrap();
    let parts: Vec<_> = block_on(handle.generate_stream(warm(5)).collect());
    let parts: Vec<String> = parts.into_iter().map(|token| token.unwrap().text).collect();
    assert_eq!((parts.len(), parts.concat()), (20, whole.text.clone()));
    assert_ne!(block_on(handle.generate(warm(6))).unwrap().text, whole.text);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let (handle, _service) = start(llama(), options());
    let whole = block_on(handle.generate(request("w9 w8", 20))).unwrap().text;
    let words: Vec<&str> = whole.split_whitespace().collect();
    let stop = format!("{} {}", words[6], words[7]);
    let request = GenerateRequest { stop: vec![stop.clone()], ..request("w9 w8", 20) };
    let stopped = block_on(handle.generate(request)).unwrap();
    assert_eq!(stopped.text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
}

#[test]
fn logprobs_are_those_of_the_network_whatever_is_done_to_the_logits() {
    let (handle, _service) = start(llama(), options());
    let request = GenerateRequest {
        logprobs: Some(3),
        logit_bias: vec![(7, 100.0)],
        sampling: Sampling { temperature: 0.7, repetition_penalty: 1.3, ..Sampling::default() },
        ..request("w1 w2 w3", 4)
    };
    let answer = block_on(handle.generate(request.clone())).unwrap();
    assert_eq!((answer.text.trim(), answer.logprobs.len()), ("w7 w7 w7 w7", 4));
    let transformer = Transformer::open(&model("tiny-llama", "llama", 64), 64).unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    for (i, found) in answer.logprobs.iter().enumerate() {
        let tokens: Vec<u32> = [1, 2, 3].into_iter().chain([7; 4]).take(3 + i).collect();
        let last = logits(&transformer, &kernels, &tokens, tokens.len(), KvPrecision::F16).pop().unwrap();
        assert_eq!(found, &hypr_inference::logprobs::of(&last, 7, 3), "token {i}");
    }
    let streamed: Vec<_> = block_on(handle.generate_stream(request).collect::<Vec<_>>());
    let streamed: Vec<_> = streamed.into_iter().filter_map(|token| token.unwrap().logprobs).collect();
    assert_eq!(streamed, answer.logprobs);
}

#[test]
fn a_forbidden_token_never_comes() {
    let (handle, _service) = start(llama(), options());
    let warm = |seed, logit_bias| GenerateRequest {
        sampling: Sampling { temperature: 2.0, seed, ..Sampling::default() },
        logit_bias,
        ..request("w1 w2 w3", 40)
    };
    let odd: Vec<(u32, f32)> = (1..64).step_by(2).map(|id| (id, f32::NEG_INFINITY)).collect();
    let is_odd = |word: &str| word[1..].parse::<u32>().unwrap() % 2 == 1;
    for seed in 0..10 {
        let free = block_on(handle.generate(warm(seed, vec![]))).unwrap().text;
        let bound = block_on(handle.generate(warm(seed, odd.clone()))).unwrap().text;
        assert!(free.split_whitespace().any(is_odd) && !bound.split_whitespace().any(is_odd), "{free}, {bound}");
    }
}

#[test]
fn n_answers_are_those_of_n_seeds_and_read_the_prompt_once() {
    let (handle, _service) = start(llama(), options());
    let prompt = words(33, 5);
    let warm = |seed| GenerateRequest {
        sampling: Sampling { temperature: 1.5, seed, ..Sampling::default() },
        ..request(&prompt, 12)
    };
    let answers = block_on(handle.generate_n(warm(3), 4)).unwrap();
    // 32 of 33 tokens are in full blocks, which one reads for all; the last token of an answer is not read.
    assert_eq!(handle.metrics().computed_tokens, 32 + 4 * 12);
    for (seed, answer) in (3..).zip(&answers) {
        assert_eq!(answer, &block_on(handle.generate(warm(seed))).unwrap());
    }
    assert_ne!(answers[0].text, answers[1].text);
}

#[test]
fn a_full_queue_is_busy_and_empties_again() {
    let (handle, service) = engine(llama(), EngineOptions { queue_depth: 2, ..options() });
    let first = handle.generate(request("w1", 3));
    let second = handle.generate(request("w2", 3));
    let refused = handle.generate(request("w3", 3)).now_or_never().unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let _service = thread::spawn(|| service.run());
    block_on(first).unwrap();
    block_on(second).unwrap();
    block_on(handle.generate(request("w3", 3))).unwrap();
}

#[test]
fn a_dropped_request_makes_room_at_once() {
    // One place, and sequences that would run for hours if they were not dropped.
    let source = Models::new([model("tiny-llama", "llama", 1 << 20)]);
    let (handle, service) = start(source, EngineOptions { max_sequences: 1, ..options() });
    let mut stream = handle.generate_stream(request("w1", 1_000_000));
    block_on(stream.next()).unwrap().unwrap();
    let waiting = handle.generate(request("w2", 1_000_000));
    drop(stream);
    drop(waiting);
    assert_eq!(block_on(handle.generate(request("w3", 4))).unwrap().completion_tokens, 4);
    drop(handle);
    service.join().unwrap();
}

#[test]
fn shutdown_answers_what_runs_and_what_waits() {
    let source = Models::new([model("tiny-llama", "llama", 1 << 20)]);
    let (handle, service) = start(source, EngineOptions { max_sequences: 1, ..options() });
    let running = handle.generate(request("w1", 1_000_000));
    let waiting = handle.generate(request("w2", 1_000_000));
    handle.shutdown();
    for answer in [block_on(running), block_on(waiting), block_on(handle.generate(request("w3", 1)))] {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    service.join().unwrap();
}

/// A store that breaks for one model.
#[derive(Debug)]
struct Broken(Arc<Models>);

impl ModelSource for Broken {
    fn models(&self) -> Result<Vec<ModelMetadata>> {
        self.0.models()
    }

    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>> {
        assert_ne!(model_id, "broken", "the store broke");
        self.0.open(model_id)
    }
}

#[test]
fn a_panic_fails_its_request_and_not_the_service() {
    let models = Models::new([model("tiny-llama", "llama", 64), model("tiny-llama", "broken", 64)]);
    let (handle, _service) = start(Arc::new(Broken(models)), options());
    let named = |id: &str| GenerateRequest { model: Some(id.into()), ..request("w1", 2) };
    let error = block_on(handle.generate(named("broken"))).unwrap_err();
    assert!(error.kind() == ErrorKind::Internal && error.message().contains("the store broke"), "{error}");
    block_on(handle.generate(named("llama"))).unwrap();
}

#[test]
fn a_newer_version_answers_the_next_request() {
    let models = llama();
    let (handle, _service) = start(Arc::clone(&models) as Arc<dyn ModelSource>, options());
    let before = block_on(handle.generate(request("w1 w2", 8))).unwrap();
    let mut newer = model("tiny-llama-tied", "llama", 64);
    newer.version = 7;
    models.publish(newer);
    let after = block_on(handle.generate(request("w1 w2", 8))).unwrap();
    assert_eq!((before.model_version, after.model_version), (0, 7));
    assert_ne!(before.text, after.text);
}

#[test]
fn texts_are_embedded_in_order_and_as_if_alone() {
    let (handle, _service) = start(Models::new([model("tiny-bert", "bert", 64)]), options());
    let text = |n: usize| (0..n).map(|i| format!("w{}", (i * 5 + n) % 64)).collect::<Vec<_>>().join(" ");
    // Longer than the model takes, empty, and enough for several passes.
    let inputs: Vec<String> = (0..90).map(|i| text((i * 31) % 80)).collect();
    let embed = |inputs: Vec<String>| {
        let inputs = inputs.into_iter().map(Into::into).collect();
        block_on(handle.embed(EmbedRequest { inputs, ..EmbedRequest::default() }))
    };
    let together = embed(inputs.clone()).unwrap();
    assert_eq!(together.len(), inputs.len());
    for (input, vector) in inputs.into_iter().zip(together) {
        assert_eq!(embed(vec![input]).unwrap(), [vector]);
    }
    assert!(embed(vec![]).unwrap().is_empty());
    let raw = EmbedRequest { inputs: vec!["w3".into()], normalize: false, ..EmbedRequest::default() };
    let raw = block_on(handle.embed(raw)).unwrap().remove(0);
    let length = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>();
    assert!((length(&raw) - 1.0).abs() > 0.01 && (length(&embed(vec!["w3".into()]).unwrap()[0]) - 1.0).abs() < 1e-5);
}

#[test]
fn requests_that_cannot_be_are_refused_before_they_wait() {
    let (handle, _service) = start(llama(), options());
    let wrong = [
        Sampling { temperature: -1.0, ..Sampling::default() },
        Sampling { temperature: f32::NAN, ..Sampling::default() },
        Sampling { top_p: 0.0, ..Sampling::default() },
        Sampling { repetition_penalty: 0.0, ..Sampling::default() },
    ];
    for sampling in wrong {
        let error = block_on(handle.generate(GenerateRequest { sampling, ..request("w1", 1) })).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{sampling:?}");
    }
    let many = GenerateRequest { logprobs: Some(21), ..request("w1", 1) };
    let odd = GenerateRequest { logit_bias: vec![(1, f32::INFINITY)], ..request("w1", 1) };
    let none = GenerateRequest { logit_bias: (0..64).map(|id| (id, f32::NEG_INFINITY)).collect(), ..request("w1", 1) };
    for wrong in [many, odd, none] {
        assert_eq!(block_on(handle.generate(wrong)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let error = block_on(handle.embed(EmbedRequest { inputs: vec!["w1".into()], ..EmbedRequest::default() }));
    assert!(error.unwrap_err().message().contains("no imported model can embed"));
    assert_eq!(block_on(handle.generate(request("", 4))).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(handle.resolve(Task::Generate, None).unwrap().model_id, "llama");
    assert_eq!(block_on(handle.generate(request("w1", 0))).unwrap().completion_tokens, 0);
}

fn words(n: usize, word: usize) -> String {
    vec![format!("w{word}"); n].join(" ")
}

#[test]
fn passages_fill_the_room_and_the_last_is_cut() {
    let (handle, _service) = start(llama(), options());
    let ask = |context: Vec<String>, prompt: String, max_tokens| {
        block_on(handle.generate(GenerateRequest { context, ..request(&prompt, max_tokens) })).unwrap()
    };
    // The context length is 64: 16 for the answer, 8 for the prompt, 40 for passages.
    let answer = ask(vec![words(15, 1), words(20, 2), words(30, 3), words(3, 4)], words(8, 5), 16);
    assert_eq!((answer.prompt_tokens, answer.context_passages_used), (48, 3));
    let answer = ask(vec![words(15, 1), words(10, 2)], words(8, 5), 16);
    assert_eq!((answer.prompt_tokens, answer.context_passages_used), (33, 2));
    // The order and the cut are what a caller would write by hand.
    let by_hand = format!("{}\n\n{}\n\n{}", words(15, 1), words(25, 2), words(8, 5));
    let filled = ask(vec![words(15, 1), words(60, 2), words(1, 3)], words(8, 5), 16);
    assert_eq!(filled.text, ask(vec![], by_hand, 16).text);
    assert_eq!(filled.context_passages_used, 2);
}

#[test]
fn a_prompt_that_is_too_long_loses_its_beginning() {
    let (handle, _service) = start(llama(), options());
    let long = format!("{} w7 w8 w9", words(100, 1));
    let answer = block_on(handle.generate(request(&long, 16))).unwrap();
    assert_eq!(answer.prompt_tokens, 48);
    let kept = format!("{} w7 w8 w9", words(45, 1));
    assert_eq!(answer.text, block_on(handle.generate(request(&kept, 16))).unwrap().text);
    // More tokens than there is context: three quarters are kept for them, and the context's end ends the text.
    let answer = block_on(handle.generate(request(&long, 5000))).unwrap();
    assert_eq!((answer.prompt_tokens, answer.completion_tokens), (16, 48));
    let turn = |role: &str, content: String| ChatMessage::new(role, &content);
    let chat = vec![
        turn("system", words(4, 1)),
        turn("user", words(40, 2)),
        turn("assistant", words(40, 3)),
        turn("user", words(6, 4)),
    ];
    let prompt_tokens = |chat: Vec<ChatMessage>| {
        let request = GenerateRequest { prompt: Prompt::Chat(chat), ..request("", 16) };
        block_on(handle.generate(request)).unwrap().prompt_tokens
    };
    assert_eq!(prompt_tokens(chat), 10);
    // Of many exchanges as many stay as fit, each whole: the system's words and three of fourteen words, of room for 48.
    let exchange = || [turn("user", words(7, 2)), turn("assistant", words(7, 3))];
    let begin = || [turn("system", words(4, 1))].into_iter();
    assert_eq!(prompt_tokens(begin().chain((0..9).flat_map(|_| exchange())).collect()), 4 + 3 * 14);
    // A call and its result belong to the question before them.
    let called = [turn("assistant", words(7, 3)), turn("tool", words(7, 4))];
    let chat = begin().chain((0..9).flat_map(|_| exchange())).chain([turn("user", words(3, 5))]).chain(called);
    assert_eq!(prompt_tokens(chat.collect()), 4 + 14 + 3 + 14);
    // Nothing is left to drop: the question itself is cut.
    assert_eq!(prompt_tokens(begin().chain([turn("user", words(90, 2))]).collect()), 48);
}
