//! Blocks of 256 values, eight groups: `Q4_K`, `Q5_K` and, where they are unpacked into working memory, `Q6_K`.

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use super::super::linear::TILE_ROWS;
use super::super::scratch::Activations;
use super::q6;
use super::quantized::{Factors, accumulate, format};
use super::unpack::{Rows, halves_to_f32, high_nibbles, high_nibbles_in_place, load_octets, load_quads, low_nibbles};
use crate::DType;

/// Groups of a block.
const GROUPS: usize = 8;

/// Products with so few activations that the weights, unpacked, go from register to register.
///
/// # Safety
/// The rows hold `groups` groups of the format, which is not `Q6_K`, the activations `first + N` rows of as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn few<const N: usize, const FORMAT: u8>(
    rows: &Rows,
    groups: usize,
    input: &Activations,
    first: usize,
) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let bytes = format(FORMAT).block_bytes();
    for block in 0..groups / GROUPS {
        let start = block * bytes;
        let ahead = rows.ahead(start, bytes);
        // SAFETY: by the caller's promise.
        unsafe {
            let factors = factors::<FORMAT>(rows, start);
            for part in 0..GROUPS / 2 {
                for (k, w) in two_groups::<FORMAT>(rows, start, part).into_iter().enumerate() {
                    let g = 2 * part + k;
                    let ahead = ahead.part(g, GROUPS);
                    accumulate::<N, 0>(&mut sums, &w, factors[g], input, first, GROUPS * block + g, Some(ahead));
                }
            }
        }
    }
    sums
}

/// A tile into working memory; see [`unpack`](super::unpack) for the layout.
///
/// # Safety
/// The rows hold `groups` groups of the format, and `values`, `scales` and `others` have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn pack<const FORMAT: u8>(
    rows: &Rows,
    groups: usize,
    values: *mut __m512i,
    scales: *mut f32,
    others: *mut f32,
) {
    let (bytes, halves) = (format(FORMAT).block_bytes(), format(FORMAT) == DType::Q6K);
    for block in 0..groups / GROUPS {
        let start = block * bytes;
        let ahead = rows.ahead(start, bytes);
        // SAFETY: by the caller's promise.
        unsafe {
            let factors = if halves { q6::factors(rows, start) } else { factors::<FORMAT>(rows, start) };
            for (g, Factors { scales: [left, right], other }) in factors.into_iter().enumerate() {
                let at = TILE_ROWS * (GROUPS * block + g);
                if halves {
                    _mm512_store_ps(scales.add(2 * at), left);
                    _mm512_store_ps(scales.add(2 * at + TILE_ROWS), right);
                } else {
                    _mm512_store_ps(scales.add(at), left);
                }
                _mm512_store_ps(others.add(at), other);
            }
            let store = |g: usize, w: [__m512i; 8]| {
                store_group(values.add(8 * (GROUPS * block + g)), w, ahead.part(g, GROUPS));
            };
            if halves {
                for half in 0..2 {
                    let [a, b, c, d] = q6::four_groups(rows, start, half);
                    store(4 * half, a);
                    store(4 * half + 1, b);
                    store(4 * half + 2, c);
                    store(4 * half + 3, d);
                }
            } else {
                for part in 0..GROUPS / 2 {
                    let [a, b] = two_groups::<FORMAT>(rows, start, part);
                    store(2 * part, a);
                    store(2 * part + 1, b);
                }
            }
        }
    }
}

/// Writes the values of a group of a tile to `to`, asking for lines of the next tile meanwhile.
///
/// # Safety
/// There is room for them.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn store_group(to: *mut __m512i, w: [__m512i; 8], ahead: Ahead) {
    for (j, w) in w.into_iter().enumerate() {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_store_si512(to.add(j), w) };
        ahead.ask(j, 8);
    }
}

/// Scales and minima of the groups of the block at `start` of each row.
///
/// # Safety
/// Each row holds a block of the format there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn factors<const FORMAT: u8>(rows: &Rows, start: usize) -> [Factors; GROUPS] {
    // SAFETY: a block begins with sixteen bytes of scales.
    let [head, scales, mins, both] = unsafe { load_quads(rows, start) };
    let (d, dmin) = (halves_to_f32(head), halves_to_f32(_mm512_srli_epi32::<16>(head)));
    // As `quant::scale_min`, four groups in the bytes of a dword.
    let bits = |v: __m512i, mask: u32| _mm512_and_si512(v, _mm512_set1_epi32(mask as i32));
    let upper = |v: __m512i| bits(_mm512_srli_epi32::<2>(v), 0x3030_3030);
    let low = |v: __m512i| bits(v, 0x0f0f_0f0f);
    let scales = [bits(scales, 0x3f3f_3f3f), _mm512_or_si512(low(both), upper(scales))];
    let mins = [bits(mins, 0x3f3f_3f3f), _mm512_or_si512(low(_mm512_srli_epi32::<4>(both)), upper(mins))];
    let number = |v: [__m512i; 2], g: usize| {
        _mm512_cvtepi32_ps(bits(_mm512_srlv_epi32(v[g / 4], _mm512_set1_epi32(8 * (g as i32 % 4))), 0xff))
    };
    // The upper nibbles of `Q4_K` are multiplied where they are: sixteen times too large, which is exact to take back.
    let odd = if format(FORMAT) == DType::Q4K { _mm512_mul_ps(d, _mm512_set1_ps(1.0 / 16.0)) } else { d };
    std::array::from_fn(|g| {
        let scale = _mm512_mul_ps(if g % 2 == 0 { d } else { odd }, number(scales, g));
        let min = _mm512_mul_ps(dmin, number(mins, g));
        Factors { scales: [scale, scale], other: _mm512_xor_ps(min, _mm512_set1_ps(-0.0)) }
    })
}

/// The values of groups `2 * part` and the next of the block at `start` of each row.
///
/// # Safety
/// Each row holds a block of the format there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn two_groups<const FORMAT: u8>(rows: &Rows, start: usize, part: usize) -> [[__m512i; 8]; 2] {
    // SAFETY: all reads lie in the block.
    unsafe {
        if format(FORMAT) == DType::Q4K {
            let v = load_octets(rows, start + 16 + 32 * part);
            return [v.map(|v| low_nibbles(v)), v.map(|v| high_nibbles_in_place(v))];
        }
        let (fifth, v) = (load_octets(rows, start + 16), load_octets(rows, start + 48 + 32 * part));
        let bit = |j: usize, shift: usize| {
            let bits = _mm512_srlv_epi32(fifth[j], _mm512_set1_epi32(shift as i32));
            _mm512_slli_epi16::<4>(_mm512_and_si512(bits, _mm512_set1_epi8(1)))
        };
        let low = |j: usize| _mm512_or_si512(low_nibbles(v[j]), bit(j, 2 * part));
        let high = |j: usize| _mm512_or_si512(high_nibbles(v[j]), bit(j, 2 * part + 1));
        [std::array::from_fn(low), std::array::from_fn(high)]
    }
}
