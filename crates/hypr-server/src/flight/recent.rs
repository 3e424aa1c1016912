//! Things of the latest tickets, each taken once; the oldest are forgotten first.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use uuid::Uuid;

/// At most so many things, by the id of their ticket.
#[derive(Debug)]
pub(super) struct Recent<T> {
    most: usize,
    kept: Mutex<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    things: HashMap<Uuid, T>,
    /// Every id in the order it came, also of what was taken.
    order: VecDeque<Uuid>,
}

impl<T> Recent<T> {
    /// An empty one for the latest `most` ids.
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: Mutex::new(Kept { things: HashMap::new(), order: VecDeque::new() }) }
    }

    /// Keeps a thing.
    pub(super) fn put(&self, id: Uuid, thing: T) {
        let mut kept = self.kept.lock();
        kept.things.insert(id, thing);
        kept.order.push_back(id);
        while kept.order.len() > self.most {
            if let Some(oldest) = kept.order.pop_front() {
                kept.things.remove(&oldest);
            }
        }
    }

    /// Takes a thing out, unless it was taken, forgotten or never there.
    pub(super) fn take(&self, id: Uuid) -> Option<T> {
        self.kept.lock().things.remove(&id)
    }
}
