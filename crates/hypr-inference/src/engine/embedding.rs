//! Embedding requests: texts of several requests share a pass, grouped by length and packed without padding.

use std::sync::Arc;

use futures::channel::oneshot;
use hypr_common::{Error, Result};
use hypr_tensor::Kernels;

use super::{EmbedJob, guarded};
use crate::model::Model;
use crate::transformer::Workspace;

/// Tokens in one pass: enough for full speed, few enough that running sequences do not stall.
const PASS_TOKENS: usize = 1024;

/// One request whose texts are being embedded.
#[derive(Debug)]
pub(super) struct Embedding {
    model: Arc<Model>,
    normalize: bool,
    /// Tokens of each text.
    inputs: Vec<Vec<u32>>,
    /// The texts still to do, shortest last, so that a pass holds texts of like length.
    order: Vec<usize>,
    vectors: Vec<Vec<f32>>,
    reply: Option<oneshot::Sender<Result<Vec<Vec<f32>>>>>,
}

impl Embedding {
    /// Tokenizes the texts of a request. A request that fails has its answer then, and is over.
    pub fn start(job: EmbedJob, model: Arc<Model>) -> Self {
        let EmbedJob { ticket, inputs: texts, normalize, reply, .. } = job;
        drop(ticket);
        let inputs: Result<Vec<Vec<u32>>> = guarded(|| texts.iter().map(|text| model.encode_input(text)).collect());
        let (inputs, error) = match inputs {
            Ok(inputs) => (inputs, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(inputs[at].len()));
        let vectors = vec![Vec::new(); inputs.len()];
        let mut embedding = Self { model, normalize, inputs, order, vectors, reply: Some(reply) };
        match error {
            Some(error) => embedding.fail(error),
            None => embedding.answer_if_done(),
        }
        embedding
    }

    /// Whether it has been answered or nobody waits.
    pub fn is_over(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_canceled)
    }

    /// Ends it with an error.
    pub fn fail(&mut self, error: Error) {
        if let Some(reply) = self.reply.take() {
            // A caller that is gone needs no answer.
            let _ = reply.send(Err(error));
        }
    }

    fn answer_if_done(&mut self) {
        if self.order.is_empty()
            && let Some(reply) = self.reply.take()
        {
            // As above.
            let _ = reply.send(Ok(std::mem::take(&mut self.vectors)));
        }
    }
}

/// The texts of one pass: request and text, requests in order of arrival.
pub(super) fn schedule(running: &mut [Embedding]) -> Vec<(usize, usize)> {
    let Some(first) = running.first() else { return Vec::new() };
    let (model, normalize) = (Arc::clone(&first.model), first.normalize);
    let mut members = Vec::new();
    let mut left = PASS_TOKENS;
    for (request, embedding) in running.iter_mut().enumerate() {
        if !Arc::ptr_eq(&embedding.model, &model) || embedding.normalize != normalize {
            continue;
        }
        while let Some(&text) = embedding.order.last() {
            let tokens = embedding.inputs[text].len();
            // A text longer than a pass gets one of its own.
            if tokens > left && !members.is_empty() {
                return members;
            }
            left = left.saturating_sub(tokens);
            members.push((request, text));
            embedding.order.pop();
        }
    }
    members
}

/// Runs a pass and answers the requests that it completes.
pub(super) fn run(
    members: &[(usize, usize)],
    running: &mut [Embedding],
    kernels: &Kernels,
    work: &mut Workspace,
) -> Result<()> {
    let Some(&(first, _)) = members.first() else { return Ok(()) };
    let model = Arc::clone(&running[first].model);
    let inputs: Vec<&[u32]> = members.iter().map(|&(request, text)| running[request].inputs[text].as_slice()).collect();
    let vectors = model.embed(kernels, &inputs, running[first].normalize, work)?;
    for (&(request, text), vector) in members.iter().zip(vectors) {
        running[request].vectors[text] = vector;
    }
    for &(request, _) in members {
        running[request].answer_if_done();
    }
    Ok(())
}
