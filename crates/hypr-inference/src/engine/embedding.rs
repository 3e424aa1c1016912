//! Embedding requests: inputs of several requests share a pass; texts are grouped by length and packed without padding.

use futures::channel::oneshot;
use hypr_common::{Error, Result};
use hypr_tensor::Kernels;

use super::{EmbedJob, guarded};
use crate::encoder::{Encoder, Prepared};
use crate::input::{EmbedInput, InputKind};
use crate::transformer::Workspace;

/// Tokens in one pass: enough for full speed, few enough that running sequences do not stall.
const PASS_TOKENS: usize = 1024;

/// One request whose inputs are being embedded.
#[derive(Debug)]
pub(super) struct Embedding {
    encoder: Encoder,
    normalize: bool,
    kind: InputKind,
    inputs: Vec<Prepared>,
    /// What each takes of a pass.
    costs: Vec<usize>,
    /// The inputs still to do, the least last, so that a pass holds texts of like length.
    order: Vec<usize>,
    vectors: Vec<Vec<f32>>,
    reply: Option<oneshot::Sender<Result<Vec<Vec<f32>>>>>,
}

impl Embedding {
    /// Makes the inputs of a request ready for `threads` threads. A request that fails has its answer then, and is over.
    pub fn start(job: EmbedJob, encoder: Encoder, threads: usize) -> Self {
        let EmbedJob { ticket, inputs: given, normalize, reply, .. } = job;
        drop(ticket);
        let kind = given.first().map_or(InputKind::Text, EmbedInput::kind);
        let inputs: Result<Vec<Prepared>> = guarded(|| given.iter().map(|input| encoder.prepare(input)).collect());
        let (inputs, error) = match inputs {
            Ok(inputs) => (inputs, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        let costs: Vec<usize> = inputs.iter().map(|input| encoder.cost(input, PASS_TOKENS, threads)).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(costs[at]));
        let vectors = vec![Vec::new(); inputs.len()];
        let mut embedding = Self { encoder, normalize, kind, inputs, costs, order, vectors, reply: Some(reply) };
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

/// The inputs of one pass: request and input, requests in order of arrival.
pub(super) fn schedule(running: &mut [Embedding]) -> Vec<(usize, usize)> {
    let Some(first) = running.first() else { return Vec::new() };
    let (encoder, normalize, kind) = (first.encoder.clone(), first.normalize, first.kind);
    let mut members = Vec::new();
    let mut left = PASS_TOKENS;
    for (request, embedding) in running.iter_mut().enumerate() {
        if !embedding.encoder.is_same(&encoder) || embedding.normalize != normalize || embedding.kind != kind {
            continue;
        }
        while let Some(&input) = embedding.order.last() {
            let cost = embedding.costs[input];
            // What is more than a pass gets one of its own.
            if cost > left && !members.is_empty() {
                return members;
            }
            left = left.saturating_sub(cost);
            members.push((request, input));
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
    let encoder = running[first].encoder.clone();
    let inputs: Vec<&Prepared> = members.iter().map(|&(request, input)| &running[request].inputs[input]).collect();
    let vectors = encoder.embed(kernels, &inputs, running[first].normalize, work)?;
    for (&(request, input), vector) in members.iter().zip(vectors) {
        match vector {
            Ok(vector) => running[request].vectors[input] = vector,
            // Others of the pass have nothing to do with it.
            Err(error) => running[request].fail(error),
        }
    }
    for &(request, _) in members {
        running[request].answer_if_done();
    }
    Ok(())
}
