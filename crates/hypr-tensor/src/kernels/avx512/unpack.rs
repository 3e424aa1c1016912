//! Tiles of sixteen encoded rows into vectors whose lane is the row.
//!
//! Working memory of a tile of `groups` groups of 32 columns:
//! ```text
//! values   [groups][8][16 rows][4] u8     columns 4 j .. 4 j + 4 of a group in vector j
//! scales   [groups][1 or 2][16 rows] f32  per 32 columns; Q6_K per 16
//! mins     [groups][16 rows] f32          minima; for formats with a zero point, minus zero times scale
//! ```

use std::arch::x86_64::*;

use super::super::linear::TILE_ROWS;
use crate::DType;
use crate::quant::{self, GROUP};

/// Pointers to the encoded rows of a tile.
pub type Rows = [*const u8; TILE_ROWS];

/// Dwords 0..4 of the sixteen bytes at `offset` of each row, a vector each.
///
/// # Safety
/// Each row has sixteen readable bytes at `offset`.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn load_quads(rows: &Rows, offset: usize) -> [__m512i; 4] {
    // Vector i holds rows i, i + 4, i + 8, i + 12; a 4 x 4 transposition in each lane then sorts them.
    let z: [__m512i; 4] = std::array::from_fn(|i| {
        // SAFETY: by the caller's promise.
        unsafe {
            let load = |r: usize| _mm_loadu_si128(rows[r].add(offset).cast());
            let v = _mm512_castsi128_si512(load(i));
            let v = _mm512_inserti32x4::<1>(v, load(i + 4));
            let v = _mm512_inserti32x4::<2>(v, load(i + 8));
            _mm512_inserti32x4::<3>(v, load(i + 12))
        }
    });
    let low = [_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpacklo_epi32(z[2], z[3])];
    let high = [_mm512_unpackhi_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[2], z[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// As [`load_quads`] for thirty-two bytes.
///
/// # Safety
/// Each row has thirty-two readable bytes at `offset`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_octets(rows: &Rows, offset: usize) -> [__m512i; 8] {
    // SAFETY: by the caller's promise.
    let (a, b) = unsafe { (load_quads(rows, offset), load_quads(rows, offset + 16)) };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// The same dword-sized read at `offset` of each row.
///
/// # Safety
/// Each row has four readable bytes at `offset`.
#[target_feature(enable = "avx512f")]
#[inline]
pub unsafe fn load_dword(rows: &Rows, offset: usize) -> __m512i {
    // SAFETY: by the caller's promise.
    let values: [u32; TILE_ROWS] =
        std::array::from_fn(|r| unsafe { rows[r].add(offset).cast::<u32>().read_unaligned() });
    // SAFETY: sixteen dwords.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// Sixteen bytes of each row as 32 values: the low nibbles, then the high ones.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub fn nibbles(v: [__m512i; 4]) -> [__m512i; 8] {
    std::array::from_fn(|j| if j < 4 { low_nibbles(v[j]) } else { high_nibbles(v[j - 4]) })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn low_nibbles(v: __m512i) -> __m512i {
    _mm512_and_si512(v, _mm512_set1_epi8(15))
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn high_nibbles(v: __m512i) -> __m512i {
    low_nibbles(_mm512_srli_epi16::<4>(v))
}

/// Sixteen f16 in the lower halves of dwords.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn halves_to_f32(v: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v))
}

/// Values of group `g` of a format with blocks of 32.
///
/// # Safety
/// The rows hold that group, encoded as `dtype`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub unsafe fn small_group(dtype: DType, rows: &Rows, g: usize) -> [__m512i; 8] {
    let block = g * dtype.block_bytes();
    // SAFETY: all reads lie in the block.
    unsafe {
        match dtype {
            DType::Q8_0 => {
                let flip = _mm512_set1_epi8(-128);
                load_octets(rows, block + 2).map(|v| _mm512_xor_si512(v, flip))
            }
            _ => {
                let head = block + dtype.block_bytes() - 16;
                let v = load_quads(rows, head);
                let q = nibbles(v);
                if matches!(dtype, DType::Q5_0 | DType::Q5_1) {
                    let high = load_dword(rows, head - 4);
                    return std::array::from_fn(|j| _mm512_or_si512(q[j], fifth_bits(high, j)));
                }
                q
            }
        }
    }
}

/// Bits `4 j .. 4 j + 4` of each dword, each as bit 4 of a byte.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn fifth_bits(high: __m512i, j: usize) -> __m512i {
    let nibble = _mm512_and_si512(_mm512_srlv_epi32(high, _mm512_set1_epi32(4 * j as i32)), _mm512_set1_epi32(15));
    // The product puts bit k of the nibble, among others, at bit 8 k + 4.
    let spread = _mm512_mullo_epi32(nibble, _mm512_set1_epi32((1 << 4) + (1 << 11) + (1 << 18) + (1 << 25)));
    _mm512_and_si512(spread, _mm512_set1_epi8(16))
}

/// Values of the eight groups of block `block` of a format with blocks of 256, into `values`.
///
/// # Safety
/// The rows hold that block, encoded as `dtype`; `values` has room for 8 groups.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn large_block(dtype: DType, rows: &Rows, block: usize, values: *mut __m512i) {
    let start = block * dtype.block_bytes();
    // SAFETY: all reads lie in the block, all writes in the 64 vectors of eight groups.
    unsafe {
        if dtype == DType::Q6K {
            return q6_block(rows, start, values);
        }
        let fifth = (dtype == DType::Q5K).then(|| load_octets(rows, start + 16));
        let head = start + if fifth.is_some() { 48 } else { 16 };
        for part in 0..4 {
            let v = load_octets(rows, head + 32 * part);
            for (j, &v) in v.iter().enumerate() {
                let (mut low, mut high) = (low_nibbles(v), high_nibbles(v));
                if let Some(fifth) = &fifth {
                    let bit = |shift: usize| {
                        let bits = _mm512_srlv_epi32(fifth[j], _mm512_set1_epi32(shift as i32));
                        _mm512_slli_epi16::<4>(_mm512_and_si512(bits, _mm512_set1_epi8(1)))
                    };
                    low = _mm512_or_si512(low, bit(2 * part));
                    high = _mm512_or_si512(high, bit(2 * part + 1));
                }
                _mm512_store_si512(values.add(16 * part + j), low);
                _mm512_store_si512(values.add(16 * part + 8 + j), high);
            }
        }
    }
}

/// # Safety
/// As [`large_block`], which is the only caller.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q6_block(rows: &Rows, start: usize, values: *mut __m512i) {
    for half in 0..2 {
        // SAFETY: by the caller's promise.
        let (first, second, high) = unsafe {
            (
                load_octets(rows, start + 64 * half),
                load_octets(rows, start + 64 * half + 32),
                load_octets(rows, start + 128 + 32 * half),
            )
        };
        let two = _mm512_set1_epi8(0x30);
        for j in 0..8 {
            let q = [
                _mm512_or_si512(low_nibbles(first[j]), _mm512_and_si512(_mm512_slli_epi16::<4>(high[j]), two)),
                _mm512_or_si512(low_nibbles(second[j]), _mm512_and_si512(_mm512_slli_epi16::<2>(high[j]), two)),
                _mm512_or_si512(high_nibbles(first[j]), _mm512_and_si512(high[j], two)),
                _mm512_or_si512(high_nibbles(second[j]), _mm512_and_si512(_mm512_srli_epi16::<2>(high[j]), two)),
            ];
            for (quarter, q) in q.into_iter().enumerate() {
                // SAFETY: vector `j` of group `4 half + quarter` of eight.
                unsafe { _mm512_store_si512(values.add(32 * half + 8 * quarter + j), q) };
            }
        }
    }
}

/// Scales and minima of all groups of a format with blocks of 32.
///
/// # Safety
/// The rows hold `groups` groups encoded as `dtype`; `scales` and `mins` have room for `16 * groups` floats.
#[target_feature(enable = "avx512f")]
pub unsafe fn small_scales(dtype: DType, rows: &Rows, groups: usize, scales: *mut f32, mins: *mut f32) {
    let bytes = dtype.block_bytes();
    let has_min = matches!(dtype, DType::Q4_1 | DType::Q5_1);
    // Scalar copies of the heads first, conversion after: a vector load right behind the scalar stores that make
    // it up would wait for them to leave the store buffer.
    for g in 0..groups {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: every block is longer than four bytes and starts with its scale.
            unsafe { mins.add(16 * g + r).cast::<u32>().write(row.add(g * bytes).cast::<u32>().read_unaligned()) };
        }
    }
    let minus_zero = _mm512_set1_ps(-(quant::zero_point(dtype) as f32));
    for g in 0..groups {
        // SAFETY: sixteen floats of each array for each group.
        unsafe {
            let heads = _mm512_loadu_si512(mins.add(16 * g).cast());
            let scale = halves_to_f32(heads);
            let min =
                if has_min { halves_to_f32(_mm512_srli_epi32::<16>(heads)) } else { _mm512_mul_ps(scale, minus_zero) };
            _mm512_storeu_ps(scales.add(16 * g), scale);
            _mm512_storeu_ps(mins.add(16 * g), min);
        }
    }
}

/// Scales and minima of all groups of `Q4_K` or `Q5_K`.
///
/// # Safety
/// As [`small_scales`].
#[target_feature(enable = "avx512f")]
pub unsafe fn large_scales(dtype: DType, rows: &Rows, groups: usize, scales: *mut f32, mins: *mut f32) {
    for block in 0..groups / 8 {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: the head of the block; places of its eight groups.
            unsafe {
                let head = std::slice::from_raw_parts(row.add(block * dtype.block_bytes()), 16);
                let (d, dmin) = (quant::half_at(head, 0), quant::half_at(head, 2));
                for sub in 0..8 {
                    let (scale, min) = quant::scale_min(&head[4..], sub);
                    let at = 16 * (8 * block + sub) + r;
                    scales.add(at).write(d * f32::from(scale));
                    mins.add(at).write(-(dmin * f32::from(min)));
                }
            }
        }
    }
}

/// Scales of all half groups of `Q6_K`, two runs of sixteen floats a group.
///
/// # Safety
/// As [`small_scales`], with `scales` twice as long.
#[target_feature(enable = "avx512f")]
pub unsafe fn q6_scales(rows: &Rows, groups: usize, scales: *mut f32) {
    const BYTES: usize = DType::Q6K.block_bytes();
    for block in 0..groups / 8 {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: the tail of the block; places of its sixteen half groups.
            unsafe {
                let tail = std::slice::from_raw_parts(row.add(block * BYTES + 192), 18);
                let d = quant::half_at(tail, 16);
                for (half, &scale) in tail[..256 / (GROUP / 2)].iter().enumerate() {
                    scales.add(16 * (16 * block + half) + r).write(d * f32::from(scale as i8));
                }
            }
        }
    }
}
