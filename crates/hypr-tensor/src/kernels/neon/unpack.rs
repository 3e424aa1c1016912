//! Half tiles of eight encoded rows into vectors whose lane is the row.
//!
//! Working memory of `groups` groups of 32 columns:
//! ```text
//! values   [groups][8][8 rows][4] i8   columns 4 j .. 4 j + 4 of a group at j, the zero point taken away
//! mins     [groups][8 rows] f32        minima
//! scales   [groups][2][8 rows] f32     per 16 columns
//! ```

use std::arch::aarch64::*;

use crate::DType;
use crate::quant::{self, GROUP};

/// Rows in a half tile.
pub const ROWS: usize = 8;

/// Bytes of the values of one group.
pub const GROUP_BYTES: usize = GROUP * ROWS;

/// The encoded rows of a half tile.
pub type Rows<'a> = [&'a [u8]; ROWS];

/// One group of one row.
#[derive(Clone, Copy)]
struct Group {
    /// Columns 0..16 and 16..32.
    q: [int8x16_t; 2],
    /// Of the same.
    scale: [f32; 2],
    min: f32,
}

/// Where a half tile is unpacked to.
#[derive(Clone, Copy)]
struct Places {
    groups: usize,
    values: *mut i8,
    mins: *mut f32,
    scales: *mut f32,
}

/// Unpacks all groups.
///
/// # Safety
/// The processor has the features of `Level::Neon`; the three arrays have room for `groups` groups.
///
/// # Panics
/// When a row is shorter than `groups` groups of `dtype`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn pack(dtype: DType, rows: &Rows<'_>, groups: usize, values: *mut i8, mins: *mut f32, scales: *mut f32) {
    let to = Places { groups, values, mins, scales };
    // SAFETY: by the caller's promise.
    unsafe {
        match dtype {
            DType::Q4_0 => each_group::<{ DType::Q4_0.block_bytes() }, 1>(rows, to, |block, _| q4_0(block)),
            DType::Q4_1 => each_group::<{ DType::Q4_1.block_bytes() }, 1>(rows, to, |block, _| q4_1(block)),
            DType::Q5_0 => each_group::<{ DType::Q5_0.block_bytes() }, 1>(rows, to, |block, _| q5_0(block)),
            DType::Q5_1 => each_group::<{ DType::Q5_1.block_bytes() }, 1>(rows, to, |block, _| q5_1(block)),
            DType::Q8_0 => each_group::<{ DType::Q8_0.block_bytes() }, 1>(rows, to, |block, _| q8_0(block)),
            DType::Q4K => each_group::<{ DType::Q4K.block_bytes() }, 8>(rows, to, |block, sub| q4_k(block, sub)),
            DType::Q5K => each_group::<{ DType::Q5K.block_bytes() }, 8>(rows, to, |block, sub| q5_k(block, sub)),
            DType::Q6K => each_group::<{ DType::Q6K.block_bytes() }, 8>(rows, to, |block, sub| q6_k(block, sub)),
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("{dtype} has no blocks"),
        }
    }
}

/// Unpacks all groups, where `decode` reads a group of a block of `GROUPS`.
///
/// # Safety
/// As [`pack`].
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn each_group<const BYTES: usize, const GROUPS: usize>(
    rows: &Rows<'_>,
    to: Places,
    decode: impl Fn(&[u8; BYTES], usize) -> Group,
) {
    let mut blocks: [&[[u8; BYTES]]; ROWS] = [&[]; ROWS];
    for (blocks, row) in blocks.iter_mut().zip(rows) {
        *blocks = row.as_chunks::<BYTES>().0;
    }
    for g in 0..to.groups {
        for (quad, blocks) in blocks.as_chunks::<4>().0.iter().enumerate() {
            let mut group = [Group { q: [vdupq_n_s8(0); 2], scale: [0.0; 2], min: 0.0 }; 4];
            for (group, blocks) in group.iter_mut().zip(blocks) {
                *group = decode(&blocks[g / GROUPS], g % GROUPS);
            }
            // SAFETY: the places of rows `4 quad .. 4 quad + 4` of group `g`.
            unsafe { store(&group, to, g, quad) };
        }
    }
}

/// Writes a group of rows `4 quad .. 4 quad + 4`.
///
/// # Safety
/// `to` has room for group `g`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn store(rows: &[Group; 4], to: Places, g: usize, quad: usize) {
    let [a, b, c, d] = rows;
    // SAFETY: by the caller's promise: sixteen bytes a vector, four floats a run.
    unsafe {
        for half in 0..2 {
            let values = to.values.add(GROUP_BYTES * g + GROUP_BYTES / 2 * half + 16 * quad);
            let columns = transpose([a.q[half], b.q[half], c.q[half], d.q[half]]);
            for (j, v) in columns.into_iter().enumerate() {
                vst1q_s8(values.add(4 * ROWS * j), v);
            }
            let scales = to.scales.add(ROWS * (2 * g + half) + 4 * quad);
            scales.cast::<[f32; 4]>().write([a.scale[half], b.scale[half], c.scale[half], d.scale[half]]);
        }
        to.mins.add(ROWS * g + 4 * quad).cast::<[f32; 4]>().write([a.min, b.min, c.min, d.min]);
    }
}

/// Four rows of four dwords, transposed.
#[target_feature(enable = "neon")]
#[inline]
fn transpose(rows: [int8x16_t; 4]) -> [int8x16_t; 4] {
    let [a, b, c, d] = rows.map(|row| vreinterpretq_s32_s8(row));
    let even = [vtrn1q_s32(a, b), vtrn1q_s32(c, d)].map(|v| vreinterpretq_s64_s32(v));
    let odd = [vtrn2q_s32(a, b), vtrn2q_s32(c, d)].map(|v| vreinterpretq_s64_s32(v));
    [vtrn1q_s64(even[0], even[1]), vtrn1q_s64(odd[0], odd[1]), vtrn2q_s64(even[0], even[1]), vtrn2q_s64(odd[0], odd[1])]
        .map(|v| vreinterpretq_s8_s64(v))
}

/// Bytes `at .. at + 16`.
#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: sixteen bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// The f16 at byte `at`; the conversion of `half` would look for the instruction at run time, each time.
#[target_feature(enable = "neon")]
#[inline]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))))
}

/// The low halves, then the high halves, of sixteen bytes.
#[target_feature(enable = "neon")]
#[inline]
fn nibbles(v: uint8x16_t) -> [uint8x16_t; 2] {
    [low_bits(v), vshrq_n_u8::<4>(v)]
}

#[target_feature(enable = "neon")]
#[inline]
fn low_bits(v: uint8x16_t) -> uint8x16_t {
    vandq_u8(v, vdupq_n_u8(15))
}

/// Adds 16 to value `i` where bit `i` of the four bytes at `at` is set.
#[target_feature(enable = "neon")]
#[inline]
fn with_fifth_bits(q: [uint8x16_t; 2], bytes: &[u8], at: usize) -> [uint8x16_t; 2] {
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    let (bits, fifth) = (load(&BITS, 0), vdupq_n_u8(16));
    let add = |q: uint8x16_t, at: usize| {
        let bytes = vcombine_u8(vdup_n_u8(bytes[at]), vdup_n_u8(bytes[at + 1]));
        vorrq_u8(q, vandq_u8(vtstq_u8(bytes, bits), fifth))
    };
    [add(q[0], at), add(q[1], at + 2)]
}

/// Takes the zero point away.
#[target_feature(enable = "neon")]
#[inline]
fn centred(q: [uint8x16_t; 2], dtype: DType) -> [int8x16_t; 2] {
    let zero = vdupq_n_s8(quant::zero_point(dtype) as i8);
    q.map(|q| vsubq_s8(vreinterpretq_s8_u8(q), zero))
}

#[target_feature(enable = "neon")]
#[inline]
fn q4_0(block: &[u8; DType::Q4_0.block_bytes()]) -> Group {
    Group { q: centred(nibbles(load(block, 2)), DType::Q4_0), scale: [half_at(block, 0); 2], min: 0.0 }
}

#[target_feature(enable = "neon")]
#[inline]
fn q4_1(block: &[u8; DType::Q4_1.block_bytes()]) -> Group {
    let q = centred(nibbles(load(block, 4)), DType::Q4_1);
    Group { q, scale: [half_at(block, 0); 2], min: half_at(block, 2) }
}

#[target_feature(enable = "neon")]
#[inline]
fn q5_0(block: &[u8; DType::Q5_0.block_bytes()]) -> Group {
    let q = with_fifth_bits(nibbles(load(block, 6)), block, 2);
    Group { q: centred(q, DType::Q5_0), scale: [half_at(block, 0); 2], min: 0.0 }
}

#[target_feature(enable = "neon")]
#[inline]
fn q5_1(block: &[u8; DType::Q5_1.block_bytes()]) -> Group {
    let q = with_fifth_bits(nibbles(load(block, 8)), block, 4);
    Group { q: centred(q, DType::Q5_1), scale: [half_at(block, 0); 2], min: half_at(block, 2) }
}

/// Already signed: the canonical form is what adds 128.
#[target_feature(enable = "neon")]
#[inline]
fn q8_0(block: &[u8; DType::Q8_0.block_bytes()]) -> Group {
    let q = [vreinterpretq_s8_u8(load(block, 2)), vreinterpretq_s8_u8(load(block, 18))];
    Group { q, scale: [half_at(block, 0); 2], min: 0.0 }
}

#[target_feature(enable = "neon")]
#[inline]
fn q4_k(block: &[u8; DType::Q4K.block_bytes()], sub: usize) -> Group {
    k_group(block, sub, k_nibbles(block, 16, sub))
}

#[target_feature(enable = "neon")]
#[inline]
fn q5_k(block: &[u8; DType::Q5K.block_bytes()], sub: usize) -> Group {
    let (low, bit) = (k_nibbles(block, 48, sub), vdupq_n_u8(1 << sub));
    let q = std::array::from_fn(|i| {
        let high = vtstq_u8(load(block, 16 + 16 * i), bit);
        vorrq_u8(low[i], vandq_u8(high, vdupq_n_u8(16)))
    });
    k_group(block, sub, q)
}

/// The four bits of sub-block `sub`, where those of the block start at `at`.
#[target_feature(enable = "neon")]
#[inline]
fn k_nibbles(block: &[u8], at: usize, sub: usize) -> [uint8x16_t; 2] {
    let at = at + sub / 2 * 32;
    let q = [load(block, at), load(block, at + 16)];
    q.map(|q| if sub.is_multiple_of(2) { low_bits(q) } else { vshrq_n_u8::<4>(q) })
}

/// With the scale and minimum of sub-block `sub`; the formats have no zero point.
#[target_feature(enable = "neon")]
#[inline]
fn k_group(block: &[u8], sub: usize, q: [uint8x16_t; 2]) -> Group {
    let (scale, min) = quant::scale_min(&block[4..16], sub);
    let scale = half_at(block, 0) * f32::from(scale);
    Group { q: q.map(|q| vreinterpretq_s8_u8(q)), scale: [scale; 2], min: -(half_at(block, 2) * f32::from(min)) }
}

#[target_feature(enable = "neon")]
#[inline]
fn q6_k(block: &[u8; DType::Q6K.block_bytes()], sub: usize) -> Group {
    let (half, quarter) = (sub / 4, sub % 4);
    // A shift by a negative count goes right.
    let (low_shift, high_shift) = (vdupq_n_s8(if quarter < 2 { 0 } else { -4 }), vdupq_n_s8(-2 * quarter as i8));
    let q = std::array::from_fn(|i| {
        let low = vshlq_u8(load(block, 64 * half + 32 * (quarter % 2) + 16 * i), low_shift);
        let high = vshlq_u8(load(block, 128 + 32 * half + 16 * i), high_shift);
        vorrq_u8(low_bits(low), vshlq_n_u8::<4>(vandq_u8(high, vdupq_n_u8(3))))
    });
    let d = half_at(block, 208);
    let scale = std::array::from_fn(|i| d * f32::from(block[192 + 2 * sub + i] as i8));
    Group { q: centred(q, DType::Q6K), scale, min: 0.0 }
}

const _: () = assert!(GROUP == 4 * ROWS, "eight steps of four columns make a group");
