//! Blocks of `Q6_K`: four bits of each value in one place, two in another, and scales of sixteen values.

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use super::super::scratch::Activations;
use super::quantized::{Factors, add_products, group_of, offsets};
use super::unpack::{Rows, halves_to_f32, load_dword, load_octets, load_quads};
use crate::DType;
use crate::quant::{self, GROUP};

/// Groups of a block, and of a half of it, in which the values of four groups are interleaved.
const GROUPS: usize = 8;
const HALF: usize = GROUPS / 2;
const ZERO: i32 = quant::zero_point(DType::Q6K);

/// Products with so few activations that the weights, unpacked, go from register to register.
///
/// # Safety
/// The rows hold `groups` groups of `Q6_K`, the activations `first + N` rows of as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn few<const N: usize>(rows: &Rows, groups: usize, input: &Activations, first: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let bytes = DType::Q6K.block_bytes();
    for block in 0..groups / GROUPS {
        let start = block * bytes;
        // SAFETY: by the caller's promise.
        unsafe {
            let factors = factors(rows, start);
            for half in 0..2 {
                let (low, g) = (start + 64 * half, GROUPS * block + HALF * half);
                let high = load_octets(rows, start + 128 + 32 * half);
                let ahead = rows.ahead(start, bytes).part(half, 2);
                let [p0, p2] = pair_products::<N, 0>(load_octets(rows, low), high, input, first, g, ahead.part(0, 2));
                let [p1, p3] =
                    pair_products::<N, 1>(load_octets(rows, low + 32), high, input, first, g + 1, ahead.part(1, 2));
                for (k, products) in [p0, p1, p2, p3].into_iter().enumerate() {
                    for (i, products) in products.into_iter().enumerate() {
                        let at = (first + i) * groups + g + k;
                        sums[i] = add_products::<ZERO>(sums[i], products, factors[HALF * half + k], input, at);
                    }
                }
            }
        }
    }
    sums
}

/// The products of both halves of groups `g` and `g + 2` with each activation.
///
/// # Safety
/// The activations hold these groups of `first + N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn pair_products<const N: usize, const PAIR: usize>(
    low: [__m512i; 8],
    high: [__m512i; 8],
    input: &Activations,
    first: usize,
    g: usize,
    ahead: Ahead,
) -> [[[__m512i; 2]; N]; 2] {
    let mut products = [[[_mm512_setzero_si512(); 2]; N]; 2];
    // SAFETY: by the caller's promise.
    unsafe {
        for (k, products) in products.iter_mut().enumerate() {
            for (i, product) in products.iter_mut().enumerate() {
                *product = offsets::<ZERO>(input, (first + i) * (input.cols / GROUP) + g + 2 * k);
            }
        }
        for j in 0..8 {
            let w = values::<PAIR>(low[j], high[j]);
            for (k, products) in products.iter_mut().enumerate() {
                for (i, [left, right]) in products.iter_mut().enumerate() {
                    let q = _mm512_set1_epi32(group_of(input, first + i, g + 2 * k).add(j).read_unaligned());
                    let to = if j < 4 { left } else { right };
                    *to = _mm512_dpbusd_epi32(*to, w[k], q);
                }
            }
            ahead.ask(j, 8);
        }
    }
    products
}

/// The values of groups `PAIR` and `PAIR + 2` of a half, out of their lower four bits and the upper two of four groups.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn values<const PAIR: usize>(low: __m512i, high: __m512i) -> [__m512i; 2] {
    // Bits 0 and 1 of `high` are of group 0, 2 and 3 of group 1, and so on; those of the other pair are taken out.
    let mine = _mm512_and_si512(high, _mm512_set1_epi8(if PAIR == 0 { 0x33 } else { 0xcc_u8 as i8 }));
    let (first, second) = if PAIR == 0 {
        (_mm512_slli_epi16::<4>(mine), mine)
    } else {
        (_mm512_slli_epi16::<2>(mine), _mm512_srli_epi16::<2>(mine))
    };
    [join(low, first), join(_mm512_srli_epi16::<4>(low), second)]
}

/// The lower four bits of each byte of `low`, the upper ones of `high`.
#[target_feature(enable = "avx512f")]
#[inline]
fn join(low: __m512i, high: __m512i) -> __m512i {
    // Of each bit: `low` where the mask is set, else `high`.
    _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), low, high)
}

/// The factors of the groups of the block at `start` of each row.
///
/// # Safety
/// Each row holds a block there.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub unsafe fn factors(rows: &Rows, start: usize) -> [Factors; GROUPS] {
    // SAFETY: sixteen scales of eight bits, and the last two bytes of the block, behind the last two scales.
    let (scales, tail) = unsafe { (load_quads(rows, start + 192), load_dword(rows, start + 206)) };
    let other = halves_to_f32(_mm512_srli_epi32::<16>(tail));
    let scale = |half: usize| {
        let top = _mm512_sllv_epi32(scales[half / 4], _mm512_set1_epi32(24 - 8 * (half as i32 % 4)));
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
    };
    std::array::from_fn(|g| Factors { scales: [scale(2 * g), scale(2 * g + 1)], other })
}

/// The values of the groups of a half of the block at `start` of each row.
///
/// # Safety
/// Each row holds a block there.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub unsafe fn four_groups(rows: &Rows, start: usize, half: usize) -> [[__m512i; 8]; HALF] {
    // SAFETY: all reads lie in the block.
    let (high, low) = unsafe {
        let load = |offset: usize| load_octets(rows, start + offset);
        (load(128 + 32 * half), [load(64 * half), load(64 * half + 32)])
    };
    let even: [[__m512i; 2]; 8] = std::array::from_fn(|j| values::<0>(low[0][j], high[j]));
    let odd: [[__m512i; 2]; 8] = std::array::from_fn(|j| values::<1>(low[1][j], high[j]));
    [even.map(|w| w[0]), odd.map(|w| w[0]), even.map(|w| w[1]), odd.map(|w| w[1])]
}
