//! A hierarchical navigable small world graph over the codes of rows.
//!
//! Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
//! Navigable Small World graphs", 2016 (algorithms 1, 2, 4 and 5).
//!
//! Nodes lie in blocks of up to [`BLOCK`] and never move: node `n` is row `n % BLOCK` of block `n / BLOCK`. A block's
//! vectors and codes are written before anyone sees it; its links are atomics that insertions change while searches
//! read them. A reader may meet a node newer than the blocks it holds, and passes over it. Dead rows stay as
//! stepping stones until the index is made anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::code::{LINE, Probe, Space};
use crate::rows::Rows;
use crate::search::Scratch;
use crate::{Metric, Params};

/// Nodes of a block.
pub(crate) const BLOCK: usize = 256;
/// No node.
const NONE: u32 = u32::MAX;
/// Layers above the lowest.
const TOP_LAYER: usize = 15;
/// Locks that guard the links of all nodes.
const LOCKS: usize = 1024;

/// Rows of a graph with their codes and links.
#[derive(Debug)]
pub(crate) struct Block {
    pub rows: Rows,
    codes: Vec<u8>,
    /// Where the first cache line of `codes` starts.
    codes_at: usize,
    stride: usize,
    /// `[rows, 2 * m]`, a row's links first, then [`NONE`].
    base: Vec<AtomicU32>,
    /// Links in the layers above, `m` each; those of row `r` start at `upper_at[r]` layers.
    upper: Vec<AtomicU32>,
    upper_at: Vec<u32>,
}

impl Block {
    fn new(rows: Rows, first_node: usize, space: &Space, width: usize, params: &Params) -> Self {
        let stride = space.stride();
        let mut codes = vec![0u8; rows.len() * stride + LINE];
        let codes_at = codes.as_ptr().align_offset(LINE).min(LINE);
        let mut placed = Vec::new();
        for (row, code) in codes[codes_at..].chunks_exact_mut(stride).take(rows.len()).enumerate() {
            space.encode(rows.vector(row, width), rows.squared_norms[row], false, &mut placed, code);
        }
        let mut upper_at = Vec::with_capacity(rows.len() + 1);
        let mut layers = 0;
        for row in 0..rows.len() {
            upper_at.push(layers);
            layers += layer_of(first_node + row, params.m) as u32;
        }
        upper_at.push(layers);
        let empty = |n: usize| (0..n).map(|_| AtomicU32::new(NONE)).collect();
        let (base, upper) = (empty(rows.len() * params.m * 2), empty(layers as usize * params.m));
        Self { rows, codes, codes_at, stride, base, upper, upper_at }
    }

    #[inline]
    fn code(&self, row: usize) -> &[u8] {
        &self.codes[self.codes_at + row * self.stride..][..self.stride]
    }

    fn top_layer(&self, row: usize) -> usize {
        (self.upper_at[row + 1] - self.upper_at[row]) as usize
    }

    #[inline]
    fn links(&self, row: usize, layer: usize, m: usize) -> &[AtomicU32] {
        match layer {
            0 => &self.base[row * m * 2..][..m * 2],
            _ => &self.upper[(self.upper_at[row] as usize + layer - 1) * m..][..m],
        }
    }

    fn bytes(&self) -> usize {
        self.rows.bytes()
            + self.codes.capacity()
            + (self.base.capacity() + self.upper.capacity() + self.upper_at.capacity()) * 4
    }
}

/// The highest layer of a node: geometric with ratio `1 / m`, the same for the same node.
fn layer_of(node: usize, m: usize) -> usize {
    // SplitMix64.
    let mut bits = (node as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((bits ^ bits >> 31) >> 11) as f64 / (1u64 << 53) as f64;
    let layer = -(1.0 - uniform).ln() / (m as f64).ln();
    (layer as usize).min(TOP_LAYER)
}

/// The blocks at one moment.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub blocks: Vec<Arc<Block>>,
    /// The lowest and highest row id of each.
    ranges: Vec<(u64, u64)>,
    /// No two ranges overlap, and they ascend.
    ordered: bool,
}

impl Blocks {
    fn with(&self, added: Vec<Arc<Block>>) -> Self {
        let mut blocks = self.blocks.clone();
        blocks.extend(added);
        let ranges: Vec<_> = blocks.iter().map(|block| block.rows.range()).collect();
        let ordered = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        Self { blocks, ranges, ordered }
    }

    /// Rows that are not known to be gone.
    pub fn live(&self) -> usize {
        self.blocks.iter().map(|block| block.rows.live()).sum()
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.rows.len()).sum()
    }

    /// The blocks that `id` may be in.
    fn candidates(&self, id: u64) -> impl Iterator<Item = &Block> {
        let bounds = match self.ordered {
            true => {
                let at = self.ranges.partition_point(|range| range.1 < id);
                at..(at + 1).min(self.ranges.len())
            }
            false => 0..self.ranges.len(),
        };
        bounds.filter(move |at| self.ranges[*at].0 <= id && id <= self.ranges[*at].1).map(|at| &*self.blocks[at])
    }

    /// The block and row of `id`.
    pub fn find(&self, id: u64) -> Option<(&Block, usize)> {
        self.candidates(id).find_map(|block| Some((block, block.rows.ids.binary_search(&id).ok()?)))
    }

    /// Remembers that `id` is gone.
    pub fn remove(&self, id: u64) -> bool {
        self.candidates(id).any(|block| block.rows.remove(id))
    }

    #[inline]
    fn block(&self, node: u32) -> (&Block, usize) {
        (&self.blocks[node as usize / BLOCK], node as usize % BLOCK)
    }

    /// The row of a node.
    #[inline]
    pub fn row(&self, node: u32) -> (&Rows, usize) {
        let (block, row) = self.block(node);
        (&block.rows, row)
    }

    /// False for nodes of blocks that came later.
    #[inline]
    fn holds(&self, node: u32) -> bool {
        (node as usize) < self.blocks.len() * BLOCK
    }

    #[inline]
    fn code(&self, node: u32) -> &[u8] {
        let (block, row) = self.block(node);
        block.code(row)
    }
}

/// The graph of an index.
#[derive(Debug)]
pub(crate) struct Graph {
    pub space: Space,
    width: usize,
    params: Params,
    blocks: ArcSwap<Blocks>,
    /// Where searches start: the layer in the high half, the node in the low half; `u64::MAX` when empty.
    entry: AtomicU64,
    entry_lock: Mutex<()>,
    locks: Vec<Mutex<()>>,
}

impl Graph {
    /// An empty graph in the space of `rows`.
    pub fn new(metric: Metric, width: usize, rows: &Rows, params: Params, kernels: hypr_tensor::Distances) -> Self {
        let samples = (0..rows.len()).map(|at| (rows.vector(at, width), rows.squared_norms[at]));
        Self {
            space: Space::learn(metric, width, samples, kernels),
            width,
            params,
            blocks: ArcSwap::from_pointee(Blocks::default()),
            entry: AtomicU64::new(u64::MAX),
            entry_lock: Mutex::new(()),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    pub fn blocks(&self) -> Arc<Blocks> {
        self.blocks.load_full()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.blocks.load().blocks.iter().map(|block| block.bytes()).sum()
    }

    /// Adds rows on `threads` threads. One call at a time.
    pub fn add(&self, rows: &Rows, threads: usize) {
        let before = self.blocks();
        let first_block = before.blocks.len();
        let starts: Vec<usize> = (0..rows.len()).step_by(BLOCK).collect();
        let made: Vec<Mutex<Option<Arc<Block>>>> = starts.iter().map(|_| Mutex::new(None)).collect();
        in_parallel(threads, starts.len(), |at| {
            let len = BLOCK.min(rows.len() - starts[at]);
            let part = rows.part(starts[at], len, self.width);
            let first_node = (first_block + at) * BLOCK;
            *made[at].lock() = Some(Arc::new(Block::new(part, first_node, &self.space, self.width, &self.params)));
        });
        let added: Vec<_> = made.into_iter().filter_map(Mutex::into_inner).collect();
        let blocks = Arc::new(before.with(added));
        self.blocks.store(Arc::clone(&blocks));
        let node_of = |at: usize| ((first_block + at / BLOCK) * BLOCK + at % BLOCK) as u32;
        let mut first = 0;
        if self.entry.load(Ordering::Acquire) == u64::MAX && rows.len() > 0 {
            let layer = blocks.blocks[0].top_layer(0) as u64;
            self.entry.store(layer << 32 | u64::from(node_of(0)), Ordering::Release);
            first = 1;
        }
        let scratches: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
        in_parallel(threads, rows.len() - first.min(rows.len()), |at| {
            let mut scratch = scratches.lock().pop().unwrap_or_default();
            self.insert(&blocks, node_of(first + at), &mut scratch);
            scratches.lock().push(scratch);
        });
    }

    /// The candidates for `probe` in the lowest layer, into `scratch.pool`.
    pub fn walk(&self, blocks: &Blocks, probe: &Probe<'_>, width: usize, scratch: &mut Scratch) {
        let entry = self.entry.load(Ordering::Acquire);
        scratch.pool.clear(width);
        if entry == u64::MAX || !blocks.holds(entry as u32) {
            return;
        }
        let mut at = (entry as u32, self.space.distance(probe, blocks.code(entry as u32)));
        for layer in (1..=(entry >> 32) as usize).rev() {
            at = self.descend(blocks, probe, at, layer);
        }
        self.explore(blocks, probe, &[at], 0, width, scratch);
    }

    /// The nearest node of a layer that greedy steps reach.
    fn descend(&self, blocks: &Blocks, probe: &Probe<'_>, start: (u32, f32), layer: usize) -> (u32, f32) {
        let mut best = start;
        loop {
            let before = best.0;
            let (block, row) = blocks.block(before);
            for link in block.links(row, layer, self.params.m) {
                let node = link.load(Ordering::Relaxed);
                if node == NONE {
                    break;
                }
                if blocks.holds(node) {
                    let distance = self.space.distance(probe, blocks.code(node));
                    if distance < best.1 {
                        best = (node, distance);
                    }
                }
            }
            if best.0 == before {
                return best;
            }
        }
    }

    /// Best-first search of a layer: the `width` nearest nodes that it meets, into `scratch.pool`.
    fn explore(
        &self,
        blocks: &Blocks,
        probe: &Probe<'_>,
        starts: &[(u32, f32)],
        layer: usize,
        width: usize,
        scratch: &mut Scratch,
    ) {
        let Scratch { pool, visited, todo, .. } = scratch;
        visited.begin(blocks.blocks.len() * BLOCK);
        pool.clear(width);
        for (node, distance) in starts {
            visited.insert(*node);
            pool.push(*node, *distance);
        }
        let mut at = 0;
        while let Some(node) = pool.expand(at) {
            at += 1;
            let (block, row) = blocks.block(node);
            todo.clear();
            for link in block.links(row, layer, self.params.m) {
                let next = link.load(Ordering::Relaxed);
                if next == NONE {
                    break;
                }
                if blocks.holds(next) && visited.insert(next) {
                    todo.push(next);
                }
            }
            for next in todo.iter().take(2) {
                self.space.kernels.prefetch(blocks.code(*next));
            }
            for (i, next) in todo.iter().enumerate() {
                if let Some(ahead) = todo.get(i + 2) {
                    self.space.kernels.prefetch(blocks.code(*ahead));
                }
                let distance = self.space.distance(probe, blocks.code(*next));
                if let Some(place) = pool.push(*next, distance) {
                    at = at.min(place);
                }
            }
        }
    }

    fn insert(&self, blocks: &Blocks, node: u32, scratch: &mut Scratch) {
        let (block, row) = blocks.block(node);
        let own_top = block.top_layer(row);
        let probe = self.space.probe(block.code(row));
        let entry = self.entry.load(Ordering::Acquire);
        let top = (entry >> 32) as usize;
        let mut at = (entry as u32, self.space.distance(&probe, blocks.code(entry as u32)));
        for layer in (own_top + 1..=top).rev() {
            at = self.descend(blocks, &probe, at, layer);
        }
        let mut starts = vec![at];
        for layer in (0..=own_top.min(top)).rev() {
            self.explore(blocks, &probe, &starts, layer, self.params.ef_construction, scratch);
            starts = scratch.pool.iter().filter(|found| found.0 != node).collect();
            let chosen = self.select(blocks, &starts, self.params.m);
            {
                let _links = self.lock(node);
                self.merge_links(blocks, node, layer, &chosen);
            }
            for (other, distance) in chosen {
                let _links = self.lock(other);
                self.merge_links(blocks, other, layer, &[(node, distance)]);
            }
        }
        if own_top > top {
            let _entry = self.entry_lock.lock();
            if own_top > (self.entry.load(Ordering::Acquire) >> 32) as usize {
                self.entry.store((own_top as u64) << 32 | u64::from(node), Ordering::Release);
            }
        }
    }

    fn lock(&self, node: u32) -> parking_lot::MutexGuard<'_, ()> {
        self.locks[node as usize % LOCKS].lock()
    }

    /// Adds links of `node`, whose lock is held; when they are too many, the best spread ones stay.
    fn merge_links(&self, blocks: &Blocks, node: u32, layer: usize, added: &[(u32, f32)]) {
        let (block, row) = blocks.block(node);
        let links = block.links(row, layer, self.params.m);
        let mut count = links.iter().take_while(|link| link.load(Ordering::Relaxed) != NONE).count();
        let known = |count: usize, other: u32| links[..count].iter().any(|link| link.load(Ordering::Relaxed) == other);
        let added: Vec<_> = added.iter().filter(|(other, _)| *other != node && !known(count, *other)).collect();
        if count + added.len() <= links.len() {
            for (other, _) in added {
                links[count].store(*other, Ordering::Relaxed);
                count += 1;
            }
            return;
        }
        let probe = self.space.probe(block.code(row));
        let mut candidates: Vec<(u32, f32)> = links[..count]
            .iter()
            .map(|link| link.load(Ordering::Relaxed))
            .map(|other| (other, self.space.distance(&probe, blocks.code(other))))
            .chain(added.into_iter().copied())
            .collect();
        candidates.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
        let kept = self.select(blocks, &candidates, links.len());
        for (at, link) in links.iter().enumerate() {
            link.store(kept.get(at).map_or(NONE, |kept| kept.0), Ordering::Relaxed);
        }
    }

    /// At most `m` of `candidates`, which ascend: each one nearer to the node than to any chosen before it.
    fn select(&self, blocks: &Blocks, candidates: &[(u32, f32)], m: usize) -> Vec<(u32, f32)> {
        let mut chosen: Vec<(u32, f32)> = Vec::with_capacity(m);
        for candidate in candidates {
            if chosen.len() >= m {
                break;
            }
            let probe = self.space.probe(blocks.code(candidate.0));
            let spread = chosen.iter().all(|other| self.space.distance(&probe, blocks.code(other.0)) > candidate.1);
            if spread {
                chosen.push(*candidate);
            }
        }
        chosen
    }
}

/// Calls `job` with `0..n`, each once, on up to `threads` threads.
fn in_parallel(threads: usize, n: usize, job: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= n {
                return;
            }
            job(at);
        }
    };
    let others = threads.min(n).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(work);
        }
        work();
    });
}
