//! Values to block formats: what `model convert` stores.
//!
//! The formats of 32 values are encoded as GGML's reference does (`quantize_row_*_ref` of `ggml-quants.c`), byte for
//! byte. Those of 256 values leave the choice of scales to the encoder: here each group's scale, and minimum, is the
//! least-squares fit for the best of several roundings, weighted by magnitude, as large weights matter more to a
//! product.

use half::{bf16, f16};
use hypr_common::{Error, Result};

use super::GROUP;
use crate::DType;

/// Roundings tried for a group.
const STEPS: i32 = 20;

/// Encodes `values`, whole rows or any run of whole blocks.
///
/// # Errors
/// `InvalidInput` when the values are not a whole number of blocks, or one of them is not finite, which no block
/// format can hold.
pub fn quantize(dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    if !values.len().is_multiple_of(dtype.block_len()) {
        let message = format!("{} values are no whole number of {dtype} blocks of {}", values.len(), dtype.block_len());
        return Err(Error::invalid(message));
    }
    if dtype.is_quantized()
        && let Some(at) = values.iter().position(|value| !value.is_finite())
    {
        return Err(Error::invalid(format!("value {at} is {}; {dtype} holds finite numbers only", values[at])));
    }
    let mut out = Vec::with_capacity(values.len() / dtype.block_len() * dtype.block_bytes());
    match dtype {
        DType::F32 => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
        DType::F16 => values.iter().for_each(|value| out.extend(f16::from_f32(*value).to_le_bytes())),
        DType::BF16 => values.iter().for_each(|value| out.extend(bf16::from_f32(*value).to_le_bytes())),
        DType::Q4_0 | DType::Q5_0 => groups(values).for_each(|group| symmetric(dtype, group, &mut out)),
        DType::Q4_1 | DType::Q5_1 => groups(values).for_each(|group| affine(dtype, group, &mut out)),
        DType::Q8_0 => groups(values).for_each(|group| q8_0(group, &mut out)),
        DType::Q4K | DType::Q5K => supers(values).for_each(|block| k_affine(dtype, block, &mut out)),
        DType::Q6K => supers(values).for_each(|block| q6_k(block, &mut out)),
    }
    Ok(out)
}

fn groups(values: &[f32]) -> impl Iterator<Item = &[f32; GROUP]> {
    values.as_chunks().0.iter()
}

fn supers(values: &[f32]) -> impl Iterator<Item = &[f32; 256]> {
    values.as_chunks().0.iter()
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn half(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

/// The value that is farthest from zero, with its sign.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |most, &value| if value.abs() > most.abs() { value } else { most })
}

fn bounds(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)))
}

/// `Q4_0` and `Q5_0`: the extreme value becomes the lowest integer, which has no positive twin.
fn symmetric(dtype: DType, group: &[f32; GROUP], out: &mut Vec<u8>) {
    let (zero, top) = if dtype == DType::Q4_0 { (8.0, 15.0) } else { (16.0, 31.0) };
    let scale = extreme(group) / -zero;
    let inverse = inverse(scale);
    out.extend(half(scale));
    pack(dtype, &group.map(|value| (value * inverse + (zero + 0.5)).min(top) as u8), out);
}

/// `Q4_1` and `Q5_1`: from the least to the greatest value.
fn affine(dtype: DType, group: &[f32; GROUP], out: &mut Vec<u8>) {
    let top: f32 = if dtype == DType::Q4_1 { 15.0 } else { 31.0 };
    let (low, high) = bounds(group);
    let scale = (high - low) / top;
    let inverse = inverse(scale);
    out.extend(half(scale));
    out.extend(half(low));
    pack(dtype, &group.map(|value| ((value - low) * inverse + 0.5).min(top) as u8), out);
}

fn q8_0(group: &[f32; GROUP], out: &mut Vec<u8>) {
    let scale = extreme(group).abs() / 127.0;
    let inverse = inverse(scale);
    out.extend(half(scale));
    out.extend(group.map(|value| (value * inverse).round() as i8 as u8));
}

/// Integers of 4 or 5 bits as the blocks of 32 lay them out: the fifth bits first.
fn pack(dtype: DType, q: &[u8; GROUP], out: &mut Vec<u8>) {
    if matches!(dtype, DType::Q5_0 | DType::Q5_1) {
        let high = q.iter().enumerate().fold(0_u32, |bits, (at, q)| bits | u32::from(q >> 4) << at);
        out.extend(high.to_le_bytes());
    }
    out.extend((0..16).map(|at| q[at] & 15 | (q[at + 16] & 15) << 4));
}

/// How much the error of a value counts.
fn weight(value: f32, mean_square: f32) -> f32 {
    mean_square.sqrt() + value.abs()
}

fn mean_square(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32
}

/// The scale and the amount below zero, neither negative, by which integers up to `top` fit `values` best.
fn fit_affine(values: &[f32], top: f32, mean_square: f32) -> (f32, f32) {
    let (low, high) = bounds(values);
    let low = low.min(0.0);
    if high <= low {
        return (0.0, -low);
    }
    let error = |scale: f32, below: f32| -> f32 {
        let inverse = inverse(scale);
        let missed = |value: &f32| {
            let q = ((value + below) * inverse).round().clamp(0.0, top);
            weight(*value, mean_square) * (scale * q - below - value).powi(2)
        };
        values.iter().map(missed).sum()
    };
    let first = ((high - low) / top, -low);
    let mut best = (error(first.0, first.1), first);
    for step in 0..=STEPS {
        let inverse = (top - 1.0 + 0.1 * step as f32) / (high - low);
        // Weighted least squares of value = scale * q - below.
        let (mut sum_w, mut sum_q, mut sum_qq, mut sum_x, mut sum_qx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &value in values {
            let q = ((value - low) * inverse).round().clamp(0.0, top);
            let w = weight(value, mean_square);
            sum_w += w;
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_x += w * value;
            sum_qx += w * q * value;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
        let mut below = (sum_q * sum_qx - sum_qq * sum_x) / determinant;
        if below < 0.0 {
            (scale, below) = (sum_qx / sum_qq, 0.0);
        }
        let missed = error(scale, below);
        if scale > 0.0 && missed < best.0 {
            best = (missed, (scale, below));
        }
    }
    best.1
}

/// `Q4_K` and `Q5_K`: eight groups whose scales and minima are 6-bit parts of two halves.
fn k_affine(dtype: DType, block: &[f32; 256], out: &mut Vec<u8>) {
    let top: f32 = if dtype == DType::Q4K { 15.0 } else { 31.0 };
    let fits: Vec<(f32, f32)> = groups(block).map(|group| fit_affine(group, top, mean_square(group))).collect();
    let part = |most: f32| f16::from_f32(most / 63.0).to_f32();
    let d = part(fits.iter().fold(0.0, |most, fit| fit.0.max(most)));
    let dmin = part(fits.iter().fold(0.0, |most, fit| fit.1.max(most)));
    let parts = |value: f32, part: f32| (value * inverse(part)).round().clamp(0.0, 63.0) as u8;
    let scales: [u8; 8] = std::array::from_fn(|at| parts(fits[at].0, d));
    let minima: [u8; 8] = std::array::from_fn(|at| parts(fits[at].1, dmin));
    let mut q = [0_u8; 256];
    for (at, q) in q.iter_mut().enumerate() {
        let (scale, below) = (d * f32::from(scales[at / GROUP]), dmin * f32::from(minima[at / GROUP]));
        *q = ((block[at] + below) * inverse(scale)).round().clamp(0.0, top) as u8;
    }
    out.extend(half(d));
    out.extend(half(dmin));
    out.extend(pack_scales(&scales, &minima));
    if dtype == DType::Q5K {
        out.extend((0..GROUP).map(|j| (0..8).fold(0, |bits, s| bits | (q[GROUP * s + j] >> 4) << s)));
    }
    for pair in q.as_chunks::<64>().0 {
        out.extend((0..GROUP).map(|j| pair[j] & 15 | (pair[j + GROUP] & 15) << 4));
    }
}

/// Eight scales and eight minima of 6 bits in twelve bytes; see [`super::scale_min`].
fn pack_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|at| match at {
        0..4 => scales[at] | scales[at + 4] >> 4 << 6,
        4..8 => minima[at - 4] | minima[at] >> 4 << 6,
        _ => scales[at - 4] & 15 | (minima[at - 4] & 15) << 4,
    })
}

/// The scale, of any sign, by which integers from -32 to 31 fit `values` best.
fn fit_symmetric(values: &[f32], mean_square: f32) -> f32 {
    let extreme = extreme(values);
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (f32::MIN, 0.0);
    for step in -STEPS / 2..=STEPS / 2 {
        let inverse = -(32.0 + 0.1 * step as f32) / extreme;
        let (mut sum_qx, mut sum_qq) = (0.0, 0.0);
        for &value in values {
            let q = (value * inverse).round().clamp(-32.0, 31.0);
            let w = weight(value, mean_square);
            sum_qx += w * q * value;
            sum_qq += w * q * q;
        }
        // The error falls by this square.
        let gain = sum_qx * sum_qx / sum_qq;
        if sum_qq > 0.0 && gain > best.0 {
            best = (gain, sum_qx / sum_qq);
        }
    }
    best.1
}

/// `Q6_K`: sixteen groups of 16 whose scales are 8-bit parts of one half.
fn q6_k(block: &[f32; 256], out: &mut Vec<u8>) {
    let spread = mean_square(block);
    let fits: Vec<f32> = block.as_chunks::<16>().0.iter().map(|group| fit_symmetric(group, spread)).collect();
    let d = f16::from_f32(extreme(&fits) / -128.0).to_f32();
    let scales: [i8; 16] = std::array::from_fn(|at| (fits[at] * inverse(d)).round().clamp(-128.0, 127.0) as i8);
    let q: [u8; 256] = std::array::from_fn(|at| {
        let scale = d * f32::from(scales[at / 16]);
        ((block[at] * inverse(scale)).round().clamp(-32.0, 31.0) as i8 + 32) as u8
    });
    let (low, high) = (|at: usize| q[at] & 15, |at: usize| q[at] >> 4);
    for first in [0, 128] {
        out.extend((0..64).map(|j| low(first + j) | low(first + 64 + j) << 4));
    }
    for first in [0, 128] {
        let bits = |j: usize| (0..4).fold(0, |bits, quarter| bits | high(first + 32 * quarter + j) << (2 * quarter));
        out.extend((0..32).map(bits));
    }
    out.extend(scales.map(|scale| scale as u8));
    out.extend(half(d));
}
