//! Products with F32, F16 and BF16 weights in `f32`: four rows by four activations at a time, lanes along the row.

use std::arch::x86_64::*;

use super::super::linear::Tile;
use super::sum_each;
use crate::DType;

/// Rows and activations in a block.
const SIDE: usize = 4;

/// All outputs of a tile of plain rows.
///
/// # Safety
/// The processor has the features of `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn blocks<const BYTES: usize, const BRAIN: bool>(mut tile: Tile<'_>) {
    let cols = tile.input.cols;
    for i in (0..tile.n).step_by(SIDE) {
        let count = (tile.n - i).min(SIDE);
        // The last of a short block is repeated: the order of summation stays that of a full one.
        let x: [*const f32; SIDE] =
            std::array::from_fn(|k| tile.input.x[(tile.first + i + k.min(count - 1)) * cols..][..cols].as_ptr());
        for r in (0..tile.valid).step_by(SIDE) {
            let w: [*const u8; SIDE] = std::array::from_fn(|k| tile.rows[r + k].as_ptr());
            // SAFETY: four rows of `cols` values each.
            let sums = unsafe { block::<BYTES, BRAIN>(&w, &x, cols) };
            let rows = (tile.valid - r).min(SIDE);
            for (k, sums) in sums.as_chunks::<SIDE>().0.iter().enumerate().take(count) {
                let out = &mut tile.out.row(i + k, tile.valid)[r..r + rows];
                match tile.bias {
                    Some(bias) => out.iter_mut().zip(sums).zip(&bias[r..]).for_each(|((o, s), b)| *o = s + b),
                    None => out.copy_from_slice(&sums[..rows]),
                }
            }
        }
    }
}

/// Sixteen weights, widened; those not in the mask are zero and not read.
///
/// # Safety
/// The masked values at `at` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn load<const BYTES: usize, const BRAIN: bool>(at: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        if BYTES == 4 {
            return _mm512_maskz_loadu_ps(mask, at.cast());
        }
        let halves = _mm256_maskz_loadu_epi16(mask, at.cast());
        if BRAIN {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        } else {
            _mm512_cvtph_ps(halves)
        }
    }
}

/// Element `4 i + r` is the product of row `r` and activation `i`.
///
/// # Safety
/// All eight point at `cols` values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
#[inline]
unsafe fn block<const BYTES: usize, const BRAIN: bool>(
    w: &[*const u8; SIDE],
    x: &[*const f32; SIDE],
    cols: usize,
) -> [f32; SIDE * SIDE] {
    let mut sums = [_mm512_setzero_ps(); SIDE * SIDE];
    let mut c = 0;
    while c < cols {
        let mask = if cols - c >= 16 { 0xffff } else { (1u16 << (cols - c)) - 1 };
        // SAFETY: the mask keeps to the row.
        unsafe {
            let w: [__m512; SIDE] = std::array::from_fn(|r| load::<BYTES, BRAIN>(w[r].add(c * BYTES), mask));
            for i in 0..SIDE {
                let x = _mm512_maskz_loadu_ps(mask, x[i].add(c));
                for r in 0..SIDE {
                    sums[SIDE * i + r] = _mm512_fmadd_ps(w[r], x, sums[SIDE * i + r]);
                }
            }
        }
        c += 16;
    }
    let mut out = [0.0; SIDE * SIDE];
    // SAFETY: sixteen floats.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum_each(&sums)) };
    out
}
