//! Searching: the scratch of a walk, and the choice between a walk and comparing every row.

use std::sync::Arc;

use hypr_tensor::Distances;

use crate::Metric;
use crate::best::Best;
use crate::code::Space;
use crate::graph::{Blocks, Graph};
use crate::index::oddity;
use crate::metric::ExactQuery;
use crate::rows::Rows;
use crate::rowset::RowSet;

/// Rows compared exactly for each row wanted, beside [`RERANK_SPARE`]: codes mistake the order of near rows.
const RERANK_FACTOR: usize = 2;
const RERANK_SPARE: usize = 16;
/// Vectors of up to this many values are compared exactly with every candidate: they cost little, and their codes
/// tell less.
const SHORT: usize = 256;
/// Nodes a walk compares for each candidate it keeps, about.
const NODES_PER_CANDIDATE: usize = 10;
/// What a comparison of codes and of vectors costs, in nanoseconds beside those for its bytes.
const NODE_COST_NS: usize = 30;
/// Bytes that memory delivers in a nanosecond.
const BYTES_PER_NS: usize = 12;

/// A question to an index.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// `[dims]`, finite; not zero for the cosine.
    pub query: &'a [f32],
    /// Rows wanted.
    pub k: usize,
    /// Candidates to consider; the default of the index if none. More find more of the true neighbours.
    pub ef: Option<usize>,
    /// The only rows to consider.
    pub allowed: Option<&'a RowSet>,
    /// Whether a reader may see a row; asked for few rows.
    pub live: &'a dyn Fn(u64) -> bool,
    /// Adds rows beyond `k` that are as near as the last.
    pub ties: bool,
}

/// A row and its distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// The row.
    pub row_id: u64,
    /// By the metric; less is nearer.
    pub distance: f64,
    /// What was measured: the cosine, the dot product, or the Euclidean distance.
    pub measure: f64,
}

/// The nearest of rows that are shown one after the other.
#[derive(Debug)]
pub struct ExactScan<'a> {
    query: ExactQuery<'a>,
    best: Best,
}

impl<'a> ExactScan<'a> {
    /// Looks for the `k` nearest to `query`, and with `ties` for all that are as near as the last of them.
    pub fn new(metric: Metric, query: &'a [f32], k: usize, ties: bool) -> Self {
        Self { query: ExactQuery::new(metric, query, Distances::default()), best: Best::new(k, ties) }
    }

    /// Shows it a row as wide as the query. A row without a distance is passed over.
    pub fn consider(&mut self, row_id: u64, vector: &[f32]) {
        if oddity(self.query.metric, vector).is_some() {
            return;
        }
        let neighbor = self.query.compare(row_id, vector, self.query.kernels.dot(vector, vector));
        if self.best.wants(neighbor.distance) {
            self.best.push(neighbor);
        }
    }

    /// The nearest rows, ascending by distance, then row id.
    pub fn finish(self) -> Vec<Neighbor> {
        self.best.into_vec()
    }
}

impl Search<'_> {
    fn allows(&self, id: u64) -> bool {
        self.allowed.is_none_or(|allowed| allowed.contains(id))
    }

    /// Compares one row.
    #[inline]
    fn consider(&self, query: &ExactQuery<'_>, rows: &Rows, at: usize, best: &mut Best) {
        let neighbor = query.compare(rows.ids[at], rows.vector(at, query.vector.len()), rows.squared_norms[at]);
        if best.wants(neighbor.distance) && (self.live)(neighbor.row_id) {
            best.push(neighbor);
        }
    }

    /// Compares every row.
    pub(crate) fn scan(&self, query: &ExactQuery<'_>, rows: &Rows, best: &mut Best) {
        for at in (0..rows.len()).filter(|at| !rows.is_dead(*at) && self.allows(rows.ids[*at])) {
            self.consider(query, rows, at, best);
        }
    }

    fn scan_all(&self, query: &ExactQuery<'_>, blocks: &Blocks, best: &mut Best) {
        match self.allowed {
            Some(allowed) if allowed.len() < blocks.len() / 16 => {
                for (block, at) in allowed.iter().filter_map(|id| blocks.find(id)) {
                    self.consider(query, &block.rows, at, best);
                }
            }
            _ => blocks.blocks.iter().for_each(|block| self.scan(query, &block.rows, best)),
        }
    }

    /// Searches a graph: walks it as wide as the share of rows that may be found demands, unless comparing those
    /// rows one by one is cheaper or the walk does not find enough.
    pub(crate) fn walk(
        &self,
        query: &ExactQuery<'_>,
        graph: &Graph,
        ef: usize,
        best: &mut Best,
        scratch: &mut Scratch,
    ) {
        let blocks = graph.blocks();
        let (total, live) = (blocks.len(), blocks.live());
        let eligible = self.allowed.map_or(live, |allowed| allowed.len().min(live));
        if eligible == 0 {
            return;
        }
        let wanted = match query.vector.len() <= SHORT {
            true => ef,
            false => (self.k * RERANK_FACTOR).max(self.k + RERANK_SPARE),
        };
        // Where most candidates turn out to be gone, the nearest of the others may lie beyond them.
        let enough = self.k.max(wanted.min(eligible) / 2);
        let mut width = ef.max(wanted).saturating_mul(total).div_ceil(eligible).min(total);
        let code = {
            let norm = query.kernels.dot(query.vector, query.vector);
            graph.space.encode(query.vector, norm, true, &mut scratch.placed, resized(&mut scratch.code, &graph.space));
            std::mem::take(&mut scratch.code)
        };
        let probe = graph.space.probe(&code);
        loop {
            let walk_ns = width * NODES_PER_CANDIDATE * (graph.space.stride() / BYTES_PER_NS + NODE_COST_NS);
            let scan_ns = eligible * (query.vector.len() * 4 / BYTES_PER_NS + NODE_COST_NS) + total;
            if scan_ns <= walk_ns {
                self.scan_all(query, &blocks, best);
                break;
            }
            graph.walk(&blocks, &probe, width, scratch);
            if self.rerank(query, &blocks, wanted, best, scratch) >= enough {
                break;
            }
            width = width.saturating_mul(4).min(total);
            if scratch.pool.len() >= total {
                break;
            }
        }
        scratch.code = code;
    }

    /// Compares the best of the pool exactly: `wanted` of them, and more while fewer than `k` are live. Returns how
    /// many were live.
    fn rerank(
        &self,
        query: &ExactQuery<'_>,
        blocks: &Arc<Blocks>,
        wanted: usize,
        best: &mut Best,
        scratch: &mut Scratch,
    ) -> usize {
        let Scratch { pool, todo, .. } = scratch;
        todo.clear();
        todo.extend(pool.iter().map(|(node, _)| node).filter(|node| {
            let (rows, at) = blocks.row(*node);
            !rows.is_dead(at) && self.allows(rows.ids[at])
        }));
        let mut live = 0;
        for (done, node) in todo.iter().enumerate() {
            if done >= wanted && live >= self.k {
                break;
            }
            let (rows, at) = blocks.row(*node);
            // Every candidate counts, also one that better rows elsewhere have displaced.
            if (self.live)(rows.ids[at]) {
                live += 1;
                let neighbor = query.compare(rows.ids[at], rows.vector(at, query.vector.len()), rows.squared_norms[at]);
                if best.wants(neighbor.distance) {
                    best.push(neighbor);
                }
            }
        }
        live
    }
}

fn resized<'a>(code: &'a mut Vec<u8>, space: &Space) -> &'a mut [u8] {
    code.resize(space.stride(), 0);
    code
}

/// What a walk needs, kept for the next one.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub pool: Pool,
    pub visited: Visited,
    pub todo: Vec<u32>,
    placed: Vec<f32>,
    code: Vec<u8>,
}

/// The nearest nodes of a walk, ascending, each with whether its links were followed.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    found: Vec<(f32, u32)>,
    width: usize,
}

/// Set in a pool's node when its links were followed. A graph has fewer nodes than that.
const EXPANDED: u32 = 1 << 31;

impl Pool {
    pub fn clear(&mut self, width: usize) {
        self.found.clear();
        self.width = width.max(1);
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Adds a node if it is near enough, and says where.
    #[inline]
    pub fn push(&mut self, node: u32, distance: f32) -> Option<usize> {
        if self.found.len() >= self.width {
            match self.found.last() {
                Some(last) if distance < last.0 => drop(self.found.pop()),
                _ => return None,
            }
        }
        let at = self.found.partition_point(|other| other.0 <= distance);
        self.found.insert(at, (distance, node));
        Some(at)
    }

    /// The first node at `from` or after it whose links were not followed yet; they are now.
    #[inline]
    pub fn expand(&mut self, from: usize) -> Option<u32> {
        let entry = self.found.get_mut(from..)?.iter_mut().find(|entry| entry.1 & EXPANDED == 0)?;
        let node = entry.1;
        entry.1 |= EXPANDED;
        Some(node)
    }

    /// Nodes and distances, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.found.iter().map(|(distance, node)| (node & !EXPANDED, *distance))
    }
}

/// The nodes that a walk has met.
#[derive(Debug, Default)]
pub(crate) struct Visited {
    /// A node was met when it has the current number.
    marks: Vec<u16>,
    current: u16,
}

impl Visited {
    /// Forgets all, and makes room for `nodes`.
    pub fn begin(&mut self, nodes: usize) {
        if self.current == u16::MAX {
            self.marks.fill(0);
            self.current = 0;
        }
        self.current += 1;
        if self.marks.len() < nodes {
            self.marks.resize(nodes, 0);
        }
    }

    /// True the first time.
    #[inline]
    pub fn insert(&mut self, node: u32) -> bool {
        let mark = &mut self.marks[node as usize];
        let first = *mark != self.current;
        *mark = self.current;
        first
    }
}
