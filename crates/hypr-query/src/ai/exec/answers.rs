//! Requests on their way and their answers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, StringBuilder};
use arrow_schema::{DataType, Field};
use datafusion::common::{Result, internal_err};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hypr_common::Error;
use hypr_inference::api::{EmbedRequest, GenerateRequest, Inference};

use super::CallMetrics;
use super::request::{Ask, Request};
use crate::ai::{AiOptions, patiently};

/// What the engine says to one request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Text(Arc<str>),
    Vector(Arc<[f32]>),
}

/// The engine's answer, or its error with the kind that the client sees.
pub(super) type Outcome = Result<Answer, Arc<Error>>;

/// An answer that several rows wait for.
pub(super) type Pending = Shared<BoxFuture<'static, Outcome>>;

/// The vectors of one request, which the rows of its texts wait for.
type PendingVectors = Shared<BoxFuture<'static, Result<Arc<Vec<Arc<[f32]>>>, Arc<Error>>>>;

/// Texts that one model embeds in the same way, each with the place of its request.
struct Texts {
    model: Option<String>,
    normalize: bool,
    inputs: Vec<(usize, String)>,
}

/// How requests reach the engine.
#[derive(Clone)]
pub(super) struct Caller {
    pub inference: Arc<dyn Inference>,
    pub options: Arc<AiOptions>,
    pub metrics: CallMetrics,
}

impl Caller {
    /// Answers to `requests`, which are of one call; texts to embed go together.
    pub fn start(&self, requests: Vec<Request>) -> Vec<Pending> {
        let mut texts: Vec<Texts> = Vec::new();
        let mut pending: Vec<Option<Pending>> = vec![None; requests.len()];
        for (at, request) in requests.into_iter().enumerate() {
            match request {
                Request::Generate(request) => pending[at] = Some(self.generate(request)),
                Request::Embed { model, normalize, text } => {
                    match texts.iter_mut().find(|same| same.model == model && same.normalize == normalize) {
                        Some(same) => same.inputs.push((at, text)),
                        None => texts.push(Texts { model, normalize, inputs: vec![(at, text)] }),
                    }
                }
            }
        }
        for Texts { model, normalize, inputs } in texts {
            for chunk in inputs.chunks(self.options.embed_batch.max(1)) {
                let inputs = chunk.iter().map(|(_, text)| text.clone().into()).collect();
                let vectors = self.embed(EmbedRequest { model: model.clone(), inputs, normalize });
                for (place, (at, _)) in chunk.iter().enumerate() {
                    let vectors = vectors.clone();
                    let one = async move { vectors.await.map(|vectors| Answer::Vector(Arc::clone(&vectors[place]))) };
                    pending[*at] = Some(one.boxed().shared());
                }
            }
        }
        pending.into_iter().flatten().collect()
    }

    fn generate(&self, request: GenerateRequest) -> Pending {
        let caller = self.clone();
        let answer = async move {
            caller.metrics.calls.add(1);
            let generation = caller.patiently(|| caller.inference.generate(request.clone())).await?;
            caller.metrics.prompt_tokens.add(generation.prompt_tokens);
            caller.metrics.completion_tokens.add(generation.completion_tokens);
            Ok(Answer::Text(generation.text.into()))
        };
        answer.boxed().shared()
    }

    fn embed(&self, request: EmbedRequest) -> PendingVectors {
        let caller = self.clone();
        let answer = async move {
            caller.metrics.calls.add(request.inputs.len());
            let vectors = caller.patiently(|| caller.inference.embed(request.clone())).await?;
            if vectors.len() != request.inputs.len() {
                return Err(Arc::new(Error::internal("the engine answered with another number of vectors than texts")));
            }
            Ok(Arc::new(vectors.into_iter().map(Arc::from).collect::<Vec<_>>()))
        };
        answer.boxed().shared()
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

/// The column of `field` that holds `answers`, one a row.
pub(super) fn column(field: &Field, answers: &[Option<Answer>]) -> Result<ArrayRef> {
    match field.data_type() {
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
        _ => {
            let mut texts = StringBuilder::new();
            for answer in answers {
                match answer {
                    Some(Answer::Text(text)) => texts.append_value(text),
                    None => texts.append_null(),
                    Some(Answer::Vector(_)) => return internal_err!("the engine answered with a vector for a text"),
                }
            }
            Ok(Arc::new(texts.finish()))
        }
    }
}
