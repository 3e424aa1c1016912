//! The nearest rows seen so far.

use crate::search::Neighbor;

/// The `k` nearest, and with `ties` every other that is as near as the last of them.
#[derive(Debug)]
pub(crate) struct Best {
    k: usize,
    ties: bool,
    /// Ascending by distance, then row id.
    found: Vec<Neighbor>,
}

impl Best {
    pub fn new(k: usize, ties: bool) -> Self {
        Self { k, ties, found: Vec::with_capacity(k.min(1024) + 1) }
    }

    /// True when a row at `distance` would be kept. Rows at the distance of the last are kept by their id.
    #[inline]
    pub fn wants(&self, distance: f64) -> bool {
        self.k > 0 && (self.found.len() < self.k || distance <= self.found[self.k - 1].distance)
    }

    /// Adds a row that is not there yet.
    pub fn push(&mut self, neighbor: Neighbor) {
        let key = |n: &Neighbor| (n.distance, n.row_id);
        let at = self.found.partition_point(|other| {
            let (a, b) = (key(other), key(&neighbor));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).is_lt()
        });
        // A row in two places has one distance, to the bit.
        if self.found.get(at).is_some_and(|other| other.row_id == neighbor.row_id) {
            return;
        }
        self.found.insert(at, neighbor);
        if self.found.len() > self.k {
            let last = self.found[self.k - 1].distance;
            let keep = if self.ties { self.found.partition_point(|n| n.distance <= last) } else { self.k };
            self.found.truncate(keep);
        }
    }

    pub fn into_vec(self) -> Vec<Neighbor> {
        self.found
    }
}
