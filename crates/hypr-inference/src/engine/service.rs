//! The service: one thread of control over models, sequences and kernels.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use hypr_common::model::ModelSource;
use hypr_common::{Error, ErrorKind, Result};
use hypr_tensor::{Kernels, Pool};

use super::embedding::{self, Embedding};
use super::generation::{self, Sequence};
use super::{Command, EmbedJob, EngineOptions, GenerateJob, guarded};
use crate::model::Model;
use crate::transformer::Workspace;

/// Embedding requests that are tokenized and wait for a pass.
const MAX_EMBEDDINGS: usize = 32;

/// The engine's state. [`EngineService::run`] is its life.
pub struct EngineService {
    receiver: Receiver<Command>,
    source: Arc<dyn ModelSource>,
    options: EngineOptions,
    models: HashMap<String, Arc<Model>>,
    waiting_generations: VecDeque<GenerateJob>,
    waiting_embeddings: VecDeque<EmbedJob>,
    sequences: Vec<Sequence>,
    embeddings: Vec<Embedding>,
    work: Workspace,
    turn: usize,
}

impl fmt::Debug for EngineService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineService")
            .field("options", &self.options)
            .field("models", &self.models.keys())
            .field("sequences", &self.sequences.len())
            .field("embeddings", &self.embeddings.len())
            .finish_non_exhaustive()
    }
}

/// Why the service ends.
enum Ending {
    Shutdown,
    NoHandles,
}

impl EngineService {
    pub(super) fn new(receiver: Receiver<Command>, source: Arc<dyn ModelSource>, options: EngineOptions) -> Self {
        Self {
            receiver,
            source,
            options,
            models: HashMap::new(),
            waiting_generations: VecDeque::new(),
            waiting_embeddings: VecDeque::new(),
            sequences: Vec::new(),
            embeddings: Vec::new(),
            work: Workspace::new(),
            turn: 0,
        }
    }

    /// Serves until every handle is dropped and what they asked for is done, or until `shutdown`. Blocks its
    /// thread, which takes part in the kernels' work.
    pub fn run(mut self) {
        let kernels = self.kernels();
        tracing::info!(level = %kernels.level(), threads = self.options.threads, "inference engine started");
        let mut ending = None;
        loop {
            match self.receive(ending.is_some()) {
                Some(Ending::Shutdown) => break,
                Some(Ending::NoHandles) => ending = Some(Ending::NoHandles),
                None => {}
            }
            self.drop_abandoned();
            self.admit();
            if ending.is_some() && self.is_idle() {
                break;
            }
            self.step(&kernels);
        }
        self.refuse_all();
        tracing::info!("inference engine ended");
    }

    fn kernels(&self) -> Kernels {
        match self.options.level {
            Some(level) => Kernels::with_level(level, Pool::new(self.options.threads)).unwrap_or_else(|error| {
                tracing::warn!(%error, "using the best level of this processor");
                Kernels::new(self.options.threads)
            }),
            None => Kernels::new(self.options.threads),
        }
    }

    fn is_idle(&self) -> bool {
        self.sequences.is_empty()
            && self.embeddings.is_empty()
            && self.waiting_generations.is_empty()
            && self.waiting_embeddings.is_empty()
    }

    /// Takes all commands that are there; waits for one where there is nothing else to do.
    fn receive(&mut self, no_handles: bool) -> Option<Ending> {
        if no_handles {
            return None;
        }
        if self.is_idle() {
            match self.receiver.recv() {
                Ok(Command::Shutdown) => return Some(Ending::Shutdown),
                Ok(command) => self.queue(command),
                Err(_) => return Some(Ending::NoHandles),
            }
        }
        loop {
            match self.receiver.try_recv() {
                Ok(Command::Shutdown) => return Some(Ending::Shutdown),
                Ok(command) => self.queue(command),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Ending::NoHandles),
            }
        }
    }

    fn queue(&mut self, command: Command) {
        match command {
            Command::Generate(job) => self.waiting_generations.push_back(job),
            Command::Embed(job) => self.waiting_embeddings.push_back(job),
            Command::Shutdown => {}
        }
    }

    /// Frees what nobody waits for, running or not, at once.
    fn drop_abandoned(&mut self) {
        self.waiting_generations.retain(|job| !job.reply.is_abandoned());
        self.waiting_embeddings.retain(|job| !job.reply.is_canceled());
        self.sequences.retain(|sequence| !sequence.is_over());
        self.embeddings.retain(|embedding| !embedding.is_over());
    }

    /// Starts waiting requests while there is room.
    fn admit(&mut self) {
        while self.sequences.len() < self.options.max_sequences.max(1) {
            let Some(job) = self.waiting_generations.pop_front() else { break };
            match guarded(|| self.model(&job.model_id)) {
                Err(error) => job.reply.fail(error),
                Ok(model) => match Sequence::start(job, model) {
                    Ok(sequence) => self.sequences.push(sequence),
                    Err((reply, error)) => reply.fail(error),
                },
            }
        }
        while self.embeddings.len() < MAX_EMBEDDINGS {
            let Some(job) = self.waiting_embeddings.pop_front() else { break };
            match guarded(|| self.model(&job.model_id)) {
                // A caller that is gone needs no answer.
                Err(error) => drop(job.reply.send(Err(error))),
                Ok(model) => self.embeddings.push(Embedding::start(job, model)),
            }
        }
    }

    /// The newest version of a model, opened once.
    fn model(&mut self, model_id: &str) -> Result<Arc<Model>> {
        let tables = match self.source.open(model_id) {
            Ok(tables) => tables,
            Err(error) => {
                self.models.remove(model_id);
                return Err(error);
            }
        };
        if let Some(model) = self.models.get(model_id)
            && Arc::ptr_eq(model.tables(), &tables)
        {
            return Ok(Arc::clone(model));
        }
        let model = Arc::new(Model::open(tables, self.options.max_context_tokens)?);
        tracing::info!(model_id, version = model.tables().version, "model opened");
        self.models.insert(model_id.to_owned(), Arc::clone(&model));
        Ok(model)
    }

    /// Schedule, run, postprocess: one pass of the sequences, then one of the texts to embed.
    fn step(&mut self, kernels: &Kernels) {
        let pass = generation::schedule(&self.sequences, self.turn);
        self.turn = self.turn.wrapping_add(1);
        let outcome = guarded(|| generation::run(&pass, &mut self.sequences, kernels, &mut self.work));
        if let Err(error) = outcome {
            tracing::error!(%error, "a generation pass failed");
            self.work = Workspace::new();
            for &(at, _) in &pass.members {
                self.sequences[at].fail(shared(&error));
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
        let ending = || Error::new(ErrorKind::Unavailable, "the inference engine is shutting down");
        while let Ok(command) = self.receiver.try_recv() {
            self.queue(command);
        }
        self.sequences.iter_mut().for_each(|sequence| sequence.fail(ending()));
        self.embeddings.iter_mut().for_each(|embedding| embedding.fail(ending()));
        self.waiting_generations.drain(..).for_each(|job| job.reply.fail(ending()));
        // A caller that is gone needs no answer.
        self.waiting_embeddings.drain(..).for_each(|job| drop(job.reply.send(Err(ending()))));
    }
}

/// One error for several callers.
fn shared(error: &Error) -> Error {
    Error::new(error.kind(), error.message())
}
