//! Products of 8-bit codes by `vpdpbusd`.

use std::arch::x86_64::*;

/// See [`crate::kernels::Distances::offset_product`].
///
/// # Safety
/// This processor has the features, and the slices have one length.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn offset_product(a: &[u8], b: &[u8]) -> i32 {
    const LANES: usize = 64;
    let flip = _mm512_set1_epi8(-128);
    let mut sums = [_mm512_setzero_si512(); 4];
    let whole = a.len() / LANES;
    for i in 0..whole {
        // SAFETY: 64 bytes from `i * 64` on lie in both slices.
        let (x, y) = unsafe {
            (_mm512_loadu_si512(a.as_ptr().add(i * LANES).cast()), _mm512_loadu_si512(b.as_ptr().add(i * LANES).cast()))
        };
        sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], x, _mm512_xor_si512(y, flip));
    }
    let rest = a.len() - whole * LANES;
    if rest > 0 {
        let mask: __mmask64 = (1 << rest) - 1;
        // SAFETY: the mask keeps the loads to the `rest` bytes that both slices still have.
        let (x, y) = unsafe {
            (
                _mm512_maskz_loadu_epi8(mask, a.as_ptr().add(whole * LANES).cast()),
                _mm512_maskz_loadu_epi8(mask, b.as_ptr().add(whole * LANES).cast()),
            )
        };
        // Where the mask is off, `x` is 0 and the product with whatever `y` became is too.
        sums[0] = _mm512_dpbusd_epi32(sums[0], x, _mm512_xor_si512(y, flip));
    }
    let sum = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    _mm512_reduce_add_epi32(sum)
}
