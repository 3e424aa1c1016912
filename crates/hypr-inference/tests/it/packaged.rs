//! Packaged decoders against PyTorch on the dequantised weights: SmolLM2-135M-Instruct in Q4_1 and, where somebody put it,
//! Qwen2.5-Coder-1.5B-Instruct in Q4_K_M (see `scripts/make_fixtures.py`; it is too large to fetch for every run).
//!
//! Two comparisons: with the weights decoded to F32 the logits must agree to 2e-4, which proves everything but
//! the integer kernels; with the weights as they are, activations are rounded to 8 bits, so the logits must
//! agree to a cosine of 0.999 and choose the same tokens wherever PyTorch's margin is above 0.75.

use arrow_buffer::Buffer;
use futures::executor::block_on;
use hypr_common::model::ModelTables;
use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::{EngineOptions, FinishReason, GenerateRequest, Inference, Prompt, engine};
use hypr_tensor::Kernels;
use hypr_tensor::kernels::detect;
use serde_json::Value;

use crate::support::*;

/// A model and what PyTorch says of it.
struct Packaged {
    tables: ModelTables,
    expected: Value,
    eos_token_ids: &'static [u32],
}

fn smollm2() -> Option<Packaged> {
    packaged("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2", &[0, 2])
}

fn qwen() -> Option<Packaged> {
    packaged("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", "qwen2.5", &[151_643, 151_645])
}

fn packaged(file: &str, name: &str, eos_token_ids: &'static [u32]) -> Option<Packaged> {
    let tables = import::gguf(read(&real(file)?), name).unwrap();
    Some(Packaged { tables, expected: json(&fixture(&format!("{name}.json"))), eos_token_ids })
}

/// The same model with every matrix decoded to F32, written as the file format it would have been.
fn decoded(tables: &ModelTables) -> ModelTables {
    use std::sync::Arc;

    use arrow_array::cast::AsArray;
    use arrow_array::{ArrayRef, LargeBinaryArray, RecordBatch, StringArray};
    use hypr_tensor::{DType, WeightArray};

    let mut tables = tables.clone();
    for piece in tables.layers.iter_mut().flat_map(|layer| &mut layer.pieces) {
        let text = |name: &str| piece.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
        let dtype = DType::parse(&text("encoding")).unwrap();
        let shape = piece.column_by_name("shape").unwrap().as_list::<i32>().value(0);
        let cols = *shape.as_primitive::<arrow_array::types::Int32Type>().values().last().unwrap() as usize;
        let data = piece.column_by_name("weight_data").unwrap().as_binary::<i64>().values().clone();
        let rows = data.len() / dtype.row_bytes(cols).unwrap();
        let values = WeightArray::new(dtype, vec![rows, cols], vec![data]).unwrap().to_f32();
        let mut columns: Vec<ArrayRef> = piece.columns().to_vec();
        columns[4] = Arc::new(StringArray::from(vec!["F32"]));
        let bytes = Buffer::from_vec(values);
        columns[6] = Arc::new(LargeBinaryArray::from(vec![bytes.as_slice()]));
        *piece = RecordBatch::try_new(piece.schema(), columns).unwrap();
    }
    tables
}

fn last_logits(transformer: &Transformer, kernels: &Kernels, tokens: &[u32]) -> Vec<f32> {
    logits(transformer, kernels, tokens, tokens.len(), KvPrecision::F32).pop().unwrap()
}

fn sampled(logits: &[f32], prompt: &Value) -> (Vec<f32>, Vec<f32>) {
    let stride = prompt["sample_stride"].as_u64().unwrap() as usize;
    let mut got: Vec<f32> = logits.iter().copied().step_by(stride).collect();
    got.extend(tokens(&prompt["top_tokens"]).iter().map(|&token| logits[token as usize]));
    let mut wanted = floats(&prompt["sample"]);
    wanted.extend(floats(&prompt["top_logits"]));
    (got, wanted)
}

#[test]
fn decoded_weights_give_the_logits_of_pytorch() {
    let Some(Packaged { tables, expected, .. }) = smollm2() else { return };
    let transformer = Transformer::open(&decoded(&tables), 512).unwrap();
    let kernels = kernels(detect(), 2);
    for prompt in expected["prompts"].as_array().unwrap() {
        let got = last_logits(&transformer, &kernels, &tokens(&prompt["tokens"]));
        let (got, wanted) = sampled(&got, prompt);
        let off = largest_difference(&got, &wanted);
        println!("{}: off by {off}", prompt["text"]);
        assert!(off < 2e-4, "{}: off by {off}", prompt["text"]);
    }
}

#[test]
fn quantised_weights_stay_close_to_pytorch() {
    smollm2().into_iter().chain(qwen()).for_each(quantised);
}

fn quantised(Packaged { tables, expected, .. }: Packaged) {
    let transformer = Transformer::open(&tables, 512).unwrap();
    let kernels = kernels(detect(), 2);
    for prompt in expected["prompts"].as_array().unwrap() {
        let got = last_logits(&transformer, &kernels, &tokens(&prompt["tokens"]));
        let (got, wanted) = sampled(&got, prompt);
        let cosine = cosine(&got, &wanted);
        println!("{}: cosine {cosine}, off by {}", prompt["text"], largest_difference(&got, &wanted));
        assert!(cosine > 0.999, "{}: cosine {cosine}", prompt["text"]);
    }
}

#[test]
fn greedy_tokens_are_those_of_pytorch_where_it_is_sure() {
    smollm2().into_iter().chain(qwen()).for_each(greedy);
}

fn greedy(Packaged { tables, expected, .. }: Packaged) {
    let transformer = Transformer::open(&tables, 512).unwrap();
    let kernels = kernels(detect(), 2);
    let mut compared = 0;
    for prompt in expected["prompts"].as_array().unwrap() {
        let mut cache = transformer.new_cache(KvPrecision::F16);
        let mut work = Workspace::new();
        let mut next = tokens(&prompt["tokens"]);
        // PyTorch's own tokens are fed, so that one close call does not end the comparison.
        for (&wanted, margin) in tokens(&prompt["greedy"]).iter().zip(floats(&prompt["margins"])) {
            let mut batch = [Chunk { tokens: &next, cache: Some(&mut cache), logits: true }];
            transformer.forward(&kernels, &mut batch, &mut work).unwrap();
            let got = hypr_inference::sampler::argmax(work.logits_mut());
            if margin > 0.75 {
                assert_eq!(got, wanted, "{} at margin {margin}", prompt["text"]);
                compared += 1;
            }
            next = vec![wanted];
        }
    }
    println!("{compared} tokens compared");
    assert!(compared >= 30, "only {compared} tokens were sure");
}

#[test]
fn the_tokenizer_of_the_file_gives_the_reference_tokens() {
    smollm2().into_iter().chain(qwen()).for_each(tokenizer);
}

fn tokenizer(Packaged { tables, expected, eos_token_ids }: Packaged) {
    let tokenizer = hypr_inference::tokenizer::TextTokenizer::from_json(&tables.files["tokenizer.json"]).unwrap();
    for case in expected["tokenizer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), tokens(&case["tokens"]), "{text:?}");
    }
    let model = hypr_inference::model::Model::open(tables.into(), 512).unwrap();
    let message = hypr_inference::ChatMessage::new("user", "Who is Mycroft?");
    assert_eq!(model.render(&[message]).unwrap(), expected["chat"].as_str().unwrap());
    assert_eq!(model.config().eos_token_ids, eos_token_ids);
}

/// The whole way of a request, queue, chat template, chunks of prompt, sampling and detokenizing, says what the
/// network says when it is run by hand, one token at a time.
#[test]
fn the_engine_answers_an_instruction_as_the_network_does() {
    let Some(Packaged { tables, .. }) = smollm2() else { return };
    let opened = hypr_inference::model::Model::open(tables.clone().into(), 512).unwrap();
    let question = "What is the capital of France?";
    let message = hypr_inference::ChatMessage::new("user", question);
    let mut all = opened.encode_prompt(&opened.render(&[message]).unwrap()).unwrap();
    let prompt_tokens = all.len();
    let kernels = kernels(detect(), 2);
    for _ in 0..8 {
        let last = logits(opened.transformer(), &kernels, &all, all.len(), KvPrecision::F16).pop().unwrap();
        all.push(hypr_inference::sampler::argmax(&last));
    }
    let by_hand = opened.tokenizer().decode(&all[prompt_tokens..]).unwrap();

    let (handle, service) = engine(Models::new([tables]), EngineOptions { threads: 2, ..EngineOptions::default() });
    let service = std::thread::spawn(|| service.run());
    let request =
        GenerateRequest { prompt: Prompt::Instruction(question.into()), max_tokens: 8, ..GenerateRequest::default() };
    let answer = block_on(handle.generate(request)).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish_reason), (by_hand.as_str(), FinishReason::Length));
    assert_eq!((answer.prompt_tokens, answer.completion_tokens), (prompt_tokens, 8));
    drop(handle);
    service.join().unwrap();
}
