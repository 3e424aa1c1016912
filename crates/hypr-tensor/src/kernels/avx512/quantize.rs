//! Activations to 8 bits.

use std::arch::x86_64::*;

use super::super::scratch::Quantized;
use crate::quant::GROUP;

/// Groups that are taken together, so that what is found over a group is found for all of them in the same steps.
const TOGETHER: usize = 4;

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
    for g in (0..groups).step_by(TOGETHER) {
        let count = (groups - g).min(TOGETHER);
        // SAFETY: groups `g .. g + count` of arrays that were just found long enough.
        unsafe {
            let mut halves = [[_mm512_setzero_ps(); TOGETHER]; 2];
            for (k, x) in x.as_chunks::<GROUP>().0[g..g + count].iter().enumerate() {
                (halves[0][k], halves[1][k]) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr()));
            }
            // As integers, where NaN is above infinity and spoils the scale.
            let magnitude = |v: __m512| _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff));
            let mut largest = [_mm512_setzero_si512(); TOGETHER];
            for k in 0..TOGETHER {
                largest[k] = _mm512_max_epi32(magnitude(halves[0][k]), magnitude(halves[1][k]));
            }
            let largest = _mm_castsi128_ps(over_each::<true>(largest));
            let some = !_mm_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm_set1_ps(1e-36));
            let mut inverse = [0.0f32; TOGETHER];
            _mm_storeu_ps(inverse.as_mut_ptr(), _mm_maskz_div_ps(some, _mm_set1_ps(127.0), largest));
            let step = _mm_maskz_div_ps(some, largest, _mm_set1_ps(127.0));
            let mut integers = [[_mm512_setzero_si512(); TOGETHER]; 2];
            for (half, (integers, values)) in integers.iter_mut().zip(&halves).enumerate() {
                for k in 0..TOGETHER {
                    integers[k] = _mm512_cvtps_epi32(_mm512_mul_ps(values[k], _mm512_set1_ps(inverse[k])));
                    if k < count {
                        let to = q.as_mut_ptr().add((g + k) * GROUP + 16 * half);
                        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(integers[k]));
                    }
                }
            }
            let [left, right] = integers.map(|integers| over_each::<false>(integers));
            let sum = _mm_add_epi32(left, right);
            let mask = (1u8 << count) - 1;
            _mm_mask_storeu_ps(scale.as_mut_ptr().add(g), mask, step);
            _mm_mask_storeu_ps(scaled_sum.as_mut_ptr().add(g), mask, _mm_mul_ps(step, _mm_cvtepi32_ps(sum)));
            _mm_mask_storeu_epi32(minus_sum.as_mut_ptr().add(g), mask, _mm_sub_epi32(_mm_setzero_si128(), sum));
            let pairs = _mm256_set_m128i(_mm_unpackhi_epi32(left, right), _mm_unpacklo_epi32(left, right));
            let mask = ((1u16 << (2 * count)) - 1) as __mmask8;
            _mm256_mask_storeu_epi32(half_sum.as_mut_ptr().add(2 * g), mask, pairs);
        }
    }
}

/// The largest lane of each of four vectors where `MAX`, else the sum of its lanes.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn over_each<const MAX: bool>([a, b, c, d]: [__m512i; 4]) -> __m128i {
    let join = |a: __m512i, b: __m512i| if MAX { _mm512_max_epi32(a, b) } else { _mm512_add_epi32(a, b) };
    let ab = join(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = join(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let abcd = join(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let abcd = join(abcd, _mm512_shuffle_i32x4::<0b01_00_11_10>(abcd, abcd));
    let abcd = join(abcd, _mm512_shuffle_i32x4::<0b10_11_00_01>(abcd, abcd));
    _mm512_castsi512_si128(abcd)
}
