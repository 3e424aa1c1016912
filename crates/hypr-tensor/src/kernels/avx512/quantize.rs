//! Activations to 8 bits.

use std::arch::x86_64::*;

use super::super::scratch::Quantized;
use crate::quant::GROUP;

/// What the function of the same name in `scratch` does, to the same bits.
///
/// # Safety
/// The processor has the features of `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn quantize_groups(x: &[f32], to: Quantized<'_>) {
    let Quantized { q, scale, scaled_sum, half_sum, minus_sum } = to;
    let groups = x.len() / GROUP;
    assert!(q.len() >= groups * GROUP && scale.len() >= groups);
    assert!(scaled_sum.len() >= groups && half_sum.len() >= 2 * groups && minus_sum.len() >= groups);
    for g in 0..groups {
        // SAFETY: group `g` of arrays that were just found long enough.
        unsafe {
            let left = _mm512_loadu_ps(x.as_ptr().add(g * GROUP));
            let right = _mm512_loadu_ps(x.as_ptr().add(g * GROUP + 16));
            // As integers, where NaN is above infinity and spoils the scale.
            let magnitude = |v: __m512| _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff));
            let largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(left), magnitude(right)));
            let largest = f32::from_bits(largest as u32);
            let inverse = if largest < 1e-36 { 0.0 } else { 127.0 / largest };
            let step = if largest < 1e-36 { 0.0 } else { largest / 127.0 };
            let integers = |v: __m512| _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse)));
            let (left, right) = (integers(left), integers(right));
            let to = q.as_mut_ptr().add(g * GROUP).cast::<__m128i>();
            _mm_storeu_si128(to, _mm512_cvtepi32_epi8(left));
            _mm_storeu_si128(to.add(1), _mm512_cvtepi32_epi8(right));
            let sums = [_mm512_reduce_add_epi32(left), _mm512_reduce_add_epi32(right)];
            *scale.get_unchecked_mut(g) = step;
            let sum = sums[0].wrapping_add(sums[1]);
            *scaled_sum.get_unchecked_mut(g) = step * sum as f32;
            *minus_sum.get_unchecked_mut(g) = sum.wrapping_neg();
            half_sum.as_mut_ptr().add(2 * g).cast::<[i32; 2]>().write_unaligned(sums);
        }
    }
}
