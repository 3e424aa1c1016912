//! Products with F32, F16 and BF16 weights in `f32`: four rows by two activations at a time, lanes along the row.

use std::arch::x86_64::*;

use super::super::linear::Tile;
use crate::{DType, quant};

/// Rows in a block.
const ROWS: usize = 4;
/// Activations in a block.
const COLUMNS: usize = 2;
/// Values in a vector.
const LANES: usize = 8;

/// All outputs of a tile of plain rows.
///
/// # Safety
/// The processor has the features of `Level::Avx2`.
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<const BYTES: usize, const BRAIN: bool>(mut tile: Tile<'_>) {
    let cols = tile.input.cols;
    let whole = cols / LANES * LANES;
    for i in (0..tile.n).step_by(COLUMNS) {
        let count = (tile.n - i).min(COLUMNS);
        // The last of a short block is repeated: the order of summation stays that of a full one.
        let x: [&[f32]; COLUMNS] =
            std::array::from_fn(|k| &tile.input.x[(tile.first + i + k.min(count - 1)) * cols..][..cols]);
        for r in (0..tile.valid).step_by(ROWS) {
            let w: [&[u8]; ROWS] = std::array::from_fn(|k| tile.rows[r + k]);
            // SAFETY: rows of at least `whole` values.
            let mut sums = unsafe { block::<BYTES, BRAIN>(&w, &x, whole) };
            for (k, w) in w.iter().enumerate() {
                let mut rest = [0.0; LANES];
                let rest = &mut rest[..cols - whole];
                quant::dequantize(tile.dtype, &w[whole * BYTES..], rest);
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums[k] += rest.iter().zip(&x[whole..]).map(|(w, x)| w * x).sum::<f32>();
                }
            }
            let rows = (tile.valid - r).min(ROWS);
            let bias = tile.bias;
            for (k, sums) in sums.iter().enumerate().take(count) {
                let out = &mut tile.out.row(i + k, tile.valid)[r..r + rows];
                match bias {
                    Some(bias) => out.iter_mut().zip(sums).zip(&bias[r..]).for_each(|((o, s), b)| *o = s + b),
                    None => out.copy_from_slice(&sums[..rows]),
                }
            }
        }
    }
}

/// Element `[i][r]` is the product of row `r` and activation `i` over the first `whole` values.
///
/// # Safety
/// All rows hold `whole` values.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block<const BYTES: usize, const BRAIN: bool>(
    w: &[&[u8]; ROWS],
    x: &[&[f32]; COLUMNS],
    whole: usize,
) -> [[f32; ROWS]; COLUMNS] {
    let mut sums = [[_mm256_setzero_ps(); ROWS]; COLUMNS];
    for c in (0..whole).step_by(LANES) {
        // SAFETY: eight values from `c` on.
        unsafe {
            let w: [__m256; ROWS] = std::array::from_fn(|r| load::<BYTES, BRAIN>(w[r].as_ptr().add(c * BYTES)));
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = _mm256_loadu_ps(x.as_ptr().add(c));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_fmadd_ps(w, x, *sum);
                }
            }
        }
    }
    sums.map(|[a, b, c, d]| {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let quads = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        let mut out = [0.0; ROWS];
        // SAFETY: four floats.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), quads) };
        out
    })
}

/// Eight weights, widened.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn load<const BYTES: usize, const BRAIN: bool>(at: *const u8) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        if BYTES == 4 {
            return _mm256_loadu_ps(at.cast());
        }
        let halves = _mm_loadu_si128(at.cast());
        if BRAIN {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        } else {
            _mm256_cvtph_ps(halves)
        }
    }
}
