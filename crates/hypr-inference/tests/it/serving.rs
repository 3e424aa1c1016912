//! Many requests at once: batching, sharing, preemption, turns, priorities, limits. What each is answered is compared
//! with what the network says when it is run by hand, alone.

use std::sync::Arc;
use std::thread;

use futures::executor::block_on;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use hypr_common::ErrorKind;
use hypr_common::model::{ModelSource, ModelTables};
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::sampler::argmax;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::{EngineOptions, GenerateRequest, Inference, Prompt, Sampling, engine, import};
use hypr_tensor::Kernels;

use crate::engine::{model, request};
use crate::support::*;

/// Bytes of a block of the tiny networks: two layers of keys and values, sixteen tokens of sixteen halves.
const BLOCK_BYTES: usize = 2 * 2 * 16 * 16 * 2;
pub const CONTEXT: usize = 256;

fn tiny(name: &str, id: &str) -> ModelTables {
    model(name, id, CONTEXT)
}

/// For tiny networks, whose keys and values have `blocks` blocks.
pub fn options(blocks: usize) -> EngineOptions {
    EngineOptions {
        threads: 2,
        max_context_tokens: CONTEXT,
        kv_cache_bytes: blocks * BLOCK_BYTES,
        ..EngineOptions::default()
    }
}

fn one(tables: ModelTables) -> Arc<Models> {
    Models::new([tables])
}

fn text(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!("w{token}")).collect::<Vec<_>>().join(" ")
}

/// A network on its own.
struct Alone {
    transformer: Transformer,
    kernels: Kernels,
}

impl Alone {
    fn new(tables: &ModelTables) -> Self {
        Self { transformer: Transformer::open(tables, CONTEXT).unwrap(), kernels: Kernels::new(1) }
    }

    /// The likeliest `n` tokens after `prompt`.
    fn says(&self, prompt: &[u32], n: usize) -> String {
        let mut cache = self.transformer.new_cache(KvPrecision::F16);
        let mut work = Workspace::new();
        let mut tokens = prompt.to_vec();
        for _ in 0..n {
            let seen = cache.tokens();
            let mut batch = [Chunk { tokens: &tokens[seen..], cache: Some(&mut cache), logits: true }];
            self.transformer.forward(&self.kernels, &mut batch, &mut work).unwrap();
            tokens.push(argmax(work.logits_mut()));
        }
        text(&tokens[prompt.len()..])
    }
}

/// Prompts in families that begin alike and part at different places.
fn prompts(n: u32) -> Vec<Vec<u32>> {
    let prompt = |i: u32| {
        let family = i % 5;
        let common = (0..20 + family * 9).map(move |t| (t * (family + 3)) % 64);
        let own = (0..i % 13 + 1).map(move |t| (i * 17 + t * 5) % 64);
        common.chain(own).collect()
    };
    (0..n).map(prompt).collect()
}

#[test]
fn a_hundred_and_twenty_eight_at_once_are_each_answered_as_if_alone() {
    let tables = tiny("tiny-llama", "llama");
    let alone = Alone::new(&tables);
    // A sequence needs up to 11 blocks and 128 need some 1,000; there are 30.
    let options = EngineOptions { max_batched_tokens: 200, ..options(30) };
    let (handle, service) = start(one(tables), options);
    let prompts = prompts(128);
    let length = |i: usize| 60 + i % 31;
    let asked = prompts.iter().enumerate().map(|(i, prompt)| handle.generate(request(&text(prompt), length(i))));
    let answers = block_on(join_all(asked.collect::<Vec<_>>()));
    for ((i, prompt), answer) in prompts.iter().enumerate().zip(answers) {
        let answer = answer.unwrap();
        assert_eq!(answer.text.trim(), alone.says(prompt, length(i)), "request {i}");
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (prompt.len(), length(i)));
    }
    handle.shutdown();
    service.join().unwrap();
    let metrics = handle.metrics();
    println!("{metrics:?}");
    assert!(metrics.preemptions > 0 && metrics.prefix_hit_tokens > 0, "{metrics:?}");
    assert_eq!((metrics.running, metrics.waiting, metrics.finished, metrics.cancelled), (0, 0, 128, 0));
    assert_eq!(metrics.generated_tokens, (0..128).map(|i| length(i) as u64).sum::<u64>());
    assert_eq!((metrics.kv.used_blocks, metrics.kv.budget_bytes), (0, 30 * BLOCK_BYTES));
    assert!(metrics.kv.cached_bytes + metrics.kv.free_bytes == metrics.kv.budget_bytes);
}

#[test]
fn preemption_keeps_the_state_of_the_sampler_and_of_a_stream() {
    let warm = |seed| GenerateRequest {
        sampling: Sampling { temperature: 1.2, top_k: 30, top_p: 0.95, repetition_penalty: 1.2, seed },
        ..request(&text(&prompts(30)[seed as usize]), 60)
    };
    let (roomy, _service) =
        start(one(tiny("tiny-llama", "llama")), EngineOptions { max_sequences: 1, ..options(1000) });
    let (tight, _service) = start(one(tiny("tiny-llama", "llama")), options(20));
    let streams: Vec<_> = (0..30).map(|seed| tight.generate_stream(warm(seed)).collect::<Vec<_>>()).collect();
    for (seed, tokens) in (0..30).zip(block_on(join_all(streams))) {
        let streamed: String = tokens.into_iter().map(|token| token.unwrap().text).collect();
        assert_eq!(streamed, block_on(roomy.generate(warm(seed))).unwrap().text, "seed {seed}");
    }
    assert!(tight.metrics().preemptions > 0);
    assert_eq!(roomy.metrics().preemptions, 0);
}

#[test]
fn a_second_request_that_begins_alike_does_not_compute_it_again() {
    let (handle, _service) = start(one(tiny("tiny-llama", "llama")), options(100));
    let prompt: Vec<u32> = (0..100).map(|t| t * 7 % 64).collect();
    let first = block_on(handle.generate(request(&text(&prompt), 5))).unwrap();
    let before = handle.metrics();
    assert_eq!((before.prefix_hit_tokens, before.computed_tokens), (0, 104));
    let second = block_on(handle.generate(request(&text(&prompt), 5))).unwrap();
    let after = handle.metrics();
    assert_eq!(first, second);
    assert_eq!((after.prefix_hit_tokens, after.computed_tokens - before.computed_tokens), (96, 8));
}

#[test]
fn new_weights_share_nothing_with_the_old() {
    let models = one(tiny("tiny-llama", "llama"));
    let (handle, _service) = start(Arc::clone(&models) as Arc<dyn ModelSource>, options(100));
    let prompt: Vec<u32> = (0..100).map(|t| t * 7 % 64).collect();
    block_on(handle.generate(request(&text(&prompt), 5))).unwrap();
    // The number of the version is that of the old weights, as after a model was removed and imported again.
    let newer = tiny("tiny-llama-tied", "llama");
    let alone = Alone::new(&newer);
    models.publish(newer);
    let answer = block_on(handle.generate(request(&text(&prompt), 5))).unwrap();
    assert_eq!(answer.text.trim(), alone.says(&prompt, 5));
    assert_eq!(handle.metrics().prefix_hit_tokens, 0);
}

#[test]
fn models_share_the_budget_and_keep_apart() {
    let models = Models::new([tiny("tiny-llama", "a"), tiny("tiny-qwen3", "b")]);
    let (a, b) = (Alone::new(&tiny("tiny-llama", "a")), Alone::new(&tiny("tiny-qwen3", "b")));
    let (handle, _service) = start(models, options(40));
    let prompts = prompts(40);
    let named = |i: usize, prompt: &[u32]| GenerateRequest {
        model: Some(["a", "b"][i % 2].into()),
        ..request(&text(prompt), 20)
    };
    let asked = prompts.iter().enumerate().map(|(i, prompt)| handle.generate(named(i, prompt)));
    let answers = block_on(join_all(asked.collect::<Vec<_>>()));
    for (i, answer) in answers.into_iter().enumerate() {
        let wanted = [&a, &b][i % 2].says(&prompts[i], 20);
        assert_eq!(answer.unwrap().text.trim(), wanted, "request {i}");
    }
}

#[test]
fn a_long_prompt_is_read_in_pieces_among_others_that_go_on() {
    let tables = tiny("tiny-llama", "llama");
    let alone = Alone::new(&tables);
    // Four places and a step of twenty tokens: the long prompt takes ten steps or more.
    let (handle, service) =
        start(one(tables), EngineOptions { max_sequences: 4, max_batched_tokens: 20, ..options(100) });
    let long: Vec<u32> = (0..200).map(|t| t * 11 % 64).collect();
    let short = prompts(3);
    let asked = short.iter().map(|prompt| handle.generate(request(&text(prompt), 40)));
    let asked: Vec<_> = asked.chain([handle.generate(request(&text(&long), 8))]).collect();
    let mut answers = block_on(join_all(asked));
    assert_eq!(answers.pop().unwrap().unwrap().text.trim(), alone.says(&long, 8));
    for (prompt, answer) in short.iter().zip(answers) {
        assert_eq!(answer.unwrap().text.trim(), alone.says(prompt, 40));
    }
    handle.shutdown();
    service.join().unwrap();
    assert!(handle.metrics().steps >= 40);
}

#[test]
fn a_dropped_request_gives_its_blocks_back() {
    // One sequence takes all blocks to its end, and an equal never gives way: the second runs only if they came back.
    let (handle, _service) = start(
        one(model("tiny-llama", "llama", 1 << 16)),
        EngineOptions { max_context_tokens: 1 << 16, ..options(1 << 12) },
    );
    let mut endless = handle.generate_stream(request("w1", (1 << 16) - 1));
    block_on(endless.next()).unwrap().unwrap();
    let running = handle.metrics();
    assert!(running.kv.used_blocks > 0);
    drop(endless);
    let wide: Vec<u32> = (0..60_000).map(|t| t % 64).collect();
    let mut waiting = handle.generate(request(&text(&wide), 1));
    // Left waiting or running, it goes too.
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    block_on(handle.generate(request("w5 w6", 4))).unwrap();
    let after = handle.metrics();
    assert_eq!((after.cancelled, after.preemptions), (2, 0), "{after:?}");
    assert!(after.kv.used_blocks <= 1, "{after:?}");
}

/// The order in which requests end; all are there before the engine starts.
fn order_of_ends(options: EngineOptions, requests: Vec<GenerateRequest>) -> Vec<usize> {
    let (handle, service) = engine(one(tiny("tiny-llama", "llama")), options);
    let asked = requests.into_iter().enumerate().map(|(i, request)| handle.generate(request).map(move |_| i));
    let mut asked: FuturesUnordered<_> = asked.collect();
    // Polled once before anything runs, they wake in the order in which they end, however late that is looked at.
    assert!(asked.next().now_or_never().is_none());
    let service = thread::spawn(|| service.run());
    let order = block_on(asked.collect());
    drop(handle);
    service.join().unwrap();
    order
}

#[test]
fn who_asks_little_does_not_wait_for_who_asks_much() {
    let ask = |caller: &str, n| GenerateRequest { caller: caller.into(), ..request("w3 w4", n) };
    let mut requests: Vec<_> = (0..12).map(|_| ask("much", 30)).collect();
    requests.extend([ask("little", 5), ask("other", 5)]);
    let order = order_of_ends(EngineOptions { max_sequences: 1, ..options(100) }, requests);
    let place = |request: usize| order.iter().position(|&ended| ended == request).unwrap();
    assert!(place(12) <= 2 && place(13) <= 2, "{order:?}");
    // Those of one caller keep their order.
    let much: Vec<usize> = order.iter().copied().filter(|&request| request < 12).collect();
    assert!(much.is_sorted(), "{order:?}");
}

#[test]
fn the_urgent_go_first_and_take_the_place_of_the_patient() {
    let ask = |priority, n| GenerateRequest { priority, ..request("w3 w4", n) };
    let requests = vec![ask(5, 9), ask(0, 9), ask(-3, 9), ask(5, 9)];
    assert_eq!(order_of_ends(EngineOptions { max_sequences: 1, ..options(100) }, requests), [2, 1, 0, 3]);

    let tables = model("tiny-llama", "llama", 1 << 16);
    let sized = EngineOptions { max_sequences: 1, max_context_tokens: 1 << 16, ..options(1 << 13) };
    let (handle, _service) = start(one(tables), sized);
    let mut patient = handle.generate_stream(ask(1, 60_000));
    block_on(patient.next()).unwrap().unwrap();
    // It would wait for hours if the patient one did not give way.
    assert_eq!(block_on(handle.generate(ask(0, 7))).unwrap().completion_tokens, 7);
    assert_eq!(handle.metrics().preemptions, 1);
    // And that one goes on where it was.
    let same = Alone::new(&tiny("tiny-llama", "llama")).says(&[3, 4], 40);
    let rest: Vec<String> = block_on(patient.take(39).map(|token| token.unwrap().text).collect());
    assert_eq!(rest.concat().trim(), same.split_once(' ').unwrap().1);
}

#[test]
fn what_can_never_fit_is_refused_with_the_reason() {
    let (handle, _service) = start(one(tiny("tiny-llama", "llama")), options(4));
    let error = block_on(handle.generate(request("w1 w2", 63))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.message().contains("65 tokens") && error.message().contains("holds 64 tokens"), "{error}");
    assert_eq!(block_on(handle.generate(request("w1 w2", 62))).unwrap().completion_tokens, 62);
}

#[test]
fn a_refusal_is_counted() {
    let (handle, _service) = engine(one(tiny("tiny-llama", "llama")), EngineOptions { queue_depth: 1, ..options(9) });
    let _waiting = handle.generate(request("w1", 1));
    assert_eq!(block_on(handle.generate(request("w1", 1))).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(handle.metrics().refused, 1);
}

/// Real weights in 4 bits, real prompts: the integer kernels' fast paths for one and for many are both used here.
#[test]
fn smollm2_answers_many_as_it_answers_one() {
    const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let Some(path) = real(FILE) else { return };
    let tables = import::gguf(read(&path), "smollm2").unwrap();
    let ask = |subject: &str| GenerateRequest {
        prompt: Prompt::Instruction(format!("Write a long and detailed story about {subject}.")),
        max_tokens: 40,
        ..GenerateRequest::default()
    };
    let subjects = ["the capital of France", "water made of", "a prime number", "the sun", "SQL", "a violin", "snow"];
    let options = EngineOptions { threads: 2, max_context_tokens: 1024, ..EngineOptions::default() };
    let (alone, _service) = start(one(tables.clone()), EngineOptions { max_sequences: 1, ..options.clone() });
    // 30 layers, keys and values of 192 halves: 360 KiB a block; a sequence needs up to six.
    let tight = EngineOptions { kv_cache_bytes: 7 * 360 * 1024, max_batched_tokens: 64, ..options };
    let (many, _service) = start(one(tables), tight);
    let answers = block_on(join_all(subjects.map(|subject| many.generate(ask(subject)))));
    for (subject, answer) in subjects.iter().zip(answers) {
        assert_eq!(answer.unwrap(), block_on(alone.generate(ask(subject))).unwrap(), "{subject}");
    }
    let metrics = many.metrics();
    println!("{metrics:?}");
    assert!(metrics.prefix_hit_tokens > 0 && metrics.preemptions > 0, "{metrics:?}");
}
