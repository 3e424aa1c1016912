//! Rotary position embedding.

use super::{Kernels, SharedMut, by_level};

/// Which two values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Values `2 i` and `2 i + 1`: the original paper and GGUF files of the `llama` architecture ("norm").
    Interleaved,
    /// Values `i` and `i + dims / 2`: Hugging Face's layout and GGUF files of `qwen2` ("neox").
    HalfSplit,
}

/// Cosines and sines of every position.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Radians per position, `[dims / 2]`.
    frequencies: Vec<f32>,
    /// `[positions, dims / 2]`.
    cos: Vec<f32>,
    /// `[positions, dims / 2]`.
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for `positions` positions of given frequencies, `[dims / 2]` radians per position.
    pub fn new(frequencies: Vec<f32>, positions: usize) -> Self {
        let mut table = Self { frequencies, cos: Vec::new(), sin: Vec::new() };
        table.extend(positions);
        table
    }

    /// Frequencies `base^(-2 i / dims)`, as the paper has them.
    pub fn from_base(base: f32, dims: usize, positions: usize) -> Self {
        let frequency = |i: usize| f64::from(base).powf(-2.0 * i as f64 / dims as f64) as f32;
        Self::new((0..dims / 2).map(frequency).collect(), positions)
    }

    /// Makes the table reach `positions` positions.
    pub fn extend(&mut self, positions: usize) {
        for position in self.positions()..positions {
            for &frequency in &self.frequencies {
                // In double precision: at position 8000 a float angle is wrong in the fourth digit.
                let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.frequencies.len()).unwrap_or(usize::MAX)
    }

    /// Values of a head that are rotated.
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }
}

pub fn run(kernels: &Kernels, x: &mut [f32], heads: usize, positions: &[u32], table: &RopeTable, style: RopeStyle) {
    if positions.is_empty() {
        assert!(x.is_empty(), "rope: values without positions");
        return;
    }
    let cols = x.len() / positions.len();
    assert!(heads > 0 && x.len() == cols * positions.len() && cols.is_multiple_of(heads), "rope: shape of x");
    let head_dim = cols / heads;
    assert!(table.dims() <= head_dim, "rope: table of {} dimensions for heads of {head_dim}", table.dims());
    let reach = positions.iter().max().map_or(0, |&p| p as usize + 1);
    assert!(reach <= table.positions(), "rope: position {} is past the table's end", reach - 1);
    let level = kernels.level();
    let out = SharedMut::new(x);
    let rotate = |rows: std::ops::Range<usize>| {
        for row in rows {
            // SAFETY: every row belongs to one range.
            let x = unsafe { out.slice(row * cols, cols) };
            let half = table.frequencies.len();
            let first = positions[row] as usize * half;
            let (cos, sin) = (&table.cos[first..first + half], &table.sin[first..first + half]);
            match style {
                RopeStyle::Interleaved => interleaved(level, x, head_dim, cos, sin),
                RopeStyle::HalfSplit => half_split(level, x, head_dim, cos, sin),
            }
        }
    };
    if positions.len() < 16 {
        rotate(0..positions.len());
    } else {
        kernels.pool().for_each_range(positions.len(), 8, &|_, rows| rotate(rows));
    }
}

by_level! {
    fn interleaved(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            let (pairs, _) = head.as_chunks_mut::<2>();
            for ((pair, cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
}

by_level! {
    fn half_split(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            let (left, right) = head.split_at_mut(cos.len());
            for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let (a, b) = (*left, *right);
                *left = a * cos - b * sin;
                *right = a * sin + b * cos;
            }
        }
    }
}
