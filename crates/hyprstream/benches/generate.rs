//! Prefill and decode speed of a GGUF model through the whole engine and through the network alone; then an answer that
//! copies its prompt, plain and with guessed tokens, and one that a JSON Schema constrains.
//!
//! ```text
//! HYPRSTREAM_BENCH_GGUF=model.gguf cargo bench -p hyprstream --bench generate
//! ```
//! `HYPRSTREAM_BENCH_THREADS` (2), `HYPRSTREAM_BENCH_PROMPT` (512 tokens), `HYPRSTREAM_BENCH_GENERATE` (128
//! tokens) and `HYPRSTREAM_BENCH_REPEAT` (3) change what is measured. The best of the repeats is printed.
//! `HYPRSTREAM_BENCH_DRAFT` names a GGUF file of a smaller model with the same tokens, which then guesses too.
//! Without a model it prints how to give one.

mod shared;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::executor::block_on;
use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::sampler::argmax;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::{
    Constraint, EngineHandle, EngineOptions, GenerateRequest, Inference, Prompt, Speculative, engine, import,
};
use hypr_tensor::Kernels;
use shared::{One, number};

/// What the copying answer copies.
const TEXT: &str = "To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any other name. In his \
    eyes she eclipses and predominates the whole of her sex. It was not that he felt any emotion akin to love for Irene \
    Adler. All emotions, and that one particularly, were abhorrent to his cold, precise but admirably balanced mind.";
const SCHEMA: &str = r#"{"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 40}, "profession": {"enum": ["detective", "doctor", "singer"]},
    "description": {"type": "string", "maxLength": 120}, "appears_in_the_text": {"type": "boolean"},
    "traits": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 3}},
    "required": ["name", "profession", "description", "appears_in_the_text", "traits"], "additionalProperties": false}"#;

fn main() -> Result<()> {
    let Some(path) = std::env::var_os("HYPRSTREAM_BENCH_GGUF") else {
        println!("set HYPRSTREAM_BENCH_GGUF to a GGUF file to measure generation");
        return Ok(());
    };
    let tables = open(Path::new(&path), "bench")?;
    let threads = number("HYPRSTREAM_BENCH_THREADS", 2);
    let (prompt, generate) = (number("HYPRSTREAM_BENCH_PROMPT", 512), number("HYPRSTREAM_BENCH_GENERATE", 128));
    network(&tables, threads, prompt, generate)?;
    whole_engine(Arc::clone(&tables), threads, generate)?;
    let draft = std::env::var_os("HYPRSTREAM_BENCH_DRAFT").map(|path| open(Path::new(&path), "draft")).transpose()?;
    forms_and_guesses(tables, draft, threads, generate)
}

fn open(path: &Path, id: &str) -> Result<Arc<ModelTables>> {
    let file = std::fs::File::open(path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    let bytes = hypr_tensor::map_file(&file).map_err(|error| Error::io(format!("map {}", path.display()), error))?;
    Ok(Arc::new(import::gguf(bytes, id)?))
}

/// The network and the choice of the likeliest token, without the engine around it.
fn network(tables: &ModelTables, threads: usize, prompt: usize, generate: usize) -> Result<()> {
    let transformer = Transformer::open(tables, prompt + generate + 1)?;
    let kernels = Kernels::new(threads);
    let vocabulary = transformer.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..prompt as u32).map(|i| (i * 7919 + 13) % vocabulary).collect();
    let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..number("HYPRSTREAM_BENCH_REPEAT", 3) {
        let mut cache = transformer.new_cache(KvPrecision::F16);
        let mut work = Workspace::new();
        let start = Instant::now();
        let mut batch = [Chunk { tokens: &tokens, cache: Some(&mut cache), logits: true }];
        transformer.forward(&kernels, &mut batch, &mut work)?;
        let mut next = argmax(work.logits_mut());
        prefill = prefill.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..generate {
            let mut batch = [Chunk { tokens: &[next], cache: Some(&mut cache), logits: true }];
            transformer.forward(&kernels, &mut batch, &mut work)?;
            next = argmax(work.logits_mut());
        }
        decode = decode.min(start.elapsed().as_secs_f64());
    }
    println!("level {}, {threads} threads, prompt {prompt}, generate {generate}", kernels.level());
    println!("prefill {:.1} tokens/s", prompt as f64 / prefill);
    println!("decode {:.1} tokens/s", generate as f64 / decode);
    Ok(())
}

/// The same through the service, with tokenizer, scheduler and text: the difference is what they cost.
fn whole_engine(tables: Arc<ModelTables>, threads: usize, generate: usize) -> Result<()> {
    let source = One::new(tables);
    let (handle, service) = engine(Arc::new(source), EngineOptions { threads, ..EngineOptions::default() });
    let service = std::thread::spawn(|| service.run());
    let request = |max_tokens| GenerateRequest {
        prompt: Prompt::Raw("Once upon a time, there was a detective who".to_owned()),
        max_tokens,
        ..GenerateRequest::default()
    };
    block_on(handle.generate(request(1)))?;
    let mut best = 0.0_f64;
    for _ in 0..number("HYPRSTREAM_BENCH_REPEAT", 3) {
        let start = Instant::now();
        let answer = block_on(handle.generate(request(generate)))?;
        best = best.max(answer.completion_tokens as f64 / start.elapsed().as_secs_f64());
    }
    println!("engine, short prompt and {generate} tokens: {best:.1} tokens/s");
    drop(handle);
    service.join().map_err(|_| Error::internal("the engine's thread panicked"))
}

/// Guessed tokens beside plain decoding of the same answer, and a constrained answer beside a free one.
fn forms_and_guesses(
    tables: Arc<ModelTables>,
    draft: Option<Arc<ModelTables>>,
    threads: usize,
    generate: usize,
) -> Result<()> {
    let has_draft = draft.is_some();
    let source = One::with(tables, draft);
    let (handle, service) = engine(Arc::new(source), EngineOptions { threads, ..EngineOptions::default() });
    let service = std::thread::spawn(|| service.run());
    let ask = |text: String, speculative, constraint| GenerateRequest {
        model: Some("bench".to_owned()),
        prompt: Prompt::Instruction(text),
        max_tokens: generate,
        speculative,
        constraint,
        ..GenerateRequest::default()
    };
    let copy = |speculative| ask(format!("Repeat this text word for word: {TEXT}"), speculative, None);
    measure(&handle, "copy, plain", &copy(None))?;
    let lookup = Speculative::PromptLookup { max_ngram: 3, tokens: 8 };
    measure(&handle, "copy, prompt lookup of 8 tokens", &copy(Some(lookup.clone())))?;
    let story = |speculative| ask("Write a story about a violinist and the sea.".to_owned(), speculative, None);
    measure(&handle, "story, plain", &story(None))?;
    measure(&handle, "story, prompt lookup of 8 tokens", &story(Some(lookup)))?;
    if has_draft {
        let guesses = Speculative::Draft { model: "draft".to_owned(), tokens: 4 };
        measure(&handle, "copy, draft model, 4 tokens", &copy(Some(guesses.clone())))?;
        measure(&handle, "story, draft model, 4 tokens", &story(Some(guesses)))?;
    }
    let describe = |constraint| ask(format!("{TEXT} Describe Irene Adler as JSON."), None, constraint);
    measure(&handle, "description, free", &describe(None))?;
    measure(&handle, "description, JSON Schema", &describe(Some(Constraint::JsonSchema(SCHEMA.into()))))?;
    drop(handle);
    service.join().map_err(|_| Error::internal("the engine's thread panicked"))
}

/// Prints the best of the repeats. The first answer is not counted: it reads the prompt, and compiles the grammar.
fn measure(handle: &EngineHandle, what: &str, request: &GenerateRequest) -> Result<()> {
    block_on(handle.generate(request.clone()))?;
    let (mut best, mut tokens, before) = (f64::INFINITY, 0, handle.metrics());
    for _ in 0..number("HYPRSTREAM_BENCH_REPEAT", 3) {
        let start = Instant::now();
        tokens = block_on(handle.generate(request.clone()))?.completion_tokens;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let after = handle.metrics();
    let steps = after.steps - before.steps;
    let written = after.generated_tokens - before.generated_tokens;
    let (drafted, accepted) =
        (after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens);
    let rate = tokens as f64 / best;
    print!("{what}: {rate:.1} tokens/s, {tokens} tokens, {:.2} a pass", written as f64 / steps.max(1) as f64);
    if drafted > 0 {
        print!(", {accepted} of {drafted} guesses right");
    }
    println!();
    Ok(())
}
