//! Guesses: tokens that a sequence will probably choose, so that one pass of the network decides on several.
//!
//! Before a step's pass each sequence that decodes may guess what follows. The pass computes the guesses as if they were
//! a piece of a prompt, with logits after each; then the sampler chooses token by token from these logits, as it would
//! without guesses, as long as what it chooses is what was guessed (`Sequence::postprocess`). Keys and values of the
//! rest are forgotten.
//!
//! Invariant: guesses change when a token is computed and never which: a choice depends on logits, seed and place, and a
//! kernel's row does not depend on what it is batched with. So the answer is the same to the bit at any temperature,
//! which is more than the same distribution (Leviathan et al., arXiv:2211.17192). Guesses at a temperature are drawn with
//! the sampler's own noise, so that a draft model of about the same opinion mostly draws the same (`crate::sampler`).
//!
//! Deliberately absent: guesses where others wait for a place. A pass over many sequences is no longer bound by reading
//! the weights, so wrong guesses would cost what the others need; the caches of draft models give way first.

use std::sync::Arc;

use hypr_common::Result;
use hypr_tensor::{Kernels, KvShape};

use super::batch::{Batch, Member};
use super::metrics::{Counters, add};
use super::sequence::{Opened, Sequence};
use crate::api::Speculative;
use crate::block_pool::BlockPool;
use crate::kv_cache::{KvCache, KvPrecision};
use crate::sampler::Sampler;
use crate::transformer::{Chunk, Workspace};

/// How one sequence guesses.
#[derive(Debug)]
pub(super) struct Speculator {
    source: Source,
    /// The most tokens to guess at once.
    most: usize,
    /// How many are guessed next: two more after all were right, one less after one was wrong (the heuristic of
    /// Hugging Face's assisted generation).
    length: usize,
}

#[derive(Debug)]
enum Source {
    /// What followed the last tokens where they stood before.
    PromptLookup { max_ngram: usize },
    /// What a smaller model says; its cache holds a beginning of the sequence's tokens.
    Draft { opened: Opened, cache: KvCache },
}

impl Speculator {
    /// `draft` is the opened model of [`Speculative::Draft`].
    pub fn new(speculative: &Speculative, draft: Option<Opened>, pool: &BlockPool) -> Option<Self> {
        let (source, most) = match (speculative, draft) {
            (Speculative::PromptLookup { max_ngram, tokens }, _) => {
                (Source::PromptLookup { max_ngram: *max_ngram }, *tokens)
            }
            (Speculative::Draft { tokens, .. }, Some(opened)) => {
                let shape = opened.model.transformer().kv_shape(KvPrecision::F16);
                (Source::Draft { opened, cache: KvCache::new(pool.clone(), shape) }, *tokens)
            }
            (Speculative::Draft { .. }, None) => return None,
        };
        Some(Self { source, most, length: most })
    }

    /// How many to guess at most.
    pub fn length(&self) -> usize {
        self.length
    }

    /// What probably follows `tokens`, at most `most` tokens; nothing where a model drafts.
    pub fn look_up<'a>(&self, tokens: &'a [u32], most: usize) -> &'a [u32] {
        match self.source {
            Source::PromptLookup { max_ngram } => look_up(tokens, max_ngram, most),
            Source::Draft { .. } => &[],
        }
    }

    /// Takes note that of `guessed` tokens the first `right` were right, and that the sequence begins with `tokens` tokens
    /// that the guesses began with too.
    pub fn learn(&mut self, guessed: usize, right: usize, tokens: usize) {
        if guessed > 0 {
            let next = if right == guessed { self.length + 2 } else { self.length.saturating_sub(1) };
            self.length = next.clamp(1, self.most.max(1));
        }
        if let Source::Draft { cache, .. } = &mut self.source {
            cache.truncate(tokens);
        }
    }

    /// Gives a draft model's blocks back; `false` where there are none.
    pub fn release(&mut self) -> bool {
        match &mut self.source {
            Source::Draft { cache, .. } if cache.has_blocks() => {
                cache.clear();
                true
            }
            _ => false,
        }
    }
}

/// What followed the longest run of last tokens, at most `max_ngram`, where it stood last before; at most `most` tokens
/// ("prompt lookup decoding", Saxena 2023; `prompt_lookup_num_tokens` of `transformers`).
fn look_up(tokens: &[u32], max_ngram: usize, most: usize) -> &[u32] {
    for ngram in (1..=max_ngram.min(tokens.len().saturating_sub(1))).rev() {
        let last = &tokens[tokens.len() - ngram..];
        // Without the last token: something has to follow.
        let found = tokens[..tokens.len() - 1].windows(ngram).rposition(|window| window == last);
        if let Some(at) = found {
            let follows = &tokens[at + ngram..];
            return &follows[..follows.len().min(most)];
        }
    }
    &[]
}

/// Lets the members of a batch that decode guess, within what the step may still compute.
pub(super) fn guess(
    batch: &mut Batch,
    running: &mut [Sequence],
    (kernels, work): (&Kernels, &mut Workspace),
    (pool, counters): (&BlockPool, &Counters),
) -> Result<()> {
    let spare = running.len();
    let has_room = |shape, blocks| pool.has_room(shape, blocks + spare);
    draft(batch, running, (kernels, work), &has_room)?;
    for Member { at, tokens } in &mut batch.members {
        let sequence = &mut running[*at];
        if !sequence.decodes() {
            continue;
        }
        sequence.look_up();
        let guessed = sequence.keep_guesses(batch.room, has_room);
        batch.room -= guessed;
        *tokens += guessed;
        add(&counters.drafted_tokens, guessed);
    }
    Ok(())
}

/// The draft models' part: sequences with the same one share its passes.
fn draft(
    batch: &Batch,
    running: &mut [Sequence],
    (kernels, work): (&Kernels, &mut Workspace),
    has_room: &impl Fn(KvShape, usize) -> bool,
) -> Result<()> {
    // What a draft reads of a prompt is as much as the step's own prompts may be.
    let mut room = batch.room;
    let mut members = batch.members.iter().map(|member| member.at).peekable();
    let mut drafts: Vec<Draft<'_>> = Vec::new();
    for (at, sequence) in running.iter_mut().enumerate() {
        if members.next_if_eq(&at).is_none() || !sequence.decodes() {
            continue;
        }
        if let Some(mut draft) = Draft::of(sequence) {
            room -= draft.catch_up(room, has_room);
            drafts.push(draft);
        }
    }
    while let Some(first) = drafts.iter().find(|draft| draft.next > 0) {
        let model = Arc::clone(&first.opened.model);
        let mut group: Vec<&mut Draft<'_>> =
            drafts.iter_mut().filter(|draft| draft.next > 0 && Arc::ptr_eq(&draft.opened.model, &model)).collect();
        let mut chunks: Vec<Chunk<'_>> = group.iter_mut().map(|draft| draft.chunk()).collect();
        model.transformer().forward(kernels, &mut chunks, work)?;
        drop(chunks);
        let mut rows = work.logits_mut().chunks_exact_mut(model.config().vocab_size);
        for draft in group {
            let logits = if draft.left > 0 { rows.next() } else { None };
            draft.take(logits);
        }
    }
    Ok(())
}

/// What guessing needs of a sequence.
pub(super) struct Guessing<'a> {
    /// Of the sequence, with guesses at the end.
    pub tokens: &'a mut Vec<u32>,
    pub guessed: &'a mut usize,
    pub sampler: &'a mut Sampler,
    /// Of the model that answers.
    pub vocab_size: usize,
    /// Tokens that end an answer.
    pub ends: &'a [u32],
}

/// A sequence that asks its draft model.
struct Draft<'a> {
    opened: &'a Opened,
    cache: &'a mut KvCache,
    sequence: Guessing<'a>,
    /// Guesses still wanted.
    left: usize,
    /// Tokens of the draft's next pass, from the end of its cache on.
    next: usize,
}

impl<'a> Draft<'a> {
    fn of(sequence: &'a mut Sequence) -> Option<Self> {
        let limit = sequence.guess_limit();
        let (speculator, sequence) = sequence.guessing()?;
        let Source::Draft { opened, cache } = &mut speculator.source else { return None };
        let left = limit.min(opened.model.transformer().max_positions().saturating_sub(sequence.tokens.len()));
        (left > 0).then_some(Self { opened, cache, sequence, left, next: 0 })
    }

    /// Prepares the pass that reads what the draft has not seen, at most `room` tokens; returns how many. None where there
    /// is no memory for it.
    fn catch_up(&mut self, room: usize, has_room: &impl Fn(KvShape, usize) -> bool) -> usize {
        self.cache.adopt_prefix(self.opened.root, self.sequence.tokens);
        let pending = self.sequence.tokens.len() - self.cache.tokens();
        let wanted = pending + self.left;
        if !(has_room(self.cache.shape(), self.cache.missing_blocks(wanted)) && self.cache.reserve(wanted)) {
            self.cache.clear();
            return 0;
        }
        self.next = pending.min(room);
        if self.next < pending {
            // It reads in pieces, a step each, and has nothing to guess from before the end.
            self.left = 0;
        }
        self.next
    }

    fn chunk(&mut self) -> Chunk<'_> {
        let first = self.cache.tokens();
        let tokens = &self.sequence.tokens[first..first + self.next];
        Chunk { tokens, cache: Some(self.cache), logits: self.left > 0 }
    }

    /// Takes the logits of its pass: one more guess, and another pass after a guess that may not be the last.
    fn take(&mut self, logits: Option<&mut [f32]>) {
        let known = self.sequence.tokens.len() - *self.sequence.guessed;
        self.cache.publish(self.opened.root, &self.sequence.tokens[..known]);
        self.next = 0;
        let Some(logits) = logits else { return };
        let token = self.sequence.sampler.guess(logits, *self.sequence.guessed);
        if token as usize >= self.sequence.vocab_size {
            // Rows of its vocabulary that stand for no token.
            self.left = 0;
            return;
        }
        self.sequence.tokens.push(token);
        *self.sequence.guessed += 1;
        self.left = if self.sequence.ends.contains(&token) { 0 } else { self.left - 1 };
        self.next = self.left.min(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_that_stood_before_is_found_and_the_latest_of_them() {
        assert_eq!(look_up(&[1, 2, 3, 4, 9, 2, 3, 5, 7, 1, 2, 3], 3, 2), [4, 9]);
        assert_eq!(look_up(&[1, 2, 3, 4, 9, 2, 3, 5, 7, 1, 2, 3], 2, 10), [5, 7, 1, 2, 3]);
        assert_eq!(look_up(&[1, 2, 3], 3, 4), [0; 0]);
        assert_eq!(look_up(&[4, 4, 4], 2, 4), [4]);
        assert_eq!(look_up(&[4], 2, 4), [0; 0]);
        assert_eq!(look_up(&[], 2, 4), [0; 0]);
    }
}
