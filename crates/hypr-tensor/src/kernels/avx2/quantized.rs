//! Integer products: `vpmaddubsw` of unsigned weights and signed activations, four columns of eight rows at a time.

use std::arch::x86_64::*;

use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::unpack::{self, ROWS, Rows};
use crate::DType;
use crate::quant::{self, GROUP};

/// How the pairs of products that `vpmaddubsw` adds to 16 bits stay in range.
mod form {
    /// 4 bits: eight pairs add up in 16 bits.
    pub const NIBBLES: u8 = 0;
    /// 5 and 6 bits: each pair is widened.
    pub const UNSIGNED: u8 = 1;
    /// 8 bits, signed: the sign moves to the activation.
    pub const SIGNED: u8 = 2;
    /// 6 bits with a scale for each half of a group.
    pub const HALVES: u8 = 3;
}

/// A half tile unpacked into working memory; see [`unpack`] for the layout.
#[derive(Clone, Copy)]
struct Packed {
    groups: usize,
    values: *const __m256i,
    mins: *const f32,
    scales: *const f32,
}

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Avx2`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tile(mut tile: Tile<'_>, memory: &mut [Line]) {
    let groups = tile.input.cols / GROUP;
    assert!(size_of_val(memory) >= groups * (GROUP * ROWS + 3 * ROWS * size_of::<f32>()));
    let values = memory.as_mut_ptr().cast::<__m256i>();
    for first_row in (0..tile.valid).step_by(ROWS) {
        let rows: Rows<'_> = std::array::from_fn(|r| tile.rows[first_row + r]);
        let other_half = tile.rows.get(first_row + ROWS).copied();
        let next = other_half.or(tile.next).unwrap_or(rows[0]).as_ptr();
        // SAFETY: 8 vectors of values, then 3 of minima and scales, a group, all inside `memory`; the driver has
        // checked that each row is `cols` values long.
        unsafe {
            let mins = values.add(8 * groups).cast::<f32>();
            let scales = mins.add(ROWS * groups);
            unpack::pack(tile.dtype, &rows, groups, next, values, mins, scales);
            let packed = Packed { groups, values, mins, scales };
            match tile.dtype {
                DType::Q4_0 | DType::Q4_1 | DType::Q4K => products::<{ form::NIBBLES }>(&mut tile, packed, first_row),
                DType::Q8_0 => products::<{ form::SIGNED }>(&mut tile, packed, first_row),
                DType::Q6K => products::<{ form::HALVES }>(&mut tile, packed, first_row),
                _ => products::<{ form::UNSIGNED }>(&mut tile, packed, first_row),
            }
        }
    }
}

/// # Safety
/// `packed` is the half tile from `first_row` on, of values that `FORM` is for.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const FORM: u8>(tile: &mut Tile<'_>, packed: Packed, first_row: usize) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
        unsafe {
            if tile.n - i >= 4 {
                store(tile, i, first_row, dot::<4, FORM>(packed, tile.input.quantized, tile.first + i));
                i += 4;
            } else {
                store(tile, i, first_row, dot::<1, FORM>(packed, tile.input.quantized, tile.first + i));
                i += 1;
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn store<const N: usize>(tile: &mut Tile<'_>, i: usize, first_row: usize, sums: [__m256; N]) {
    let rows = first_row..tile.valid.min(first_row + ROWS);
    for (k, sum) in sums.into_iter().enumerate() {
        let mut values = [0.0f32; ROWS];
        // SAFETY: eight floats.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), sum) };
        let bias = tile.bias;
        let out = &mut tile.out.row(i + k, tile.valid)[rows.clone()];
        match bias {
            Some(bias) => {
                out.iter_mut().zip(values).zip(&bias[rows.clone()]).for_each(|((o, v), b)| *o = v + b);
            }
            None => out.copy_from_slice(&values[..rows.len()]),
        }
    }
}

/// The products of eight rows with activations `first .. first + N`.
///
/// # Safety
/// `packed` points at a whole half tile; the activations hold `first + N` rows of `32 * groups` columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dot<const N: usize, const FORM: u8>(packed: Packed, input: &Activations, first: usize) -> [__m256; N] {
    let groups = packed.groups;
    assert!(input.cols == groups * GROUP && input.q.len() >= (first + N) * input.cols);
    let mut sums = [_mm256_setzero_ps(); N];
    for g in 0..groups {
        for (i, sum) in sums.iter_mut().enumerate() {
            let at = (first + i) * groups + g;
            // SAFETY: group `g` of the half tile and of row `first + i`.
            unsafe {
                let q = input.q.as_ptr().add(at * GROUP).cast::<i32>();
                let scale = _mm256_set1_ps(*input.scale.as_ptr().add(at));
                let scales = packed.scales.add(2 * ROWS * g);
                if FORM == form::HALVES {
                    for half in 0..2 {
                        let zero = quant::zero_point(DType::Q6K) * *input.half_sum.as_ptr().add(2 * at + half);
                        let product = integers::<FORM>(packed.values.add(8 * g), q, 4 * half, 4);
                        let product = _mm256_cvtepi32_ps(_mm256_sub_epi32(product, _mm256_set1_epi32(zero)));
                        let s = _mm256_mul_ps(_mm256_loadu_ps(scales.add(ROWS * half)), scale);
                        *sum = _mm256_fmadd_ps(product, s, *sum);
                    }
                } else {
                    let product = _mm256_cvtepi32_ps(integers::<FORM>(packed.values.add(8 * g), q, 0, 8));
                    let min = _mm256_loadu_ps(packed.mins.add(ROWS * g));
                    *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(*input.scaled_sum.as_ptr().add(at)), *sum);
                    *sum = _mm256_fmadd_ps(product, _mm256_mul_ps(_mm256_loadu_ps(scales), scale), *sum);
                }
            }
        }
    }
    sums
}

/// Sums of products over vectors `first .. first + count` of a group.
///
/// # Safety
/// `w` and `q` point at a group.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn integers<const FORM: u8>(w: *const __m256i, q: *const i32, first: usize, count: usize) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let mut sum = _mm256_setzero_si256();
    for j in first..first + count {
        // SAFETY: by the caller's promise.
        let (w, q) = unsafe { (_mm256_load_si256(w.add(j)), _mm256_set1_epi32(q.add(j).read_unaligned())) };
        let pairs = if FORM == form::SIGNED {
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w))
        } else {
            _mm256_maddubs_epi16(w, q)
        };
        sum = if FORM == form::NIBBLES {
            _mm256_add_epi16(sum, pairs)
        } else {
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
        };
    }
    if FORM == form::NIBBLES { _mm256_madd_epi16(sum, ones) } else { sum }
}

const _: () = assert!(TILE_ROWS == 2 * ROWS, "a tile is two halves");
