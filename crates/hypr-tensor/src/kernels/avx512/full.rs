//! Attention in which every query sees every key, as encoders have it. One vector lane is one of sixteen queries, which
//! are transposed once; keys and values are read an element at a time and multiply all lanes. So nothing is summed
//! across lanes, and a query is alone with its lane.

use std::arch::x86_64::*;

use super::super::SharedMut;
use super::super::attention::{Attention, Block, FULL_BLOCK, Rows, STEP};
use super::attention::exp;
use super::unpack;

/// Keys whose scores are summed side by side, so that no sum waits for itself.
const SIDE_BY_SIDE: usize = STEP / 2;

/// One head of a block of at most [`FULL_BLOCK`] queries.
///
/// # Safety
/// As [`one_block`](super::one_block), and `block.grow` is 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub unsafe fn one_block(
    attention: &Attention<'_>,
    block: Block,
    keys: Rows<'_, f32>,
    values: Rows<'_, f32>,
    out: SharedMut<f32>,
) {
    // SAFETY: by the caller's promise, with room for the values of one head.
    unsafe {
        match attention.head_dim {
            ..=32 => stream::<32>(attention, block, keys, values, out),
            33..=64 => stream::<64>(attention, block, keys, values, out),
            _ => stream::<{ Attention::MAX_HEAD_DIM }>(attention, block, keys, values, out),
        }
    }
}

/// # Safety
/// As [`one_block`], and `head_dim` is at most `WIDEST`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn stream<const WIDEST: usize>(
    attention: &Attention<'_>,
    block: Block,
    keys: Rows<'_, f32>,
    values: Rows<'_, f32>,
    out: SharedMut<f32>,
) {
    let (dim, zero) = (attention.head_dim, _mm512_setzero_ps());
    let (mut queries, mut sums) = ([zero; WIDEST], [zero; WIDEST]);
    let (queries, sums) = (&mut queries[..dim], &mut sums[..dim]);
    // SAFETY: the block's queries lie inside their slice.
    unsafe { load_queries(attention, block, queries) };
    let (mut max, mut total) = (_mm512_set1_ps(f32::NEG_INFINITY), zero);
    for token in (0..block.visible).step_by(STEP) {
        let (keys, values) = (keys.step(token, block.stride), values.step(token, block.stride));
        let count = (block.visible - token).min(STEP);
        let end = block.kv + (count - 1) * block.stride + dim;
        assert!(end <= keys.len() && end <= values.len(), "attention: a step past the end of the cache");
        // SAFETY: the step's rows end inside their slices, as asserted.
        let mut weights = unsafe { scores(queries, keys.as_ptr().add(block.kv), block.stride, count) };
        let before = max;
        for score in &weights {
            max = _mm512_max_ps(max, *score);
        }
        let shrink = exp(_mm512_sub_ps(before, max));
        total = _mm512_mul_ps(total, shrink);
        for weight in &mut weights[..count] {
            *weight = exp(_mm512_sub_ps(*weight, max));
            total = _mm512_add_ps(total, *weight);
        }
        // SAFETY: as above.
        unsafe { add_values(sums, shrink, &weights[..count], values.as_ptr().add(block.kv), block.stride) };
    }
    let scale = _mm512_div_ps(_mm512_set1_ps(1.0), total);
    for sum in &mut *sums {
        *sum = _mm512_mul_ps(*sum, scale);
    }
    store(block, sums, out);
}

/// Value `d` of each query, scaled, into vector `d`; lanes past the last query repeat it.
///
/// # Safety
/// The block's queries lie inside their slice, `queries.len()` values each, a multiple of four.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn load_queries(attention: &Attention<'_>, block: Block, queries: &mut [__m512]) {
    let row = |i: usize| &raw const attention.queries[block.query + i.min(block.queries - 1) * block.query_stride];
    let rows = unpack::Rows::new(std::array::from_fn(|i| row(i).cast()));
    let scale = _mm512_set1_ps(attention.scale);
    for (c, queries) in queries.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        // SAFETY: by the caller's promise.
        let quads = unsafe { unpack::load_quads(&rows, 16 * c) };
        for (query, quad) in queries.iter_mut().zip(quads) {
            *query = _mm512_mul_ps(_mm512_castsi512_ps(quad), scale);
        }
    }
}

/// Products of the queries with the keys of a step; those from `count` on are as far away as can be.
///
/// # Safety
/// `keys` points at `count` keys of `queries.len()` values, `stride` elements apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn scores(queries: &[__m512], keys: *const f32, stride: usize, count: usize) -> [__m512; STEP] {
    let mut scores = [_mm512_set1_ps(f32::NEG_INFINITY); STEP];
    for first in (0..count).step_by(SIDE_BY_SIDE) {
        // SAFETY: keys past the end are read as the last.
        let key: [*const f32; SIDE_BY_SIDE] =
            std::array::from_fn(|k| unsafe { keys.add((first + k).min(count - 1) * stride) });
        let mut sums = [_mm512_setzero_ps(); SIDE_BY_SIDE];
        for (d, query) in queries.iter().enumerate() {
            for (sum, key) in sums.iter_mut().zip(key) {
                // SAFETY: by the caller's promise.
                *sum = _mm512_fmadd_ps(*query, _mm512_set1_ps(unsafe { *key.add(d) }), *sum);
            }
        }
        let counted = SIDE_BY_SIDE.min(count - first);
        scores[first..first + counted].copy_from_slice(&sums[..counted]);
    }
    scores
}

/// Shrinks the sums and adds the values of a step by their weights.
///
/// # Safety
/// `values` points at a row of `sums.len()` values, a multiple of sixteen, for each of the weights, `stride` elements apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn add_values(sums: &mut [__m512], shrink: __m512, weights: &[__m512], values: *const f32, stride: usize) {
    for (c, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut added = [_mm512_setzero_ps(); 16];
        for (added, sum) in added.iter_mut().zip(&*sums) {
            *added = _mm512_mul_ps(*sum, shrink);
        }
        for (k, weight) in weights.iter().enumerate() {
            // SAFETY: by the caller's promise.
            let value: &[f32; 16] = unsafe { &*values.add(k * stride + 16 * c).cast() };
            for (sum, value) in added.iter_mut().zip(value) {
                *sum = _mm512_fmadd_ps(*weight, _mm512_set1_ps(*value), *sum);
            }
        }
        *sums = added;
    }
}

/// Lane `i` of the sums to query `i` of the block.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
fn store(block: Block, sums: &[__m512], out: SharedMut<f32>) {
    for (c, sums) in sums.as_chunks::<16>().0.iter().enumerate() {
        let rows = unpack::Rows::new(std::array::from_fn(|d| (&raw const sums[d]).cast()));
        for first in (0..block.queries).step_by(4) {
            // SAFETY: a vector has sixteen bytes for each four of its lanes, of which there are sixteen.
            let quads = unsafe { unpack::load_quads(&rows, 4 * first) };
            for (i, quad) in quads.into_iter().enumerate().take(block.queries - first) {
                let at = block.query + (first + i) * block.query_stride + 16 * c;
                // SAFETY: sixteen places that only this block writes.
                unsafe { _mm512_storeu_ps(out.slice(at, 16).as_mut_ptr(), _mm512_castsi512_ps(quad)) };
            }
        }
    }
}

const _: () = assert!(FULL_BLOCK == 16, "a query has a lane");
