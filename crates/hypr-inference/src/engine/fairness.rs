//! Who is next: turns among those who ask, by how much they have been served.
//!
//! Each stream (a caller, as the requests name it: a query, a session) has a counter of the tokens computed for it, and the one with
//! the smallest goes first. A stream that was idle starts at the smallest counter of those that are not, so idling
//! saves nothing up. Source: the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models",
//! OSDI 2024, with its costs: 1 for a token read, 2 for one written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Cost of a token of a prompt.
pub(super) const READ: u64 = 1;
/// Cost of a token of an answer.
pub(super) const WRITTEN: u64 = 2;

/// What one stream has been served. A stream is active while a request holds it.
#[derive(Debug, Default)]
pub(super) struct Stream(AtomicU64);

impl Stream {
    /// The counter.
    pub fn served(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to the counter.
    pub fn charge(&self, cost: u64) {
        self.0.fetch_add(cost, Ordering::Relaxed);
    }
}

/// The streams that are active, and those that still have to wait for others to catch up.
#[derive(Debug, Default)]
pub(super) struct Streams(HashMap<String, Arc<Stream>>);

impl Streams {
    /// The stream called `name`, active from now on.
    pub fn enter(&mut self, name: &str) -> Arc<Stream> {
        let active = |stream: &Arc<Stream>| Arc::strong_count(stream) > 1;
        if let Some(stream) = self.0.get(name).filter(|stream| active(stream)) {
            return Arc::clone(stream);
        }
        let least = self.0.values().filter(|stream| active(stream)).map(|stream| stream.served()).min();
        match least {
            // Whoever is idle and has had less than the others would start at `least` too.
            Some(least) => self.0.retain(|_, stream| active(stream) || stream.served() > least),
            None => self.0.clear(),
        }
        let stream = self.0.entry(name.to_owned()).or_default();
        if stream.served() < least.unwrap_or(0) {
            stream.0.store(least.unwrap_or(0), Ordering::Relaxed);
        }
        Arc::clone(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_saves_nothing_up_and_leaving_forgives_nothing() {
        let mut streams = Streams::default();
        let busy = streams.enter("busy");
        busy.charge(100);
        assert_eq!(streams.enter("new").served(), 100);
        let greedy = streams.enter("greedy");
        greedy.charge(900);
        drop(greedy);
        assert_eq!(streams.enter("greedy").served(), 1000);
        assert_eq!(streams.0.len(), 2, "{streams:?}");
        busy.charge(2000);
        assert_eq!(streams.enter("greedy").served(), 2100);
        assert_eq!(streams.enter("busy").served(), 2100);
        drop(busy);
        assert_eq!(streams.enter("anyone").served(), 0);
        assert_eq!(streams.0.len(), 1);
    }
}
