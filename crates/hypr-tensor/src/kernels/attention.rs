//! Scaled dot-product attention with streaming softmax.
//!
//! Each (sequence, query, head) is one task: keys are taken sixteen at a time in order of position, with a running
//! maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), so no matrix of
//! scores is ever stored and a query's result does not depend on the other queries of the call.

use half::f16;

use super::{Kernels, Level, SharedMut};

/// Keys taken in one step.
pub(super) const STEP: usize = 16;

/// Cached keys or values, `[tokens, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In half precision.
    F16(&'a [f16]),
}

impl KvRows<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
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

    fn tokens(&self) -> usize {
        self.keys.len() / (self.kv_heads * self.head_dim)
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
        assert_eq!(self.keys.len(), self.tokens() * self.kv_heads * self.head_dim, "attention: keys");
        assert_eq!(self.values.len(), self.keys.len(), "attention: values");
        if let Mask::Causal { start } = self.mask {
            assert!(start + self.queries() <= self.tokens(), "attention: a query's own key is not in the cache");
        }
    }
}

pub fn run(kernels: &Kernels, sequences: &mut [(Attention<'_>, &mut [f32])]) {
    for (attention, out) in &*sequences {
        attention.check(out);
    }
    for (attention, out) in sequences {
        run_one(kernels, attention, out);
    }
}

fn run_one(kernels: &Kernels, attention: &Attention<'_>, out: &mut [f32]) {
    let (level, dim) = (kernels.level(), attention.head_dim);
    let tasks = attention.queries() * attention.heads;
    let out = SharedMut::new(out);
    let work = tasks * attention.tokens() * dim;
    let grain = if work < 32 * 1024 { tasks } else { tasks.div_ceil(kernels.pool().threads() * 8) };
    kernels.pool().for_each_range(tasks, grain, &|_, range| {
        for task in range {
            // SAFETY: each task has its own place in the output.
            let out = unsafe { out.slice(task * dim, dim) };
            one_head(level, attention, task / attention.heads, task % attention.heads, out);
        }
    });
}

/// One query of one head.
fn one_head(level: Level, attention: &Attention<'_>, query: usize, head: usize, out: &mut [f32]) {
    let _ = level;
    reference(attention, query, head, out);
}

fn reference(attention: &Attention<'_>, query: usize, head: usize, out: &mut [f32]) {
    let dim = attention.head_dim;
    let kv_head = head / (attention.heads / attention.kv_heads);
    let q = &attention.queries[(query * attention.heads + head) * dim..][..dim];
    let visible = match attention.mask {
        Mask::Causal { start } => start + query + 1,
        Mask::Full => attention.tokens(),
    };
    let at = |token: usize| (token * attention.kv_heads + kv_head) * dim;
    let value = |rows: &KvRows<'_>, index: usize| match rows {
        KvRows::F32(values) => values[index],
        KvRows::F16(values) => values[index].to_f32(),
    };
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    for token in 0..visible {
        let first = at(token);
        let score = (0..dim).map(|i| q[i] * value(&attention.keys, first + i)).sum::<f32>() * attention.scale;
        if score > max {
            let shrink = super::math::exp(max - score);
            sum *= shrink;
            out.iter_mut().for_each(|out| *out *= shrink);
            max = score;
        }
        let weight = super::math::exp(score - max);
        sum += weight;
        for (i, out) in out.iter_mut().enumerate() {
            *out += weight * value(&attention.values, first + i);
        }
    }
    out.iter_mut().for_each(|out| *out /= sum);
}
