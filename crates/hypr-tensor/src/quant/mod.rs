//! GGML's block formats. Source: `ggml/src/ggml-common.h` (layouts) and `ggml-quants.c` (meaning) of
//! <https://github.com/ggml-org/ggml>.
//!
//! A row is a sequence of blocks, each decoded alone. All numbers are little endian; `f16` is IEEE binary16;
//! `name[n]` is n bytes.
//!
//! ```text
//! Q4_0   d:f16 qs[16]                                v[i] = d * (q[i] - 8)
//! Q4_1   d:f16 m:f16 qs[16]                          v[i] = d * q[i] + m
//! Q5_0   d:f16 qh[4] qs[16]                          v[i] = d * (q[i] - 16)
//! Q5_1   d:f16 m:f16 qh[4] qs[16]                    v[i] = d * q[i] + m
//! Q8_0   d:f16 qs[32]                                v[i] = d * (qs[i] as i8)
//! ```
//! In blocks of 32, `qs[j]` holds the low four bits of value `j` in its low half and of value `j + 16` in its
//! high half; bit `i` of `qh` (a u32) is the fifth bit of value `i`.
//!
//! ```text
//! Q4_K   d:f16 dmin:f16 scales[12] qs[128]           v[i] = d * sc[i/32] * q[i] - dmin * mn[i/32]
//! Q5_K   d:f16 dmin:f16 scales[12] qh[32] qs[128]    the same
//! Q6_K   ql[128] qh[64] scales[16] d:f16             v[i] = d * (scales[i/16] as i8) * (q[i] - 32)
//! ```
//! Blocks of 256. In `Q4_K` and `Q5_K`, `qs[32 * p + j]` holds the low four bits of values `64 * p + j` and
//! `64 * p + 32 + j`; bit `s` of `qh[j]` is the fifth bit of value `32 * s + j`; `scales` packs eight scales and
//! eight minima of 6 bits (see `scale_min`). In `Q6_K`, for each half `h` of 128 values, `ql[64 * h + j]` holds the
//! low four bits of values `128 * h + j` and `128 * h + 64 + j`, and the four bit pairs of `qh[32 * h + j]` are
//! the upper bits of values `128 * h + j`, `+ 32`, `+ 64`, `+ 96`.
//!
//! Every format has one *canonical form*, which the products use: 32 unsigned integers `q` with a scale per
//! 16, a minimum per 32 and a zero point per format, `v = scale * (q - zero) + min`.

use half::{bf16, f16};

use crate::DType;

mod encode;
#[cfg(test)]
pub(crate) mod tests;

pub use encode::quantize;

/// Values in one group of the canonical form.
pub(crate) const GROUP: usize = 32;

/// 32 values in canonical form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub q: [u8; GROUP],
    /// Scale of values 0..16 and 16..32.
    pub scale: [f32; 2],
    pub min: f32,
}

/// What `q` of the canonical form stands for zero.
pub(crate) const fn zero_point(dtype: DType) -> i32 {
    match dtype {
        DType::Q4_0 => 8,
        DType::Q5_0 => 16,
        DType::Q6K => 32,
        DType::Q8_0 => 128,
        _ => 0,
    }
}

/// Decodes a row, or any run of whole blocks.
///
/// # Panics
/// When `bytes` is not the encoding of `out.len()` values.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() * dtype.block_len(), out.len() * dtype.block_bytes(), "{dtype} row and output differ");
    match dtype {
        DType::F32 => decode(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b)),
        DType::F16 => decode(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => decode(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        _ => {
            let zero = zero_point(dtype);
            for (index, out) in out.chunks_exact_mut(GROUP).enumerate() {
                let group = group(dtype, bytes, index);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = group.scale[i / 16] * (i32::from(group.q[i]) - zero) as f32 + group.min;
                }
            }
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (out, element) in out.iter_mut().zip(elements) {
        *out = value(*element);
    }
}

/// The canonical form of values `32 * index ..` of an encoded row.
pub(crate) fn group(dtype: DType, row: &[u8], index: usize) -> Group {
    let groups = dtype.block_len() / GROUP;
    let block = &row[index / groups * dtype.block_bytes()..][..dtype.block_bytes()];
    match dtype {
        DType::Q4_0 => Group { q: nibbles(&block[2..]), scale: [half_at(block, 0); 2], min: 0.0 },
        DType::Q4_1 => Group { q: nibbles(&block[4..]), scale: [half_at(block, 0); 2], min: half_at(block, 2) },
        DType::Q5_0 => {
            Group { q: with_fifth_bits(nibbles(&block[6..]), &block[2..6]), scale: [half_at(block, 0); 2], min: 0.0 }
        }
        DType::Q5_1 => Group {
            q: with_fifth_bits(nibbles(&block[8..]), &block[4..8]),
            scale: [half_at(block, 0); 2],
            min: half_at(block, 2),
        },
        DType::Q8_0 => {
            Group { q: std::array::from_fn(|i| block[2 + i] ^ 0x80), scale: [half_at(block, 0); 2], min: 0.0 }
        }
        DType::Q4K => {
            let q = k_nibbles(&block[16..], index % 8);
            k_group(block, index % 8, q)
        }
        DType::Q5K => {
            let sub = index % 8;
            let mut q = k_nibbles(&block[48..], sub);
            for (q, high) in q.iter_mut().zip(&block[16..48]) {
                *q |= (high >> sub & 1) << 4;
            }
            k_group(block, sub, q)
        }
        DType::Q6K => q6_group(block, index % 8),
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("{dtype} has no blocks"),
    }
}

/// The f16 at byte `at`.
#[inline(always)]
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The low halves, then the high halves, of 16 bytes.
fn nibbles(qs: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })
}

fn with_fifth_bits(mut q: [u8; GROUP], high: &[u8]) -> [u8; GROUP] {
    for (i, q) in q.iter_mut().enumerate() {
        *q |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
    q
}

fn k_nibbles(qs: &[u8], sub: usize) -> [u8; GROUP] {
    let qs = &qs[sub / 2 * 32..][..32];
    std::array::from_fn(|i| if sub.is_multiple_of(2) { qs[i] & 15 } else { qs[i] >> 4 })
}

fn k_group(block: &[u8], sub: usize, q: [u8; GROUP]) -> Group {
    let (scale, min) = scale_min(&block[4..16], sub);
    Group { q, scale: [half_at(block, 0) * f32::from(scale); 2], min: -(half_at(block, 2) * f32::from(min)) }
}

/// Scale and minimum, of 6 bits each, of sub-block `sub` of a `Q4_K` or `Q5_K` block. `packed[12]` holds the low
/// 6 bits of scales 0..4, then of minima 0..4, whose upper 2 bits carry the upper bits of scales and minima
/// 4..8; then their low 4 bits, scale below minimum.
#[inline(always)]
pub(crate) fn scale_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        (packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4, packed[sub + 4] >> 4 | packed[sub] >> 6 << 4)
    }
}

fn q6_group(block: &[u8], sub: usize) -> Group {
    let (half, quarter) = (sub / 4, sub % 4);
    let low = &block[64 * half + 32 * (quarter % 2)..][..32];
    let high = &block[128 + 32 * half..][..32];
    let q = std::array::from_fn(|i| {
        let low = if quarter < 2 { low[i] & 15 } else { low[i] >> 4 };
        low | (high[i] >> (2 * quarter) & 3) << 4
    });
    let d = half_at(block, 208);
    let scale = |i: usize| d * f32::from(block[192 + 2 * sub + i] as i8);
    Group { q, scale: [scale(0), scale(1)], min: 0.0 }
}
