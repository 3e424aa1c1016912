//! Half tiles of eight encoded rows into vectors whose lane is the row.
//!
//! Working memory of `groups` groups of 32 columns:
//! ```text
//! values   [groups][8][8 rows][4] u8   columns 4 j .. 4 j + 4 of a group in vector j; Q8_0 signed
//! mins     [groups][8 rows] f32        minima; for formats with a zero point, minus zero times scale
//! scales   [groups][2][8 rows] f32     per 16 columns
//! ```

use std::arch::x86_64::*;

use crate::DType;
use crate::quant::{self, GROUP};

/// Rows in a half tile.
pub const ROWS: usize = 8;

/// The encoded rows of a half tile.
pub type Rows<'a> = [&'a [u8]; ROWS];

/// Unpacks all groups.
///
/// # Safety
/// The rows hold `groups` groups of `dtype`; the three arrays have room for them and `values` is aligned to a vector.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn pack(
    dtype: DType,
    rows: &Rows<'_>,
    groups: usize,
    values: *mut __m256i,
    mins: *mut f32,
    scales: *mut f32,
) {
    let fast = matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q8_0);
    for g in 0..groups {
        // SAFETY: the places of group `g`.
        unsafe {
            let (values, mins, scales) = (values.add(8 * g), mins.add(ROWS * g), scales.add(2 * ROWS * g));
            if fast {
                fast_group(dtype, rows, g, values, mins, scales);
            } else {
                any_group(dtype, rows, g, values, mins, scales);
            }
        }
    }
}

/// # Safety
/// As [`pack`], for group `g` and its places.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn any_group(dtype: DType, rows: &Rows<'_>, g: usize, values: *mut __m256i, mins: *mut f32, scales: *mut f32) {
    let zero = quant::zero_point(dtype) as f32;
    for (r, row) in rows.iter().enumerate() {
        let group = quant::group(dtype, row, g);
        let (dwords, _) = group.q.as_chunks::<4>();
        // SAFETY: dword `r` of each of eight vectors, float `r` of each run.
        unsafe {
            for (j, dword) in dwords.iter().enumerate() {
                values.add(j).cast::<[u8; 4]>().add(r).write(*dword);
            }
            scales.add(r).write(group.scale[0]);
            scales.add(ROWS + r).write(group.scale[1]);
            // Q6_K, whose halves have scales of their own, corrects its zero point on integers.
            mins.add(r).write(if dtype == DType::Q6K { 0.0 } else { group.min - zero * group.scale[0] });
        }
    }
}

/// Formats whose values are found without looking at bits one by one.
///
/// # Safety
/// As [`pack`], for group `g` and its places.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn fast_group(dtype: DType, rows: &Rows<'_>, g: usize, values: *mut __m256i, mins: *mut f32, scales: *mut f32) {
    let block = g * dtype.block_bytes();
    let heads: [u32; ROWS] = std::array::from_fn(|r| {
        let row = &rows[r][block..][..4];
        u32::from_le_bytes([row[0], row[1], row[2], row[3]])
    });
    assert!(rows.iter().all(|row| row.len() >= (g + 1) * dtype.block_bytes()));
    // SAFETY: reads inside the block as just asserted; writes by the caller's promise.
    unsafe {
        let heads = _mm256_loadu_si256(heads.as_ptr().cast());
        let scale = halves_to_f32(heads);
        let min = match dtype {
            DType::Q4_1 => halves_to_f32(_mm256_srli_epi32::<16>(heads)),
            DType::Q4_0 => _mm256_mul_ps(scale, _mm256_set1_ps(-8.0)),
            _ => _mm256_setzero_ps(),
        };
        _mm256_storeu_ps(scales, scale);
        _mm256_storeu_ps(scales.add(ROWS), scale);
        _mm256_storeu_ps(mins, min);
        let first = load_quads(rows, block + dtype.block_bytes() % 16);
        for (j, v) in first.into_iter().enumerate() {
            if dtype == DType::Q8_0 {
                _mm256_store_si256(values.add(j), v);
            } else {
                let low = _mm256_set1_epi8(15);
                _mm256_store_si256(values.add(j), _mm256_and_si256(v, low));
                _mm256_store_si256(values.add(j + 4), _mm256_and_si256(_mm256_srli_epi16::<4>(v), low));
            }
        }
        if dtype == DType::Q8_0 {
            for (j, v) in load_quads(rows, block + 18).into_iter().enumerate() {
                _mm256_store_si256(values.add(4 + j), v);
            }
        }
    }
}

/// Eight f16 in the lower halves of dwords.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn halves_to_f32(v: __m256i) -> __m256 {
    let low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(low, low));
    _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
}

/// Dwords 0..4 of the sixteen bytes at `offset` of each row, a vector each.
///
/// # Safety
/// Each row has sixteen bytes at `offset`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_quads(rows: &Rows<'_>, offset: usize) -> [__m256i; 4] {
    // Vector i holds rows i and i + 4; a 4 x 4 transposition in each lane then sorts them.
    let z: [__m256i; 4] = std::array::from_fn(|i| {
        // SAFETY: by the caller's promise.
        let load = |r: usize| unsafe { _mm_loadu_si128(rows[r].as_ptr().add(offset).cast()) };
        _mm256_set_m128i(load(i + 4), load(i))
    });
    let low = [_mm256_unpacklo_epi32(z[0], z[1]), _mm256_unpacklo_epi32(z[2], z[3])];
    let high = [_mm256_unpackhi_epi32(z[0], z[1]), _mm256_unpackhi_epi32(z[2], z[3])];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

const _: () = assert!(GROUP == 4 * ROWS, "eight vectors of four columns make a group");
