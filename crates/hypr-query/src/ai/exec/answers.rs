//! Requests on their way and their answers.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::{BooleanBuilder, FixedSizeListBuilder, Float32Builder, StringBuilder};
use arrow_array::{ArrayRef, StructArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};
use datafusion::common::{Result, internal_err};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hypr_common::{Error, ErrorKind};
use hypr_inference::api::{EmbedInput, EmbedRequest, GenerateRequest, Inference, InputKind};
use tokio::sync::Semaphore;

use super::CallMetrics;
use super::reduce;
use super::request::{Ask, Embed, Kept, Request, TRUE};
use crate::ai::answer::{Answer, AnswerCache, Known, Outcome, Pending};
use crate::ai::{AiOptions, patiently};

/// The vectors of one request, which the rows of its texts wait for.
type PendingVectors = Shared<BoxFuture<'static, Result<Arc<Vec<Arc<[f32]>>>, Arc<Error>>>>;

/// How requests reach the engine.
#[derive(Clone)]
pub(super) struct Caller {
    pub inference: Arc<dyn Inference>,
    pub options: Arc<AiOptions>,
    pub metrics: CallMetrics,
    /// Answers of other statements; none where the session wants none.
    pub cache: Option<Arc<AnswerCache>>,
    /// One for each generation that runs.
    pub permits: Arc<Semaphore>,
}

/// What is to be embedded, with its place among the calls.
type Input<'a> = (usize, &'a Ask, &'a EmbedInput);

impl Caller {
    /// Answers to `asks`, which are of one call; inputs to embed go together.
    pub fn start(&self, asks: &[&Ask]) -> Vec<Pending> {
        let mut inputs: Vec<(&Embed, Vec<Input>)> = Vec::new();
        let mut pending: Vec<Option<Pending>> = vec![None; asks.len()];
        for (at, ask) in asks.iter().enumerate() {
            pending[at] = match (self.known(ask), &ask.request) {
                (Some(known), _) => Some(known),
                (None, Request::Generate(request)) => {
                    Some(self.counted(self.generation(request.clone(), ask.kept.clone(), ask.timeout)))
                }
                (None, Request::Aggregate(job)) => {
                    let (caller, job, timeout) = (self.clone(), job.clone(), ask.timeout);
                    Some(self.counted(async move { in_time(timeout, reduce::aggregate(&caller, job)).await }))
                }
                (None, Request::Embed { how, input }) => {
                    match inputs.iter_mut().find(|(same, _)| *same == how) {
                        Some((_, inputs)) => inputs.push((at, ask, input)),
                        None => inputs.push((how, vec![(at, ask, input)])),
                    }
                    None
                }
            };
        }
        for (how, inputs) in inputs {
            for chunk in inputs.chunks(self.options.embed_batch.max(1)) {
                for ((at, ..), vector) in chunk.iter().zip(self.embeddings(how, chunk)) {
                    pending[*at] = Some(vector);
                }
            }
        }
        pending.into_iter().flatten().collect()
    }

    /// The vectors of one request, each for itself.
    fn embeddings(&self, how: &Embed, chunk: &[Input<'_>]) -> Vec<Pending> {
        let inputs = chunk.iter().map(|(_, _, input)| (*input).clone()).collect();
        let kept = chunk.iter().map(|(_, ask, _)| ask.kept.clone()).collect();
        let vectors = self.embed(how, inputs, kept);
        let each = chunk.iter().enumerate().map(|(place, (_, ask, input))| {
            let vectors = vectors.clone();
            // A file that cannot be read is no reason to fail those beside it: each is asked for alone then.
            let alone = (how.kind == InputKind::Binary && chunk.len() > 1)
                .then(|| self.embed(how, vec![(*input).clone()], vec![ask.kept.clone()]));
            let one = async move {
                let vector = match (vectors.await, alone) {
                    (Err(error), Some(alone)) if error.kind() == ErrorKind::InvalidInput => {
                        alone.await.map(|vectors| Arc::clone(&vectors[0]))
                    }
                    (vectors, _) => vectors.map(|vectors| Arc::clone(&vectors[place])),
                };
                vector.map(Answer::Vector)
            };
            let one = one.boxed().shared();
            if let (Some(cache), Some(kept)) = (&self.cache, &ask.kept) {
                // What another has started since this was looked for is asked twice; that is no fault.
                let _ = cache.get_or_start(&kept.key, || one.clone());
            }
            // Who shares the vector has a time limit of its own, or none.
            self.counted(in_time(ask.timeout, one))
        });
        each.collect()
    }

    /// The answer that another call has had, or waits for.
    fn known(&self, ask: &Ask) -> Option<Pending> {
        let (cache, kept) = (self.cache.as_ref()?, ask.kept.as_ref()?);
        Some(match cache.get(&kept.key)? {
            Known::Kept(answer) => {
                self.metrics.cache_hits(1);
                futures::future::ready(Ok(answer)).boxed().shared()
            }
            Known::UnderWay(pending) => {
                self.metrics.deduplicated(1);
                self.counted(in_time(ask.timeout, pending))
            }
        })
    }

    /// An answer whose failure is counted.
    fn counted(&self, answer: impl Future<Output = Outcome> + Send + 'static) -> Pending {
        let metrics = self.metrics.clone();
        answer.inspect(move |outcome| metrics.failed(usize::from(outcome.is_err()))).boxed().shared()
    }

    /// Generates once there is a permit, where no other call has the answer by then; it is kept where `kept` says so.
    pub fn generation(
        &self,
        request: GenerateRequest,
        kept: Option<Kept>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let caller = self.clone();
        async move {
            let _permit =
                caller.permits.acquire().await.map_err(|_| Arc::new(Error::internal("no permits are given")))?;
            let asked = || caller.clone().ask(request, kept.clone()).boxed().shared();
            let answer = match (&caller.cache, &kept) {
                (Some(cache), Some(kept)) => match cache.get_or_start(&kept.key, asked) {
                    Ok(Known::Kept(answer)) => {
                        caller.metrics.cache_hits(1);
                        return Ok(answer);
                    }
                    Ok(Known::UnderWay(pending)) => {
                        caller.metrics.deduplicated(1);
                        pending
                    }
                    Err(own) => own,
                },
                _ => asked(),
            };
            in_time(timeout, answer).await
        }
    }

    async fn ask(self, request: GenerateRequest, kept: Option<Kept>) -> Outcome {
        self.metrics.calls(1);
        let generation = self.patiently(|| self.inference.generate(request.clone())).await?;
        self.metrics.tokens(generation.prompt_tokens, generation.completion_tokens);
        let answer = Answer::Text(generation.text.into());
        if let (Some(cache), Some(kept)) = (&self.cache, &kept)
            && kept.identity.version == generation.model_version
        {
            cache.put(&kept.key, &answer);
        }
        Ok(answer)
    }

    fn embed(&self, how: &Embed, inputs: Vec<EmbedInput>, kept: Vec<Option<Kept>>) -> PendingVectors {
        let caller = self.clone();
        let kind = how.kind;
        let request = EmbedRequest { model: how.model.clone(), inputs, normalize: how.normalize };
        let answer = async move {
            caller.metrics.calls(request.inputs.len());
            let vectors = caller.patiently(|| caller.inference.embed(request.clone())).await?;
            if vectors.len() != request.inputs.len() {
                return Err(Arc::new(Error::internal("the engine answered with another number of vectors than texts")));
            }
            let vectors: Vec<Arc<[f32]>> = vectors.into_iter().map(Arc::from).collect();
            caller.keep(kind, request.model.as_deref(), &kept, &vectors);
            Ok(Arc::new(vectors))
        };
        answer.boxed().shared()
    }

    /// Keeps vectors, where the model that was to make them is still the one that makes them.
    fn keep(&self, kind: InputKind, model: Option<&str>, kept: &[Option<Kept>], vectors: &[Arc<[f32]>]) {
        let Some(cache) = self.cache.as_ref().filter(|_| kept.iter().any(Option::is_some)) else { return };
        let Ok((task, _)) = kind.resolve(self.inference.as_ref(), model) else { return };
        let Ok(Some(now)) = self.inference.identity(task, model) else { return };
        for (kept, vector) in kept.iter().zip(vectors) {
            if let Some(kept) = kept.as_ref().filter(|kept| kept.identity == now) {
                cache.put(&kept.key, &Answer::Vector(Arc::clone(vector)));
            }
        }
    }

    /// Offers a request again while the engine's queue is full.
    async fn patiently<T>(
        &self,
        offer: impl Fn() -> BoxFuture<'static, hypr_common::Result<T>>,
    ) -> Result<T, Arc<Error>> {
        let retried = || self.metrics.busy_retries.add(1);
        patiently(self.options.busy_timeout, offer, retried).await.map_err(Arc::new)
    }
}

/// `answer`, or an error when it takes longer than `timeout`; it is stopped then.
async fn in_time<T>(
    timeout: Option<Duration>,
    answer: impl Future<Output = Result<T, Arc<Error>>>,
) -> Result<T, Arc<Error>> {
    let Some(timeout) = timeout else { return answer.await };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s, as timeout_s says", timeout.as_secs_f32());
        Err(Arc::new(Error::new(ErrorKind::Cancelled, message)))
    })
}

/// Answers by key, the oldest forgotten first.
pub(super) struct Cache {
    capacity: usize,
    answers: HashMap<Arc<str>, Pending>,
    age: VecDeque<Arc<str>>,
}

impl Cache {
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), answers: HashMap::new(), age: VecDeque::new() }
    }

    /// The answer to an equal request.
    pub fn get(&self, ask: &Ask) -> Option<Pending> {
        self.answers.get(ask.key.as_ref()?).cloned()
    }

    /// Remembers where the answer to `ask` will be.
    pub fn put(&mut self, ask: &Ask, answer: &Pending) {
        let Some(key) = &ask.key else {
            return;
        };
        if self.answers.insert(Arc::clone(key), answer.clone()).is_none() {
            self.age.push_back(Arc::clone(key));
        }
        while self.age.len() > self.capacity {
            if let Some(oldest) = self.age.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }
}

/// The answer of one row: none where nothing was asked; an error where the call keeps errors.
pub(super) type RowAnswer = Option<Outcome>;

/// The column of `field` that holds `answers`, one a row.
pub(super) fn column(field: &Field, answers: &[RowAnswer]) -> Result<ArrayRef> {
    let DataType::Struct(parts) = field.data_type() else {
        let values: Vec<_> = answers.iter().map(value).collect();
        return values_of(field.data_type(), &values);
    };
    let [value_field, _] = parts.as_ref() else {
        return internal_err!("the answer of a call with errors has two parts");
    };
    let values: Vec<_> = answers.iter().map(value).collect();
    let mut errors = StringBuilder::new();
    for answer in answers {
        errors.append_option(answer.as_ref().and_then(|answer| answer.as_ref().err()).map(|error| error.message()));
    }
    let present: NullBuffer = answers.iter().map(Option::is_some).collect();
    let columns = vec![values_of(value_field.data_type(), &values)?, Arc::new(errors.finish()) as ArrayRef];
    Ok(Arc::new(StructArray::try_new(parts.clone(), columns, Some(present))?))
}

fn value(answer: &RowAnswer) -> Option<&Answer> {
    answer.as_ref()?.as_ref().ok()
}

fn values_of(data_type: &DataType, answers: &[Option<&Answer>]) -> Result<ArrayRef> {
    match data_type {
        DataType::FixedSizeList(item, width) => {
            let mut vectors = FixedSizeListBuilder::with_capacity(Float32Builder::new(), *width, answers.len())
                .with_field(Arc::clone(item));
            for answer in answers {
                match answer {
                    Some(Answer::Vector(vector)) if vector.len() == *width as usize => {
                        vectors.values().append_slice(vector);
                        vectors.append(true);
                    }
                    None => {
                        vectors.values().append_nulls(*width as usize);
                        vectors.append(false);
                    }
                    Some(_) => return internal_err!("the engine answered with a vector of another width than {width}"),
                }
            }
            Ok(Arc::new(vectors.finish()))
        }
        DataType::Boolean => {
            let mut truths = BooleanBuilder::with_capacity(answers.len());
            for text in texts(answers) {
                truths.append_option(text?.map(|text| text == TRUE));
            }
            Ok(Arc::new(truths.finish()))
        }
        _ => {
            let mut column = StringBuilder::new();
            for text in texts(answers) {
                column.append_option(text?);
            }
            Ok(Arc::new(column.finish()))
        }
    }
}

fn texts<'a>(answers: &'a [Option<&'a Answer>]) -> impl Iterator<Item = Result<Option<&'a str>>> {
    answers.iter().map(|answer| match answer {
        Some(Answer::Text(text)) => Ok(Some(text.as_ref())),
        None => Ok(None),
        Some(Answer::Vector(_)) => internal_err!("the engine answered with a vector for a text"),
    })
}
