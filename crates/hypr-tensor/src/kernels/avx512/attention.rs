//! Sixteen keys at a time: their scores are one vector, so that the softmax works on whole vectors too.

use std::arch::x86_64::*;

use half::f16;

use super::super::attention::{Attention, Head, KvRows, STEP};
use super::super::math;
use super::sum_each;

/// One query of one head, where the head is whole vectors wide.
///
/// # Safety
/// The processor has the features of `Level::Avx512`; `head` describes places inside the slices of `attention`,
/// `head_dim` is a multiple of sixteen and at most `Attention::MAX_HEAD_DIM`, and `out` is one head.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub unsafe fn one_head(attention: &Attention<'_>, head: Head, out: &mut [f32]) {
    // SAFETY: by the caller's promise, with the vectors that make up one head.
    unsafe {
        match (attention.keys, attention.values, attention.head_dim) {
            (KvRows::F32(k), KvRows::F32(v), 64) => stream::<f32, f32, 4>(attention, head, k, v, out),
            (KvRows::F32(k), KvRows::F32(v), 32) => stream::<f32, f32, 2>(attention, head, k, v, out),
            (KvRows::F32(k), KvRows::F32(v), 128) => stream::<f32, f32, 8>(attention, head, k, v, out),
            (KvRows::F32(k), KvRows::F32(v), _) => stream::<f32, f32, 0>(attention, head, k, v, out),
            (KvRows::F16(k), KvRows::F16(v), 64) => stream::<f16, f16, 4>(attention, head, k, v, out),
            (KvRows::F16(k), KvRows::F16(v), 128) => stream::<f16, f16, 8>(attention, head, k, v, out),
            (KvRows::F16(k), KvRows::F16(v), _) => stream::<f16, f16, 0>(attention, head, k, v, out),
            (KvRows::F32(k), KvRows::F16(v), _) => stream::<f32, f16, 0>(attention, head, k, v, out),
            (KvRows::F16(k), KvRows::F32(v), _) => stream::<f16, f32, 0>(attention, head, k, v, out),
        }
    }
}

/// An element of the cache.
trait Element: Copy {
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

/// `VECTORS` is the width of a head in vectors where it is known to the compiler, else 0.
///
/// # Safety
/// As [`one_head`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn stream<K: Element, V: Element, const VECTORS: usize>(
    attention: &Attention<'_>,
    head: Head,
    keys: &[K],
    values: &[V],
    out: &mut [f32],
) {
    let vectors = if VECTORS > 0 { VECTORS } else { attention.head_dim / 16 };
    // SAFETY: the head lies inside the slices.
    let (query, keys, values) = unsafe {
        (attention.queries.as_ptr().add(head.query), keys.as_ptr().add(head.kv), values.as_ptr().add(head.kv))
    };
    let mut sums = [_mm512_setzero_ps(); Attention::MAX_HEAD_DIM / 16];
    let sums = &mut sums[..vectors];
    let (mut max, mut total) = (f32::NEG_INFINITY, _mm512_setzero_ps());
    let mut token = 0;
    while token < head.visible {
        let count = (head.visible - token).min(STEP);
        let mask = (0xffff_u32 >> (STEP - count)) as __mmask16;
        // SAFETY: tokens below `visible`; the last of a short step is repeated and masked.
        unsafe {
            let mut scores = [_mm512_setzero_ps(); STEP];
            for (k, score) in scores.iter_mut().enumerate() {
                let key = keys.add((token + k.min(count - 1)) * head.stride);
                for v in 0..vectors {
                    *score = _mm512_fmadd_ps(_mm512_loadu_ps(query.add(16 * v)), K::load(key.add(16 * v)), *score);
                }
            }
            let scores = _mm512_mul_ps(sum_each(&scores), _mm512_set1_ps(attention.scale));
            let largest = _mm512_mask_reduce_max_ps(mask, scores);
            if largest > max {
                let shrink = _mm512_set1_ps(math::exp(max - largest));
                total = _mm512_mul_ps(total, shrink);
                for sum in sums.iter_mut() {
                    *sum = _mm512_mul_ps(*sum, shrink);
                }
                max = largest;
            }
            let weights = exp(_mm512_sub_ps(scores, _mm512_set1_ps(max)));
            let weights = _mm512_maskz_mov_ps(mask, weights);
            total = _mm512_add_ps(total, weights);
            let mut weight = [0.0f32; STEP];
            _mm512_storeu_ps(weight.as_mut_ptr(), weights);
            for (k, &weight) in weight.iter().enumerate().take(count) {
                let value = values.add((token + k) * head.stride);
                let weight = _mm512_set1_ps(weight);
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(weight, V::load(value.add(16 * v)), *sum);
                }
            }
        }
        token += STEP;
    }
    let scale = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(total));
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(16)) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(*sum, scale)) };
    }
}

/// [`math::exp`] of sixteen values, none above 0.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(clippy::excessive_precision)]
fn exp(x: __m512) -> __m512 {
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
