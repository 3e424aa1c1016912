//! One step's pass through the network, and what becomes of it.

use std::sync::Arc;

use hypr_common::Result;
use hypr_tensor::Kernels;

use super::fairness::READ;
use super::metrics::{Counters, add};
use super::sequence::Sequence;
use crate::transformer::{Chunk, Workspace};

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its place among the running sequences.
    pub at: usize,
    /// How many of its pending tokens, and then of its guesses, the step computes.
    pub tokens: usize,
}

/// What one step computes: sequences of one model, in the order of their places.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub members: Vec<Member>,
    /// Tokens that it may still take.
    pub room: usize,
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
    let rows: Vec<usize> = members.iter().map(|(sequence, n)| sequence.rows(*n)).collect();
    for (sequence, n) in &mut members {
        let (tokens, cache) = sequence.chunk(*n);
        chunks.push(Chunk { tokens, cache: Some(cache), logits: true });
    }
    model.transformer().forward_rows(kernels, &mut chunks, &rows, work)?;
    drop(chunks);
    add(&counters.steps, 1);
    add(&counters.computed_tokens, members.iter().map(|(_, n)| n).sum());
    let mut logits = work.logits_mut();
    for ((sequence, n), rows) in members.into_iter().zip(rows) {
        sequence.stream().charge(READ * n as u64);
        let own;
        (own, logits) = logits.split_at_mut(rows * model.config().vocab_size);
        if rows > 0
            && let Err(error) = sequence.postprocess(own, counters)
        {
            sequence.fail(error);
        }
        sequence.publish();
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
