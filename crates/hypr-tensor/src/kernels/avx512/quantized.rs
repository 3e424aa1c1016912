//! Integer products: `vpdpbusd` of unsigned weights and signed activations, four columns of sixteen rows at a time.

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::unpack::{self, Rows};
use super::{few, large};
use crate::DType;
use crate::quant::{self, GROUP};

/// A tile unpacked into working memory; see [`unpack`] for the layout.
#[derive(Clone, Copy)]
pub struct Packed {
    pub groups: usize,
    pub values: *const __m512i,
    scales: *const f32,
    others: *const f32,
}

impl Packed {
    /// What group `g` multiplies its integers by.
    ///
    /// # Safety
    /// `g < groups`, and the format is one with that zero point.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub unsafe fn factors<const ZERO: i32>(self, g: usize) -> Factors {
        // SAFETY: by the caller's promise.
        unsafe {
            let other = _mm512_load_ps(self.others.add(TILE_ROWS * g));
            if halves(ZERO) {
                let s = self.scales.add(2 * TILE_ROWS * g);
                Factors { scales: [_mm512_load_ps(s), _mm512_load_ps(s.add(TILE_ROWS))], other }
            } else {
                let s = _mm512_load_ps(self.scales.add(TILE_ROWS * g));
                Factors { scales: [s, s], other }
            }
        }
    }
}

/// What the integers of a group of sixteen rows are multiplied by.
#[derive(Clone, Copy)]
pub struct Factors {
    /// Of the two halves of the group: the same twice, but for `Q6_K`, whose are whole numbers.
    pub scales: [__m512; 2],
    /// The minima, of formats without a zero point; for `Q6_K`, what the scales of both halves are multiplied by.
    pub other: __m512,
}

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: the driver has checked that each row is `cols` values long and sized `memory` for a tile.
    unsafe {
        match tile.n {
            1 => few::tile::<1>(tile, memory),
            2 => few::tile::<2>(tile, memory),
            3 => few::tile::<3>(tile, memory),
            _ => many(tile, memory),
        }
    }
}

/// A whole tile unpacked before its products.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn many(tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: by the caller's promise.
    unsafe {
        let packed = pack(&tile, memory);
        match quant::zero_point(tile.dtype) {
            0 => products::<0>(tile, packed),
            8 => products::<8>(tile, packed),
            16 => products::<16>(tile, packed),
            128 => products::<128>(tile, packed),
            _ => products::<{ quant::zero_point(DType::Q6K) }>(tile, packed),
        }
    }
}

/// # Safety
/// Every row of the tile holds its `cols` values, and `memory` holds at least `tile_bytes(cols)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn pack(tile: &Tile<'_>, memory: &mut [Line]) -> Packed {
    let groups = tile.input.cols / GROUP;
    assert!(size_of_val(memory) >= groups * (GROUP * TILE_ROWS + 3 * TILE_ROWS * size_of::<f32>()));
    let rows = Rows::of(tile);
    let values = memory.as_mut_ptr().cast::<__m512i>();
    // SAFETY: 8 vectors of values, then 3 of scales and minima, a group, all inside `memory`; reads inside the rows.
    unsafe {
        let others = values.add(8 * groups).cast::<f32>();
        let scales = others.add(16 * groups);
        match tile.dtype {
            DType::Q4K => large::pack::<{ DType::Q4K as u8 }>(&rows, groups, values, scales, others),
            DType::Q5K => large::pack::<{ DType::Q5K as u8 }>(&rows, groups, values, scales, others),
            DType::Q6K => large::pack::<{ DType::Q6K as u8 }>(&rows, groups, values, scales, others),
            DType::Q4_0 => pack_small::<{ DType::Q4_0 as u8 }>(&rows, groups, values, scales, others),
            DType::Q4_1 => pack_small::<{ DType::Q4_1 as u8 }>(&rows, groups, values, scales, others),
            DType::Q5_0 => pack_small::<{ DType::Q5_0 as u8 }>(&rows, groups, values, scales, others),
            DType::Q5_1 => pack_small::<{ DType::Q5_1 as u8 }>(&rows, groups, values, scales, others),
            _ => pack_small::<{ DType::Q8_0 as u8 }>(&rows, groups, values, scales, others),
        }
        Packed { groups, values, scales, others }
    }
}

/// # Safety
/// The rows hold `groups` groups of the format, and `values`, `scales` and `others` have room for them.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_small<const FORMAT: u8>(
    rows: &Rows,
    groups: usize,
    values: *mut __m512i,
    scales: *mut f32,
    others: *mut f32,
) {
    let bytes = format(FORMAT).block_bytes();
    // SAFETY: by the caller's promise.
    unsafe { unpack::small_scales(format(FORMAT), rows, groups, scales, others) };
    for g in 0..groups {
        let ahead = rows.ahead(g * bytes, bytes);
        // SAFETY: by the caller's promise.
        unsafe {
            large::store_group(values.add(8 * g), unpack::small_group(format(FORMAT), rows, g), ahead);
        }
    }
}

/// The format with this number, for constants.
pub const fn format(number: u8) -> DType {
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
/// `packed` is the tile, unpacked, of a format with that zero point.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn products<const ZERO: i32>(mut tile: Tile<'_>, packed: Packed) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
        i += unsafe { largest_block::<ZERO>(&mut tile, packed, i) };
    }
}

/// As many activations from `i` on as one block takes; returns their number.
///
/// # Safety
/// As [`products`], and `i < n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn largest_block<const ZERO: i32>(tile: &mut Tile<'_>, packed: Packed, i: usize) -> usize {
    // SAFETY: by the caller's promise.
    unsafe {
        match tile.n - i {
            8.. => block::<8, ZERO>(tile, packed, i),
            4.. => block::<4, ZERO>(tile, packed, i),
            2.. => block::<2, ZERO>(tile, packed, i),
            _ => block::<1, ZERO>(tile, packed, i),
        }
    }
}

/// Activations `i .. i + N` of the tile; returns `N`.
///
/// # Safety
/// As [`products`], and `i + N <= n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block<const N: usize, const ZERO: i32>(tile: &mut Tile<'_>, packed: Packed, i: usize) -> usize {
    let first = tile.first + i;
    let input = tile.input.quantized;
    assert!(input.cols == packed.groups * GROUP && input.q.len() >= (first + N) * input.cols);
    let mut sums = [_mm512_setzero_ps(); N];
    for g in 0..packed.groups {
        // SAFETY: group `g` of the tile and of each of the N rows.
        unsafe {
            let w: [__m512i; 8] = std::array::from_fn(|j| _mm512_load_si512(packed.values.add(8 * g + j)));
            accumulate::<N, ZERO>(&mut sums, &w, packed.factors::<ZERO>(g), input, first, g, None);
        }
    }
    store(tile, i, sums);
    N
}

/// Writes the sums of activations `i ..` with their bias.
#[target_feature(enable = "avx512f")]
pub fn store<const N: usize>(tile: &mut Tile<'_>, i: usize, sums: [__m512; N]) {
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
}

/// Adds the products of group `g` of sixteen rows with activations `first .. first + N`, asking for eight lines
/// of the next tile meanwhile. Every way through this file
/// ends here.
///
/// # Safety
/// The activations hold group `g` of `first + N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub unsafe fn accumulate<const N: usize, const ZERO: i32>(
    sums: &mut [__m512; N],
    w: &[__m512i; 8],
    factors: Factors,
    input: &Activations,
    first: usize,
    g: usize,
    ahead: Option<Ahead>,
) {
    let groups = input.cols / GROUP;
    let (mut left, mut right) = ([_mm512_setzero_si512(); N], [_mm512_setzero_si512(); N]);
    // Two chains where there are too few activations to hide the latency of one.
    let split = halves(ZERO) || N <= 3;
    // SAFETY: by the caller's promise.
    unsafe {
        for i in 0..N {
            [left[i], right[i]] = offsets::<ZERO>(input, (first + i) * groups + g);
        }
        let q: [*const i32; N] = std::array::from_fn(|i| group_of(input, first + i, g));
        for (j, &w) in w.iter().enumerate() {
            for i in 0..N {
                let q = _mm512_set1_epi32(q[i].add(j).read_unaligned());
                let to = if split && j >= 4 { &mut right[i] } else { &mut left[i] };
                *to = _mm512_dpbusd_epi32(*to, w, q);
            }
            if let Some(ahead) = ahead {
                ahead.ask(j, 8);
            }
        }
        for i in 0..N {
            let whole = if split && !halves(ZERO) { _mm512_add_epi32(left[i], right[i]) } else { left[i] };
            sums[i] = add_products::<ZERO>(sums[i], [whole, right[i]], factors, input, (first + i) * groups + g);
        }
    }
}

/// The integers of group `g` of row `row` of the activations.
///
/// # Safety
/// The activations hold that group.
#[inline]
pub unsafe fn group_of(input: &Activations, row: usize, g: usize) -> *const i32 {
    // SAFETY: by the caller's promise.
    unsafe { input.q.as_ptr().add(row * input.cols + g * GROUP).cast() }
}

/// Whether the halves of a group have scales of their own, by the zero point of the format.
pub const fn halves(zero: i32) -> bool {
    zero == quant::zero_point(DType::Q6K)
}

/// What the zero point takes off the products of group `at` of the activations: of its two halves where they are apart, else of
/// the whole, and nothing. Zero points are powers of two.
///
/// # Safety
/// The activations hold that group.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn offsets<const ZERO: i32>(input: &Activations, at: usize) -> [__m512i; 2] {
    // A group with a NaN or an infinity has sums of any size; its scale spoils what they are multiplied into.
    // SAFETY: by the caller's promise.
    unsafe {
        if halves(ZERO) {
            let half_sum = input.half_sum.as_ptr().add(2 * at);
            [*half_sum, *half_sum.add(1)].map(|sum| _mm512_set1_epi32(sum.wrapping_mul(-ZERO)))
        } else if ZERO > 0 {
            let minus_sum = _mm512_set1_epi32(*input.minus_sum.as_ptr().add(at));
            [_mm512_sllv_epi32(minus_sum, _mm512_set1_epi32(ZERO.ilog2() as i32)), _mm512_setzero_si512()]
        } else {
            [_mm512_setzero_si512(); 2]
        }
    }
}

/// Adds the integer products of sixteen rows with group `at` of the activations to their sum: of its two halves where they are
/// apart, else of the group, the second being ignored. All that is rounded is rounded here, so that a row has one
/// order of summation, with tiles too.
///
/// # Safety
/// The activations hold that group.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn add_products<const ZERO: i32>(
    sum: __m512,
    products: [__m512i; 2],
    Factors { scales, other }: Factors,
    input: &Activations,
    at: usize,
) -> __m512 {
    // SAFETY: by the caller's promise.
    let scale = unsafe { _mm512_set1_ps(*input.scale.as_ptr().add(at)) };
    let [left, right] = products.map(|product| _mm512_cvtepi32_ps(product));
    if halves(ZERO) {
        // Exact: sixteen products of at most 32 * 127, times 128, twice, are below 2^24.
        let product = _mm512_fmadd_ps(left, scales[0], _mm512_mul_ps(right, scales[1]));
        return _mm512_fmadd_ps(product, _mm512_mul_ps(other, scale), sum);
    }
    let sum = if ZERO > 0 {
        sum
    } else {
        // SAFETY: by the caller's promise.
        let scaled_sum = unsafe { _mm512_set1_ps(*input.scaled_sum.as_ptr().add(at)) };
        _mm512_fmadd_ps(other, scaled_sum, sum)
    };
    _mm512_fmadd_ps(left, _mm512_mul_ps(scales[0], scale), sum)
}
