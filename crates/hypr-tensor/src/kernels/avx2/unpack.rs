//! Half tiles of eight encoded rows into vectors whose lane is the row.
//!
//! Working memory of `groups` groups of 32 columns:
//! ```text
//! values   [groups][8][8 rows][4] u8   columns 4 j .. 4 j + 4 of a group in vector j; Q8_0 signed
//! mins     [groups][8 rows] f32        minima; for formats with a zero point, minus zero times scale
//! scales   [groups][2][8 rows] f32     per 16 columns
//! ```

use std::arch::x86_64::*;

use super::super::ahead::Ahead;
use crate::DType;
use crate::quant::{self, GROUP};

/// Rows in a half tile.
pub const ROWS: usize = 8;
/// Groups of a block of 256 values.
const GROUPS: usize = 8;

/// The encoded rows of a half tile.
pub type Rows<'a> = [&'a [u8]; ROWS];

/// Unpacks all groups, asking for the rows that begin at `next`.
///
/// # Safety
/// The rows hold `groups` groups of `dtype`; the three arrays have room for them and `values` is aligned to a vector.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn pack(
    dtype: DType,
    rows: &Rows<'_>,
    groups: usize,
    next: *const u8,
    values: *mut __m256i,
    mins: *mut f32,
    scales: *mut f32,
) {
    let bytes = dtype.block_bytes();
    if dtype.block_len() == GROUPS * GROUP {
        for block in 0..groups / GROUPS {
            let (g, ahead) = (GROUPS * block, Ahead::new(next, ROWS, block * bytes, bytes));
            // SAFETY: the places of the block's groups.
            unsafe {
                let (values, mins, scales) = (values.add(8 * g), mins.add(ROWS * g), scales.add(2 * ROWS * g));
                large_block(dtype, rows, block, ahead, values, mins, scales);
            }
        }
        return;
    }
    let fast = matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q8_0);
    for g in 0..groups {
        let ahead = Ahead::new(next, ROWS, g * bytes, bytes);
        (0..4).for_each(|step| ahead.ask(step, 4));
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

/// The eight groups of block `block` of `Q4_K`, `Q5_K` or `Q6_K`.
///
/// # Safety
/// As [`pack`], for the block and the places of its groups.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn large_block(
    dtype: DType,
    rows: &Rows<'_>,
    block: usize,
    ahead: Ahead,
    values: *mut __m256i,
    mins: *mut f32,
    scales: *mut f32,
) {
    let start = block * dtype.block_bytes();
    assert!(rows.iter().all(|row| row.len() >= start + dtype.block_bytes()));
    // SAFETY: reads inside the block as just asserted; writes by the caller's promise.
    unsafe {
        if dtype == DType::Q6K {
            q6_scales(rows, start, mins, scales);
            (0..2).for_each(|half| q6_half(rows, start, half, ahead.part(half, 2), values.add(32 * half)));
            return;
        }
        large_scales(rows, start, mins, scales);
        let fifth = (dtype == DType::Q5K).then(|| load_octets(rows, start + 16));
        let head = start + if fifth.is_some() { 48 } else { 16 };
        for part in 0..4 {
            for (j, v) in load_octets(rows, head + 32 * part).into_iter().enumerate() {
                let bit = |group: usize| match &fifth {
                    Some(fifth) => {
                        let bits = _mm256_and_si256(shifted(fifth[j], group), _mm256_set1_epi8(1));
                        _mm256_slli_epi16::<4>(bits)
                    }
                    None => _mm256_setzero_si256(),
                };
                let (low, high) = (low_nibbles(v), low_nibbles(_mm256_srli_epi16::<4>(v)));
                _mm256_store_si256(values.add(16 * part + j), _mm256_or_si256(low, bit(2 * part)));
                _mm256_store_si256(values.add(16 * part + 8 + j), _mm256_or_si256(high, bit(2 * part + 1)));
                ahead.ask(8 * part + j, 32);
            }
        }
    }
}

/// Scales and minima of a block of `Q4_K` or `Q5_K`, as `quant::scale_min` has them.
///
/// # Safety
/// As [`large_block`], which is the only caller.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn large_scales(rows: &Rows<'_>, start: usize, mins: *mut f32, scales: *mut f32) {
    // SAFETY: a block begins with sixteen bytes of scales.
    let [head, packed_scales, packed_mins, both] = unsafe { load_quads(rows, start) };
    let (d, dmin) = (halves_to_f32(head), halves_to_f32(_mm256_srli_epi32::<16>(head)));
    let bits = |v, by: usize, mask: i32| _mm256_and_si256(shifted(v, by), _mm256_set1_epi32(mask));
    for g in 0..GROUPS {
        let at = 8 * (g % 4);
        let upper = |v| _mm256_slli_epi32::<4>(bits(v, at + 6, 3));
        let (scale, min) = if g < 4 {
            (bits(packed_scales, at, 63), bits(packed_mins, at, 63))
        } else {
            let low = |by: usize| bits(both, at + by, 15);
            (_mm256_or_si256(low(0), upper(packed_scales)), _mm256_or_si256(low(4), upper(packed_mins)))
        };
        let scale = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale));
        let min = _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(min));
        // SAFETY: by the caller's promise.
        unsafe {
            _mm256_storeu_ps(scales.add(2 * ROWS * g), scale);
            _mm256_storeu_ps(scales.add(2 * ROWS * g + ROWS), scale);
            _mm256_storeu_ps(mins.add(ROWS * g), _mm256_xor_ps(min, _mm256_set1_ps(-0.0)));
        }
    }
}

/// Scales of the sixteen half groups of a block of `Q6_K`, which corrects its zero point on integers.
///
/// # Safety
/// As [`large_block`], which is the only caller.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_scales(rows: &Rows<'_>, start: usize, mins: *mut f32, scales: *mut f32) {
    let tails: [u32; ROWS] = std::array::from_fn(|r| {
        let tail = &rows[r][start + 208..][..2];
        u32::from(u16::from_le_bytes([tail[0], tail[1]]))
    });
    // SAFETY: sixteen scales of eight bits stand before the last two bytes; writes by the caller's promise.
    unsafe {
        let d = halves_to_f32(_mm256_loadu_si256(tails.as_ptr().cast()));
        for (quad, packed) in load_quads(rows, start + 192).into_iter().enumerate() {
            for byte in 0..4 {
                let top = _mm256_sllv_epi32(packed, _mm256_set1_epi32(24 - 8 * byte as i32));
                let scale = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top)));
                _mm256_storeu_ps(scales.add(ROWS * (4 * quad + byte)), scale);
            }
        }
        (0..GROUPS).for_each(|g| _mm256_storeu_ps(mins.add(ROWS * g), _mm256_setzero_ps()));
    }
}

/// Four groups of `Q6_K`.
///
/// # Safety
/// As [`large_block`], which is the only caller.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_half(rows: &Rows<'_>, start: usize, half: usize, ahead: Ahead, values: *mut __m256i) {
    // SAFETY: by the caller's promise.
    unsafe {
        let low = [load_octets(rows, start + 64 * half), load_octets(rows, start + 64 * half + 32)];
        let high = load_octets(rows, start + 128 + 32 * half);
        let two = _mm256_set1_epi8(3);
        for quarter in 0..4 {
            for j in 0..8 {
                let nibble = low_nibbles(shifted(low[quarter % 2][j], 4 * (quarter / 2)));
                let upper = _mm256_and_si256(shifted(high[j], 2 * quarter), two);
                let v = _mm256_or_si256(nibble, _mm256_slli_epi16::<4>(upper));
                _mm256_store_si256(values.add(8 * quarter + j), v);
                ahead.ask(8 * quarter + j, 32);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn low_nibbles(v: __m256i) -> __m256i {
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

/// Dwords shifted to the right: of a byte, the bits that stay inside it are its own.
#[target_feature(enable = "avx2")]
#[inline]
fn shifted(v: __m256i, by: usize) -> __m256i {
    _mm256_srlv_epi32(v, _mm256_set1_epi32(by as i32))
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

/// As [`load_quads`] for thirty-two bytes.
///
/// # Safety
/// Each row has thirty-two bytes at `offset`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_octets(rows: &Rows<'_>, offset: usize) -> [__m256i; 8] {
    // SAFETY: by the caller's promise.
    let (a, b) = unsafe { (load_quads(rows, offset), load_quads(rows, offset + 16)) };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

const _: () = assert!(GROUP == 4 * ROWS, "eight vectors of four columns make a group");
