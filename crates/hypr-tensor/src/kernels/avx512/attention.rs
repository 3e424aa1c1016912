//! Sixteen keys at a time: their scores are one vector, so that the softmax works on whole vectors too.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::super::attention::{Attention, BLOCK, Block, Mask, Operand, Rows, STEP};
use super::super::{SharedMut, math};
use super::{full, sum_each};
use crate::kv::KvElement;

/// One head of a block of queries, where the head is whole vectors wide.
///
/// # Safety
/// The processor has the features of `Level::Avx512`; `block` describes places inside the slices of `attention` and
/// `out` that no other thread writes; `head_dim` is a multiple of sixteen and at most `Attention::MAX_HEAD_DIM`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub unsafe fn one_block(attention: &Attention<'_>, block: Block, out: SharedMut<f32>) {
    // SAFETY: by the caller's promise, with the vectors that make up one head.
    unsafe {
        match (attention.keys.operand(), attention.values.operand(), attention.head_dim) {
            (Operand::F32(k), Operand::F32(v), _) if attention.mask == Mask::Full => {
                full::one_block(attention, block, k, v, out)
            }
            (Operand::F32(k), Operand::F32(v), 64) => stream::<f32, f32, 4>(attention, block, k, v, out),
            (Operand::F32(k), Operand::F32(v), 32) => stream::<f32, f32, 2>(attention, block, k, v, out),
            (Operand::F32(k), Operand::F32(v), 128) => stream::<f32, f32, 8>(attention, block, k, v, out),
            (Operand::F32(k), Operand::F32(v), _) => stream::<f32, f32, 0>(attention, block, k, v, out),
            (Operand::F16(k), Operand::F16(v), 64) => stream::<f16, f16, 4>(attention, block, k, v, out),
            (Operand::F16(k), Operand::F16(v), 128) => stream::<f16, f16, 8>(attention, block, k, v, out),
            (Operand::F16(k), Operand::F16(v), _) => stream::<f16, f16, 0>(attention, block, k, v, out),
            (Operand::F32(k), Operand::F16(v), _) => stream::<f32, f16, 0>(attention, block, k, v, out),
            (Operand::F16(k), Operand::F32(v), _) => stream::<f16, f32, 0>(attention, block, k, v, out),
        }
    }
}

/// An element of the cache.
trait Element: KvElement {
    /// Sixteen elements, widened.
    ///
    /// # Safety
    /// They are readable, and the processor has AVX-512F.
    unsafe fn load(at: *const Self) -> __m512;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_loadu_ps(at) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load(at: *const Self) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

/// What a query carries from step to step.
#[derive(Clone, Copy)]
struct Running {
    /// The largest score so far.
    max: f32,
    /// Sums of the weights, in the lanes of their keys.
    total: __m512,
    /// Weighted sums of the values.
    sums: [__m512; Attention::MAX_HEAD_DIM / 16],
}

/// `VECTORS` is the width of a head in vectors where it is known to the compiler, else 0.
///
/// # Safety
/// As [`one_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn stream<K: Element, V: Element, const VECTORS: usize>(
    attention: &Attention<'_>,
    block: Block,
    all_keys: Rows<'_, K>,
    all_values: Rows<'_, V>,
    out: SharedMut<f32>,
) {
    let vectors = if VECTORS > 0 { VECTORS } else { attention.head_dim / 16 };
    let zero = _mm512_setzero_ps();
    let mut running =
        [Running { max: f32::NEG_INFINITY, total: zero, sums: [zero; Attention::MAX_HEAD_DIM / 16] }; BLOCK];
    let running = &mut running[..block.queries];
    let last = block.visible + (block.queries - 1) * block.grow;
    for token in (0..last).step_by(STEP) {
        let (keys, values) = (all_keys.step(token, block.stride), all_values.step(token, block.stride));
        let end = block.kv + ((last - token).min(STEP) - 1) * block.stride + 16 * vectors;
        assert!(end <= keys.len() && end <= values.len(), "attention: a step past the end of the cache");
        let soon = token + 6 * STEP;
        for (i, running) in running.iter_mut().enumerate() {
            if attention.queries.len() == attention.heads * attention.head_dim && soon < last {
                let rows = STEP * i / block.queries..(STEP * (i + 1) / block.queries).min(last - soon);
                let (keys, values) = (all_keys.step(soon, block.stride), all_values.step(soon, block.stride));
                ask(&keys[block.kv..], rows.clone(), block.stride, 16 * vectors);
                ask(&values[block.kv..], rows, block.stride, 16 * vectors);
            }
            let visible = block.visible + i * block.grow;
            if token >= visible {
                continue;
            }
            let count = (visible - token).min(STEP);
            // SAFETY: the queries' block lies inside their slice; the step's rows end inside theirs, as asserted.
            unsafe {
                let query = attention.queries.as_ptr().add(block.query + i * block.query_stride);
                let (keys, values) = (keys.as_ptr().add(block.kv), values.as_ptr().add(block.kv));
                let scores = scores::<K, VECTORS>(query, keys, block.stride, count, vectors);
                let scores = _mm512_mul_ps(scores, _mm512_set1_ps(attention.scale));
                step::<V, VECTORS>(running, scores, values, block.stride, count, vectors);
            }
        }
    }
    for (i, running) in running.iter().enumerate() {
        let scale = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(running.total));
        // SAFETY: a place that only this block writes.
        let out = unsafe { out.slice(block.query + i * block.query_stride, 16 * vectors) };
        for (sum, out) in running.sums[..vectors].iter().zip(out.chunks_exact_mut(16)) {
            // SAFETY: sixteen floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(*sum, scale)) };
        }
    }
}

/// Asks for `width` elements of each of some rows: a single query is done with them sooner than memory gives the next.
#[target_feature(enable = "avx512f")]
#[inline]
fn ask<T>(from: &[T], rows: Range<usize>, stride: usize, width: usize) {
    for row in rows {
        let row = from.as_ptr().wrapping_add(row * stride);
        for at in (0..width).step_by(64 / size_of::<T>()) {
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(at).cast());
        }
    }
}

/// Products of a query with sixteen keys; those from `count` on repeat the last.
///
/// # Safety
/// `query` points at `vectors` vectors, `keys` at `count` keys of as many, `stride` elements apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn scores<K: Element, const VECTORS: usize>(
    query: *const f32,
    keys: *const K,
    stride: usize,
    count: usize,
    vectors: usize,
) -> __m512 {
    let vectors = if VECTORS > 0 { VECTORS } else { vectors };
    let mut scores = [_mm512_setzero_ps(); STEP];
    // SAFETY: by the caller's promise.
    let keys: [*const K; STEP] = std::array::from_fn(|k| unsafe { keys.add(k.min(count - 1) * stride) });
    for v in 0..vectors {
        // SAFETY: by the caller's promise.
        unsafe {
            let query = _mm512_loadu_ps(query.add(16 * v));
            for (key, score) in keys.iter().zip(&mut scores) {
                *score = _mm512_fmadd_ps(query, K::load(key.add(16 * v)), *score);
            }
        }
    }
    sum_each(&scores)
}

/// Takes `count` keys of given scores into the running sums.
///
/// # Safety
/// `values` points at `count` values of `vectors` vectors, `stride` elements apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn step<V: Element, const VECTORS: usize>(
    running: &mut Running,
    scores: __m512,
    values: *const V,
    stride: usize,
    count: usize,
    vectors: usize,
) {
    let vectors = if VECTORS > 0 { VECTORS } else { vectors };
    let mask = (0xffff_u32 >> (STEP - count)) as __mmask16;
    let largest = _mm512_mask_reduce_max_ps(mask, scores);
    if largest > running.max {
        let shrink = _mm512_set1_ps(math::exp(running.max - largest));
        running.total = _mm512_mul_ps(running.total, shrink);
        for sum in &mut running.sums[..vectors] {
            *sum = _mm512_mul_ps(*sum, shrink);
        }
        running.max = largest;
    }
    let weights = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(scores, _mm512_set1_ps(running.max))));
    running.total = _mm512_add_ps(running.total, weights);
    let mut weight = [0.0f32; STEP];
    // SAFETY: sixteen floats; values by the caller's promise.
    unsafe {
        _mm512_storeu_ps(weight.as_mut_ptr(), weights);
        if VECTORS > 0 {
            // Even and odd keys apart: one chain of sums would wait for itself.
            let mut even: [__m512; VECTORS] = std::array::from_fn(|v| running.sums[v]);
            let mut odd = [_mm512_setzero_ps(); VECTORS];
            let mut value = values;
            for (k, pair) in weight.as_chunks::<2>().0.iter().enumerate().take(count.div_ceil(2)) {
                // The weight of a key past the end is zero; its value is the last again.
                let next = if 2 * k + 1 < count { value.add(stride) } else { value };
                let (a, b) = (_mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1]));
                for v in 0..VECTORS {
                    even[v] = _mm512_fmadd_ps(a, V::load(value.add(16 * v)), even[v]);
                    odd[v] = _mm512_fmadd_ps(b, V::load(next.add(16 * v)), odd[v]);
                }
                value = next.wrapping_add(stride);
            }
            for v in 0..VECTORS {
                running.sums[v] = _mm512_add_ps(even[v], odd[v]);
            }
        } else {
            for (k, &weight) in weight.iter().enumerate().take(count) {
                for (v, sum) in running.sums[..vectors].iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(weight), V::load(values.add(k * stride + 16 * v)), *sum);
                }
            }
        }
    }
}

/// [`math::exp`] of sixteen values, none above 0.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(clippy::excessive_precision)]
pub fn exp(x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_375), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_15e-4);
    for c in [1.398_199_95e-3, 8.333_451_91e-3, 4.166_579_59e-2, 1.666_666_55e-1, 5.000_000_12e-1, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    // Below the range, `scalef` gives 0; negative infinity alone would give NaN in `r`.
    let finite = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(x, _mm512_set1_ps(f32::NEG_INFINITY));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_maskz_scalef_ps(finite | nan, p, n)
}
