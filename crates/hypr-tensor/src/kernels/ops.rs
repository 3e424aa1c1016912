//! Row-wise and element-wise operators.

use super::{Kernels, SharedMut, by_level, math};

/// Elements below which calling the other threads costs more than it saves.
const PARALLEL_FROM: usize = 16 * 1024;

/// Calls `job` with the indices of rows that cover `0..n`, over the pool when there is enough to do.
fn over_rows(kernels: &Kernels, n: usize, cols: usize, job: impl Fn(std::ops::Range<usize>) + Sync) {
    if n * cols < PARALLEL_FROM || n < 2 {
        return job(0..n);
    }
    let grain = n.div_ceil(kernels.pool().threads() * 4).max(PARALLEL_FROM / 4 / cols.max(1)).max(1);
    kernels.pool().for_each_range(n, grain, &|_, rows| job(rows));
}

/// As [`over_rows`] for element-wise work: the "rows" are runs of 256 elements.
fn over_elements(kernels: &Kernels, len: usize, job: impl Fn(std::ops::Range<usize>) + Sync) {
    const RUN: usize = 256;
    over_rows(kernels, len.div_ceil(RUN), RUN, |runs| job(runs.start * RUN..(runs.end * RUN).min(len)));
}

fn rows_of(len: usize, cols: usize) -> usize {
    assert!(cols > 0 && len.is_multiple_of(cols), "{len} values are not rows of {cols}");
    len / cols
}

pub fn rms_norm(kernels: &Kernels, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (cols, level) = (weight.len(), kernels.level());
    let n = rows_of(x.len(), cols);
    assert_eq!(out.len(), x.len(), "output length of rms_norm");
    let out = SharedMut::new(out);
    over_rows(kernels, n, cols, |rows| {
        // SAFETY: the ranges of rows do not overlap.
        let out = unsafe { out.slice(rows.start * cols, rows.len() * cols) };
        rms_norm_rows(level, &x[rows.start * cols..rows.end * cols], weight, eps, out);
    });
}

by_level! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let cols = weight.len();
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            let scale = 1.0 / (math::sum(x, |v| v * v) / cols as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
    }
}

pub fn layer_norm(kernels: &Kernels, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let (cols, level) = (weight.len(), kernels.level());
    let n = rows_of(x.len(), cols);
    assert_eq!(bias.len(), cols, "bias length of layer_norm");
    assert_eq!(out.len(), x.len(), "output length of layer_norm");
    let out = SharedMut::new(out);
    over_rows(kernels, n, cols, |rows| {
        // SAFETY: the ranges of rows do not overlap.
        let out = unsafe { out.slice(rows.start * cols, rows.len() * cols) };
        layer_norm_rows(level, &x[rows.start * cols..rows.end * cols], weight, bias, eps, out);
    });
}

by_level! {
    fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let cols = weight.len();
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            let mean = math::sum(x, |v| v) / cols as f32;
            let variance = math::sum(x, |v| (v - mean) * (v - mean)) / cols as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

pub fn softmax(kernels: &Kernels, x: &mut [f32], cols: usize) {
    let level = kernels.level();
    let n = rows_of(x.len(), cols);
    let x = SharedMut::new(x);
    over_rows(kernels, n, cols, |rows| {
        // SAFETY: the ranges of rows do not overlap.
        softmax_rows(level, unsafe { x.slice(rows.start * cols, rows.len() * cols) }, cols);
    });
}

by_level! {
    fn softmax_rows(x: &mut [f32], cols: usize) {
        for x in x.chunks_exact_mut(cols) {
            let max = math::max(x);
            let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
            for v in x.iter_mut() {
                *v = math::exp(*v - max);
            }
            let sum = math::sum(x, |v| v);
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            for v in x.iter_mut() {
                *v *= scale;
            }
        }
    }
}

/// An in-place operator of one argument.
fn map(kernels: &Kernels, x: &mut [f32], body: fn(super::Level, &mut [f32])) {
    let level = kernels.level();
    let (len, x) = (x.len(), SharedMut::new(x));
    over_elements(kernels, len, |range| {
        // SAFETY: the ranges do not overlap.
        body(level, unsafe { x.slice(range.start, range.len()) });
    });
}

/// An in-place operator of two arguments.
fn zip(kernels: &Kernels, x: &mut [f32], y: &[f32], body: fn(super::Level, &mut [f32], &[f32])) {
    assert_eq!(x.len(), y.len(), "lengths of the operands");
    let level = kernels.level();
    let (len, x) = (x.len(), SharedMut::new(x));
    over_elements(kernels, len, |range| {
        // SAFETY: the ranges do not overlap.
        body(level, unsafe { x.slice(range.start, range.len()) }, &y[range]);
    });
}

pub fn silu_mul(kernels: &Kernels, gate: &mut [f32], up: &[f32]) {
    zip(kernels, gate, up, silu_mul_run);
}

by_level! {
    fn silu_mul_run(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = math::silu(*gate) * up;
        }
    }
}

pub fn add(kernels: &Kernels, x: &mut [f32], y: &[f32]) {
    zip(kernels, x, y, add_run);
}

by_level! {
    fn add_run(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

pub fn gelu(kernels: &Kernels, x: &mut [f32]) {
    map(kernels, x, gelu_run);
}

by_level! {
    fn gelu_run(x: &mut [f32]) {
        for x in x {
            *x = math::gelu(*x);
        }
    }
}

pub fn quick_gelu(kernels: &Kernels, x: &mut [f32]) {
    map(kernels, x, quick_gelu_run);
}

by_level! {
    fn quick_gelu_run(x: &mut [f32]) {
        for x in x {
            *x = math::quick_gelu(*x);
        }
    }
}

pub fn gelu_tanh(kernels: &Kernels, x: &mut [f32]) {
    map(kernels, x, gelu_tanh_run);
}

by_level! {
    fn gelu_tanh_run(x: &mut [f32]) {
        for x in x {
            *x = math::gelu_tanh(*x);
        }
    }
}
