//! Runs of vectors with their row ids.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hypr_tensor::Distances;

/// Vectors of one width, ascending by row id, and which of them are known to be gone.
#[derive(Debug)]
pub(crate) struct Rows {
    pub ids: Vec<u64>,
    /// `[ids.len(), dims]`
    pub vectors: Vec<f32>,
    /// The dot product of each vector with itself.
    pub squared_norms: Vec<f64>,
    /// One bit a row.
    dead: Vec<AtomicU64>,
    dead_count: AtomicUsize,
}

impl Rows {
    /// Rows in any order.
    pub fn new(ids: Vec<u64>, vectors: Vec<f32>, dims: usize, kernels: Distances) -> Self {
        let squared_norms = vectors.chunks_exact(dims).map(|vector| kernels.dot(vector, vector)).collect();
        Self::sorted(ids, vectors, squared_norms, dims)
    }

    fn sorted(ids: Vec<u64>, vectors: Vec<f32>, squared_norms: Vec<f64>, dims: usize) -> Self {
        let dead = (0..ids.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        if ids.is_sorted() {
            return Self { ids, vectors, squared_norms, dead, dead_count: AtomicUsize::new(0) };
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|at| ids[*at]);
        Self {
            ids: order.iter().map(|at| ids[*at]).collect(),
            vectors: order.iter().flat_map(|at| &vectors[at * dims..][..dims]).copied().collect(),
            squared_norms: order.iter().map(|at| squared_norms[*at]).collect(),
            dead,
            dead_count: AtomicUsize::new(0),
        }
    }

    /// The live rows of several runs as one.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a Self>, dims: usize) -> Self {
        let (mut ids, mut vectors, mut squared_norms) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            for at in (0..part.len()).filter(|at| !part.is_dead(*at)) {
                ids.push(part.ids[at]);
                vectors.extend_from_slice(part.vector(at, dims));
                squared_norms.push(part.squared_norms[at]);
            }
        }
        Self::sorted(ids, vectors, squared_norms, dims)
    }

    /// The same rows, those that are there twice once.
    pub fn distinct(self, dims: usize) -> Self {
        if self.ids.windows(2).all(|pair| pair[0] < pair[1]) {
            return self;
        }
        let keep: Vec<usize> = (0..self.len()).filter(|at| *at == 0 || self.ids[at - 1] != self.ids[*at]).collect();
        Self::sorted(
            keep.iter().map(|at| self.ids[*at]).collect(),
            keep.iter().flat_map(|at| self.vector(*at, dims)).copied().collect(),
            keep.iter().map(|at| self.squared_norms[*at]).collect(),
            dims,
        )
    }

    /// Rows `start .. start + len` in a run of their own, all of them live.
    pub fn part(&self, start: usize, len: usize, dims: usize) -> Self {
        Self::sorted(
            self.ids[start..start + len].to_vec(),
            self.vectors[start * dims..(start + len) * dims].to_vec(),
            self.squared_norms[start..start + len].to_vec(),
            dims,
        )
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Rows that are not known to be gone.
    pub fn live(&self) -> usize {
        self.len() - self.dead_count.load(Ordering::Relaxed).min(self.len())
    }

    #[inline]
    pub fn vector(&self, at: usize, dims: usize) -> &[f32] {
        &self.vectors[at * dims..][..dims]
    }

    #[inline]
    pub fn is_dead(&self, at: usize) -> bool {
        self.dead[at / 64].load(Ordering::Relaxed) & 1 << (at % 64) != 0
    }

    /// Remembers that `id` is gone; true when it was here and alive.
    pub fn remove(&self, id: u64) -> bool {
        let Ok(at) = self.ids.binary_search(&id) else { return false };
        let mask = 1 << (at % 64);
        let was_live = self.dead[at / 64].fetch_or(mask, Ordering::Relaxed) & mask == 0;
        self.dead_count.fetch_add(usize::from(was_live), Ordering::Relaxed);
        was_live
    }

    /// The lowest and highest id.
    pub fn range(&self) -> (u64, u64) {
        (self.ids.first().copied().unwrap_or(u64::MAX), self.ids.last().copied().unwrap_or(0))
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.vectors.capacity() * 4 + self.ids.capacity() * 16 + self.dead.len() * 8
    }
}
