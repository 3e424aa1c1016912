//! Products with F32, F16 and BF16 weights in `f32`: four rows by four activations at a time, lanes along the row.

use std::arch::aarch64::*;

use super::super::linear::Tile;
use super::{load_halves, sum_each};
use crate::{DType, quant};

/// Rows in a block.
const ROWS: usize = 4;
/// Activations in a block, as long as there are that many.
const COLUMNS: usize = 4;
/// Values in a vector.
const LANES: usize = 4;

/// All outputs of a tile of plain rows.
///
/// # Safety
/// The processor has the features of `Level::Neon`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn tile(tile: Tile<'_>) {
    // SAFETY: the driver has checked that each row is `cols` values long.
    unsafe {
        match tile.dtype {
            DType::F16 => blocks::<2, false>(tile),
            DType::BF16 => blocks::<2, true>(tile),
            _ => blocks::<4, false>(tile),
        }
    }
}

/// # Safety
/// Rows are `cols` values of `BYTES` bytes.
#[target_feature(enable = "neon,dotprod")]
unsafe fn blocks<const BYTES: usize, const BRAIN: bool>(mut tile: Tile<'_>) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise. Each output is summed in its own lanes, so a narrower block gives it the
        // same bits.
        unsafe {
            if tile.n - i >= COLUMNS {
                columns::<COLUMNS, BYTES, BRAIN>(&mut tile, i);
                i += COLUMNS;
            } else {
                columns::<1, BYTES, BRAIN>(&mut tile, i);
                i += 1;
            }
        }
    }
}

/// All rows for the tile's activations `i .. i + N`.
///
/// # Safety
/// As [`blocks`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn columns<const N: usize, const BYTES: usize, const BRAIN: bool>(tile: &mut Tile<'_>, i: usize) {
    let cols = tile.input.cols;
    let whole = cols / LANES * LANES;
    let x: [&[f32]; N] = std::array::from_fn(|k| &tile.input.x[(tile.first + i + k) * cols..][..cols]);
    for r in (0..tile.valid).step_by(ROWS) {
        let w: [&[u8]; ROWS] = std::array::from_fn(|k| tile.rows[r + k]);
        // SAFETY: rows of at least `whole` values.
        let mut sums = unsafe { block::<N, BYTES, BRAIN>(&w, &x, whole) };
        if whole < cols {
            for (k, w) in w.iter().enumerate() {
                let mut rest = [0.0; LANES];
                let rest = &mut rest[..cols - whole];
                quant::dequantize(tile.dtype, &w[whole * BYTES..], rest);
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums[k] += rest.iter().zip(&x[whole..]).map(|(w, x)| w * x).sum::<f32>();
                }
            }
        }
        let rows = (tile.valid - r).min(ROWS);
        let bias = tile.bias;
        for (k, sums) in sums.iter().enumerate() {
            let out = &mut tile.out.row(i + k, tile.valid)[r..r + rows];
            match bias {
                Some(bias) => out.iter_mut().zip(sums).zip(&bias[r..]).for_each(|((o, s), b)| *o = s + b),
                None => out.copy_from_slice(&sums[..rows]),
            }
        }
    }
}

/// Element `[i][r]` is the product of row `r` and activation `i` over the first `whole` values.
///
/// # Safety
/// All rows hold `whole` values.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn block<const N: usize, const BYTES: usize, const BRAIN: bool>(
    w: &[&[u8]; ROWS],
    x: &[&[f32]; N],
    whole: usize,
) -> [[f32; ROWS]; N] {
    let mut sums = [[vdupq_n_f32(0.0); ROWS]; N];
    for c in (0..whole).step_by(LANES) {
        // SAFETY: four values from `c` on.
        unsafe {
            let w: [float32x4_t; ROWS] = std::array::from_fn(|r| load::<BYTES, BRAIN>(w[r].as_ptr().add(c * BYTES)));
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = vld1q_f32(x.as_ptr().add(c));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = vfmaq_f32(*sum, w, x);
                }
            }
        }
    }
    sums.map(|sums| {
        let mut out = [0.0; ROWS];
        // SAFETY: four floats.
        unsafe { vst1q_f32(out.as_mut_ptr(), sum_each(sums)) };
        out
    })
}

/// Four weights, widened.
///
/// # Safety
/// They are readable, at any alignment.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load<const BYTES: usize, const BRAIN: bool>(at: *const u8) -> float32x4_t {
    // SAFETY: by the caller's promise.
    unsafe {
        if BYTES == 4 {
            return vreinterpretq_f32_u8(vld1q_u8(at));
        }
        if BRAIN {
            return vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(at))));
        }
        load_halves(at.cast())
    }
}
