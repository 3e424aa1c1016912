//! Integer products: `vpdpbusd` of unsigned weights and signed activations, four columns of sixteen rows at a time.

use std::arch::x86_64::*;

use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::unpack::{self, Rows};
use crate::DType;
use crate::quant::{self, GROUP};

/// A tile unpacked into working memory; see [`unpack`] for the layout.
#[derive(Clone, Copy)]
struct Packed {
    groups: usize,
    values: *const __m512i,
    scales: *const f32,
    mins: *const f32,
}

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: the driver has checked that each row is `cols` values long and sized `memory` for a tile.
    unsafe {
        let packed = pack(&tile, memory);
        if tile.dtype == DType::Q6K { products::<true>(tile, packed) } else { products::<false>(tile, packed) }
    }
}

/// # Safety
/// Every row of the tile holds its `cols` values, and `memory` holds at least `tile_bytes(cols)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pack(tile: &Tile<'_>, memory: &mut [Line]) -> Packed {
    let groups = tile.input.cols / GROUP;
    assert!(size_of_val(memory) >= groups * (GROUP * TILE_ROWS + 3 * TILE_ROWS * size_of::<f32>()));
    let rows: Rows = tile.rows.map(<[u8]>::as_ptr);
    let values = memory.as_mut_ptr().cast::<__m512i>();
    // SAFETY: 8 vectors of values, then 3 of scales and minima, a group, all inside `memory`; reads inside the rows.
    unsafe {
        let mins = values.add(8 * groups).cast::<f32>();
        let scales = mins.add(16 * groups);
        match tile.dtype {
            DType::Q4K | DType::Q5K => unpack::large_scales(tile.dtype, &rows, groups, scales, mins),
            DType::Q6K => unpack::q6_scales(&rows, groups, scales),
            dtype => unpack::small_scales(dtype, &rows, groups, scales, mins),
        }
        match tile.dtype {
            DType::Q4_0 => pack_small::<{ DType::Q4_0 as u8 }>(&rows, groups, values),
            DType::Q4_1 => pack_small::<{ DType::Q4_1 as u8 }>(&rows, groups, values),
            DType::Q5_0 => pack_small::<{ DType::Q5_0 as u8 }>(&rows, groups, values),
            DType::Q5_1 => pack_small::<{ DType::Q5_1 as u8 }>(&rows, groups, values),
            DType::Q8_0 => pack_small::<{ DType::Q8_0 as u8 }>(&rows, groups, values),
            dtype => (0..groups / 8).for_each(|b| unpack::large_block(dtype, &rows, b, values.add(64 * b))),
        }
        Packed { groups, values, scales, mins }
    }
}

/// # Safety
/// The rows hold `groups` groups of the format, and `values` has room for them.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_small<const FORMAT: u8>(rows: &Rows, groups: usize, values: *mut __m512i) {
    for g in 0..groups {
        // SAFETY: by the caller's promise.
        unsafe {
            for (j, v) in unpack::small_group(small_format(FORMAT), rows, g).into_iter().enumerate() {
                _mm512_store_si512(values.add(8 * g + j), v);
            }
        }
    }
}

/// The format with this number, for constants.
const fn small_format(number: u8) -> DType {
    let mut i = 0;
    while i < DType::ALL.len() {
        if DType::ALL[i] as u8 == number {
            return DType::ALL[i];
        }
        i += 1;
    }
    DType::Q4_1
}

/// # Safety
/// `packed` is the tile, unpacked, with two scales a group where `HALVES`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn products<const HALVES: bool>(mut tile: Tile<'_>, packed: Packed) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
        unsafe {
            match tile.n - i {
                8.. => i += block::<8, HALVES>(&mut tile, packed, i),
                4.. => i += block::<4, HALVES>(&mut tile, packed, i),
                2.. => i += block::<2, HALVES>(&mut tile, packed, i),
                _ => i += block::<1, HALVES>(&mut tile, packed, i),
            }
        }
    }
}

/// Activations `i .. i + N` of the tile; returns `N`.
///
/// # Safety
/// As [`products`], and `i + N <= n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block<const N: usize, const HALVES: bool>(tile: &mut Tile<'_>, packed: Packed, i: usize) -> usize {
    let first = tile.first + i;
    // SAFETY: by the caller's promise.
    let sums = unsafe { dot::<N, HALVES>(packed, tile.input.quantized, first) };
    let mask = (0xffff_u32 >> (TILE_ROWS - tile.valid)) as __mmask16;
    let bias = match tile.bias {
        // SAFETY: the mask keeps to the `valid` elements.
        Some(bias) => unsafe { _mm512_maskz_loadu_ps(mask, bias.as_ptr()) },
        None => _mm512_setzero_ps(),
    };
    for (k, sum) in sums.into_iter().enumerate() {
        let out = tile.out.row(i + k, tile.valid);
        // SAFETY: the mask keeps to the `valid` elements.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(sum, bias)) };
    }
    N
}

/// The products of sixteen rows with activations `first .. first + N`.
///
/// # Safety
/// `packed` points at a whole tile; the activations hold `first + N` rows of `32 * groups` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn dot<const N: usize, const HALVES: bool>(packed: Packed, input: &Activations, first: usize) -> [__m512; N] {
    let groups = packed.groups;
    assert!(input.cols == groups * GROUP && input.q.len() >= (first + N) * input.cols);
    let mut sums = [_mm512_setzero_ps(); N];
    for g in 0..groups {
        // SAFETY: group `g` of the tile and of each of the N rows.
        unsafe {
            let w = packed.values.add(8 * g);
            let q: [*const i32; N] =
                std::array::from_fn(|i| input.q.as_ptr().add(((first + i) * groups + g) * GROUP).cast());
            let mut left = [_mm512_setzero_si512(); N];
            let mut right = [_mm512_setzero_si512(); N];
            if HALVES {
                let zero = -quant::zero_point(DType::Q6K);
                for i in 0..N {
                    let half_sum = input.half_sum.as_ptr().add(2 * ((first + i) * groups + g));
                    left[i] = _mm512_set1_epi32(zero * *half_sum);
                    right[i] = _mm512_set1_epi32(zero * *half_sum.add(1));
                }
            }
            // Two chains where there are too few activations to hide the latency of one.
            let split = HALVES || N <= 2;
            for j in 0..8 {
                let w = _mm512_load_si512(w.add(j));
                for i in 0..N {
                    let q = _mm512_set1_epi32(q[i].add(j).read_unaligned());
                    let to = if split && j >= 4 { &mut right[i] } else { &mut left[i] };
                    *to = _mm512_dpbusd_epi32(*to, w, q);
                }
            }
            for i in 0..N {
                let at = (first + i) * groups + g;
                let scale = _mm512_set1_ps(*input.scale.as_ptr().add(at));
                if HALVES {
                    let s = packed.scales.add(32 * g);
                    for (product, s) in [(left[i], _mm512_load_ps(s)), (right[i], _mm512_load_ps(s.add(16)))] {
                        sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), _mm512_mul_ps(s, scale), sums[i]);
                    }
                } else {
                    let product = if split { _mm512_add_epi32(left[i], right[i]) } else { left[i] };
                    let s = _mm512_mul_ps(_mm512_load_ps(packed.scales.add(16 * g)), scale);
                    let sum = _mm512_set1_ps(*input.scaled_sum.as_ptr().add(at));
                    sums[i] = _mm512_fmadd_ps(_mm512_load_ps(packed.mins.add(16 * g)), sum, sums[i]);
                    sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), s, sums[i]);
                }
            }
        }
    }
    sums
}
