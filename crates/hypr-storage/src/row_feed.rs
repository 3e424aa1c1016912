//! Tells caches that are made from a table's rows what every commit changes.
//!
//! A cache subscribes to one column and then receives, in commit order, the rows that commits add and the row ids
//! that they remove. Changes are collected until the cache takes them; what it has not taken is bounded, and beyond
//! the bound the changes are dropped and the subscription says that it lost some, so that the cache compares itself
//! with the rows again.
//!
//! Invariant: a commit reaches subscriptions under the lock of the tail it is applied to, so the changes taken under
//! that lock are exactly those up to the snapshot taken under it.

use std::sync::{Arc, Weak};

use arrow_array::{ArrayRef, RecordBatch};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::tail::TailBatch;

/// Bytes of changes after which a subscriber is woken.
const WAKE_BYTES: usize = 1 << 20;
/// Bytes of changes that are kept.
const LIMIT_BYTES: usize = 128 << 20;

/// What a commit did to the rows of a table.
#[derive(Clone, Debug)]
pub(crate) enum RowChange {
    /// The subscribed column and the row ids of new rows.
    Added(ArrayRef, ArrayRef),
    Removed(Arc<[u64]>),
}

/// The subscriptions of one table.
#[derive(Debug, Default)]
pub(crate) struct RowFeed {
    subscriptions: Mutex<Vec<Weak<Subscription>>>,
}

impl RowFeed {
    /// A subscription that starts out as one that lost changes: nothing before it was collected.
    pub(crate) fn subscribe(&self, column: &str) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription {
            column: column.to_owned(),
            pending: Mutex::new(Pending { lost: true, ..Pending::default() }),
            wanted: Notify::new(),
        });
        let mut all = self.subscriptions.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&subscription));
        subscription
    }

    /// Passes on a commit. To be called under the lock of the tail.
    pub(crate) fn push(&self, added: &[TailBatch], removed: &[u64]) {
        for subscription in self.subscriptions.lock().iter().filter_map(Weak::upgrade) {
            subscription.push(added.iter().map(|batch| &batch.rows), removed);
        }
    }

    /// The rows changed in a way that no commit describes.
    pub(crate) fn lose(&self) {
        for subscription in self.subscriptions.lock().iter().filter_map(Weak::upgrade) {
            subscription.lose();
        }
    }
}

/// The changes of one column since they were taken last.
#[derive(Debug)]
pub(crate) struct Subscription {
    column: String,
    pending: Mutex<Pending>,
    /// Woken when there is much to take.
    pub(crate) wanted: Notify,
}

/// Changes in commit order.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) changes: Vec<RowChange>,
    bytes: usize,
    /// Some changes are not among them.
    pub(crate) lost: bool,
}

impl Pending {
    fn lose(&mut self) {
        *self = Self { lost: true, ..Self::default() };
    }
}

impl Subscription {
    fn push<'a>(&self, added: impl Iterator<Item = &'a RecordBatch>, removed: &[u64]) {
        let mut pending = self.pending.lock();
        if pending.lost {
            return;
        }
        if !removed.is_empty() {
            pending.bytes += size_of_val(removed);
            pending.changes.push(RowChange::Removed(removed.into()));
        }
        for rows in added {
            let (Some(column), Some(ids)) = (rows.column_by_name(&self.column), rows.columns().last()) else {
                return pending.lose();
            };
            pending.bytes += column.get_array_memory_size() + ids.get_array_memory_size();
            pending.changes.push(RowChange::Added(Arc::clone(column), Arc::clone(ids)));
        }
        if pending.bytes > LIMIT_BYTES {
            pending.lose();
        } else if pending.bytes >= WAKE_BYTES {
            self.wanted.notify_one();
        }
    }

    /// What was collected; a loss stays until [`restart`](Self::restart).
    pub(crate) fn take(&self) -> Pending {
        let mut pending = self.pending.lock();
        let lost = pending.lost;
        std::mem::replace(&mut pending, Pending { lost, ..Pending::default() })
    }

    /// Collects from now on. To be called under the lock of the tail.
    pub(crate) fn restart(&self) {
        *self.pending.lock() = Pending::default();
    }

    /// Says that changes are missing.
    pub(crate) fn lose(&self) {
        self.pending.lock().lose();
    }

    /// Whether changes are missing.
    pub(crate) fn is_lost(&self) -> bool {
        self.pending.lock().lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{StringArray, UInt64Array};

    fn batch(ids: std::ops::Range<u64>, text: &str) -> TailBatch {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![text; (ids.end - ids.start) as usize]));
        let ids: ArrayRef = Arc::new(UInt64Array::from_iter_values(ids));
        TailBatch::new(RecordBatch::try_from_iter([("body", texts), ("id", ids)]).unwrap(), 0)
    }

    #[test]
    fn changes_arrive_in_order_and_once() {
        let feed = RowFeed::default();
        let subscription = feed.subscribe("body");
        feed.push(&[batch(0..1, "a")], &[]);
        assert!(subscription.take().changes.is_empty() && subscription.is_lost(), "it starts with a comparison");
        subscription.restart();
        feed.push(&[batch(1..3, "b")], &[]);
        feed.push(&[batch(3..4, "c")], &[1]);
        let taken = subscription.take();
        assert!(!taken.lost);
        let [RowChange::Added(..), RowChange::Removed(removed), RowChange::Added(text, _)] = &taken.changes[..] else {
            panic!("{taken:?}");
        };
        assert_eq!((&removed[..], text.len()), (&[1][..], 1));
        assert!(subscription.take().changes.is_empty());
    }

    #[test]
    fn more_than_the_bound_is_dropped_and_said() {
        let feed = RowFeed::default();
        let subscription = feed.subscribe("body");
        subscription.restart();
        let large = batch(0..1, &"x".repeat(LIMIT_BYTES / 2));
        feed.push(std::slice::from_ref(&large), &[]);
        assert!(!subscription.is_lost());
        feed.push(&[large.clone(), large], &[]);
        assert!(subscription.is_lost() && subscription.take().changes.is_empty());
    }

    #[test]
    fn a_column_that_is_gone_is_a_loss() {
        let feed = RowFeed::default();
        let subscription = feed.subscribe("title");
        subscription.restart();
        feed.push(&[batch(0..1, "a")], &[]);
        assert!(subscription.is_lost());
    }
}
