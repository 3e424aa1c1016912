//! One step's pass through the network, and what becomes of it.

use std::sync::Arc;

use hypr_common::Result;
use hypr_tensor::Kernels;

use super::fairness::{READ, WRITTEN};
use super::metrics::{Counters, add};
use super::sequence::Sequence;
use crate::transformer::{Chunk, Workspace};

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its place among the running sequences.
    pub at: usize,
    /// How many of its pending tokens the step computes.
    pub tokens: usize,
}

/// What one step computes: sequences of one model, in the order of their places.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub members: Vec<Member>,
}

/// Runs the pass and postprocesses it. An error of the whole pass is returned; one of a sequence goes to its caller.
pub(super) fn run(
    batch: &Batch,
    running: &mut [Sequence],
    kernels: &Kernels,
    work: &mut Workspace,
    counters: &Counters,
) -> Result<()> {
    let mut members = pick(&batch.members, running);
    let Some(model) = members.first().map(|(sequence, _)| Arc::clone(sequence.model())) else { return Ok(()) };
    let mut chunks: Vec<Chunk<'_>> = Vec::with_capacity(members.len());
    for (sequence, n) in &mut members {
        let logits = *n == sequence.pending();
        let (tokens, cache) = sequence.chunk(*n);
        chunks.push(Chunk { tokens, cache: Some(cache), logits });
    }
    model.transformer().forward(kernels, &mut chunks, work)?;
    drop(chunks);
    // Counted before anyone is answered, so that who has an answer finds it counted.
    let done = members.iter().filter(|(sequence, _)| sequence.pending() == 0).count();
    add(&counters.steps, 1);
    add(&counters.computed_tokens, members.iter().map(|(_, n)| n).sum());
    add(&counters.generated_tokens, done);
    let mut rows = work.logits_mut().chunks_exact_mut(model.config().vocab_size);
    for (sequence, n) in members {
        sequence.publish();
        sequence.stream().charge(READ * n as u64);
        if sequence.pending() > 0 {
            continue;
        }
        let Some(logits) = rows.next() else { continue };
        sequence.stream().charge(WRITTEN);
        if let Err(error) = sequence.postprocess(logits) {
            sequence.fail(error);
        }
    }
    Ok(())
}

/// The members' sequences with their numbers of tokens.
fn pick<'a>(members: &[Member], running: &'a mut [Sequence]) -> Vec<(&'a mut Sequence, usize)> {
    let mut picked = Vec::with_capacity(members.len());
    let mut members = members.iter().peekable();
    for (at, sequence) in running.iter_mut().enumerate() {
        if let Some(member) = members.next_if(|member| member.at == at) {
            picked.push((sequence, member.tokens));
        }
    }
    picked
}
