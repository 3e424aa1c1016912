//! Tiles of sixteen encoded rows into vectors whose lane is the row.
//!
//! Working memory of a tile of `groups` groups of 32 columns:
//! ```text
//! values   [groups][8][16 rows][4] u8     columns 4 j .. 4 j + 4 of a group in vector j
//! others   [groups][16 rows] f32          minima, of formats that have some
//! scales   [groups][1 or 2][16 rows] f32  per 32 columns; Q6_K per 16, with `others` to multiply them by
//! ```

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use super::super::linear::{TILE_ROWS, Tile};
use crate::DType;

/// The encoded rows of a tile.
pub struct Rows {
    at: [*const u8; TILE_ROWS],
    next: *const u8,
}

impl Rows {
    /// Rows that nothing is known to follow.
    pub fn new(at: [*const u8; TILE_ROWS]) -> Self {
        Self { at, next: at[0] }
    }

    pub fn of(tile: &Tile<'_>) -> Self {
        let rows = Self::new(tile.rows.map(<[u8]>::as_ptr));
        Self { next: tile.next.map_or(rows.next, <[u8]>::as_ptr), ..rows }
    }

    /// What the next tile has where this one has the `bytes` bytes at `at` of each row.
    #[inline]
    pub fn ahead(&self, at: usize, bytes: usize) -> Ahead {
        Ahead::new(self.next, TILE_ROWS, at, bytes)
    }
}

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
            let load = |r: usize| _mm_loadu_si128(rows.at[r].add(offset).cast());
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
pub unsafe fn load_octets(rows: &Rows, offset: usize) -> [__m512i; 8] {
    // Lanes 0 and 2 of dword k of the sorted vectors are the rows' dword k, lanes 1 and 3 their dword k + 4.
    // SAFETY: by the caller's promise.
    let half = |first: usize| unsafe {
        let load = |r: usize| _mm256_loadu_si256(rows.at[r].add(offset).cast());
        sort(std::array::from_fn(|i| {
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(first + i)), load(first + i + 4))
        }))
    };
    let (a, b) = (half(0), half(8));
    std::array::from_fn(|k| match k {
        0..4 => _mm512_shuffle_i32x4::<0x88>(a[k], b[k]),
        _ => _mm512_shuffle_i32x4::<0xdd>(a[k - 4], b[k - 4]),
    })
}

/// The transposition of the 4 x 4 dwords in each lane of four vectors.
#[target_feature(enable = "avx512f")]
#[inline]
fn sort(z: [__m512i; 4]) -> [__m512i; 4] {
    let low = [_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpacklo_epi32(z[2], z[3])];
    let high = [_mm512_unpackhi_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[2], z[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
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
        std::array::from_fn(|r| unsafe { rows.at[r].add(offset).cast::<u32>().read_unaligned() });
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
pub fn low_nibbles(v: __m512i) -> __m512i {
    _mm512_and_si512(v, _mm512_set1_epi8(15))
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub fn high_nibbles(v: __m512i) -> __m512i {
    low_nibbles(_mm512_srli_epi16::<4>(v))
}

/// The upper nibbles as they lie: sixteen times their value.
#[target_feature(enable = "avx512f")]
#[inline]
pub fn high_nibbles_in_place(v: __m512i) -> __m512i {
    _mm512_and_si512(v, _mm512_set1_epi8(!15))
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

/// Scales of all groups of a format with blocks of 32, and minima if it has some; else `others` is only used meanwhile.
///
/// # Safety
/// The rows hold `groups` groups encoded as `dtype`; `scales` and `others` have room for `16 * groups` floats.
#[target_feature(enable = "avx512f")]
pub unsafe fn small_scales(dtype: DType, rows: &Rows, groups: usize, scales: *mut f32, others: *mut f32) {
    let bytes = dtype.block_bytes();
    let has_min = matches!(dtype, DType::Q4_1 | DType::Q5_1);
    // Scalar copies of the heads first, conversion after: a vector load right behind the scalar stores that make
    // it up would wait for them to leave the store buffer.
    for g in 0..groups {
        for (r, row) in rows.at.iter().enumerate() {
            // SAFETY: every block is longer than four bytes and starts with its scale.
            unsafe { others.add(16 * g + r).cast::<u32>().write(row.add(g * bytes).cast::<u32>().read_unaligned()) };
        }
    }
    for g in 0..groups {
        // SAFETY: sixteen floats of each array for each group.
        unsafe {
            let heads = _mm512_loadu_si512(others.add(16 * g).cast());
            let scale = halves_to_f32(heads);
            _mm512_storeu_ps(scales.add(16 * g), scale);
            if has_min {
                _mm512_storeu_ps(others.add(16 * g), halves_to_f32(_mm512_srli_epi32::<16>(heads)));
            }
        }
    }
}
