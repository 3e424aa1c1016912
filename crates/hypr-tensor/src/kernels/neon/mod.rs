//! AArch64 with NEON and the byte dot products of `dotprod`. Quantised tiles are taken as two halves of eight rows,
//! one lane a row, so that a row's order of summation is the same for any number of activations.
//!
//! Tested under emulation; its speed has not been measured.

mod attention;
mod distance;
mod plain;
mod quantized;
mod unpack;

use std::arch::aarch64::*;
use std::arch::asm;

use super::linear::Tile;
use super::scratch::Line;

pub use attention::one_block;
pub use distance::offset_product;

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

/// Adds to each lane of `sum` the product of four bytes of `w` and four of `x`. In assembly, as the intrinsic
/// (`vdotq_s32`) is not in stable Rust.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: works on these registers alone, and the caller has the feature.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Adds the products of sixteen columns of eight rows with one activation: vectors `2 j` and `2 j + 1` of `w` are
/// columns `4 j .. 4 j + 4` of rows 0..4 and 4..8. Each instruction multiplies by one lane of `q`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_columns([mut low, mut high]: [int32x4_t; 2], w: &[int8x16_t; 8], q: int8x16_t) -> [int32x4_t; 2] {
    // SAFETY: as in `dot`.
    unsafe {
        asm!(
            "sdot {low:v}.4s, {w0:v}.16b, {q:v}.4b[0]",
            "sdot {high:v}.4s, {w1:v}.16b, {q:v}.4b[0]",
            "sdot {low:v}.4s, {w2:v}.16b, {q:v}.4b[1]",
            "sdot {high:v}.4s, {w3:v}.16b, {q:v}.4b[1]",
            "sdot {low:v}.4s, {w4:v}.16b, {q:v}.4b[2]",
            "sdot {high:v}.4s, {w5:v}.16b, {q:v}.4b[2]",
            "sdot {low:v}.4s, {w6:v}.16b, {q:v}.4b[3]",
            "sdot {high:v}.4s, {w7:v}.16b, {q:v}.4b[3]",
            low = inout(vreg) low,
            high = inout(vreg) high,
            w0 = in(vreg) w[0],
            w1 = in(vreg) w[1],
            w2 = in(vreg) w[2],
            w3 = in(vreg) w[3],
            w4 = in(vreg) w[4],
            w5 = in(vreg) w[5],
            w6 = in(vreg) w[6],
            w7 = in(vreg) w[7],
            q = in(vreg) q,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Sums the lanes of four vectors: lane `k` of the result is the sum of vector `k`.
#[target_feature(enable = "neon")]
#[inline]
fn sum_each([a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
    vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))
}

/// Four halves, widened.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load_halves(at: *const u16) -> float32x4_t {
    // SAFETY: by the caller's promise.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))) }
}
