//! The service: one thread of control over models, sequences and kernels.

mod reading;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use hypr_common::model::{ModelSource, ModelTables};
use hypr_common::{Error, ErrorKind, Result};
use hypr_tensor::{Kernels, Pool};

use super::embedding::{self, Embedding};
use super::metrics::{Counters, add};
use super::scheduler::Scheduler;
use super::sequence::{Opened, Sequence};
use super::{Command, EmbedJob, EngineOptions, GenerateJob, guarded};
use super::{batch, speculation};
use crate::block_pool::{BlockPool, CacheIdentity, PrefixId};
use crate::encoder::Encoder;
use crate::model::Model;
use crate::transformer::Workspace;
pub(super) use reading::RootJob;

/// Embedding requests that are tokenized and wait for a pass.
const MAX_EMBEDDINGS: usize = 32;

/// Prompts that are tokenized between two steps, so that a burst of requests does not stall what runs.
const PROMPTS_A_STEP: usize = 16;

/// The engine's state. [`EngineService::run`] is its life.
pub struct EngineService {
    receiver: Receiver<Command>,
    source: Arc<dyn ModelSource>,
    options: EngineOptions,
    models: HashMap<String, Opened>,
    /// Pairs of opened models that have the same tokens.
    alike: HashSet<(PrefixId, PrefixId)>,
    /// Those that are not of text alone, with the tables that they were opened from.
    encoders: HashMap<String, (Arc<ModelTables>, Encoder)>,
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
            .field("models", &self.models.keys())
            .field("scheduler", &self.scheduler)
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
    pub(super) fn new(
        receiver: Receiver<Command>,
        source: Arc<dyn ModelSource>,
        options: EngineOptions,
        pool: BlockPool,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            receiver,
            source,
            models: HashMap::new(),
            alike: HashSet::new(),
            encoders: HashMap::new(),
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

    /// Serves until every handle is dropped and what they asked for is done, or until `shutdown`. Blocks its
    /// thread, which takes part in the kernels' work.
    pub fn run(mut self) {
        let kernels = self.start_kernels();
        self.kernels = kernels.level().to_string();
        tracing::info!(level = %kernels.level(), threads = self.options.threads, "inference engine started");
        let mut ending = None;
        loop {
            match self.receive(ending.is_some()) {
                Some(Ending::Shutdown) => break,
                Some(Ending::NoHandles) => ending = Some(Ending::NoHandles),
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
    fn receive(&mut self, no_handles: bool) -> Option<Ending> {
        if no_handles {
            return None;
        }
        if self.is_idle() {
            self.pool.trim();
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
            Command::Generate(job) => self.arrived.push_back(job),
            Command::Embed(job) => self.waiting_embeddings.push_back(job),
            // A caller that is gone needs no answer.
            Command::Sequences(reply) => drop(reply.send(self.sequences())),
            Command::Root(job) => self.root(job),
            Command::Shutdown => {}
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
    }

    /// Opens models for requests that have arrived, and makes tokens of their texts.
    fn accept(&mut self) {
        for _ in 0..PROMPTS_A_STEP {
            let Some(job) = self.arrived.pop_front() else { break };
            match guarded(|| self.models_of(&job)) {
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
            match guarded(|| self.encoder(&job.model_id)) {
                // A caller that is gone needs no answer.
                Err(error) => drop(job.reply.send(Err(error))),
                Ok(encoder) => self.embeddings.push(Embedding::start(job, encoder, self.options.threads)),
            }
        }
    }

    /// The model of a request, and the one that guesses for it.
    fn models_of(&mut self, job: &GenerateJob) -> Result<(Opened, Option<Opened>)> {
        let Some(draft_id) = &job.draft_id else { return Ok((self.model(&job.model_id)?, None)) };
        let draft = self.model(draft_id)?;
        let opened = self.model(&job.model_id)?;
        let pair = (opened.root, draft.root);
        if !self.alike.contains(&pair) {
            if !opened.model.has_tokens_of(&draft.model) {
                return Err(Error::invalid(format!(
                    "model '{draft_id}' cannot guess for '{}': their tokenizers have different tokens; name a smaller model \
                     of the same family",
                    job.model_id
                )));
            }
            self.alike.insert(pair);
        }
        Ok((opened, Some(draft)))
    }

    /// The newest version of a model, opened once.
    fn model(&mut self, model_id: &str) -> Result<Opened> {
        let tables = match self.source.open(model_id) {
            Ok(tables) => tables,
            Err(error) => {
                self.models.remove(model_id);
                self.pool.retire(model_id);
                return Err(error);
            }
        };
        if let Some(opened) = self.models.get(model_id)
            && Arc::ptr_eq(opened.model.tables(), &tables)
        {
            return Ok(opened.clone());
        }
        let version = tables.version;
        let model = Arc::new(Model::open(tables, self.options.max_context_tokens)?);
        tracing::info!(model_id, version, "model opened");
        // Keys and values of other weights are of no use any more, also where a version's number came back.
        self.pool.retire(model_id);
        let identity = CacheIdentity { model: model_id.to_owned(), version, adapter_version: 0 };
        let opened = Opened { model, root: self.pool.open(identity) };
        // What is known of those that this one replaces is of no use.
        self.alike.clear();
        self.models.insert(model_id.to_owned(), opened.clone());
        Ok(opened)
    }

    /// What embeds with the newest version of a model; one that is not of text alone is opened once.
    fn encoder(&mut self, model_id: &str) -> Result<Encoder> {
        let tables = self.source.open(model_id).inspect_err(|_| {
            self.encoders.remove(model_id);
        })?;
        if let Some((known, encoder)) = self.encoders.get(model_id)
            && Arc::ptr_eq(known, &tables)
        {
            return Ok(encoder.clone());
        }
        // One of text is a model like those that generate, and kept with them.
        let Some(encoder) = Encoder::open(&tables, self.options.max_context_tokens)? else {
            return Ok(Encoder::Text(self.model(model_id)?.model));
        };
        tracing::info!(model_id, version = tables.version, "encoder opened");
        self.encoders.insert(model_id.to_owned(), (tables, encoder.clone()));
        Ok(encoder)
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
        let ending = || Error::new(ErrorKind::Unavailable, "the inference engine is shutting down");
        while let Ok(command) = self.receiver.try_recv() {
            self.queue(command);
        }
        self.scheduler.fail_all(ending);
        self.embeddings.iter_mut().for_each(|embedding| embedding.fail(ending()));
        self.arrived.drain(..).for_each(|job| job.reply.fail(ending()));
        // A caller that is gone needs no answer.
        self.waiting_embeddings.drain(..).for_each(|job| drop(job.reply.send(Err(ending()))));
    }
}

/// One error for several callers.
fn shared(error: &Error) -> Error {
    Error::new(error.kind(), error.message())
}
