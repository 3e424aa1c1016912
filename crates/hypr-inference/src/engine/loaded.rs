//! The models that are open, within a budget of memory.
//!
//! A *copy* is what opening a version of a model gave: its tables, its network, and where the chains of blocks that it
//! computes begin. It is *loaded* while new requests find it, and *drains* from when it was unloaded or newer weights took
//! its place until the last request that it answers is over; then its memory is free. Where a model is loaded and the
//! budget has no room, the copy that was used longest ago goes, if nothing uses it and nobody has pinned its model.
//!
//! Invariants: what all copies may take is at most the budget together; only an unload by name unloads a pinned model,
//! whatever becomes of its copies; no request ever loses the copy that answers it. Deliberately absent: the keys and values, which have a budget of their
//! own, and what the system's page cache holds, which is the system's business.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use futures::channel::oneshot;
use hypr_common::clock::Clock;
use hypr_common::model::{ModelSource, ModelTables};
use hypr_common::{Error, ErrorKind, Result};
use hypr_tensor::MappedFile;

use super::EngineOptions;
use super::sequence::Opened;
use crate::block_pool::{BlockPool, CacheIdentity, PrefixId};
use crate::encoder::Encoder;
use crate::model::Model;
use crate::paging::{self, slices};

/// What the service is asked about its models.
#[derive(Debug)]
pub(in crate::engine) enum ModelJob {
    /// Answers whether anything has changed.
    Load {
        model_id: String,
        pin: bool,
        reply: oneshot::Sender<Result<bool>>,
    },
    /// As `Load`.
    Unpin {
        model_id: String,
        reply: oneshot::Sender<Result<bool>>,
    },
    /// Answered when the copy's memory is free.
    Unload {
        model_id: String,
        reply: oneshot::Sender<Result<bool>>,
    },
    List(oneshot::Sender<Vec<Copy>>),
}

/// What the service says of a copy.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Copy {
    pub tables: Arc<ModelTables>,
    pub drains: bool,
    pub pinned: bool,
    pub bytes: usize,
    pub limit: Option<usize>,
    pub requests: usize,
    pub last_used_us: i64,
}

#[derive(Debug)]
struct Loaded {
    tables: Arc<ModelTables>,
    encoder: Encoder,
    root: PrefixId,
    /// Of memory, see [`Encoder::memory_bytes`].
    bytes: usize,
    /// What it may take of memory, where that is less.
    limit: Option<usize>,
    last_used_us: i64,
    /// Counts uses over all models.
    last_use: u64,
}

/// A copy that new requests do not find, and who waits for its end.
#[derive(Debug)]
struct Draining {
    copy: Loaded,
    waiting: Vec<oneshot::Sender<Result<bool>>>,
}

/// All copies of the engine.
pub(super) struct LoadedModels {
    source: Arc<dyn ModelSource>,
    pool: BlockPool,
    clock: Arc<dyn Clock>,
    max_positions: usize,
    /// Bytes; none where there is no limit.
    budget: Option<usize>,
    loaded: HashMap<String, Loaded>,
    /// Names of models, also of those whose newest weights could not be opened yet.
    pinned: HashSet<String>,
    draining: Vec<Draining>,
    /// Pairs of copies that have the same tokens.
    alike: HashSet<(PrefixId, PrefixId)>,
    uses: u64,
}

impl fmt::Debug for LoadedModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (loaded, draining) = (self.loaded.keys(), self.draining.len());
        f.debug_struct("LoadedModels").field("loaded", &loaded).field("draining", &draining).finish_non_exhaustive()
    }
}

impl Loaded {
    fn model_id(&self) -> &str {
        &self.tables.metadata.model_id
    }

    /// What it has of the budget.
    fn charge(&self) -> usize {
        self.limit.unwrap_or(self.bytes)
    }

    /// Requests that hold it: each has a reference beside the one here.
    fn requests(&self) -> usize {
        self.encoder.references() - 1
    }

    fn described(&self, pinned: bool, drains: bool) -> Copy {
        Copy {
            tables: Arc::clone(&self.tables),
            drains,
            pinned,
            bytes: self.bytes,
            limit: self.limit,
            requests: self.requests(),
            last_used_us: self.last_used_us,
        }
    }

    /// Why it stays in memory.
    fn hold(&self, pinned: bool) -> String {
        let why = match (pinned, self.requests()) {
            (true, _) => "pinned".to_owned(),
            (false, 0) => "idle".to_owned(),
            (false, n) => format!("answers {n}"),
        };
        format!("'{}' {} ({why})", self.model_id(), mib(self.charge()))
    }
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl LoadedModels {
    pub fn new(source: Arc<dyn ModelSource>, pool: BlockPool, options: &EngineOptions) -> Self {
        Self {
            source,
            pool,
            clock: Arc::clone(&options.clock),
            max_positions: options.max_context_tokens,
            budget: options.model_memory_bytes,
            loaded: HashMap::new(),
            pinned: HashSet::new(),
            draining: Vec::new(),
            alike: HashSet::new(),
            uses: 0,
        }
    }

    /// The newest version of a model that continues text or embeds it.
    pub fn model(&mut self, model_id: &str) -> Result<Opened> {
        let copy = self.copy(model_id)?;
        let root = copy.root;
        match &copy.encoder {
            Encoder::Text(model) | Encoder::Joint(model, _) => Ok(Opened { model: Arc::clone(model), root }),
            _ => Err(Error::invalid(format!("model '{model_id}' reads no text"))),
        }
    }

    /// The model of a request, and the one that guesses for it.
    pub fn pair(&mut self, model_id: &str, draft_id: Option<&str>) -> Result<(Opened, Option<Opened>)> {
        let Some(draft_id) = draft_id else { return Ok((self.model(model_id)?, None)) };
        let draft = self.model(draft_id)?;
        let opened = self.model(model_id)?;
        let pair = (opened.root, draft.root);
        if !self.alike.contains(&pair) {
            if !opened.model.has_tokens_of(&draft.model) {
                return Err(Error::invalid(format!(
                    "model '{draft_id}' cannot guess for '{model_id}': their tokenizers have different tokens; name a \
                     smaller model of the same family"
                )));
            }
            self.alike.insert(pair);
        }
        Ok((opened, Some(draft)))
    }

    /// What embeds with the newest version of a model.
    pub fn encoder(&mut self, model_id: &str) -> Result<Encoder> {
        Ok(self.copy(model_id)?.encoder.clone())
    }

    /// Answers a question about models.
    pub fn answer(&mut self, job: ModelJob) {
        // A caller that is gone needs no answer.
        match job {
            ModelJob::Load { model_id, pin, reply } => {
                let loaded = super::guarded(|| self.load(&model_id, pin));
                drop(reply.send(loaded));
            }
            ModelJob::Unpin { model_id, reply } => {
                drop(reply.send(Ok(self.pinned.remove(&model_id))));
            }
            ModelJob::Unload { model_id, reply } => self.unload(&model_id, reply),
            ModelJob::List(reply) => drop(reply.send(self.list())),
        }
    }

    /// Frees the copies that nobody uses any more, and says so to those who wait for it.
    pub fn sweep(&mut self) {
        let over = self.draining.extract_if(.., |draining| draining.copy.requests() == 0);
        let over: Vec<Draining> = over.collect();
        if over.is_empty() {
            return;
        }
        for Draining { copy, waiting } in over {
            tracing::info!(model_id = copy.model_id(), version = copy.tables.version, "model unloaded");
            drop(copy);
            waiting.into_iter().for_each(|reply| drop(reply.send(Ok(true))));
        }
        self.pool.trim();
    }

    fn list(&self) -> Vec<Copy> {
        let draining = self.draining.iter().map(|draining| draining.copy.described(false, true));
        self.loaded.values().map(|copy| copy.described(self.is_pinned(copy), false)).chain(draining).collect()
    }

    fn is_pinned(&self, copy: &Loaded) -> bool {
        self.pinned.contains(copy.model_id())
    }

    /// Whether a loaded copy may make room for another.
    fn is_idle(&self, copy: &Loaded) -> bool {
        !self.is_pinned(copy) && copy.requests() == 0
    }

    fn load(&mut self, model_id: &str, pin: bool) -> Result<bool> {
        let before = self.loaded.get(model_id).map(|copy| copy.root);
        let copy = self.copy(model_id)?;
        let is_new = before != Some(copy.root);
        if is_new && copy.limit.is_none() {
            prefetch(&copy.tables);
        }
        let newly_pinned = pin && self.pinned.insert(model_id.to_owned());
        Ok(is_new || newly_pinned)
    }

    fn unload(&mut self, model_id: &str, reply: oneshot::Sender<Result<bool>>) {
        self.pinned.remove(model_id);
        if let Some(copy) = self.loaded.remove(model_id) {
            self.pool.retire(model_id);
            self.source.release(model_id);
            self.draining.push(Draining { copy, waiting: vec![reply] });
            self.sweep();
        } else if let Some(draining) = self.draining.iter_mut().find(|draining| draining.copy.model_id() == model_id) {
            draining.waiting.push(reply);
        } else {
            drop(reply.send(Ok(false)));
        }
    }

    /// The copy of the newest version, opened where it is not there.
    fn copy(&mut self, model_id: &str) -> Result<&mut Loaded> {
        let tables = match self.source.open(model_id) {
            Ok(tables) => tables,
            Err(error) => {
                // A disk that fails for a moment says nothing about the copy that is there.
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupted) {
                    self.supersede(model_id);
                }
                return Err(error);
            }
        };
        if !self.loaded.get(model_id).is_some_and(|copy| Arc::ptr_eq(&copy.tables, &tables)) {
            self.supersede(model_id);
            let copy = self.open(model_id, tables)?;
            self.loaded.insert(model_id.to_owned(), copy);
        }
        self.uses += 1;
        let (use_, now_us) = (self.uses, self.clock.now_us());
        let copy = self.loaded.get_mut(model_id).ok_or_else(|| Error::internal("a model that was opened is gone"))?;
        (copy.last_use, copy.last_used_us) = (use_, now_us);
        Ok(copy)
    }

    /// Takes a copy whose weights are not the newest away from new requests. Its keys and values are of no use any more,
    /// also where a version's number came back.
    fn supersede(&mut self, model_id: &str) {
        self.pool.retire(model_id);
        if let Some(copy) = self.loaded.remove(model_id) {
            self.draining.push(Draining { copy, waiting: Vec::new() });
            self.sweep();
        }
    }

    fn open(&mut self, model_id: &str, tables: Arc<ModelTables>) -> Result<Loaded> {
        let version = tables.version;
        let limit = self.make_room(&tables).inspect_err(|_| self.source.release(model_id))?;
        let encoder = match Encoder::open(&tables, self.max_positions)? {
            Some(_) if limit.is_some() => {
                let budget = mib(self.budget.unwrap_or(0));
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    format!(
                        "model '{model_id}' is larger than `engine.model_memory_mb` ({budget}), and only models of text \
                         alone are computed layer by layer; raise it"
                    ),
                ));
            }
            Some(encoder) => encoder,
            None => Encoder::Text(Arc::new(Model::open_within(Arc::clone(&tables), self.max_positions, limit)?)),
        };
        let bytes = Encoder::memory_bytes(&tables);
        tracing::info!(model_id, version, bytes, limit, "model loaded");
        let identity = CacheIdentity { model: model_id.to_owned(), version, adapter_version: 0 };
        let root = self.pool.open(identity);
        // What is known of copies that are gone is of no use.
        self.alike.clear();
        Ok(Loaded { tables, encoder, root, bytes, limit, last_used_us: 0, last_use: 0 })
    }

    /// Unloads what is idle until there is room for a model; the bytes that it may take where that is less than it has.
    fn make_room(&mut self, tables: &Arc<ModelTables>) -> Result<Option<usize>> {
        let Some(budget) = self.budget else { return Ok(None) };
        let model_id = &tables.metadata.model_id;
        let bytes = Encoder::memory_bytes(tables);
        let draining = self.draining.iter().map(|draining| draining.copy.charge());
        let busy = self.loaded.values().filter(|copy| !self.is_idle(copy)).map(Loaded::charge);
        let held = draining.chain(busy).sum::<usize>();
        let needed = if bytes > budget { paging::least_bytes(tables) } else { bytes };
        if needed > budget {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "one layer of model '{model_id}' takes {}, and all models together may take {}; raise \
                     `engine.model_memory_mb`",
                    mib(needed),
                    mib(budget)
                ),
            ));
        }
        if held + needed > budget {
            return Err(self.full(model_id, needed, budget));
        }
        let wanted = if bytes > budget { budget } else { bytes };
        while self.loaded.values().map(Loaded::charge).sum::<usize>() + self.draining_bytes() + wanted > budget {
            let idle = self.loaded.values().filter(|copy| self.is_idle(copy)).min_by_key(|copy| copy.last_use);
            let Some(oldest) = idle.map(|copy| copy.model_id().to_owned()) else { break };
            self.evict(&oldest);
        }
        Ok((bytes > budget).then(|| budget - held))
    }

    fn draining_bytes(&self) -> usize {
        self.draining.iter().map(|draining| draining.copy.charge()).sum()
    }

    fn evict(&mut self, model_id: &str) {
        tracing::info!(model_id, "model unloaded: its memory is needed for another");
        self.loaded.remove(model_id);
        self.pool.retire(model_id);
        self.source.release(model_id);
    }

    /// `Busy` where waiting helps, `ResourceExhausted` where only pins are in the way.
    fn full(&self, model_id: &str, needed: usize, budget: usize) -> Error {
        let pinned = self.loaded.values().filter(|copy| self.is_pinned(copy)).map(Loaded::charge).sum::<usize>();
        let busy = self.loaded.values().filter(|copy| !self.is_idle(copy));
        let mut holds: Vec<String> = busy.map(|copy| copy.hold(self.is_pinned(copy))).collect();
        holds.extend(self.draining.iter().map(|draining| draining.copy.hold(false)));
        holds.sort();
        let message = format!(
            "there is no memory for model '{model_id}' ({}): of the {} of `engine.model_memory_mb` {} have it",
            mib(needed),
            mib(budget),
            holds.join(", ")
        );
        match pinned + needed > budget {
            true => Error::new(ErrorKind::ResourceExhausted, message + "; unpin or unload one, or raise it"),
            false => Error::new(ErrorKind::Busy, message + "; try again later, or raise it"),
        }
    }
}

/// Asks for all pages of a model's weights, so that its first request does not wait for each.
fn prefetch(tables: &ModelTables) {
    for (file, range) in tables.layers.iter().flat_map(slices).filter_map(MappedFile::of) {
        if let Err(error) = file.prefetch(range) {
            tracing::debug!(%error, "the weights of a model were not asked for");
        }
    }
}
