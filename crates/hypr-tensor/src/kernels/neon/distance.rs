//! Products of 8-bit codes by `sdot`.

use std::arch::aarch64::*;

use super::dot;
use crate::kernels::distance::CODE_ZERO;

/// See [`crate::kernels::Distances::offset_product`].
///
/// `sdot` multiplies signed by signed bytes, so with `z` for [`CODE_ZERO`] this sums `(a - z) (b - z)` and `b - z`
/// apart: `a (b - z) = (a - z) (b - z) + z (b - z)`.
///
/// # Safety
/// This processor has the features, and the slices have one length.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn offset_product(a: &[u8], b: &[u8]) -> i32 {
    const LANES: usize = 16;
    let (zero, ones) = (vdupq_n_u8(CODE_ZERO), vdupq_n_s8(1));
    let mut products = [vdupq_n_s32(0); 2];
    let mut offsets = [vdupq_n_s32(0); 2];
    let whole = a.len() / LANES;
    for i in 0..whole {
        // SAFETY: 16 bytes from `i * 16` on lie in both slices.
        let (x, y) = unsafe { (vld1q_u8(a.as_ptr().add(i * LANES)), vld1q_u8(b.as_ptr().add(i * LANES))) };
        let (x, y) = (vreinterpretq_s8_u8(veorq_u8(x, zero)), vreinterpretq_s8_u8(veorq_u8(y, zero)));
        products[i % 2] = dot(products[i % 2], x, y);
        offsets[i % 2] = dot(offsets[i % 2], y, ones);
    }
    let product = vaddvq_s32(vaddq_s32(products[0], products[1]));
    let offset = vaddvq_s32(vaddq_s32(offsets[0], offsets[1]));
    let rest = crate::kernels::distance::offset_product(&a[whole * LANES..], &b[whole * LANES..]);
    // 65,536 codes keep each term below 2^30, and the sum in range.
    product + i32::from(CODE_ZERO) * offset + rest
}

const _: () = assert!(CODE_ZERO == 0x80, "flipping the top bit takes the zero away");
