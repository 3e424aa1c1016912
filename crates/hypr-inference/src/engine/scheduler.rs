//! Decides what the next step computes: who runs, who waits, and who has to give way.
//!
//! Each step takes one token of every running sequence that decodes and fills the rest of its token budget with pieces
//! of prompts ("continuous batching", Yu et al., "Orca", OSDI 2022; "chunked prefill", Agrawal et al.,
//! arXiv:2308.16369). A sequence is admitted with blocks for all its tokens, so only decoding asks for more; where there
//! are none left, the least urgent sequence gives up its own and waits. It has lost nothing: its tokens are kept, and
//! its blocks may still be there when it comes back.
//!
//! Invariants: `running` is sorted, the most urgent first, and only the last gives way, so the first always gets on;
//! a sequence that could not fit the budget alone is never let in.

use std::collections::HashSet;
use std::sync::Arc;

use hypr_common::{Error, ErrorKind};
use hypr_tensor::KvBlock;

use super::batch::{Batch, Member};
use super::fairness::{Stream, Streams};
use super::metrics::{Counters, add, set};
use super::sequence::Sequence;
use super::{EngineOptions, GenerateJob};
use crate::block_pool::BlockPool;
use crate::model::Model;

/// All sequences of the engine.
#[derive(Debug)]
pub(super) struct Scheduler {
    max_sequences: usize,
    max_batched_tokens: usize,
    pool: BlockPool,
    streams: Streams,
    waiting: Vec<Sequence>,
    /// The most urgent first.
    pub running: Vec<Sequence>,
    arrivals: u64,
    turn: usize,
    counters: Arc<Counters>,
}

impl Scheduler {
    pub fn new(options: &EngineOptions, pool: BlockPool, counters: Arc<Counters>) -> Self {
        let max_sequences = options.max_sequences.max(1);
        Self {
            max_sequences,
            // So that prompts get on also where every sequence decodes.
            max_batched_tokens: options.max_batched_tokens.max(max_sequences + KvBlock::TOKENS),
            pool,
            streams: Streams::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            arrivals: 0,
            turn: 0,
            counters,
        }
    }

    /// The stream of a request and its number.
    pub fn arrive(&mut self, job: &GenerateJob) -> (Arc<Stream>, u64) {
        self.arrivals += 1;
        (self.streams.enter(&job.request.caller), self.arrivals)
    }

    /// Lets a sequence wait for its turn, or fails it where it could never run.
    pub fn enqueue(&mut self, mut sequence: Sequence) {
        if sequence.is_over() {
            let counters = &self.counters;
            return add(if sequence.is_abandoned() { &counters.cancelled } else { &counters.finished }, 1);
        }
        let budget = self.pool.usage().budget_bytes;
        let (needed, block_bytes) = (sequence.longest().div_ceil(KvBlock::TOKENS), sequence.shape().block_bytes());
        if needed.saturating_mul(block_bytes) <= budget {
            return self.waiting.push(sequence);
        }
        add(&self.counters.finished, 1);
        sequence.fail(Error::new(
            ErrorKind::ResourceExhausted,
            format!(
                "{} tokens of prompt and answer do not fit the key-value cache, which holds {} tokens of this model: ask \
                 for fewer, or raise `engine.kv_cache_mb`",
                sequence.longest(),
                budget / block_bytes * KvBlock::TOKENS
            ),
        ));
    }

    /// What is to run later.
    pub fn waiting(&self) -> &[Sequence] {
        &self.waiting
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Drops what is answered and what nobody waits for; their blocks are free at once.
    pub fn drop_over(&mut self) {
        for sequences in [&mut self.waiting, &mut self.running] {
            let before = sequences.len();
            let abandoned = sequences.iter().filter(|sequence| sequence.is_abandoned()).count();
            // One that is abandoned between the two lines is counted as finished, which it then nearly was.
            sequences.retain(|sequence| !sequence.is_over());
            add(&self.counters.cancelled, abandoned);
            add(&self.counters.finished, (before - sequences.len()).saturating_sub(abandoned));
        }
        set(&self.counters.running, self.running.len());
        set(&self.counters.waiting, self.waiting.len());
    }

    /// Ends everything with an error.
    pub fn fail_all(&mut self, error: impl Fn() -> Error) {
        self.waiting.iter_mut().chain(&mut self.running).for_each(|sequence| sequence.fail(error()));
        self.drop_over();
    }

    /// What the next step computes; empty where nothing runs.
    pub fn schedule(&mut self) -> Batch {
        self.admit();
        self.turn = self.turn.wrapping_add(1);
        let Some(first) = self.running.get(self.turn % self.running.len().max(1)) else { return Batch::default() };
        let model = Arc::clone(first.model());
        let mut members = Vec::with_capacity(self.running.len());
        self.schedule_decodes(&model, &mut members);
        self.schedule_prompts(&model, &mut members);
        members.sort_unstable_by_key(|member| member.at);
        let room = self.max_batched_tokens.saturating_sub(members.iter().map(|member| member.tokens).sum());
        Batch { members, room }
    }

    /// Whether requests wait, so that nothing should be computed on the chance that it is of use.
    pub fn is_crowded(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One token of every sequence of `model` that decodes. Blocks for what a grammar has forced are taken here too.
    fn schedule_decodes(&mut self, model: &Arc<Model>, members: &mut Vec<Member>) {
        let mut at = 0;
        while let Some(sequence) = self.running.get_mut(at) {
            if Arc::ptr_eq(sequence.model(), model) {
                let pending = sequence.pending();
                if !sequence.cache.reserve(pending) {
                    // Perhaps this one itself; the loop ends where it stood last.
                    self.make_room();
                    continue;
                }
                if pending == 1 {
                    members.push(Member { at, tokens: 1 });
                }
            }
            at += 1;
        }
    }

    /// Pieces of prompts up to the step's budget, the most urgent first, then whose stream has had least.
    fn schedule_prompts(&mut self, model: &Arc<Model>, members: &mut Vec<Member>) {
        let mut left = self.max_batched_tokens - members.len();
        let reads = |sequence: &Sequence| Arc::ptr_eq(sequence.model(), model) && !sequence.decodes();
        let mut order: Vec<usize> = (0..self.running.len()).filter(|&at| reads(&self.running[at])).collect();
        order.sort_by_key(|&at| {
            let (priority, arrival) = self.running[at].urgency();
            (priority, self.running[at].stream().served(), arrival)
        });
        let mut underway = HashSet::new();
        for at in order {
            if left == 0 {
                break;
            }
            let sequence = &mut self.running[at];
            // Another sequence may have computed it since this one was let in.
            add(&self.counters.prefix_hit_tokens, sequence.adopt_prefix());
            // Or does so in this step: then it is there for the next.
            if sequence.next_block().is_some_and(|block| !underway.insert(block)) {
                continue;
            }
            let tokens = piece(sequence.cache.tokens(), sequence.pending(), left);
            left -= tokens;
            members.push(Member { at, tokens });
        }
    }

    /// Lets waiting sequences run while there is room for them, or something less urgent to give way.
    fn admit(&mut self) {
        if self.is_crowded() {
            self.release_drafts();
        }
        while let Some(at) = self.next_waiting() {
            let room = self.running.len() < self.max_sequences && self.try_reserve(at);
            if room {
                let mut sequence = self.waiting.swap_remove(at);
                sequence.admitted();
                let place = self.running.partition_point(|other| other.urgency() < sequence.urgency());
                self.running.insert(place, sequence);
                continue;
            }
            let priority = self.waiting[at].urgency().0;
            if self.running.last().is_none_or(|last| last.urgency().0 <= priority) {
                break;
            }
            self.preempt_last();
        }
    }

    /// The sequence that should run next: by priority, then what has run before, then whose stream has had least, then
    /// by arrival.
    fn next_waiting(&self) -> Option<usize> {
        let order = |&at: &usize| {
            let sequence = &self.waiting[at];
            let (priority, arrival) = sequence.urgency();
            (priority, !sequence.is_resumed(), sequence.stream().served(), arrival)
        };
        (0..self.waiting.len()).min_by_key(order)
    }

    /// Takes blocks for all tokens of a waiting sequence, shared where it can, and leaves one for each running sequence
    /// to go on with.
    fn try_reserve(&mut self, at: usize) -> bool {
        let spare = self.running.len();
        let sequence = &mut self.waiting[at];
        let shared = sequence.adopt_prefix();
        let pending = sequence.pending();
        let needed = pending.div_ceil(KvBlock::TOKENS);
        if self.pool.has_room(sequence.shape(), needed + spare) && sequence.cache.reserve(pending) {
            add(&self.counters.prefix_hit_tokens, shared);
            return true;
        }
        // It must not hold on to blocks that it does not get to use.
        sequence.cache.clear();
        false
    }

    /// Takes the blocks of draft models, or else those of the least urgent sequence.
    fn make_room(&mut self) {
        if !self.release_drafts() {
            self.preempt_last();
        }
    }

    /// Takes the blocks of all draft models; `false` where they have none.
    fn release_drafts(&mut self) -> bool {
        let mut released = false;
        for sequence in &mut self.running {
            released |= sequence.release_draft();
        }
        released
    }

    /// Takes the blocks of the least urgent sequence and lets it wait.
    fn preempt_last(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            sequence.cache.clear();
            sequence.release_draft();
            add(&self.counters.preemptions, 1);
            self.waiting.push(sequence);
        }
    }
}

/// Tokens of the next piece of a prompt: at most `left`, and a piece that is not the last ends with a block where it
/// can, so that others can share it.
fn piece(seen: usize, pending: usize, left: usize) -> usize {
    if pending <= left {
        return pending;
    }
    let end = (seen + left) / KvBlock::TOKENS * KvBlock::TOKENS;
    if end > seen { end - seen } else { left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_a_block_unless_they_are_the_last_or_too_small() {
        assert_eq!(piece(0, 100, 512), 100);
        assert_eq!(piece(0, 1000, 512), 512);
        assert_eq!(piece(0, 1000, 100), 96);
        assert_eq!(piece(96, 904, 100), 96);
        assert_eq!(piece(5, 900, 100), 91);
        assert_eq!(piece(96, 904, 7), 7);
        assert_eq!(piece(103, 900, 9), 9);
    }
}
