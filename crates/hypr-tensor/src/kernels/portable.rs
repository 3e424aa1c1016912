//! The reference: plain Rust, one row at a time.

use super::linear::Tile;
use super::math;
use super::scratch::Line;
use crate::quant::{self, GROUP};

/// All outputs of a tile.
pub fn tile(mut tile: Tile<'_>, memory: &mut [Line]) {
    for row in 0..tile.valid {
        if tile.dtype.is_quantized() {
            quantized_row(&mut tile, row, memory);
        } else {
            plain_row(&mut tile, row, memory);
        }
    }
}

fn finish(tile: &mut Tile<'_>, i: usize, row: usize, sum: f32) {
    let bias = tile.bias.map_or(0.0, |bias| bias[row]);
    tile.out.row(i, tile.valid)[row] = sum + bias;
}

fn plain_row(tile: &mut Tile<'_>, row: usize, memory: &mut [Line]) {
    let cols = tile.input.cols;
    let values = &mut memory.as_flattened_f32()[..cols];
    quant::dequantize(tile.dtype, tile.rows[row], values);
    for i in 0..tile.n {
        let x = &tile.input.x[(tile.first + i) * cols..][..cols];
        finish(tile, i, row, math::dot(values, x));
    }
}

fn quantized_row(tile: &mut Tile<'_>, row: usize, _memory: &mut [Line]) {
    let groups = tile.input.cols / GROUP;
    let zero = quant::zero_point(tile.dtype);
    let input = tile.input.quantized;
    for i in 0..tile.n {
        let first = (tile.first + i) * groups;
        let mut sum = 0.0;
        for g in 0..groups {
            let weights = quant::group(tile.dtype, tile.rows[row], g);
            let q = &input.q[(first + g) * GROUP..][..GROUP];
            let mut part = 0.0;
            for half in 0..2 {
                let range = half * 16..half * 16 + 16;
                let product: i32 =
                    weights.q[range.clone()].iter().zip(&q[range]).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                let product = product - zero * input.half_sum[2 * (first + g) + half];
                part += weights.scale[half] * product as f32;
            }
            sum += part * input.scale[first + g] + weights.min * input.scaled_sum[first + g];
        }
        finish(tile, i, row, sum);
    }
}

/// Cache lines as one slice of floats.
pub(super) trait AsFlattened {
    fn as_flattened_f32(&mut self) -> &mut [f32];
}

impl AsFlattened for [Line] {
    fn as_flattened_f32(&mut self) -> &mut [f32] {
        // SAFETY: a `Line` is sixteen floats without padding.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast::<f32>(), self.len() * 16) }
    }
}
