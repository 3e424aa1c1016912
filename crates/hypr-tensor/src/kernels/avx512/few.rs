//! Products with one, two or three activations: the weights, unpacked, go from register to register.

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use super::super::linear::Tile;
use super::super::scratch::{Activations, Line};
use super::quantized::{self, Factors, add_products, group_of, offsets};
use super::unpack::{self, Rows, high_nibbles_in_place, load_dword, load_octets, load_quads, low_nibbles};
use super::{large, q6};
use crate::DType;
use crate::quant::{self, GROUP};

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// As [`quantized::tile`], with `tile.n == N`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn tile<const N: usize>(mut tile: Tile<'_>, memory: &mut [Line]) {
    let rows = Rows::of(&tile);
    let groups = tile.input.cols / GROUP;
    let (input, first) = (tile.input.quantized, tile.first);
    assert!(input.cols == groups * GROUP && input.q.len() >= (first + N) * input.cols);
    // SAFETY: by the caller's promise.
    unsafe {
        let sums = match tile.dtype {
            DType::Q4_0 => q4_0::<N>(&rows, groups, input, first),
            DType::Q4_1 => q4_1::<N>(&rows, groups, input, first),
            DType::Q8_0 => q8_0::<N>(&rows, groups, input, first),
            DType::Q4K => large::few::<N, { DType::Q4K as u8 }>(&rows, groups, input, first),
            DType::Q5K => large::few::<N, { DType::Q5K as u8 }>(&rows, groups, input, first),
            DType::Q6K => q6::few::<N>(&rows, groups, input, first),
            _ => return quantized::many(tile, memory),
        };
        quantized::store(&mut tile, 0, sums);
    }
}

/// A group of the activations `first ..`, and what to ask for while it is multiplied.
#[derive(Clone, Copy)]
struct Group<'a> {
    input: &'a Activations,
    first: usize,
    g: usize,
    ahead: Ahead,
}

impl Group<'_> {
    /// Its number for activation `first + i`, among the groups of all.
    #[inline(always)]
    fn at(self, i: usize) -> usize {
        (self.first + i) * (self.input.cols / GROUP) + self.g
    }

    /// Its integers.
    ///
    /// # Safety
    /// The activations hold the group of `first + i`.
    #[inline(always)]
    unsafe fn q(self, i: usize) -> *const i32 {
        // SAFETY: by the caller's promise.
        unsafe { group_of(self.input, self.first + i, self.g) }
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
            let ahead = rows.ahead(at, 4 * bytes);
            let group = |k: usize| Group { input, first, g: g + k, ahead: ahead.part(k, 4) };
            let a = load_octets(rows, at);
            q4_1_group(&mut sums, [a[0], a[1], a[2], a[3], a[4]], group(0));
            let b = load_octets(rows, at + 32);
            q4_1_group(&mut sums, [a[5], a[6], a[7], b[0], b[1]], group(1));
            q4_1_group(&mut sums, [b[2], b[3], b[4], b[5], b[6]], group(2));
            let c = load_quads(rows, at + 64);
            q4_1_group(&mut sums, [b[7], c[0], c[1], c[2], c[3]], group(3));
            g += 4;
        }
        while g < groups {
            let at = g * bytes;
            let a = load_quads(rows, at);
            let last = load_dword(rows, at + 16);
            let group = Group { input, first, g, ahead: rows.ahead(at, bytes) };
            q4_1_group(&mut sums, [a[0], a[1], a[2], a[3], last], group);
            g += 1;
        }
    }
    sums
}

/// One block of `Q4_1`: its head and its four dwords of nibbles.
///
/// # Safety
/// The activations hold the group of `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn q4_1_group<const N: usize>(sums: &mut [__m512; N], [head, v @ ..]: [__m512i; 5], group: Group<'_>) {
    let scale = unpack::halves_to_f32(head);
    let factors = Factors { scales: [scale; 2], other: unpack::halves_to_f32(_mm512_srli_epi32::<16>(head)) };
    // SAFETY: by the caller's promise.
    unsafe {
        let products = nibble_products::<N, 4, false>(v, group);
        add_all::<N, 0>(sums, products, factors, group);
    }
}

/// Two blocks of `Q8_0`, of two bytes of scale and 32 of values, are 17 dwords. The first has its scale in the lower half
/// of a dword and its values out of step with the dwords of the activations; the second has its scale in the upper half
/// of the dword in which the first ends.
///
/// # Safety
/// The rows hold `groups` blocks of `Q8_0`, the activations `first + N` rows of as many groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q8_0<const N: usize>(rows: &Rows, groups: usize, input: &Activations, first: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut g = 0;
    let bytes = DType::Q8_0.block_bytes();
    // SAFETY: by the caller's promise.
    unsafe {
        while g + 2 <= groups {
            let at = g * bytes;
            let ahead = rows.ahead(at, 2 * bytes);
            let group = |k: usize| Group { input, first, g: g + k, ahead: ahead.part(k, 2) };
            let [a, b, c, d, e, f, h, i] = load_octets(rows, at);
            let [middle, v @ ..] = load_octets(rows, at + 32);
            q8_0_group::<N, true>(&mut sums, [a, b, c, d, e, f, h, i, middle], group(0));
            let [a, b, c, d, e, f, h] = v;
            let [.., last] = load_quads(rows, at + 52);
            q8_0_group::<N, false>(&mut sums, [middle, a, b, c, d, e, f, h, last], group(1));
            g += 2;
        }
        if g < groups {
            let at = g * bytes;
            let head = _mm512_slli_epi32::<16>(load_dword(rows, at));
            let [a, b, c, d, e, f, h, i] = load_octets(rows, at + 2);
            let group = Group { input, first, g, ahead: rows.ahead(at, bytes) };
            q8_0_group::<N, false>(&mut sums, [head, a, b, c, d, e, f, h, i], group);
        }
    }
    sums
}

/// One block of `Q8_0`: the nine dwords in which it lies.
///
/// # Safety
/// The activations hold the group of `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn q8_0_group<const N: usize, const EARLY: bool>(sums: &mut [__m512; N], v: [__m512i; 9], group: Group<'_>) {
    const ZERO: i32 = quant::zero_point(DType::Q8_0);
    // SAFETY: by the caller's promise.
    unsafe {
        let mut products: [[__m512i; 2]; N] = std::array::from_fn(|i| offsets::<ZERO>(group.input, group.at(i)));
        for (j, v) in v.into_iter().enumerate().skip(usize::from(!EARLY)) {
            let w = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
            for (i, product) in products.iter_mut().enumerate() {
                let q = in_step::<8, EARLY>(group.q(i), j);
                product[j % 2] = _mm512_dpbusd_epi32(product[j % 2], w, q);
            }
            if j > 0 {
                group.ahead.ask(j - 1, 8);
            }
        }
        let products = products.map(|[a, b]| _mm512_add_epi32(a, b));
        add_all::<N, ZERO>(sums, products, scale_in::<EARLY>(v[0]), group);
    }
}

/// As [`q8_0`]: two blocks of `Q4_0` are nine dwords.
///
/// # Safety
/// The rows hold `groups` blocks of `Q4_0`, the activations `first + N` rows of as many groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4_0<const N: usize>(rows: &Rows, groups: usize, input: &Activations, first: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut g = 0;
    let bytes = DType::Q4_0.block_bytes();
    // SAFETY: by the caller's promise.
    unsafe {
        while g + 2 <= groups {
            let at = g * bytes;
            let ahead = rows.ahead(at, 2 * bytes);
            let group = |k: usize| Group { input, first, g: g + k, ahead: ahead.part(k, 2) };
            let [a, b, c, d, middle, e, f, h] = load_octets(rows, at);
            q4_0_group::<N, true>(&mut sums, [a, b, c, d, middle], group(0));
            let [.., last] = load_quads(rows, at + 20);
            q4_0_group::<N, false>(&mut sums, [middle, e, f, h, last], group(1));
            g += 2;
        }
        if g < groups {
            let at = g * bytes;
            let head = _mm512_slli_epi32::<16>(load_dword(rows, at));
            let [a, b, c, d] = load_quads(rows, at + 2);
            let group = Group { input, first, g, ahead: rows.ahead(at, bytes) };
            q4_0_group::<N, false>(&mut sums, [head, a, b, c, d], group);
        }
    }
    sums
}

/// One block of `Q4_0`: the five dwords in which it lies.
///
/// # Safety
/// The activations hold the group of `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn q4_0_group<const N: usize, const EARLY: bool>(sums: &mut [__m512; N], v: [__m512i; 5], group: Group<'_>) {
    const ZERO: i32 = quant::zero_point(DType::Q4_0);
    // SAFETY: by the caller's promise.
    unsafe {
        let mut products = if EARLY {
            nibble_products::<N, 5, true>(v, group)
        } else {
            nibble_products::<N, 4, false>([v[1], v[2], v[3], v[4]], group)
        };
        for (i, product) in products.iter_mut().enumerate() {
            *product = _mm512_add_epi32(*product, offsets::<ZERO>(group.input, group.at(i))[0]);
        }
        add_all::<N, ZERO>(sums, products, scale_in::<EARLY>(v[0]), group);
    }
}

/// The factors of a block of a format with a zero point, whose scale is in the lower half of its first dword where the block is
/// `EARLY`, else in the upper half.
#[target_feature(enable = "avx512f")]
#[inline]
fn scale_in<const EARLY: bool>(head: __m512i) -> Factors {
    let scale = unpack::halves_to_f32(if EARLY { head } else { _mm512_srli_epi32::<16>(head) });
    Factors { scales: [scale; 2], other: _mm512_setzero_ps() }
}

/// The products of nibbles: the lower ones are the first half of the group, the upper ones the second.
///
/// # Safety
/// The activations hold the group of `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn nibble_products<const N: usize, const D: usize, const EARLY: bool>(
    v: [__m512i; D],
    group: Group<'_>,
) -> [__m512i; N] {
    let mut products = [[_mm512_setzero_si512(); 2]; N];
    for (j, v) in v.into_iter().enumerate() {
        let (low, high) = (low_nibbles(v), high_nibbles_in_place(v));
        for (i, product) in products.iter_mut().enumerate() {
            // SAFETY: by the caller's promise.
            let (first_half, second_half) = unsafe {
                let q = group.q(i);
                let j = j + usize::from(!EARLY);
                (in_step::<4, EARLY>(q, j), in_step::<4, EARLY>(q.add(4), j))
            };
            product[0] = _mm512_dpbusd_epi32(product[0], low, first_half);
            product[1] = _mm512_dpbusd_epi32(product[1], high, second_half);
        }
        group.ahead.ask(j, D);
    }
    // The upper nibbles were multiplied where they are.
    products.map(|[low, high]| _mm512_add_epi32(low, _mm512_srai_epi32::<4>(high)))
}

/// The activations for dword `j` of a block whose first dword has its scale, out of `D` dwords at `q`: where the block is
/// `EARLY`, dwords begin two values before those of the activations, with zeros for what is not the block's.
///
/// # Safety
/// `q` is `D` readable dwords, `j` at most `D`, and not zero unless `EARLY`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn in_step<const D: usize, const EARLY: bool>(q: *const i32, j: usize) -> __m512i {
    // SAFETY: by the caller's promise.
    let values = unsafe {
        match j {
            _ if !EARLY => q.add(j - 1).read_unaligned(),
            0 => q.read_unaligned() << 16,
            _ if j == D => (q.add(D - 1).read_unaligned() as u32 >> 16) as i32,
            _ => q.byte_add(4 * j - 2).read_unaligned(),
        }
    };
    _mm512_set1_epi32(values)
}

/// Adds the products of a group of `N` activations to their sums.
///
/// # Safety
/// The activations hold the group of `N` rows.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn add_all<const N: usize, const ZERO: i32>(
    sums: &mut [__m512; N],
    products: [__m512i; N],
    factors: Factors,
    group: Group<'_>,
) {
    for (i, (sum, product)) in sums.iter_mut().zip(products).enumerate() {
        // SAFETY: by the caller's promise.
        *sum = unsafe { add_products::<ZERO>(*sum, [product; 2], factors, group.input, group.at(i)) };
    }
}
