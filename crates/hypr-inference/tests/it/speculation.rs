//! Guessed tokens: that they change nothing but the number of passes, whoever guesses.

use std::sync::Arc;
use std::thread::JoinHandle;

use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;
use hypr_common::ErrorKind;
use hypr_common::model::ModelTables;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::Transformer;
use hypr_inference::{
    EngineHandle, EngineMetrics, EngineOptions, GenerateRequest, Generation, Inference, Prompt, Sampling, Speculative,
    import,
};

use crate::engine::{model, request};
use crate::serving::{CONTEXT, options};
use crate::support::*;

const LOOKUP: Speculative = Speculative::PromptLookup { max_ngram: 3, tokens: 6 };

/// One that answers, one of other weights, one of other tokens.
fn models() -> Arc<Models> {
    let mut stranger = model("tiny-qwen3", "stranger", CONTEXT);
    let json = String::from_utf8(stranger.files["tokenizer.json"].as_slice().to_vec()).unwrap();
    stranger.files.insert("tokenizer.json".into(), json.replace("\"w7\"", "\"seven\"").into_bytes().into());
    Models::new([model("tiny-llama", "target", CONTEXT), model("tiny-llama-tied", "other", CONTEXT), stranger])
}

fn draft(model: &str) -> Speculative {
    Speculative::Draft { model: model.into(), tokens: 4 }
}

fn ask(prompt: &str, temperature: f32, seed: u64, speculative: Option<Speculative>) -> GenerateRequest {
    GenerateRequest {
        model: Some("target".into()),
        sampling: Sampling { temperature, seed, repetition_penalty: 1.0 + seed as f32 / 50.0, ..Sampling::default() },
        logprobs: Some(2),
        speculative,
        ..request(prompt, 60)
    }
}

fn prompt(seed: u64) -> String {
    (0..20 + seed % 17).map(|t| format!("w{}", (t * (seed % 5 + 1) + seed) % 23)).collect::<Vec<_>>().join(" ")
}

fn answers(handle: &EngineHandle, temperature: f32, speculative: Option<&Speculative>) -> Vec<Generation> {
    let asked = (0..12).map(|seed| handle.generate(ask(&prompt(seed), temperature, seed, speculative.cloned())));
    block_on(join_all(asked.collect::<Vec<_>>())).into_iter().map(Result::unwrap).collect()
}

/// The service's counts when it has ended.
fn ended((handle, service): (EngineHandle, JoinHandle<()>)) -> EngineMetrics {
    handle.shutdown();
    service.join().unwrap();
    handle.metrics()
}

#[test]
fn a_guessed_answer_is_the_same_to_the_bit_whoever_guesses_and_however_warm() {
    for temperature in [0.0, 0.3, 1.2] {
        let plain = start(models(), options(2000));
        let wanted = answers(&plain.0, temperature, None);
        let plain = ended(plain);
        assert_eq!((plain.drafted_tokens, plain.accepted_tokens), (0, 0));
        for speculative in [LOOKUP, draft("other"), draft("target")] {
            let guessing = start(models(), options(2000));
            // Text, tokens, and how likely each was.
            assert_eq!(answers(&guessing.0, temperature, Some(&speculative)), wanted, "{speculative:?}");
            let metrics = ended(guessing);
            println!("{temperature} {speculative:?}: {} of {}", metrics.accepted_tokens, metrics.drafted_tokens);
            assert!(metrics.drafted_tokens > 0 && metrics.accepted_tokens <= metrics.drafted_tokens);
            assert_eq!(metrics.generated_tokens, plain.generated_tokens);
            if speculative == draft("target") {
                // The same model is always right where no penalty depends on what it guessed before.
                assert!(metrics.accepted_tokens * 10 > metrics.drafted_tokens * 8, "{metrics:?}");
                assert!(metrics.steps * 2 < plain.steps, "{metrics:?}");
            }
        }
    }
}

#[test]
fn a_prompt_that_repeats_itself_takes_few_passes() {
    let guessing = start(models(), options(2000));
    let quiet = GenerateRequest { logprobs: None, ..ask(&prompt(3), 0.0, 0, None) };
    let wanted = block_on(guessing.0.generate(quiet.clone())).unwrap();
    let before = guessing.0.metrics();
    // The answer is in the prompt already, once: it is found there.
    let repeated = format!("{} {} {}", prompt(3), wanted.text.trim(), prompt(3));
    let same = GenerateRequest { prompt: Prompt::Raw(repeated), speculative: Some(LOOKUP), ..quiet };
    let streamed = block_on(guessing.0.generate_stream(same.clone()).collect::<Vec<_>>());
    let metrics = guessing.0.metrics();
    let plain = block_on(guessing.0.generate(GenerateRequest { speculative: None, ..same })).unwrap();
    assert_eq!(streamed.into_iter().map(|token| token.unwrap().text).collect::<String>(), plain.text);
    println!("{} steps for {} tokens, {metrics:?}", metrics.steps - before.steps, plain.completion_tokens);
    assert!(
        metrics.accepted_tokens > 0 && metrics.steps - before.steps < plain.completion_tokens as u64,
        "{metrics:?}"
    );
}

#[test]
fn guesses_give_way_to_those_who_wait_and_blocks_hold_what_was_said() {
    for speculative in [LOOKUP, draft("other")] {
        let roomy = start(models(), options(2000));
        let wanted = answers(&roomy.0, 0.8, None);
        // An answer needs up to six blocks and so does its draft; twelve answers have sixteen.
        let tight = start(models(), options(16));
        assert_eq!(answers(&tight.0, 0.8, Some(&speculative)), wanted, "{speculative:?}");
        let metrics = ended(tight);
        assert!(metrics.preemptions > 0, "{metrics:?}");
        assert_eq!(metrics.kv.used_blocks, 0);
        // What is shared after guesses is what would have been computed: an answer is asked for as part of a prompt.
        let guessing = start(models(), options(2000));
        let said = answers(&guessing.0, 0.0, Some(&speculative));
        for (seed, said) in (0..).zip(said) {
            let again = format!("{} {}", prompt(seed), said.text.trim());
            let before = guessing.0.metrics().prefix_hit_tokens;
            let shared = block_on(guessing.0.generate(ask(&again, 0.0, 0, None))).unwrap();
            assert!(guessing.0.metrics().prefix_hit_tokens - before >= 64);
            assert_eq!(shared, block_on(roomy.0.generate(ask(&again, 0.0, 0, None))).unwrap());
        }
    }
}

#[test]
fn a_dropped_request_gives_its_drafts_blocks_back() {
    let (handle, _service) = start(models(), options(2000));
    let mut stream =
        handle.generate_stream(GenerateRequest { max_tokens: 200, ..ask(&prompt(1), 1.0, 1, Some(draft("other"))) });
    block_on(stream.next()).unwrap().unwrap();
    drop(stream);
    block_on(handle.generate(ask("w1", 0.0, 0, None))).unwrap();
    assert_eq!(handle.metrics().cancelled, 1);
    assert!(handle.metrics().kv.used_blocks <= 8, "{:?}", handle.metrics());
}

#[test]
fn guesses_that_cannot_be_are_refused() {
    let (handle, _service) = start(models(), options(100));
    let refused = |speculative| block_on(handle.generate(ask("w1", 0.0, 0, Some(speculative)))).unwrap_err();
    let stranger = refused(draft("stranger"));
    assert_eq!(stranger.kind(), ErrorKind::InvalidInput);
    assert!(stranger.message().contains("'stranger' cannot guess for 'target'"), "{stranger}");
    assert_eq!(refused(draft("nobody")).kind(), ErrorKind::NotFound);
    for (max_ngram, tokens) in [(0, 4), (2, 0), (2, 65)] {
        let error = refused(Speculative::PromptLookup { max_ngram, tokens });
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("give 1 to 64"), "{error}");
    }
}

/// The distribution of guessed answers is that of the network. Three tokens of four each, 8000 seeds: the sum over all 64
/// answers of (seen - expected)^2 / expected has 63 degrees of freedom, so mean 63 and standard deviation 11.2 under the
/// network's own distribution; the bound is ten deviations above, and the seeds are fixed.
#[test]
fn guesses_keep_the_distribution() {
    const SEEDS: u64 = 8000;
    let allowed = [3_u32, 11, 29, 50];
    let tables = model("tiny-llama", "target", CONTEXT);
    let expected = probabilities(&tables, &allowed, 1.5);
    let (handle, service) = start(models(), EngineOptions { queue_depth: SEEDS as usize, ..options(2000) });
    let forbidden: Vec<(u32, f32)> =
        (0..64).filter(|id| !allowed.contains(id)).map(|id| (id, f32::NEG_INFINITY)).collect();
    let three = |seed| GenerateRequest {
        model: Some("target".into()),
        sampling: Sampling { temperature: 1.5, seed, ..Sampling::default() },
        logit_bias: forbidden.clone(),
        speculative: Some(Speculative::Draft { model: "other".into(), tokens: 2 }),
        ..request("w1 w2 w3", 3)
    };
    let mut seen = vec![0_u32; 64];
    // As many at once as there are places, so that nobody waits and everybody guesses.
    for seeds in (0..SEEDS).collect::<Vec<_>>().chunks(64) {
        for answer in block_on(join_all(seeds.iter().map(|&seed| handle.generate(three(seed))))) {
            let text = answer.unwrap().text;
            let at = |word: &str| allowed.iter().position(|id| word == format!("w{id}")).unwrap();
            seen[text.split_whitespace().fold(0, |sum, word| sum * 4 + at(word))] += 1;
        }
    }
    let metrics = ended((handle, service));
    println!("{} of {} guesses were right", metrics.accepted_tokens, metrics.drafted_tokens);
    // Both sorts of outcome are in the sample: a right guess and a wrong one.
    assert!(metrics.accepted_tokens > SEEDS / 10 && metrics.drafted_tokens - metrics.accepted_tokens > SEEDS / 10);
    let distance: f64 = seen
        .iter()
        .zip(&expected)
        .map(|(&seen, expected)| {
            let expected = expected * SEEDS as f64;
            (f64::from(seen) - expected).powi(2) / expected
        })
        .sum();
    println!("chi-square {distance}");
    assert!(distance < 63.0 + 10.0 * 11.2, "chi-square {distance}: {seen:?}");
}

/// The probabilities of all answers of three of the `allowed` tokens to `w1 w2 w3`.
fn probabilities(tables: &ModelTables, allowed: &[u32], temperature: f64) -> Vec<f64> {
    let transformer = Transformer::open(tables, CONTEXT).unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    let mut prefixes: Vec<(Vec<u32>, f64)> = vec![(vec![1, 2, 3], 1.0)];
    for _ in 0..3 {
        let longer = prefixes.iter().flat_map(|(tokens, probability)| {
            let last = logits(&transformer, &kernels, tokens, tokens.len(), KvPrecision::F16).pop().unwrap();
            let weight = |id: u32| (f64::from(last[id as usize]) / temperature).exp();
            let total: f64 = allowed.iter().map(|&id| weight(id)).sum();
            let with = |id: u32| ([tokens.as_slice(), &[id]].concat(), probability * weight(id) / total);
            allowed.iter().map(|&id| with(id)).collect::<Vec<_>>()
        });
        prefixes = longer.collect();
    }
    prefixes.into_iter().map(|(_, probability)| probability).collect()
}

/// Real weights in 4 bits: a pass over several tokens uses other kernels' paths than one over one, with the same bits.
#[test]
fn smollm2_copies_a_text_in_few_passes_and_says_the_same() {
    let Some(path) = real("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let tables = import::gguf(read(&path), "target").unwrap();
    let text = "The quick brown fox jumps over the lazy dog while the old violinist plays a slow song about the sea.";
    let ask = |temperature, speculative| GenerateRequest {
        model: Some("target".into()),
        prompt: Prompt::Instruction(format!("Repeat this text word for word: {text}")),
        max_tokens: 48,
        sampling: Sampling { temperature, seed: 4, ..Sampling::default() },
        speculative,
        ..GenerateRequest::default()
    };
    for temperature in [0.0, 0.9] {
        let engine =
            || start(Models::new([tables.clone()]), EngineOptions { max_context_tokens: 1024, ..options(1 << 20) });
        let run = |speculative| {
            let engine = engine();
            let answer = block_on(engine.0.generate(ask(temperature, speculative))).unwrap();
            (answer, ended(engine))
        };
        let (plain, plain_metrics) = run(None);
        for speculative in [LOOKUP, draft("target")] {
            let (answer, metrics) = run(Some(speculative.clone()));
            println!(
                "{} steps for {}, {}: {}",
                metrics.steps, plain_metrics.steps, metrics.accepted_tokens, answer.text
            );
            assert_eq!(answer, plain, "{speculative:?}");
            // Warm, it says what nobody could guess.
            assert!(temperature > 0.0 || metrics.steps * 4 < plain_metrics.steps * 3, "{metrics:?}");
        }
    }
}
