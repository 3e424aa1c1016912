//! Products of 8-bit codes: widened to 16 bits, since `vpmaddubsw` saturates.

use std::arch::x86_64::*;

/// See [`crate::kernels::Distances::offset_product`].
///
/// # Safety
/// This processor has the features, and the slices have one length.
#[target_feature(enable = "avx2")]
pub unsafe fn offset_product(a: &[u8], b: &[u8]) -> i32 {
    const LANES: usize = 32;
    let flip = _mm256_set1_epi8(-128);
    let mut sums = [_mm256_setzero_si256(); 2];
    let whole = a.len() / LANES;
    for i in 0..whole {
        // SAFETY: 32 bytes from `i * 32` on lie in both slices.
        let (x, y) = unsafe {
            (_mm256_loadu_si256(a.as_ptr().add(i * LANES).cast()), _mm256_loadu_si256(b.as_ptr().add(i * LANES).cast()))
        };
        let y = _mm256_xor_si256(y, flip);
        let low = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)),
            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(y)),
        );
        let high = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(x)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(y)),
        );
        sums[0] = _mm256_add_epi32(sums[0], low);
        sums[1] = _mm256_add_epi32(sums[1], high);
    }
    let sum = _mm256_add_epi32(sums[0], sums[1]);
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
    _mm_cvtsi128_si32(sum) + crate::kernels::distance::offset_product(&a[whole * LANES..], &b[whole * LANES..])
}
