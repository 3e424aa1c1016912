//! AVX-512 with VNNI. One vector lane is one weight row of a tile of sixteen, so that all products of a tile share
//! the loads of the activations, the sums need no horizontal step, and a row's order of summation is the same for
//! any number of activations.

mod attention;
mod distance;
mod few;
mod full;
mod large;
mod plain;
mod q6;
mod quantize;
pub mod quantized;
mod unpack;

use super::linear::Tile;
use super::scratch::Line;

pub use attention::one_block;
pub use distance::offset_product;
pub use quantize::quantize_groups;

/// All outputs of a tile.
pub fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    if tile.dtype.is_quantized() {
        // SAFETY: this level is only used where `Level::is_supported` found all the features.
        unsafe { quantized::tile(tile, memory) }
    } else {
        // SAFETY: as above.
        unsafe { plain::tile(tile) }
    }
}

/// Sums the lanes of sixteen vectors: lane `k` of the result is the sum of vector `k`.
#[target_feature(enable = "avx512f")]
#[inline]
fn sum_each(v: &[std::arch::x86_64::__m512; 16]) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    let quad = |a: __m512, b: __m512, c: __m512, d: __m512| {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)))
    };
    let pair =
        |a: __m512, b: __m512| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let first = pair(quad(v[0], v[1], v[2], v[3]), quad(v[4], v[5], v[6], v[7]));
    let second = pair(quad(v[8], v[9], v[10], v[11]), quad(v[12], v[13], v[14], v[15]));
    pair(first, second)
}
