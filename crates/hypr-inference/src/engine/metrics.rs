//! What the engine counts, for whoever watches it.
//!
//! The service writes, once a step; anyone reads. Rates are the reader's business: two readings and the time between.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block_pool::BlockUsage;

/// The counters and gauges behind [`EngineMetrics`]. Each stands alone: a reading is not of one instant.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub steps: AtomicU64,
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub refused: AtomicU64,
    pub cancelled: AtomicU64,
    pub finished: AtomicU64,
    pub preemptions: AtomicU64,
    pub computed_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub prefix_hit_tokens: AtomicU64,
    pub drafted_tokens: AtomicU64,
    pub accepted_tokens: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Sets a gauge.
pub(super) fn set(gauge: &AtomicU64, n: usize) {
    gauge.store(n as u64, Ordering::Relaxed);
}

/// A reading of the engine's counters, which start at 0 with it, and of its gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineMetrics {
    /// Steps of the service that computed something for a sequence.
    pub steps: u64,
    /// Sequences that have blocks and take part in steps (gauge).
    pub running: u64,
    /// Requests that wait for their first step or, preempted, for their next (gauge).
    pub waiting: u64,
    /// Requests that a full queue refused.
    pub refused: u64,
    /// Requests whose callers stopped waiting.
    pub cancelled: u64,
    /// Requests that got their answer, or an error.
    pub finished: u64,
    /// Times that a sequence lost its blocks to another.
    pub preemptions: u64,
    /// Tokens that went through the network: prompts, answers, and what was computed again after a preemption.
    pub computed_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Tokens that did not have to go through the network because another sequence began alike.
    pub prefix_hit_tokens: u64,
    /// Tokens that were guessed before they were computed.
    pub drafted_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
    /// The key-value cache (gauges).
    pub kv: BlockUsage,
}

impl Counters {
    /// A reading.
    pub fn read(&self, kv: BlockUsage) -> EngineMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineMetrics {
            steps: get(&self.steps),
            running: get(&self.running),
            waiting: get(&self.waiting),
            refused: get(&self.refused),
            cancelled: get(&self.cancelled),
            finished: get(&self.finished),
            preemptions: get(&self.preemptions),
            computed_tokens: get(&self.computed_tokens),
            generated_tokens: get(&self.generated_tokens),
            prefix_hit_tokens: get(&self.prefix_hit_tokens),
            drafted_tokens: get(&self.drafted_tokens),
            accepted_tokens: get(&self.accepted_tokens),
            kv,
        }
    }
}
