//! What the engine says to one request, and the cache of what it has said.
//!
//! [`AnswerCache`] is the engine's memory over all statements. An answer is found by the version of the weights that
//! gave it and by everything that was asked; texts are compared, no hash is trusted. Only what would be the same again is
//! kept: calls at temperature 0 or with a seed. Invariant: at most `budget_bytes` of answers and of what they are found
//! by, the longest unused dropped first. A budget of 0 keeps nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::{BoxFuture, Shared, WeakShared};
use hypr_common::Error;
use parking_lot::Mutex;

/// What the engine says to one request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Text(Arc<str>),
    Vector(Arc<[f32]>),
}

impl Answer {
    fn bytes(&self) -> usize {
        match self {
            Answer::Text(text) => text.len(),
            Answer::Vector(vector) => size_of_val(vector.as_ref()),
        }
    }
}

/// The engine's answer, or its error with the kind that the client sees.
pub(super) type Outcome = Result<Answer, Arc<Error>>;

/// An answer that several rows wait for.
pub(super) type Pending = Shared<BoxFuture<'static, Outcome>>;

type Flight = WeakShared<BoxFuture<'static, Outcome>>;

/// An answer that need not be asked for.
pub(super) enum Known {
    /// It is there.
    Kept(Answer),
    /// Somebody has asked for it; whoever waits for it drives the request.
    UnderWay(Pending),
}

/// What AI calls of all statements have cost, counted from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AiMetrics {
    /// Values asked of the engine.
    pub calls: u64,
    /// Rows that shared the answer of an equal call under way or of the same statement.
    pub deduplicated: u64,
    /// Rows whose answers were in the cache.
    pub cache_hits: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Tokens of prompts, with templates and context.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Answers in the cache (gauge).
    pub cached_answers: u64,
    /// Bytes of the cache (gauge).
    pub cached_bytes: u64,
}

/// The counters of [`AiMetrics`].
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub calls: AtomicU64,
    pub deduplicated: AtomicU64,
    pub cache_hits: AtomicU64,
    pub failed: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub completion_tokens: AtomicU64,
}

/// See the module documentation.
pub(crate) struct AnswerCache {
    budget_bytes: usize,
    kept: Mutex<Kept>,
    pub(super) totals: Totals,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    answers: HashMap<Arc<str>, Entry>,
    /// Keys by their last use, the oldest first.
    uses: BTreeMap<u64, Arc<str>>,
    last_use: u64,
    /// Requests that wait for nothing but the engine.
    flights: HashMap<Arc<str>, Flight>,
    /// How many of them there may be until those that ended are looked for.
    most_flights: usize,
}

struct Entry {
    answer: Answer,
    last_use: u64,
}

/// What an entry takes beside its key and its answer: two maps' places and the counters of shared pointers.
const ENTRY_BYTES: usize = 160;

impl fmt::Debug for AnswerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerCache").field("metrics", &self.metrics()).finish_non_exhaustive()
    }
}

impl AnswerCache {
    pub fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, kept: Mutex::default(), totals: Totals::default() }
    }

    /// Whether it keeps anything.
    pub fn is_on(&self) -> bool {
        self.budget_bytes > 0
    }

    /// A reading of the counters.
    pub fn metrics(&self) -> AiMetrics {
        let kept = self.kept.lock();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AiMetrics {
            calls: get(&self.totals.calls),
            deduplicated: get(&self.totals.deduplicated),
            cache_hits: get(&self.totals.cache_hits),
            failed: get(&self.totals.failed),
            prompt_tokens: get(&self.totals.prompt_tokens),
            completion_tokens: get(&self.totals.completion_tokens),
            cached_answers: kept.answers.len() as u64,
            cached_bytes: kept.bytes as u64,
        }
    }

    /// Whether there is an answer, or one under way.
    pub(super) fn has(&self, key: &str) -> bool {
        let kept = self.kept.lock();
        kept.answers.contains_key(key) || kept.under_way(key).is_some()
    }

    /// The answer under `key`, kept or under way.
    pub(super) fn get(&self, key: &str) -> Option<Known> {
        self.kept.lock().get(key)
    }

    /// The answer under `key` as [`AnswerCache::get`], or else the request that `start` makes, which others find from now
    /// on until it has its answer or nobody waits for it. It must wait for nothing but the engine.
    pub(super) fn get_or_start(&self, key: &Arc<str>, start: impl FnOnce() -> Pending) -> Result<Known, Pending> {
        let mut kept = self.kept.lock();
        if let Some(known) = kept.get(key) {
            return Ok(known);
        }
        let pending = start();
        if kept.flights.len() >= kept.most_flights {
            kept.flights.retain(|_, flight| flight.upgrade().is_some());
            kept.most_flights = (2 * kept.flights.len()).max(64);
        }
        kept.flights.extend(pending.downgrade().map(|flight| (Arc::clone(key), flight)));
        Err(pending)
    }

    /// Keeps an answer. One that would take more than an eighth of the budget is not kept.
    pub(super) fn put(&self, key: &Arc<str>, answer: &Answer) {
        let bytes = entry_bytes(key, answer);
        if bytes > self.budget_bytes / 8 {
            return;
        }
        let mut kept = self.kept.lock();
        let kept = &mut *kept;
        kept.flights.remove(key);
        if kept.answers.contains_key(key) {
            return;
        }
        kept.last_use += 1;
        kept.bytes += bytes;
        kept.uses.insert(kept.last_use, Arc::clone(key));
        kept.answers.insert(Arc::clone(key), Entry { answer: answer.clone(), last_use: kept.last_use });
        while kept.bytes > self.budget_bytes
            && let Some((_, oldest)) = kept.uses.pop_first()
        {
            if let Some(entry) = kept.answers.remove(&oldest) {
                kept.bytes -= entry_bytes(&oldest, &entry.answer);
            }
        }
    }
}

impl Kept {
    /// A request that somebody waits for. One that has failed is made anew, however long its rows are remembered.
    fn under_way(&self, key: &str) -> Option<Pending> {
        let pending = self.flights.get(key)?.upgrade()?;
        (!matches!(pending.peek(), Some(Err(_)))).then_some(pending)
    }

    fn get(&mut self, key: &str) -> Option<Known> {
        let Some(entry) = self.answers.get_mut(key) else {
            return self.under_way(key).map(Known::UnderWay);
        };
        let key = self.uses.remove(&entry.last_use)?;
        self.last_use += 1;
        entry.last_use = self.last_use;
        self.uses.insert(self.last_use, key);
        Some(Known::Kept(entry.answer.clone()))
    }
}

fn entry_bytes(key: &str, answer: &Answer) -> usize {
    key.len() + answer.bytes() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    fn text(cache: &AnswerCache, key: &str) -> Option<String> {
        cache.get(key).map(|known| match known {
            Known::Kept(Answer::Text(text)) => text.to_string(),
            _ => panic!("a text was kept"),
        })
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_budget_is_kept() {
        let of = |text: &str| Answer::Text(Arc::from(text));
        // Room for ten entries of a key and an answer of one byte each.
        let cache = AnswerCache::new(10 * (ENTRY_BYTES + 2));
        for n in 0..10 {
            cache.put(&key(&n.to_string()), &of(&n.to_string()));
        }
        assert_eq!(text(&cache, "0").as_deref(), Some("0"));
        cache.put(&key("a"), &of("x"));
        assert_eq!(
            (text(&cache, "0").as_deref(), text(&cache, "1"), text(&cache, "a").as_deref()),
            (Some("0"), None, Some("x"))
        );
        let metrics = cache.metrics();
        assert_eq!((metrics.cached_answers, metrics.cached_bytes), (10, 10 * (ENTRY_BYTES as u64 + 2)));
        cache.put(&key("b"), &of(&"x".repeat(ENTRY_BYTES * 2)));
        assert!(!cache.has("b"), "an answer of more than an eighth of the budget is not kept");
    }

    #[test]
    fn a_request_under_way_is_joined_for_as_long_as_somebody_waits() {
        use futures::FutureExt;
        let cache = AnswerCache::new(1 << 20);
        let request = || futures::future::pending::<Outcome>().boxed().shared();
        let first = cache.get_or_start(&key("a"), request).err();
        assert!(matches!(cache.get_or_start(&key("a"), request), Ok(Known::UnderWay(_))));
        assert!(first.is_some() && cache.has("a"));
        drop(first);
        assert!(!cache.has("a") && cache.get_or_start(&key("a"), request).is_err());
    }

    #[test]
    fn a_request_that_has_failed_is_joined_by_nobody() {
        use futures::FutureExt;
        let cache = AnswerCache::new(1 << 20);
        let request = || futures::future::ready(Outcome::Err(Arc::new(Error::internal("no luck")))).boxed().shared();
        let failed = cache.get_or_start(&key("a"), request).err().unwrap();
        assert!(failed.clone().now_or_never().unwrap().is_err());
        assert!(!cache.has("a") && cache.get_or_start(&key("a"), request).is_err());
    }
}
