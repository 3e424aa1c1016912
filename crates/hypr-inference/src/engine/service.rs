//! The service: one thread of control over models, sequences and kernels.

mod reading;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use hypr_common::model::ModelSource;
use hypr_common::{Error, ErrorKind};
use hypr_tensor::{Kernels, Pool};

use super::embedding::{self, Embedding};
use super::loaded::LoadedModels;
use super::metrics::{Counters, add};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::{Command, EmbedJob, EngineOptions, GenerateJob, guarded};
use super::{batch, speculation};
use crate::block_pool::BlockPool;
use crate::transformer::Workspace;
pub(super) use reading::RootJob;

/// Embedding requests that are tokenized and wait for a pass.
const MAX_EMBEDDINGS: usize = 32;

/// Prompts that are tokenized between two steps, so that a burst of requests does not stall what runs.
const PROMPTS_A_STEP: usize = 16;

/// The engine's state. [`EngineService::run`] is its life.
pub struct EngineService {
    receiver: Receiver<Command>,
    options: EngineOptions,
    models: LoadedModels,
    arrived: VecDeque<GenerateJob>,
    scheduler: Scheduler,
    waiting_embeddings: VecDeque<EmbedJob>,
    embeddings: Vec<Embedding>,
    work: Workspace,
    pool: BlockPool,
    counters: Arc<Counters>,
    /// The instruction set of the kernels.
    kernels: String,
}

impl fmt::Debug for EngineService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineService")
            .field("options", &self.options)
            .field("models", &self.models)
            .field("scheduler", &self.scheduler)
            .field("embeddings", &self.embeddings.len())
            .finish_non_exhaustive()
    }
}

/// Why the service ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// At once.
    Shutdown,
    /// When all that was asked for is done; what is asked for later is refused.
    Drain,
    /// As `Drain`, and nobody can ask.
    NoHandles,
}

impl EngineService {
    pub(super) fn new(
        receiver: Receiver<Command>,
        source: Arc<dyn ModelSource>,
        options: EngineOptions,
        pool: BlockPool,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            receiver,
            models: LoadedModels::new(source, pool.clone(), &options),
            arrived: VecDeque::new(),
            scheduler: Scheduler::new(&options, pool.clone(), Arc::clone(&counters)),
            options,
            waiting_embeddings: VecDeque::new(),
            embeddings: Vec::new(),
            work: Workspace::new(),
            pool,
            counters,
            kernels: String::new(),
        }
    }

    /// Serves until every handle is dropped or `drain` is asked for, and what they asked for is done, or until `shutdown`.
    /// Blocks its
    /// thread, which takes part in the kernels' work.
    pub fn run(mut self) {
        let kernels = self.start_kernels();
        self.kernels = kernels.level().to_string();
        tracing::info!(level = %kernels.level(), threads = self.options.threads, "inference engine started");
        let mut ending: Option<Ending> = None;
        loop {
            match self.receive(ending) {
                Some(Ending::Shutdown) => break,
                Some(reason) => ending = Some(reason),
                None => {}
            }
            self.drop_abandoned();
            self.accept();
            if ending.is_some() && self.is_idle() {
                break;
            }
            self.step(&kernels);
        }
        self.refuse_all();
        tracing::info!("inference engine ended");
    }

    fn start_kernels(&self) -> Kernels {
        match self.options.level {
            Some(level) => Kernels::with_level(level, Pool::new(self.options.threads)).unwrap_or_else(|error| {
                tracing::warn!(%error, "using the best level of this processor");
                Kernels::new(self.options.threads)
            }),
            None => Kernels::new(self.options.threads),
        }
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
            && self.arrived.is_empty()
            && self.embeddings.is_empty()
            && self.waiting_embeddings.is_empty()
    }

    /// Takes all commands that are there; waits for one where there is nothing else to do.
    fn receive(&mut self, mut ending: Option<Ending>) -> Option<Ending> {
        if ending == Some(Ending::NoHandles) {
            return None;
        }
        let mut waited = if self.is_idle() && ending.is_none() {
            self.pool.trim();
            Some(self.receiver.recv().map_err(|_| TryRecvError::Disconnected))
        } else {
            None
        };
        loop {
            match waited.take().unwrap_or_else(|| self.receiver.try_recv()) {
                Ok(Command::Shutdown) => return Some(Ending::Shutdown),
                Ok(Command::Drain) => ending = Some(Ending::Drain),
                Ok(command) if ending.is_some() => Self::refuse(command),
                Ok(command) => self.queue(command),
                Err(TryRecvError::Empty) => return ending,
                Err(TryRecvError::Disconnected) => return Some(Ending::NoHandles),
            }
        }
    }

    /// Answers what is asked for while the engine ends. A caller whose reply is dropped is told the same.
    fn refuse(command: Command) {
        match command {
            Command::Generate(job) => job.reply.fail(shutting_down()),
            Command::Embed(job) => drop(job.reply.send(Err(shutting_down()))),
            Command::Sequences(_) | Command::Root(_) | Command::Model(_) | Command::Drain | Command::Shutdown => {}
        }
    }

    fn queue(&mut self, command: Command) {
        match command {
            Command::Generate(job) => self.arrived.push_back(job),
            Command::Embed(job) => self.waiting_embeddings.push_back(job),
            // A caller that is gone needs no answer.
            Command::Sequences(reply) => drop(reply.send(self.sequences())),
            Command::Root(job) => self.root(job),
            Command::Model(job) => self.models.answer(job),
            Command::Drain | Command::Shutdown => {}
        }
    }

    /// Frees what nobody waits for, running or not, at once.
    fn drop_abandoned(&mut self) {
        let before = self.arrived.len();
        self.arrived.retain(|job| !job.reply.is_abandoned());
        add(&self.counters.cancelled, before - self.arrived.len());
        self.scheduler.drop_over();
        self.waiting_embeddings.retain(|job| !job.reply.is_canceled());
        self.embeddings.retain(|embedding| !embedding.is_over());
        self.models.sweep();
    }

    /// Opens models for requests that have arrived, and makes tokens of their texts.
    fn accept(&mut self) {
        for _ in 0..PROMPTS_A_STEP {
            let Some(job) = self.arrived.pop_front() else { break };
            match guarded(|| self.models.pair(&job.model_id, job.draft_id.as_deref())) {
                Err(error) => job.reply.fail(error),
                Ok(models) => {
                    let turn = self.scheduler.arrive(&job);
                    match Sequence::start(job, models, &self.pool, turn, &self.counters) {
                        Ok(sequence) => self.scheduler.enqueue(sequence),
                        Err((reply, error)) => reply.fail(error),
                    }
                }
            }
        }
        while self.embeddings.len() < MAX_EMBEDDINGS {
            let Some(job) = self.waiting_embeddings.pop_front() else { break };
            match guarded(|| self.models.encoder(&job.model_id)) {
                // A caller that is gone needs no answer.
                Err(error) => drop(job.reply.send(Err(error))),
                Ok(encoder) => self.embeddings.push(Embedding::start(job, encoder, self.options.threads)),
            }
        }
    }

    /// Schedule, guess, run, postprocess: one pass of the sequences, then one of the texts to embed.
    fn step(&mut self, kernels: &Kernels) {
        self.pool.tick(self.options.clock.now_us());
        let mut batch = self.scheduler.schedule();
        let crowded = self.scheduler.is_crowded();
        let running = &mut self.scheduler.running;
        let outcome = guarded(|| {
            if !crowded {
                let watched = (&self.pool, &*self.counters);
                speculation::guess(&mut batch, running, (kernels, &mut self.work), watched)?;
            }
            batch::run(&batch, running, kernels, &mut self.work, &self.counters)
        });
        if let Err(error) = outcome {
            tracing::error!(%error, "a generation pass failed");
            self.work = Workspace::new();
            for member in &batch.members {
                running[member.at].fail(shared(&error));
            }
        }
        let pass = embedding::schedule(&mut self.embeddings);
        let outcome = guarded(|| embedding::run(&pass, &mut self.embeddings, kernels, &mut self.work));
        if let Err(error) = outcome {
            tracing::error!(%error, "an embedding pass failed");
            self.work = Workspace::new();
            for &(request, _) in &pass {
                self.embeddings[request].fail(shared(&error));
            }
        }
        self.drop_abandoned();
    }

    /// Answers everything that is left: the engine is ending.
    fn refuse_all(&mut self) {
        while let Ok(command) = self.receiver.try_recv() {
            self.queue(command);
        }
        self.scheduler.fail_all(shutting_down);
        self.embeddings.iter_mut().for_each(|embedding| embedding.fail(shutting_down()));
        self.arrived.drain(..).for_each(|job| job.reply.fail(shutting_down()));
        // A caller that is gone needs no answer.
        self.waiting_embeddings.drain(..).for_each(|job| drop(job.reply.send(Err(shutting_down()))));
    }
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::Unavailable, "the inference engine is shutting down")
}

/// One error for several callers.
fn shared(error: &Error) -> Error {
    Error::new(error.kind(), error.message())
}
