//! Prefill and decode speed of a GGUF model through the whole engine and through the network alone.
//!
//! ```text
//! HYPRSTREAM_BENCH_GGUF=model.gguf cargo bench -p hypr-inference --bench generate
//! ```
//! `HYPRSTREAM_BENCH_THREADS` (2), `HYPRSTREAM_BENCH_PROMPT` (512 tokens), `HYPRSTREAM_BENCH_GENERATE` (128
//! tokens) and `HYPRSTREAM_BENCH_REPEAT` (3) change what is measured. The best of the repeats is printed.
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
use hypr_inference::{EngineOptions, GenerateRequest, Inference, Prompt, engine, import};
use hypr_tensor::Kernels;
use shared::{One, number};

fn main() -> Result<()> {
    let Some(path) = std::env::var_os("HYPRSTREAM_BENCH_GGUF") else {
        println!("set HYPRSTREAM_BENCH_GGUF to a GGUF file to measure generation");
        return Ok(());
    };
    let path = Path::new(&path);
    let file = std::fs::File::open(path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    let bytes = hypr_tensor::map_file(&file).map_err(|error| Error::io(format!("map {}", path.display()), error))?;
    let tables = Arc::new(import::gguf(bytes, "bench")?);
    let threads = number("HYPRSTREAM_BENCH_THREADS", 2);
    let (prompt, generate) = (number("HYPRSTREAM_BENCH_PROMPT", 512), number("HYPRSTREAM_BENCH_GENERATE", 128));
    network(&tables, threads, prompt, generate)?;
    whole_engine(tables, threads, generate)
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
