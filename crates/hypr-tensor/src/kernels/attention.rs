//! Scaled dot-product attention with streaming softmax.
//!
//! Each (sequence, head, block of queries) is one task. For each query, keys are taken sixteen at a time in order of
//! position, with a running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for softmax",
//! 2018), so no matrix of scores is ever stored and a query's result does not depend on the other queries of the
//! call.

use std::ops::Range;

use half::f16;

use super::{Kernels, Level, SharedMut, by_level, math};
use crate::kv::{KvBlock, KvElement, KvPages, KvPrecision};

/// Keys taken in one step, so that a step never leaves a block of the cache.
pub(super) const STEP: usize = KvBlock::TOKENS;

/// Queries that go over the keys together, so that they find them in the first-level cache.
pub(super) const BLOCK: usize = 8;

/// The same where a kernel has a lane for each query, which AVX-512 has where all see every key.
pub(super) const FULL_BLOCK: usize = 16;

/// Multiplications below which calling the other threads costs more than it saves.
const SERIAL_BELOW: usize = 32 * 1024;

/// Sequences that share one call of the threads.
const MAX_SEQUENCES: usize = 32;

/// Cached keys or values, `[tokens, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In half precision.
    F16(&'a [f16]),
    /// In blocks, of either precision.
    Paged(KvPages<'a>),
}

impl<'a> KvRows<'a> {
    /// Tokens, where a token is `width` elements; `None` where they are not whole tokens.
    fn tokens(&self, width: usize) -> Option<usize> {
        let whole = |len: usize| len.is_multiple_of(width).then_some(len / width);
        match self {
            Self::F32(values) => whole(values.len()),
            Self::F16(values) => whole(values.len()),
            Self::Paged(pages) => {
                let fits = pages.blocks.first().is_none_or(|block| block.shape().width == width);
                (fits && pages.tokens <= pages.blocks.len() * KvBlock::TOKENS).then_some(pages.tokens)
            }
        }
    }

    #[inline(always)]
    pub(super) fn operand(self) -> Operand<'a> {
        match self {
            Self::F32(rows) => Operand::F32(Rows::Flat(rows)),
            Self::F16(rows) => Operand::F16(Rows::Flat(rows)),
            Self::Paged(pages) => match pages.precision() {
                KvPrecision::F32 => Operand::F32(Rows::Paged(pages)),
                KvPrecision::F16 => Operand::F16(Rows::Paged(pages)),
            },
        }
    }
}

/// Keys or values, by the type of their elements.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a> {
    F32(Rows<'a, f32>),
    F16(Rows<'a, f16>),
}

/// Where keys or values lie, for a kernel that takes them [`STEP`] at a time.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a, T> {
    /// One after the other.
    Flat(&'a [T]),
    /// In blocks of one step each.
    Paged(KvPages<'a>),
}

impl<'a, T: KvElement> Rows<'a, T> {
    /// The rows of tokens `first ..`, `stride` elements each: a step of them at least, or all that there are.
    /// `first` is a multiple of [`STEP`].
    #[inline(always)]
    pub fn step(&self, first: usize, stride: usize) -> &'a [T] {
        match self {
            Self::Flat(rows) => &rows[first * stride..],
            Self::Paged(pages) => pages.rows(first / STEP),
        }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Query `i` of the call stands at position `start + i` and sees the keys up to and including its own.
    Causal {
        /// Position of the first query.
        start: usize,
    },
    /// Every query sees every key.
    Full,
}

/// Attention of one sequence: `softmax(q k^T * scale) v` per head. Query head `h` uses key-value head
/// `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `[n, heads, head_dim]`.
    pub queries: &'a [f32],
    /// `[tokens, kv_heads, head_dim]`.
    pub keys: KvRows<'a>,
    /// `[tokens, kv_heads, head_dim]`.
    pub values: KvRows<'a>,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Values in a head; at most [`Attention::MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// What scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
}

impl Attention<'_> {
    /// The widest head.
    pub const MAX_HEAD_DIM: usize = 256;

    fn queries(&self) -> usize {
        self.queries.len() / (self.heads * self.head_dim)
    }

    /// Whether the kernels of AVX-512 take it, which want whole vectors.
    fn is_for_avx512(&self, level: Level) -> bool {
        matches!(level, Level::Avx512 | Level::Amx) && self.head_dim.is_multiple_of(16)
    }

    /// Queries in a block.
    fn block(&self, level: Level) -> usize {
        let single = || matches!((self.keys.operand(), self.values.operand()), (Operand::F32(_), Operand::F32(_)));
        if self.is_for_avx512(level) && self.mask == Mask::Full && single() { FULL_BLOCK } else { BLOCK }
    }

    /// Blocks of queries.
    fn blocks(&self, level: Level) -> usize {
        self.queries().div_ceil(self.block(level))
    }

    /// Key-value heads whose query heads go over them together, where there is one query: as many as share out evenly.
    fn together(&self, level: Level, threads: usize, sequences: usize) -> usize {
        let heads = self.heads / self.kv_heads;
        if !self.is_for_avx512(level) || self.queries() > 1 || !(2..=BLOCK).contains(&heads) {
            0
        } else if self.kv_heads * sequences >= 4 * threads {
            self.kv_heads
        } else {
            self.kv_heads - self.kv_heads % threads
        }
    }

    fn tokens(&self) -> usize {
        self.keys.tokens(self.kv_heads * self.head_dim).unwrap_or(0)
    }

    fn check(&self, out: &[f32]) {
        assert!((1..=Self::MAX_HEAD_DIM).contains(&self.head_dim), "attention: heads of {}", self.head_dim);
        assert!(
            self.kv_heads > 0 && self.heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "attention: {} heads over {} key-value heads",
            self.heads,
            self.kv_heads
        );
        assert_eq!(self.queries.len(), self.queries() * self.heads * self.head_dim, "attention: queries");
        assert_eq!(out.len(), self.queries.len(), "attention: output");
        let width = self.kv_heads * self.head_dim;
        assert!(self.keys.tokens(width).is_some(), "attention: keys");
        assert_eq!(self.values.tokens(width), self.keys.tokens(width), "attention: values");
        if let Mask::Causal { start } = self.mask {
            assert!(start + self.queries() <= self.tokens(), "attention: a query's own key is not in the cache");
        }
    }
}

pub fn run(kernels: &Kernels, sequences: &mut [(Attention<'_>, &mut [f32])]) {
    for chunk in sequences.chunks_mut(MAX_SEQUENCES) {
        run_chunk(kernels, chunk);
    }
}

fn run_chunk(kernels: &Kernels, sequences: &mut [(Attention<'_>, &mut [f32])]) {
    let level = kernels.level();
    let (mut tasks, mut work) = (0, 0);
    let mut shared: [Option<(Attention<'_>, SharedMut<f32>)>; MAX_SEQUENCES] = [None; MAX_SEQUENCES];
    let (threads, count) = (kernels.pool().threads(), sequences.len());
    let tasks_of = |attention: &Attention<'_>| {
        let (together, heads) = (attention.together(level, threads, count), attention.heads / attention.kv_heads);
        together + (attention.kv_heads - together) * heads * attention.blocks(level)
    };
    for ((attention, out), shared) in sequences.iter_mut().zip(&mut shared) {
        attention.check(out);
        tasks += tasks_of(attention);
        work += attention.queries.len() * attention.tokens();
        *shared = Some((*attention, SharedMut::new(out)));
    }
    let grain = if work < SERIAL_BELOW { tasks } else { tasks.div_ceil(threads * 16) };
    kernels.pool().for_each_range(tasks, grain, &|_, range| {
        let mut first = 0;
        for (attention, out) in shared.iter().flatten() {
            let (together, blocks) = (attention.together(level, threads, count), attention.blocks(level));
            let (heads, end) = (attention.heads / attention.kv_heads, first + tasks_of(attention));
            for task in range.start.max(first)..range.end.min(end) {
                let task = task - first;
                if task < together {
                    one_block(level, attention, task * heads..(task + 1) * heads, 0, *out);
                } else {
                    let (head, block) = ((task - together) / blocks, (task - together) % blocks);
                    let head = together * heads + head;
                    one_block(level, attention, head..head + 1, block, *out);
                }
            }
            first = end;
        }
    });
}

/// Where the rows of a block lie: one head of consecutive queries, or consecutive heads of one query that share their keys.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First element of the first query's head, in the queries and in the output.
    pub query: usize,
    /// Elements from query to query, or from head to head.
    pub query_stride: usize,
    /// Queries in the block, or heads.
    pub queries: usize,
    /// First element of the head of token 0 in keys and values.
    pub kv: usize,
    /// Elements from token to token.
    pub stride: usize,
    /// Tokens that the first query sees, at least one.
    pub visible: usize,
    /// How many more tokens each next query sees: 1 or 0.
    pub grow: usize,
}

/// One head of the queries of one block, or several heads of one query.
fn one_block(level: Level, attention: &Attention<'_>, heads: Range<usize>, block: usize, out: SharedMut<f32>) {
    let head = heads.start;
    let (dim, rows) = (attention.head_dim, attention.block(level));
    let first = block * rows;
    let (visible, grow) = match attention.mask {
        Mask::Causal { start } => (start + first + 1, 1),
        Mask::Full => (attention.tokens(), 0),
    };
    let block = Block {
        query: (first * attention.heads + head) * dim,
        query_stride: attention.heads * dim,
        queries: rows.min(attention.queries() - first),
        kv: head / (attention.heads / attention.kv_heads) * dim,
        stride: attention.kv_heads * dim,
        visible,
        grow,
    };
    let block =
        if heads.len() > 1 { Block { query_stride: dim, queries: heads.len(), grow: 0, ..block } } else { block };
    if block.visible == 0 {
        // SAFETY: each block has places of its own in the output of its sequence.
        (0..block.queries).for_each(|i| unsafe { out.slice(block.query + i * block.query_stride, dim) }.fill(0.0));
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if attention.is_for_avx512(level) {
        // SAFETY: `Kernels` only holds levels that this processor has; `check` has compared the lengths of the
        // slices with the shapes that `block` was computed from; blocks do not overlap.
        return unsafe { super::avx512::one_block(attention, block, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if level == Level::Neon && dim.is_multiple_of(16) {
        // SAFETY: as above.
        return unsafe { super::neon::one_block(attention, block, out) };
    }
    for i in 0..block.queries {
        let at = block.query + i * block.query_stride;
        let (query, visible) = (&attention.queries[at..][..dim], block.visible + i * block.grow);
        // SAFETY: each block has places of its own in the output of its sequence.
        let out = unsafe { out.slice(at, dim) };
        let head = Head { kv: block.kv, stride: block.stride, visible };
        match (attention.keys.operand(), attention.values.operand()) {
            (Operand::F32(k), Operand::F32(v)) => stream_f32(level, query, k, v, head, attention.scale, out),
            (Operand::F16(k), Operand::F16(v)) => stream_f16(level, query, k, v, head, attention.scale, out),
            (Operand::F32(k), Operand::F16(v)) => stream(query, k, v, head, attention.scale, out),
            (Operand::F16(k), Operand::F32(v)) => stream(query, k, v, head, attention.scale, out),
        }
    }
}

/// Where the keys and values of one query of one head lie; see [`Block`].
#[derive(Clone, Copy)]
struct Head {
    kv: usize,
    stride: usize,
    visible: usize,
}

by_level! {
    fn stream_f32(query: &[f32], keys: Rows<'_, f32>, values: Rows<'_, f32>, head: Head, scale: f32, out: &mut [f32]) {
        stream(query, keys, values, head, scale, out)
    }
}

by_level! {
    fn stream_f16(query: &[f32], keys: Rows<'_, f16>, values: Rows<'_, f16>, head: Head, scale: f32, out: &mut [f32]) {
        stream(query, keys, values, head, scale, out)
    }
}

/// The reference, and what heads of odd width run through.
#[inline(always)]
fn stream<K: Wide, V: Wide>(
    query: &[f32],
    keys: Rows<'_, K>,
    values: Rows<'_, V>,
    head: Head,
    scale: f32,
    out: &mut [f32],
) {
    let dim = query.len();
    let (mut max, mut total) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    let mut weights = [0.0f32; STEP];
    for first in (0..head.visible).step_by(STEP) {
        let weights = &mut weights[..STEP.min(head.visible - first)];
        let (keys, values) = (keys.step(first, head.stride), values.step(first, head.stride));
        for (k, weight) in weights.iter_mut().enumerate() {
            *weight = dot(query, &keys[head.kv + k * head.stride..][..dim]) * scale;
        }
        let largest = math::max(weights);
        if largest > max {
            let shrink = math::exp(max - largest);
            total *= shrink;
            out.iter_mut().for_each(|out| *out *= shrink);
            max = largest;
        }
        for weight in weights.iter_mut() {
            *weight = math::exp(*weight - max);
        }
        total += math::sum(weights, |v| v);
        for (k, weight) in weights.iter().enumerate() {
            let value = &values[head.kv + k * head.stride..][..dim];
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value.widen();
            }
        }
    }
    let scale = 1.0 / total;
    out.iter_mut().for_each(|out| *out *= scale);
}

/// An element of the cache.
trait Wide: KvElement {
    fn widen(self) -> f32;
}

impl Wide for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Wide for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// As [`math::dot`], over elements to widen.
#[inline(always)]
fn dot<T: Wide>(a: &[f32], b: &[T]) -> f32 {
    let mut lanes = [0.0; math::LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<{ math::LANES }>(), b.as_chunks::<{ math::LANES }>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..math::LANES {
            lanes[i] += a[i] * b[i].widen();
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b.widen();
    }
    math::sum_lanes(lanes)
}
