//! Four keys at a time for the scores, sixteen columns at a time for the values, whose sums then stay in registers.

use std::arch::aarch64::*;

use half::f16;

use super::super::attention::{Attention, BLOCK, Block, Operand, Rows, STEP};
use super::super::{SharedMut, math};
use super::{load_halves, sum_each};
use crate::kv::KvElement;

/// Values in a vector.
const LANES: usize = 4;
/// Vectors whose sums are taken together.
const VECTORS: usize = 4;

/// One head of a block of queries.
///
/// # Safety
/// The processor has the features of `Level::Neon`; `block` describes places inside the slices of `attention` and
/// `out` that no other thread writes; `head_dim` is a multiple of sixteen and at most `Attention::MAX_HEAD_DIM`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn one_block(attention: &Attention<'_>, block: Block, out: SharedMut<f32>) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (attention.keys.operand(), attention.values.operand()) {
            (Operand::F32(k), Operand::F32(v)) => stream(attention, block, k, v, out),
            (Operand::F16(k), Operand::F16(v)) => stream(attention, block, k, v, out),
            (Operand::F32(k), Operand::F16(v)) => stream(attention, block, k, v, out),
            (Operand::F16(k), Operand::F32(v)) => stream(attention, block, k, v, out),
        }
    }
}

/// An element of the cache.
trait Element: KvElement {
    /// Four elements, widened.
    ///
    /// # Safety
    /// They are readable, and the processor has NEON.
    unsafe fn load(at: *const Self) -> float32x4_t;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe { vld1q_f32(at) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe { load_halves(at.cast()) }
    }
}

/// What a query carries from step to step.
#[derive(Clone, Copy)]
struct Running {
    /// The largest score so far.
    max: f32,
    /// The sum of the weights.
    total: f32,
}

/// The weights of the keys of a step.
struct Weights {
    values: [f32; STEP],
    /// What the sums so far are multiplied by.
    shrink: f32,
}

/// # Safety
/// As [`one_block`].
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn stream<K: Element, V: Element>(
    attention: &Attention<'_>,
    block: Block,
    keys: Rows<'_, K>,
    values: Rows<'_, V>,
    out: SharedMut<f32>,
) {
    let dim = attention.head_dim;
    let place = |i: usize| block.query + i * block.query_stride;
    for i in 0..block.queries {
        // SAFETY: a place that only this block writes.
        unsafe { out.slice(place(i), dim) }.fill(0.0);
    }
    let mut running = [Running { max: f32::NEG_INFINITY, total: 0.0 }; BLOCK];
    let running = &mut running[..block.queries];
    let last = block.visible + (block.queries - 1) * block.grow;
    for token in (0..last).step_by(STEP) {
        let (keys, values) = (keys.step(token, block.stride), values.step(token, block.stride));
        let end = block.kv + ((last - token).min(STEP) - 1) * block.stride + dim;
        assert!(end <= keys.len() && end <= values.len(), "attention: a step past the end of the cache");
        for (i, running) in running.iter_mut().enumerate() {
            let visible = block.visible + i * block.grow;
            if token >= visible {
                continue;
            }
            let count = (visible - token).min(STEP);
            let query = &attention.queries[place(i)..][..dim];
            // SAFETY: the step's rows end inside their slices, as asserted; the place is only this block's.
            unsafe {
                let mut scores = scores(query, keys.as_ptr().add(block.kv), block.stride, count);
                scores[..count].iter_mut().for_each(|score| *score *= attention.scale);
                scores[count..].fill(f32::NEG_INFINITY);
                let weights = running.weigh(scores);
                add_values(out.slice(place(i), dim), &weights, values.as_ptr().add(block.kv), block.stride, count);
            }
        }
    }
    for (i, running) in running.iter().enumerate() {
        let scale = 1.0 / running.total;
        // SAFETY: a place that only this block writes.
        unsafe { out.slice(place(i), dim) }.iter_mut().for_each(|out| *out *= scale);
    }
}

impl Running {
    /// The weights of keys of given scores, now part of the sum. A score of negative infinity has no weight.
    #[inline(always)]
    fn weigh(&mut self, mut scores: [f32; STEP]) -> Weights {
        // NaNs are passed over here, and spoil the sum.
        let largest = scores.iter().fold(f32::NEG_INFINITY, |max, &score| if score > max { score } else { max });
        let mut shrink = 1.0;
        if largest > self.max {
            shrink = math::exp(self.max - largest);
            self.max = largest;
        }
        for score in &mut scores {
            *score = math::exp(*score - self.max);
        }
        self.total = self.total * shrink + math::sum_lanes(scores);
        Weights { values: scores, shrink }
    }
}

/// Products of a query with sixteen keys; those from `count` on repeat the last.
///
/// # Safety
/// `keys` points at `count` keys as long as the query, `stride` elements apart.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn scores<K: Element>(query: &[f32], keys: *const K, stride: usize, count: usize) -> [f32; STEP] {
    let mut scores = [0.0; STEP];
    for (quad, scores) in scores.as_chunks_mut::<4>().0.iter_mut().enumerate().take(count.div_ceil(4)) {
        // SAFETY: by the caller's promise.
        let keys: [*const K; 4] = std::array::from_fn(|k| unsafe { keys.add((4 * quad + k).min(count - 1) * stride) });
        let mut sums = [vdupq_n_f32(0.0); 4];
        for c in (0..query.len()).step_by(LANES) {
            // SAFETY: four elements of each from `c` on, as the query is whole vectors; four floats of `scores`.
            unsafe {
                let query = vld1q_f32(query.as_ptr().add(c));
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = vfmaq_f32(*sum, query, K::load(key.add(c)));
                }
            }
        }
        // SAFETY: four floats.
        unsafe { vst1q_f32(scores.as_mut_ptr(), sum_each(sums)) };
    }
    scores
}

/// Shrinks `out` and adds `count` values by their weights.
///
/// # Safety
/// `values` points at `count` values as long as `out`, `stride` elements apart.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn add_values<V: Element>(out: &mut [f32], weights: &Weights, values: *const V, stride: usize, count: usize) {
    for (run, out) in out.as_chunks_mut::<{ VECTORS * LANES }>().0.iter_mut().enumerate() {
        // SAFETY: sixteen floats of `out`, and as many of each value by the caller's promise.
        unsafe {
            let mut sums: [float32x4_t; VECTORS] =
                std::array::from_fn(|v| vmulq_n_f32(vld1q_f32(out.as_ptr().add(LANES * v)), weights.shrink));
            for (k, &weight) in weights.values.iter().enumerate().take(count) {
                let value = values.add(k * stride + VECTORS * LANES * run);
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = vfmaq_n_f32(*sum, V::load(value.add(LANES * v)), weight);
                }
            }
            for (v, sum) in sums.into_iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(LANES * v), sum);
            }
        }
    }
}
