//! Blocks of 256 values, eight groups: `Q4_K`, `Q5_K` and `Q6_K`.

use std::arch::x86_64::*;

use super::super::linear::TILE_ROWS;
use super::super::scratch::Activations;
use super::quantized::{Factors, accumulate, format};
use super::unpack::{Rows, halves_to_f32, high_nibbles, load_dword, load_octets, load_quads, low_nibbles, prefetch};
use crate::DType;

/// Groups of a block.
const GROUPS: usize = 8;

/// Products with so few activations that the weights, unpacked, go from register to register.
///
/// # Safety
/// The rows hold `groups` groups of the format, the activations `first + N` rows of as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn few<const N: usize, const FORMAT: u8, const HALVES: bool>(
    rows: &Rows,
    groups: usize,
    input: &Activations,
    first: usize,
) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let bytes = format(FORMAT).block_bytes();
    for block in 0..groups / GROUPS {
        // SAFETY: by the caller's promise.
        unsafe {
            prefetch(rows, groups / GROUPS * bytes, block * bytes, bytes);
            let factors = factors::<FORMAT>(rows, block * bytes);
            for_each_group::<FORMAT>(rows, block * bytes, |g, w| {
                accumulate::<N, HALVES>(&mut sums, &w, factors[g], input, first, GROUPS * block + g);
            });
        }
    }
    sums
}

/// A tile into working memory; see [`unpack`](super::unpack) for the layout.
///
/// # Safety
/// The rows hold `groups` groups of the format, and `values`, `scales` and `mins` have room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn pack<const FORMAT: u8, const HALVES: bool>(
    rows: &Rows,
    groups: usize,
    values: *mut __m512i,
    scales: *mut f32,
    mins: *mut f32,
) {
    let bytes = format(FORMAT).block_bytes();
    for block in 0..groups / GROUPS {
        // SAFETY: by the caller's promise.
        unsafe {
            prefetch(rows, groups / GROUPS * bytes, block * bytes, bytes);
            for (g, factors) in factors::<FORMAT>(rows, block * bytes).into_iter().enumerate() {
                let at = TILE_ROWS * (GROUPS * block + g);
                if HALVES {
                    _mm512_store_ps(scales.add(2 * at), factors.scales[0]);
                    _mm512_store_ps(scales.add(2 * at + TILE_ROWS), factors.scales[1]);
                } else {
                    _mm512_store_ps(scales.add(at), factors.scales[0]);
                    _mm512_store_ps(mins.add(at), factors.min);
                }
            }
            for_each_group::<FORMAT>(rows, block * bytes, |g, w| {
                for (j, w) in w.into_iter().enumerate() {
                    _mm512_store_si512(values.add(8 * (GROUPS * block + g) + j), w);
                }
            });
        }
    }
}

/// Scales and minima of the groups of the block at `start` of each row.
///
/// # Safety
/// Each row holds a block of the format there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn factors<const FORMAT: u8>(rows: &Rows, start: usize) -> [Factors; GROUPS] {
    let shifted = |v, by: usize| _mm512_srlv_epi32(v, _mm512_set1_epi32(by as i32));
    let bits = |v, by: usize, mask: i32| _mm512_and_si512(shifted(v, by), _mm512_set1_epi32(mask));
    if format(FORMAT) == DType::Q6K {
        // SAFETY: sixteen scales of eight bits, and the last two bytes of the block, behind the last two scales.
        let (scales, tail) = unsafe { (load_quads(rows, start + 192), load_dword(rows, start + 206)) };
        let d = halves_to_f32(_mm512_srli_epi32::<16>(tail));
        let scale = |half: usize| {
            let top = _mm512_sllv_epi32(scales[half / 4], _mm512_set1_epi32(24 - 8 * (half as i32 % 4)));
            _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)))
        };
        return std::array::from_fn(|g| Factors { scales: [scale(2 * g), scale(2 * g + 1)], min: _mm512_setzero_ps() });
    }
    // SAFETY: a block begins with sixteen bytes of scales.
    let [head, scales, mins, both] = unsafe { load_quads(rows, start) };
    let (d, dmin) = (halves_to_f32(head), halves_to_f32(_mm512_srli_epi32::<16>(head)));
    std::array::from_fn(|g| {
        let at = 8 * (g % 4);
        // As `quant::scale_min`.
        let upper = |v| _mm512_slli_epi32::<4>(bits(v, at + 6, 3));
        let (scale, min) = if g < 4 {
            (bits(scales, at, 63), bits(mins, at, 63))
        } else {
            let low = |by: usize| bits(both, at + by, 15);
            (_mm512_or_si512(low(0), upper(scales)), _mm512_or_si512(low(4), upper(mins)))
        };
        let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale));
        let min = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(min));
        Factors { scales: [scale, scale], min: _mm512_xor_ps(min, _mm512_set1_ps(-0.0)) }
    })
}

/// Calls `take` with the number and the values of each group of the block at `start` of each row, in order.
///
/// # Safety
/// Each row holds a block of the format there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn for_each_group<const FORMAT: u8>(rows: &Rows, start: usize, mut take: impl FnMut(usize, [__m512i; 8])) {
    // SAFETY: all reads lie in the block.
    unsafe {
        match format(FORMAT) {
            DType::Q6K => (0..2).for_each(|half| q6_half(rows, start, half, &mut take)),
            DType::Q5K => {
                let fifth = load_octets(rows, start + 16);
                for part in 0..4 {
                    let v = load_octets(rows, start + 48 + 32 * part);
                    let bit = |j: usize, shift: usize| {
                        let bits = _mm512_srlv_epi32(fifth[j], _mm512_set1_epi32(shift as i32));
                        _mm512_slli_epi16::<4>(_mm512_and_si512(bits, _mm512_set1_epi8(1)))
                    };
                    let low = |j: usize| _mm512_or_si512(low_nibbles(v[j]), bit(j, 2 * part));
                    let high = |j: usize| _mm512_or_si512(high_nibbles(v[j]), bit(j, 2 * part + 1));
                    take(2 * part, std::array::from_fn(low));
                    take(2 * part + 1, std::array::from_fn(high));
                }
            }
            _ => {
                for part in 0..4 {
                    let v = load_octets(rows, start + 16 + 32 * part);
                    take(2 * part, v.map(|v| low_nibbles(v)));
                    take(2 * part + 1, v.map(|v| high_nibbles(v)));
                }
            }
        }
    }
}

/// Four groups of `Q6_K`.
///
/// # Safety
/// As [`for_each_group`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn q6_half(rows: &Rows, start: usize, half: usize, take: &mut impl FnMut(usize, [__m512i; 8])) {
    // SAFETY: by the caller's promise.
    let (first, second, high) = unsafe {
        (
            load_octets(rows, start + 64 * half),
            load_octets(rows, start + 64 * half + 32),
            load_octets(rows, start + 128 + 32 * half),
        )
    };
    let two = _mm512_set1_epi8(0x30);
    let or = |low: __m512i, high: __m512i| _mm512_or_si512(low, _mm512_and_si512(high, two));
    take(4 * half, std::array::from_fn(|j| or(low_nibbles(first[j]), _mm512_slli_epi16::<4>(high[j]))));
    take(4 * half + 1, std::array::from_fn(|j| or(low_nibbles(second[j]), _mm512_slli_epi16::<2>(high[j]))));
    take(4 * half + 2, std::array::from_fn(|j| or(high_nibbles(first[j]), high[j])));
    take(4 * half + 3, std::array::from_fn(|j| or(high_nibbles(second[j]), _mm512_srli_epi16::<2>(high[j]))));
}
