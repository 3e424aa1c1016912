//! The engine: a service that owns the threads, the opened models and the running sequences, and the handle
//! that callers hold.
//!
//! The service's main flow is a step ([`EngineService::run`]): *schedule* (`scheduler`), *run* and *postprocess*
//! (`batch`, `sequence`). Invariants: requests wait in a bounded queue that answers `Busy`; a request whose caller has
//! gone is dropped at the next step; a panic in a pass fails the requests of that pass and nothing else; what a request
//! is answered does not depend on what else runs. Deliberately absent: threads of its own (the caller gives one) and any
//! knowledge of where models are kept.

mod batch;
mod choices;
mod embedding;
mod fairness;
mod handle;
mod loaded;
mod metrics;
mod scheduler;
mod sequence;
mod service;
mod speculation;

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use futures::channel::{mpsc as stream, oneshot};
use hypr_common::clock::{Clock, ManualClock};
use hypr_common::model::ModelSource;
use hypr_common::{Error, Result};
use hypr_tensor::Level;

use crate::api::{EmbedInput, GenerateRequest, Generation, Token};
use crate::block_pool::BlockPool;
use crate::kv_table::KvSequence;
use loaded::ModelJob;
use metrics::Counters;

pub use handle::EngineHandle;
pub use metrics::EngineMetrics;
pub use service::EngineService;
use service::RootJob;

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads of the kernels, the service's own among them.
    pub threads: usize,
    /// Sequences that are generated at the same time (vLLM's `max_num_seqs`).
    pub max_sequences: usize,
    /// Tokens that one step computes: one of each sequence that decodes, and pieces of prompts (vLLM's
    /// `max_num_batched_tokens`). More reads prompts faster, less makes the gaps between streamed tokens shorter.
    pub max_batched_tokens: usize,
    /// Bytes that the keys and values of all sequences and of shared prefixes may take; taken as they are needed.
    pub kv_cache_bytes: usize,
    /// Bytes that the weights of all loaded models may take together; `None` leaves that to the operating system, which
    /// can drop pages of mapped files at any time.
    pub model_memory_bytes: Option<usize>,
    /// Requests that may wait; one more is answered `Busy`.
    pub queue_depth: usize,
    /// The longest sequence, in tokens, where the model could take longer ones.
    pub max_context_tokens: usize,
    /// The kernels' instruction set; `None` takes the best that the processor has.
    pub level: Option<Level>,
    /// What time it is, for [`KvSequence::computed_us`].
    pub clock: Arc<dyn Clock>,
    /// The model that generates where a request names none.
    pub default_generation_model: Option<String>,
    /// The model that embeds where a request names none.
    pub default_embedding_model: Option<String>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
            max_sequences: 128,
            max_batched_tokens: 512,
            kv_cache_bytes: 2 << 30,
            model_memory_bytes: None,
            queue_depth: 256,
            max_context_tokens: 8192,
            level: None,
            clock: Arc::new(ManualClock::default()),
            default_generation_model: None,
            default_embedding_model: None,
        }
    }
}

/// An engine over the models of `source`: the handle for callers, and the service for the thread that runs it.
pub fn engine(source: Arc<dyn ModelSource>, options: EngineOptions) -> (EngineHandle, EngineService) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let (pool, counters) = (BlockPool::new(options.kv_cache_bytes), Arc::new(Counters::default()));
    let watched = (pool.clone(), Arc::clone(&counters));
    let handle = EngineHandle::new(sender, Arc::clone(&waiting), Arc::clone(&source), options.clone(), watched);
    let service = EngineService::new(receiver, source, options, pool, counters);
    (handle, service)
}

/// A place in the bounded queue; it is free again when this is dropped.
#[derive(Debug)]
struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
    }
}

/// What a handle tells the service.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it a request, and most are the large one")]
enum Command {
    Generate(GenerateJob),
    Embed(EmbedJob),
    Sequences(oneshot::Sender<Vec<KvSequence>>),
    Root(RootJob),
    Model(ModelJob),
    Drain,
    Shutdown,
}

/// A prompt to continue.
#[derive(Debug)]
struct GenerateJob {
    ticket: Ticket,
    /// Resolved: `request.model` is not looked at again.
    model_id: String,
    /// Resolved too: the model of [`crate::api::Speculative::Draft`].
    draft_id: Option<String>,
    request: GenerateRequest,
    reply: Reply,
}

/// Where generated text goes.
#[derive(Debug)]
enum Reply {
    Whole(oneshot::Sender<Result<Generation>>),
    Stream(stream::Sender<Result<Token>>),
}

impl Reply {
    /// Whether nobody waits any more.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Whole(sender) => sender.is_canceled(),
            Self::Stream(sender) => sender.is_closed(),
        }
    }

    /// Ends the request with an error. A caller that is gone needs none.
    fn fail(self, error: Error) {
        match self {
            Self::Whole(sender) => drop(sender.send(Err(error))),
            Self::Stream(mut sender) => drop(sender.try_send(Err(error))),
        }
    }
}

/// Inputs to embed, all of one kind.
#[derive(Debug)]
struct EmbedJob {
    ticket: Ticket,
    model_id: String,
    inputs: Vec<EmbedInput>,
    normalize: bool,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>>>,
}

/// Turns a panic into an error.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::internal(format!("the inference engine failed on this request: {}", words(&*panic))))
    })
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic")
}
