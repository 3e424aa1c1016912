//! The callers' side of the engine.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};

use futures::channel::{mpsc as stream, oneshot};
use futures::future::{self, BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use hypr_common::model::{ModelMetadata, ModelSource, ModelTables};
use hypr_common::prefix::Prefix;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::loaded::{Copy, ModelJob};
use super::metrics::{Counters, EngineMetrics, add};
use super::{Command, EmbedJob, EngineOptions, GenerateJob, Reply, RootJob, Ticket};
use crate::api::{
    EmbedInput, EmbedRequest, GenerateRequest, Generation, Inference, InputKind, LoadedModel, Speculative, Task, Token,
};
use crate::block_pool::{BlockPool, CacheIdentity};
use crate::kv_table::{KvSequence, Root};
use crate::model;
use crate::paging::slices;
use crate::window::Window;

/// A cheap reference to the engine. The service ends when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Command>,
    waiting: Arc<AtomicUsize>,
    source: Arc<dyn ModelSource>,
    options: Arc<EngineOptions>,
    pool: BlockPool,
    counters: Arc<Counters>,
    /// By model, of the tables beside it.
    windows: Arc<Mutex<Windows>>,
}

/// The tables are the engine's to keep.
type Windows = HashMap<String, (Weak<ModelTables>, Arc<Window>)>;

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("waiting", &self.waiting).field("options", &self.options).finish()
    }
}

impl EngineHandle {
    pub(super) fn new(
        sender: mpsc::Sender<Command>,
        waiting: Arc<AtomicUsize>,
        source: Arc<dyn ModelSource>,
        options: EngineOptions,
        (pool, counters): (BlockPool, Arc<Counters>),
    ) -> Self {
        Self { sender, waiting, source, options: Arc::new(options), pool, counters, windows: Arc::default() }
    }

    /// What the engine has done and holds.
    pub fn metrics(&self) -> EngineMetrics {
        self.counters.read(self.pool.usage())
    }

    /// Lets what runs and waits come to its end and refuses what comes after, with `Unavailable`; then the service ends.
    pub fn drain(&self) {
        // As below.
        let _ = self.sender.send(Command::Drain);
    }

    /// Ends the service at its next step; running and waiting requests are answered `Unavailable`.
    pub fn shutdown(&self) {
        // A service that has ended needs no telling.
        let _ = self.sender.send(Command::Shutdown);
    }

    /// A place in the queue.
    fn ticket(&self) -> Result<Ticket> {
        let depth = self.options.queue_depth;
        let take = |waiting: usize| (waiting < depth).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Ok(Ticket(Arc::clone(&self.waiting))),
            Err(_) => {
                add(&self.counters.refused, 1);
                let full = format!("the inference queue is full with {depth} requests; try again later");
                Err(Error::new(ErrorKind::Busy, full))
            }
        }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.sender.send(command).map_err(|_| ended())
    }

    fn submit_generation(&self, request: GenerateRequest, reply: Reply) -> Result<()> {
        check(&request)?;
        let model_id = self.resolve(Task::Generate, request.model.as_deref())?.model_id;
        let draft_id = match &request.speculative {
            Some(Speculative::Draft { model, .. }) => Some(self.resolve(Task::Generate, Some(model))?.model_id),
            _ => None,
        };
        let ticket = self.ticket()?;
        self.send(Command::Generate(GenerateJob { ticket, model_id, draft_id, request, reply }))
    }

    /// Where the chains of a model begin, and the tokens of a request to it.
    async fn root(&self, model_id: String, request: Option<Box<GenerateRequest>>) -> Result<Root> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Root(RootJob { model_id, request, reply }))?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Asks the service something about a model that there is.
    fn ask<T: Send + 'static>(
        &self,
        model_id: &str,
        job: impl FnOnce(String, oneshot::Sender<Result<T>>) -> ModelJob,
    ) -> BoxFuture<'static, Result<T>> {
        let (reply, answer) = oneshot::channel();
        let sent =
            known(&*self.source, model_id).and_then(|()| self.send(Command::Model(job(model_id.to_owned(), reply))));
        match sent {
            Ok(()) => answer.map(|answer| answer.unwrap_or_else(|_| Err(ended()))).boxed(),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn submit_embedding(&self, request: EmbedRequest, reply: oneshot::Sender<Result<Vec<Vec<f32>>>>) -> Result<()> {
        let EmbedRequest { model, inputs, normalize } = request;
        let kind = inputs.first().map_or(InputKind::Text, EmbedInput::kind);
        if inputs.iter().any(|input| input.kind() != kind) {
            return Err(Error::invalid("a request embeds inputs of one kind; send texts, pictures and sounds apart"));
        }
        let model_id = kind.resolve(self, model.as_deref())?.1.model_id;
        let ticket = self.ticket()?;
        self.send(Command::Embed(EmbedJob { ticket, model_id, inputs, normalize, reply }))
    }
}

/// Refuses a model that there is not, naming those that there are.
fn known(source: &dyn ModelSource, model_id: &str) -> Result<()> {
    let models = source.models()?;
    if models.iter().any(|model| model.model_id == model_id) {
        return Ok(());
    }
    let names: Vec<&str> = models.iter().map(|model| model.model_id.as_str()).collect();
    let there =
        if names.is_empty() { "none is imported".to_owned() } else { format!("there are: {}", names.join(", ")) };
    Err(Error::not_found(format!("there is no model '{model_id}'; {there}")))
}

/// What callers see of a copy.
fn shown(copy: Copy) -> LoadedModel {
    let slices = copy.tables.layers.iter().flat_map(slices);
    LoadedModel {
        model_id: copy.tables.metadata.model_id.clone(),
        version: copy.tables.version,
        drains: copy.drains,
        pinned: copy.pinned,
        bytes: copy.bytes,
        limit_bytes: copy.limit,
        resident_bytes: hypr_tensor::resident_bytes(slices),
        requests: copy.requests,
        last_used_us: copy.last_used_us,
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Unavailable, "the inference engine has shut down")
}

/// Refuses sampling options without a meaning.
fn check(request: &GenerateRequest) -> Result<()> {
    let sampling = &request.sampling;
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return Err(Error::invalid(format!("temperature is {}; give 0 for greedy or more", sampling.temperature)));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(Error::invalid(format!("top_p is {}; give more than 0 and at most 1", sampling.top_p)));
    }
    if !(sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0) {
        return Err(Error::invalid(format!(
            "repetition_penalty is {}; give more than 0, and 1 for none",
            sampling.repetition_penalty
        )));
    }
    if let Some(top) = request.logprobs.filter(|&top| top > GenerateRequest::MAX_LOGPROBS) {
        let most = GenerateRequest::MAX_LOGPROBS;
        return Err(Error::invalid(format!("logprobs asks for {top} tokens; ask for at most {most}")));
    }
    if let Some((token, bias)) = request.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
        return Err(Error::invalid(format!(
            "logit_bias of token {token} is {bias}; give a number, or negative infinity to forbid it"
        )));
    }
    check_speculation(request)
}

/// Refuses guesses of nothing and of more than a step should take.
fn check_speculation(request: &GenerateRequest) -> Result<()> {
    let (max_ngram, tokens) = match &request.speculative {
        None => return Ok(()),
        Some(Speculative::PromptLookup { max_ngram, tokens }) => (*max_ngram, *tokens),
        Some(Speculative::Draft { tokens, .. }) => (1, *tokens),
    };
    let most = Speculative::MAX_TOKENS;
    for (name, value) in [("max_ngram", max_ngram), ("tokens", tokens)] {
        if !(1..=most).contains(&value) {
            return Err(Error::invalid(format!("speculative: {name} is {value}; give 1 to {most}")));
        }
    }
    Ok(())
}

impl Inference for EngineHandle {
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Generation>> {
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.submit_generation(request, Reply::Whole(reply)) {
            return future::ready(Err(error)).boxed();
        }
        answer.map(|answer| answer.unwrap_or_else(|_| Err(ended()))).boxed()
    }

    fn generate_stream(&self, request: GenerateRequest) -> BoxStream<'static, Result<Token>> {
        // Room for every token, so that a slow reader never stops the engine; nothing is reserved up front.
        let room = request.max_tokens.saturating_add(2).min(self.options.max_context_tokens + 2);
        let (reply, tokens) = stream::channel(room);
        match self.submit_generation(request, Reply::Stream(reply)) {
            Ok(()) => tokens.boxed(),
            Err(error) => futures::stream::once(future::ready(Err(error))).boxed(),
        }
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'static, Result<Vec<Vec<f32>>>> {
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.submit_embedding(request, reply) {
            return future::ready(Err(error)).boxed();
        }
        answer.map(|answer| answer.unwrap_or_else(|_| Err(ended()))).boxed()
    }

    fn resolve(&self, task: Task, name: Option<&str>) -> Result<ModelMetadata> {
        let default = match task {
            Task::Generate => self.options.default_generation_model.as_deref(),
            Task::Embed => self.options.default_embedding_model.as_deref(),
            Task::EmbedImage | Task::EmbedAudio => None,
        };
        // A list of all models takes a look at the directory of each.
        if let Some(name) = name.or(default)
            && let Ok(Some(found)) = self.source.model(name)
            && model::can(&found, task)
        {
            return Ok(found);
        }
        resolve(self.source.models()?, task, name, default)
    }

    fn identity(&self, task: Task, name: Option<&str>) -> Result<Option<CacheIdentity>> {
        let model = self.resolve(task, name)?.model_id;
        let version = self.source.open(&model)?.version;
        Ok(Some(CacheIdentity { model, version, adapter_version: 0 }))
    }

    fn sequences(&self) -> BoxFuture<'static, Result<Vec<KvSequence>>> {
        let (reply, answer) = oneshot::channel();
        match self.send(Command::Sequences(reply)) {
            Ok(()) => answer.map(|answer| answer.map_err(|_| ended())).boxed(),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn prefix(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Prefix>> {
        let engine = self.clone();
        async move {
            let model_id = engine.resolve(Task::Generate, request.model.as_deref())?.model_id;
            // One token, and all before it is computed and published.
            if let Some(token) = engine.generate_stream(request.clone()).next().await {
                token?;
            }
            let root = engine.root(model_id, Some(Box::new(request))).await?;
            root.prefix(&engine.pool)
        }
        .boxed()
    }

    fn restore_prefix(&self, prefix: Prefix) -> BoxFuture<'static, Result<usize>> {
        let engine = self.clone();
        async move {
            let model_id = engine.resolve(Task::Generate, Some(&prefix.origin.model_id))?.model_id;
            let root = engine.root(model_id, None).await?;
            root.restore(&prefix, &engine.pool)
        }
        .boxed()
    }

    fn load_model(&self, model_id: &str, pin: bool) -> BoxFuture<'static, Result<bool>> {
        self.ask(model_id, |model_id, reply| ModelJob::Load { model_id, pin, reply })
    }

    fn unpin_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        self.ask(model_id, |model_id, reply| ModelJob::Unpin { model_id, reply })
    }

    fn unload_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        self.ask(model_id, |model_id, reply| ModelJob::Unload { model_id, reply })
    }

    fn loaded_models(&self) -> BoxFuture<'static, Result<Vec<LoadedModel>>> {
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.send(Command::Model(ModelJob::List(reply))) {
            return future::ready(Err(error)).boxed();
        }
        let list = |copies: Vec<Copy>| {
            let mut models: Vec<LoadedModel> = copies.into_iter().map(shown).collect();
            models.sort_by(|a, b| (&a.model_id, a.drains, b.version).cmp(&(&b.model_id, b.drains, a.version)));
            models
        };
        answer.map(move |answer| answer.map(list).map_err(|_| ended())).boxed()
    }

    fn window(&self, name: Option<&str>) -> Result<Arc<Window>> {
        let model = self.resolve(Task::Generate, name)?.model_id;
        let tables = self.source.open(&model)?;
        if let Some((known, window)) = self.windows.lock().get(&model)
            && known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, &tables))
        {
            return Ok(Arc::clone(window));
        }
        let window = Arc::new(Window::open(&tables, self.options.max_context_tokens)?);
        let mut windows = self.windows.lock();
        windows.retain(|_, (tables, _)| tables.strong_count() > 0);
        windows.insert(model, (Arc::downgrade(&tables), Arc::clone(&window)));
        Ok(window)
    }
}

/// Chooses among `models`; see [`Inference::resolve`].
fn resolve(models: Vec<ModelMetadata>, task: Task, name: Option<&str>, default: Option<&str>) -> Result<ModelMetadata> {
    let list = |models: &[ModelMetadata]| {
        let names: Vec<&str> = models.iter().map(|model| model.model_id.as_str()).collect();
        if names.is_empty() { "none is imported".to_owned() } else { format!("there are: {}", names.join(", ")) }
    };
    if let Some(name) = name.or(default) {
        let able: Vec<ModelMetadata> = models.iter().filter(|model| model::can(model, task)).cloned().collect();
        let found = models.into_iter().find(|model| model.model_id == name);
        let found = found.ok_or_else(|| {
            Error::not_found(format!("there is no model '{name}'; of those that can {task} {}", list(&able)))
        })?;
        model::check_task(&found, task)
            .map_err(|error| Error::invalid(format!("{error}; of those that can {task} {}", list(&able))))?;
        return Ok(found);
    }
    let mut able: Vec<ModelMetadata> = models.into_iter().filter(|model| model::can(model, task)).collect();
    match able.len() {
        1 => Ok(able.remove(0)),
        0 => Err(Error::not_found(format!("no imported model can {task}; import one with `hyprstream model pull`"))),
        _ => Err(Error::invalid(format!("several models can {task}; name one or set a default ({})", list(&able)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, task: &str) -> ModelMetadata {
        ModelMetadata {
            model_id: id.into(),
            model_type: "llama".into(),
            total_parameters: 1,
            architecture_config: serde_json::json!({ "tasks": [task] }),
            vocab_size: 1,
            hidden_size: 1,
            num_attention_heads: 1,
            num_hidden_layers: 1,
        }
    }

    #[test]
    fn the_only_able_model_is_the_default_and_errors_list_the_candidates() {
        let models = || vec![model("a", "generate"), model("b", "embed"), model("c", "embed")];
        assert_eq!(resolve(models(), Task::Generate, None, None).unwrap().model_id, "a");
        assert_eq!(resolve(models(), Task::Embed, None, Some("c")).unwrap().model_id, "c");
        assert_eq!(resolve(models(), Task::Embed, Some("b"), Some("c")).unwrap().model_id, "b");
        let error = resolve(models(), Task::Embed, None, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("b, c"), "{error}");
        let error = resolve(models(), Task::Embed, Some("x"), None).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.message().contains("b, c"), "{error}");
        let error = resolve(models(), Task::Embed, Some("a"), None).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("cannot embed"), "{error}");
        assert_eq!(resolve(vec![], Task::Embed, None, None).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
