//! Memory that products reuse from call to call.

use super::{Kernels, Level, SharedMut, by_level, math};
use crate::quant::GROUP;

/// Working memory of [`Kernels::linear`], owned by the caller so that a warm call allocates nothing. Any scratch
/// fits any call; it grows to the largest.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) activations: Activations,
    /// One run of cache lines per thread.
    pub(super) threads: Vec<Vec<Line>>,
}

impl Scratch {
    /// Empty working memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// At least `bytes` bytes for each of `threads` threads.
    pub(super) fn reserve(&mut self, threads: usize, bytes: usize) {
        if self.threads.len() < threads {
            self.threads.resize_with(threads, Vec::new);
        }
        for lines in &mut self.threads {
            if lines.len() * size_of::<Line>() < bytes {
                lines.resize(bytes.div_ceil(size_of::<Line>()), Line([0.0; 16]));
            }
        }
    }
}

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Line(#[allow(dead_code, reason = "only ever seen through casts")] [f32; 16]);

/// Rows of activations in 8 bits: in each group of 32, `x = scale * q` with `q` in -127..=127.
#[derive(Debug, Default)]
pub(super) struct Activations {
    pub cols: usize,
    /// `[n, cols]`.
    pub q: Vec<i8>,
    /// `[n, cols / 32]`.
    pub scale: Vec<f32>,
    /// `scale` times the sum of `q`, `[n, cols / 32]`.
    pub scaled_sum: Vec<f32>,
    /// Sums of `q` over halves of a group, `[n, cols / 16]`.
    pub half_sum: Vec<i32>,
    /// Minus the sums of `q`, `[n, cols / 32]`.
    pub minus_sum: Vec<i32>,
}

impl Activations {
    /// Quantises `x`, `[n, cols]`.
    pub fn quantize(&mut self, kernels: &Kernels, x: &[f32], n: usize, cols: usize) {
        let groups = cols / GROUP;
        self.cols = cols;
        grow(&mut self.q, n * cols);
        grow(&mut self.scale, n * groups);
        grow(&mut self.scaled_sum, n * groups);
        grow(&mut self.half_sum, 2 * n * groups);
        grow(&mut self.minus_sum, n * groups);
        let (q, scale) = (SharedMut::new(&mut self.q), SharedMut::new(&mut self.scale));
        let (scaled_sum, half_sum) = (SharedMut::new(&mut self.scaled_sum), SharedMut::new(&mut self.half_sum));
        let minus_sum = SharedMut::new(&mut self.minus_sum);
        let level = kernels.level();
        let rows = |_: usize, rows: std::ops::Range<usize>| {
            let (first, len) = (rows.start * groups, rows.len() * groups);
            // SAFETY: the ranges of rows do not overlap, and neither do the five arrays.
            unsafe {
                let to = Quantized {
                    q: q.slice(first * GROUP, len * GROUP),
                    scale: scale.slice(first, len),
                    scaled_sum: scaled_sum.slice(first, len),
                    half_sum: half_sum.slice(2 * first, 2 * len),
                    minus_sum: minus_sum.slice(first, len),
                };
                quantize(level, &x[first * GROUP..(first + len) * GROUP], to);
            }
        };
        if n < 8 { rows(0, 0..n) } else { kernels.pool().for_each_range(n, 8, &rows) }
    }
}

/// Makes `values` at least `len` long; what it holds is overwritten by the caller.
fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

/// Places of consecutive groups in the arrays of [`Activations`].
pub(super) struct Quantized<'a> {
    pub q: &'a mut [i8],
    pub scale: &'a mut [f32],
    pub scaled_sum: &'a mut [f32],
    pub half_sum: &'a mut [i32],
    pub minus_sum: &'a mut [i32],
}

fn quantize(level: Level, x: &[f32], to: Quantized<'_>) {
    #[cfg(target_arch = "x86_64")]
    if matches!(level, Level::Avx512 | Level::Amx) {
        // SAFETY: `Kernels` only holds levels that this processor has.
        return unsafe { super::avx512::quantize_groups(x, to) };
    }
    quantize_groups(level, x, to);
}

by_level! {
    fn quantize_groups(x: &[f32], to: Quantized<'_>) {
        let (x, _) = x.as_chunks::<GROUP>();
        let (q, _) = to.q.as_chunks_mut::<GROUP>();
        let (half_sum, _) = to.half_sum.as_chunks_mut::<2>();
        for (g, (x, q)) in x.iter().zip(q).enumerate() {
            // The largest magnitude by its bits, where NaN is above infinity: it then spoils the scale and with
            // it every output, as it must.
            let mut largest = 0u32;
            for v in x {
                largest = largest.max(v.to_bits() & 0x7fff_ffff);
            }
            let largest = f32::from_bits(largest);
            // Below the smallest normal number the reciprocal would overflow.
            let inverse = if largest < 1e-36 { 0.0 } else { 127.0 / largest };
            let scale = if largest < 1e-36 { 0.0 } else { largest / 127.0 };
            let mut integers = [0i32; GROUP];
            for (integer, v) in integers.iter_mut().zip(x) {
                *integer = (v * inverse + math::ROUND).to_bits().wrapping_sub(math::ROUND.to_bits()) as i32;
            }
            for (q, integer) in q.iter_mut().zip(integers) {
                *q = integer as i8;
            }
            let (mut left, mut right) = (0i32, 0i32);
            for i in 0..GROUP / 2 {
                left = left.wrapping_add(i32::from(q[i]));
                right = right.wrapping_add(i32::from(q[i + GROUP / 2]));
            }
            to.scale[g] = scale;
            to.scaled_sum[g] = scale * (left + right) as f32;
            half_sum[g] = [left, right];
            to.minus_sum[g] = -(left + right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::tests::Bits;

    #[test]
    fn levels_quantise_to_the_same_bits() {
        let mut x = Bits(7).floats(50 * GROUP);
        x[..GROUP].fill(0.0);
        x[GROUP..2 * GROUP].fill(1e-37);
        x[2 * GROUP] = 1e30;
        let run = |level| {
            let (mut q, mut scale) = (vec![1i8; x.len()], vec![1.0f32; 50]);
            let (mut scaled_sum, mut half_sum, mut minus_sum) = (vec![1.0f32; 50], vec![1i32; 100], vec![1i32; 50]);
            let to = Quantized {
                q: &mut q,
                scale: &mut scale,
                scaled_sum: &mut scaled_sum,
                half_sum: &mut half_sum,
                minus_sum: &mut minus_sum,
            };
            quantize(level, &x, to);
            (q, scale, scaled_sum, half_sum, minus_sum)
        };
        let reference = run(Level::Portable);
        for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
            assert_eq!(run(level), reference, "{level}");
        }
        for (i, x) in x.iter().enumerate().skip(2 * GROUP) {
            let scale = reference.1[i / GROUP];
            assert!((x - scale * f32::from(reference.0[i])).abs() <= scale * 0.5001, "{i}");
        }
        let half = |h: usize| reference.0[16 * h..][..16].iter().map(|&q| i32::from(q)).sum::<i32>();
        assert!((0..100).all(|h| reference.3[h] == half(h)));
        assert!((0..50).all(|g| reference.4[g] == -half(2 * g) - half(2 * g + 1)));
    }
}
