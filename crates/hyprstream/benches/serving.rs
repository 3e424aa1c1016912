//! Tokens a second of the whole engine with many requests at once.
//!
//! ```text
//! HYPRSTREAM_BENCH_GGUF=model.gguf HYPRSTREAM_BENCH_PROMPTS=prompts.txt cargo bench -p hyprstream --bench serving
//! ```
//! The file has a prompt a line. `HYPRSTREAM_BENCH_CLIENTS` (1,8,32,128) says how many requests, each with a prompt of
//! its own, are there at once; `HYPRSTREAM_BENCH_THREADS` (2) and `HYPRSTREAM_BENCH_GENERATE` (64 tokens each; the
//! model's end token does not end them) change what is measured. Prints a line of JSON for each number of clients.
//! `bench/serving.py` runs it beside llama.cpp. Without a model it prints how to give one.

mod shared;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::executor::block_on;
use futures::future::join_all;
use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};
use hypr_inference::{EngineOptions, GenerateRequest, Inference, Prompt, engine, import};
use shared::{One, number};

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() -> Result<()> {
    let (Some(path), Some(prompts)) =
        (std::env::var_os("HYPRSTREAM_BENCH_GGUF"), std::env::var_os("HYPRSTREAM_BENCH_PROMPTS"))
    else {
        println!(
            "set HYPRSTREAM_BENCH_GGUF to a GGUF file and HYPRSTREAM_BENCH_PROMPTS to a file with a prompt a line"
        );
        return Ok(());
    };
    let path = Path::new(&path);
    let file = std::fs::File::open(path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    let bytes = hypr_tensor::map_file(&file).map_err(|error| Error::io(format!("map {}", path.display()), error))?;
    let mut tables = import::gguf(bytes, "bench")?;
    tables.metadata.architecture_config["eos_token_ids"] = serde_json::json!([]);
    let prompts = std::fs::read_to_string(&prompts).map_err(|error| Error::io("read the prompts", error))?;
    let prompts: Vec<&str> = prompts.lines().collect();
    let tables = Arc::new(tables);
    for clients in setting("HYPRSTREAM_BENCH_CLIENTS", "1,8,32,128").split(',') {
        let clients = clients.parse().map_err(|_| Error::invalid(format!("'{clients}' is no number of clients")))?;
        measure(&tables, &prompts, clients)?;
    }
    Ok(())
}

/// An engine of its own for each number of clients, so that none finds what another has computed.
fn measure(tables: &Arc<ModelTables>, prompts: &[&str], clients: usize) -> Result<()> {
    if prompts.len() < clients {
        return Err(Error::invalid(format!("{clients} clients need as many prompts, and there are {}", prompts.len())));
    }
    let source = One::new(Arc::clone(tables));
    let threads = number("HYPRSTREAM_BENCH_THREADS", 2);
    let (handle, service) = engine(Arc::new(source), EngineOptions { threads, ..EngineOptions::default() });
    let service = std::thread::spawn(|| service.run());
    let ask = |prompt: &str, max_tokens| {
        let prompt = Prompt::Raw(prompt.to_owned());
        handle.generate(GenerateRequest { prompt, max_tokens, ..GenerateRequest::default() })
    };
    // Opens the model and reads its pages.
    block_on(ask("Warm", 2))?;
    let before = handle.metrics();
    let generate = number("HYPRSTREAM_BENCH_GENERATE", 64);
    let start = Instant::now();
    let answers = block_on(join_all(prompts[..clients].iter().map(|prompt| ask(prompt, generate))));
    let seconds = start.elapsed().as_secs_f64();
    let metrics = handle.metrics();
    let answers: Vec<_> = answers.into_iter().collect::<Result<_>>()?;
    let line = serde_json::json!({
        "clients": clients,
        "seconds": seconds,
        "prompt_tokens": answers.iter().map(|answer| answer.prompt_tokens).sum::<usize>(),
        "generated_tokens": answers.iter().map(|answer| answer.completion_tokens).sum::<usize>(),
        "steps": metrics.steps - before.steps,
        "preemptions": metrics.preemptions,
        "prefix_hit_tokens": metrics.prefix_hit_tokens,
    });
    println!("{line}");
    drop(handle);
    service.join().map_err(|_| Error::internal("the engine's thread panicked"))
}
