//! Integer products: `vpdpbusd` of unsigned weights and signed activations, four columns of sixteen rows at a time.

use std::arch::x86_64::*;

use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::large;
use super::unpack::{self, Rows};
use crate::DType;
use crate::quant::{self, GROUP};

/// A tile unpacked into working memory; see [`unpack`] for the layout.
#[derive(Clone, Copy)]
pub struct Packed {
    pub groups: usize,
    pub values: *const __m512i,
    scales: *const f32,
    mins: *const f32,
}

impl Packed {
    /// What group `g` multiplies its integers by, and its minima.
    ///
    /// # Safety
    /// `g < groups`, and there are two scales a group where `HALVES`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub unsafe fn factors<const HALVES: bool>(self, g: usize) -> Factors {
        // SAFETY: by the caller's promise.
        unsafe {
            if HALVES {
                let s = self.scales.add(2 * TILE_ROWS * g);
                Factors { scales: [_mm512_load_ps(s), _mm512_load_ps(s.add(TILE_ROWS))], min: _mm512_setzero_ps() }
            } else {
                let s = _mm512_load_ps(self.scales.add(TILE_ROWS * g));
                Factors { scales: [s, s], min: _mm512_load_ps(self.mins.add(TILE_ROWS * g)) }
            }
        }
    }
}

/// Scales of the two halves of a group, and its minima, of sixteen rows.
#[derive(Clone, Copy)]
pub struct Factors {
    pub scales: [__m512; 2],
    pub min: __m512,
}

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: the driver has checked that each row is `cols` values long and sized `memory` for a tile.
    unsafe {
        match (tile.n, tile.dtype) {
            (1, _) => few::<1>(tile, memory),
            (2, _) => few::<2>(tile, memory),
            (3, _) => few::<3>(tile, memory),
            _ => many(tile, memory),
        }
    }
}

/// A whole tile unpacked before its products.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn many(tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: by the caller's promise.
    unsafe {
        let packed = pack(&tile, memory);
        if tile.dtype == DType::Q6K { products::<true>(tile, packed) } else { products::<false>(tile, packed) }
    }
}

/// Products with so few activations that the weights, unpacked, go from register to register.
///
/// # Safety
/// As [`tile`], with `tile.n == N`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few<const N: usize>(mut tile: Tile<'_>, memory: &mut [Line]) {
    let rows: Rows = tile.rows.map(<[u8]>::as_ptr);
    let groups = tile.input.cols / GROUP;
    let (input, first) = (tile.input.quantized, tile.first);
    assert!(input.cols == groups * GROUP && input.q.len() >= (first + N) * input.cols);
    // SAFETY: by the caller's promise; `memory` has room for the scales and minima of a tile.
    unsafe {
        let sums = match tile.dtype {
            DType::Q4_1 => q4_1::<N>(&rows, groups, input, first),
            DType::Q4_0 => small::<N, { DType::Q4_0 as u8 }>(&rows, groups, input, first, memory),
            DType::Q8_0 => small::<N, { DType::Q8_0 as u8 }>(&rows, groups, input, first, memory),
            DType::Q4K => large::few::<N, { DType::Q4K as u8 }, false>(&rows, groups, input, first),
            DType::Q5K => large::few::<N, { DType::Q5K as u8 }, false>(&rows, groups, input, first),
            DType::Q6K => large::few::<N, { DType::Q6K as u8 }, true>(&rows, groups, input, first),
            _ => return many(tile, memory),
        };
        store(&mut tile, 0, sums);
    }
}

/// Four blocks of `Q4_1` are eighty bytes, five times sixteen: transposed together, the scales come out as vectors
/// like the values.
///
/// # Safety
/// The rows hold `groups` blocks of `Q4_1`, the activations `first + N` rows of as many groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4_1<const N: usize>(rows: &Rows, groups: usize, input: &Activations, first: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut g = 0;
    let bytes = DType::Q4_1.block_bytes();
    // SAFETY: by the caller's promise.
    unsafe {
        while g + 4 <= groups {
            let at = g * bytes;
            unpack::prefetch(rows, groups * bytes, at, 4 * bytes);
            let a = unpack::load_quads(rows, at);
            let b = unpack::load_quads(rows, at + 16);
            q4_1_group(&mut sums, [a[0], a[1], a[2], a[3], b[0]], input, first, g);
            let c = unpack::load_quads(rows, at + 32);
            q4_1_group(&mut sums, [b[1], b[2], b[3], c[0], c[1]], input, first, g + 1);
            let d = unpack::load_quads(rows, at + 48);
            q4_1_group(&mut sums, [c[2], c[3], d[0], d[1], d[2]], input, first, g + 2);
            let e = unpack::load_quads(rows, at + 64);
            q4_1_group(&mut sums, [d[3], e[0], e[1], e[2], e[3]], input, first, g + 3);
            g += 4;
        }
        while g < groups {
            let at = g * bytes;
            let a = unpack::load_quads(rows, at);
            let last = unpack::load_dword(rows, at + 16);
            q4_1_group(&mut sums, [a[0], a[1], a[2], a[3], last], input, first, g);
            g += 1;
        }
    }
    sums
}

/// One block of `Q4_1`: its head and its four dwords of nibbles.
///
/// # Safety
/// As [`accumulate`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn q4_1_group<const N: usize>(
    sums: &mut [__m512; N],
    [head, a, b, c, d]: [__m512i; 5],
    input: &Activations,
    first: usize,
    g: usize,
) {
    let scale = unpack::halves_to_f32(head);
    let min = unpack::halves_to_f32(_mm512_srli_epi32::<16>(head));
    let w = unpack::nibbles([a, b, c, d]);
    // SAFETY: by the caller's promise.
    unsafe { accumulate::<N, false>(sums, &w, Factors { scales: [scale, scale], min }, input, first, g) };
}

/// # Safety
/// The rows hold `groups` groups of the format, the activations `first + N` rows of as many, and `memory` has room
/// for a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn small<const N: usize, const FORMAT: u8>(
    rows: &Rows,
    groups: usize,
    input: &Activations,
    first: usize,
    memory: &mut [Line],
) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    assert!(size_of_val(memory) >= groups * 2 * TILE_ROWS * size_of::<f32>());
    let scales = memory.as_mut_ptr().cast::<f32>();
    // SAFETY: by the caller's promise and the assertion.
    unsafe {
        let mins = scales.add(TILE_ROWS * groups);
        unpack::small_scales(format(FORMAT), rows, groups, scales, mins);
        let bytes = format(FORMAT).block_bytes();
        for g in 0..groups {
            unpack::prefetch(rows, groups * bytes, g * bytes, bytes);
            let w = unpack::small_group(format(FORMAT), rows, g);
            let scale = _mm512_load_ps(scales.add(TILE_ROWS * g));
            let min = _mm512_load_ps(mins.add(TILE_ROWS * g));
            accumulate::<N, false>(&mut sums, &w, Factors { scales: [scale, scale], min }, input, first, g);
        }
    }
    sums
}

/// # Safety
/// Every row of the tile holds its `cols` values, and `memory` holds at least `tile_bytes(cols)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn pack(tile: &Tile<'_>, memory: &mut [Line]) -> Packed {
    let groups = tile.input.cols / GROUP;
    assert!(size_of_val(memory) >= groups * (GROUP * TILE_ROWS + 3 * TILE_ROWS * size_of::<f32>()));
    let rows: Rows = tile.rows.map(<[u8]>::as_ptr);
    let values = memory.as_mut_ptr().cast::<__m512i>();
    // SAFETY: 8 vectors of values, then 3 of scales and minima, a group, all inside `memory`; reads inside the rows.
    unsafe {
        let mins = values.add(8 * groups).cast::<f32>();
        let scales = mins.add(16 * groups);
        match tile.dtype {
            DType::Q4K => large::pack::<{ DType::Q4K as u8 }, false>(&rows, groups, values, scales, mins),
            DType::Q5K => large::pack::<{ DType::Q5K as u8 }, false>(&rows, groups, values, scales, mins),
            DType::Q6K => large::pack::<{ DType::Q6K as u8 }, true>(&rows, groups, values, scales, mins),
            DType::Q4_0 => pack_small::<{ DType::Q4_0 as u8 }>(&rows, groups, values, scales, mins),
            DType::Q4_1 => pack_small::<{ DType::Q4_1 as u8 }>(&rows, groups, values, scales, mins),
            DType::Q5_0 => pack_small::<{ DType::Q5_0 as u8 }>(&rows, groups, values, scales, mins),
            DType::Q5_1 => pack_small::<{ DType::Q5_1 as u8 }>(&rows, groups, values, scales, mins),
            _ => pack_small::<{ DType::Q8_0 as u8 }>(&rows, groups, values, scales, mins),
        }
        Packed { groups, values, scales, mins }
    }
}

/// # Safety
/// The rows hold `groups` groups of the format, and `values`, `scales` and `mins` have room for them.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_small<const FORMAT: u8>(
    rows: &Rows,
    groups: usize,
    values: *mut __m512i,
    scales: *mut f32,
    mins: *mut f32,
) {
    let bytes = format(FORMAT).block_bytes();
    // SAFETY: by the caller's promise.
    unsafe { unpack::small_scales(format(FORMAT), rows, groups, scales, mins) };
    for g in 0..groups {
        unpack::prefetch(rows, groups * bytes, g * bytes, bytes);
        // SAFETY: by the caller's promise.
        unsafe {
            for (j, v) in unpack::small_group(format(FORMAT), rows, g).into_iter().enumerate() {
                _mm512_store_si512(values.add(8 * g + j), v);
            }
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
/// `packed` is the tile, unpacked, with two scales a group where `HALVES`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn products<const HALVES: bool>(mut tile: Tile<'_>, packed: Packed) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
        i += unsafe { largest_block::<HALVES>(&mut tile, packed, i) };
    }
}

/// As many activations from `i` on as one block takes; returns their number.
///
/// # Safety
/// As [`products`], and `i < n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn largest_block<const HALVES: bool>(tile: &mut Tile<'_>, packed: Packed, i: usize) -> usize {
    // SAFETY: by the caller's promise.
    unsafe {
        match tile.n - i {
            8.. => block::<8, HALVES>(tile, packed, i),
            4.. => block::<4, HALVES>(tile, packed, i),
            2.. => block::<2, HALVES>(tile, packed, i),
            _ => block::<1, HALVES>(tile, packed, i),
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
    let input = tile.input.quantized;
    assert!(input.cols == packed.groups * GROUP && input.q.len() >= (first + N) * input.cols);
    let mut sums = [_mm512_setzero_ps(); N];
    for g in 0..packed.groups {
        // SAFETY: group `g` of the tile and of each of the N rows.
        unsafe {
            let w: [__m512i; 8] = std::array::from_fn(|j| _mm512_load_si512(packed.values.add(8 * g + j)));
            accumulate::<N, HALVES>(&mut sums, &w, packed.factors::<HALVES>(g), input, first, g);
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

/// Adds the products of group `g` of sixteen rows with activations `first .. first + N`. Every way through this file
/// ends here.
///
/// # Safety
/// The activations hold group `g` of `first + N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub unsafe fn accumulate<const N: usize, const HALVES: bool>(
    sums: &mut [__m512; N],
    w: &[__m512i; 8],
    factors: Factors,
    input: &Activations,
    first: usize,
    g: usize,
) {
    let groups = input.cols / GROUP;
    let mut left = [_mm512_setzero_si512(); N];
    let mut right = [_mm512_setzero_si512(); N];
    // Two chains where there are too few activations to hide the latency of one.
    let split = HALVES || N <= 3;
    // SAFETY: by the caller's promise.
    unsafe {
        if HALVES {
            for i in 0..N {
                [left[i], right[i]] = offsets(input, (first + i) * groups + g);
            }
        }
        let q: [*const i32; N] =
            std::array::from_fn(|i| input.q.as_ptr().add(((first + i) * groups + g) * GROUP).cast());
        for (j, &w) in w.iter().enumerate() {
            for i in 0..N {
                let q = _mm512_set1_epi32(q[i].add(j).read_unaligned());
                let to = if split && j >= 4 { &mut right[i] } else { &mut left[i] };
                *to = _mm512_dpbusd_epi32(*to, w, q);
            }
        }
        for i in 0..N {
            let whole = if split && !HALVES { _mm512_add_epi32(left[i], right[i]) } else { left[i] };
            sums[i] = add_products::<HALVES>(sums[i], [whole, right[i]], factors, input, (first + i) * groups + g);
        }
    }
}

/// What the zero point of `Q6_K` takes off the products of the two halves of group `at` of the activations.
///
/// # Safety
/// The activations hold that group.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn offsets(input: &Activations, at: usize) -> [__m512i; 2] {
    // A group with a NaN or an infinity has sums of any size; its scale spoils what they are multiplied into.
    let offset = |half_sum: i32| _mm512_set1_epi32(half_sum.wrapping_mul(-quant::zero_point(DType::Q6K)));
    // SAFETY: by the caller's promise.
    unsafe {
        let half_sum = input.half_sum.as_ptr().add(2 * at);
        [offset(*half_sum), offset(*half_sum.add(1))]
    }
}

/// Adds the integer products of sixteen rows with group `at` of the activations to their sum: of the two halves where
/// `HALVES`, else of the group, the second being ignored. All that is rounded is rounded here, so that a row has one
/// order of summation, with tiles too.
///
/// # Safety
/// The activations hold that group.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn add_products<const HALVES: bool>(
    sum: __m512,
    products: [__m512i; 2],
    Factors { scales, min }: Factors,
    input: &Activations,
    at: usize,
) -> __m512 {
    // SAFETY: by the caller's promise.
    let (scale, scaled_sum) =
        unsafe { (_mm512_set1_ps(*input.scale.as_ptr().add(at)), _mm512_set1_ps(*input.scaled_sum.as_ptr().add(at))) };
    let [left, right] = products.map(|product| _mm512_cvtepi32_ps(product));
    if HALVES {
        let sum = _mm512_fmadd_ps(left, _mm512_mul_ps(scales[0], scale), sum);
        _mm512_fmadd_ps(right, _mm512_mul_ps(scales[1], scale), sum)
    } else {
        let sum = _mm512_fmadd_ps(min, scaled_sum, sum);
        _mm512_fmadd_ps(left, _mm512_mul_ps(scales[0], scale), sum)
    }
}
