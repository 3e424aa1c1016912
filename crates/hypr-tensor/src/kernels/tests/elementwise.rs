//! Norms, activations and rotations against f64, at every level.

use super::*;

fn close(got: &[f32], want: impl Iterator<Item = f64>, tolerance: f64, what: &str) {
    let mut count = 0;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= tolerance * (1.0 + want.abs()), "{what}[{i}]: {got}, not {want}");
        count += 1;
    }
    assert_eq!(count, got.len(), "{what}");
}

#[test]
fn norms_match_their_definition() {
    for (n, cols) in [(1, 576), (3, 37), (70, 384)] {
        let (x, weight, bias) = (Bits(1).floats(n * cols), Bits(2).floats(cols), Bits(3).floats(cols));
        let row = |i: usize| x[i / cols * cols..][..cols].iter().map(|&v| f64::from(v));
        let weighted = |i: usize| f64::from(weight[i % cols]);
        for level in levels() {
            let kernels = kernels(level, 2);
            let mut out = vec![0.0; n * cols];
            kernels.rms_norm(&x, &weight, 1e-5, &mut out);
            let rms = |i: usize| (row(i).map(|v| v * v).sum::<f64>() / cols as f64 + 1e-5).sqrt();
            close(&out, (0..n * cols).map(|i| f64::from(x[i]) / rms(i) * weighted(i)), 1e-5, "rms_norm");
            kernels.layer_norm(&x, &weight, &bias, 1e-12, &mut out);
            let want = (0..n * cols).map(|i| {
                let mean = row(i).sum::<f64>() / cols as f64;
                let deviation = (row(i).map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64 + 1e-12).sqrt();
                (f64::from(x[i]) - mean) / deviation * weighted(i) + f64::from(bias[i % cols])
            });
            close(&out, want, 1e-5, "layer_norm");
        }
    }
}

#[test]
fn activations_match_their_definition() {
    let n = 20_011;
    let x: Vec<f32> = Bits(5).floats(n).iter().map(|v| v * 12.0).collect();
    let y = Bits(6).floats(n);
    let wide = |v: &f32| f64::from(*v);
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut out = x.clone();
        kernels.silu_mul(&mut out, &y);
        close(&out, x.iter().zip(&y).map(|(x, y)| wide(x) / (1.0 + (-wide(x)).exp()) * wide(y)), 1e-6, "silu_mul");
        out.copy_from_slice(&x);
        kernels.gelu_tanh(&mut out);
        let tanh = |v: f64| 0.5 * v * (1.0 + (0.797_884_560_802_865_4 * (v + 0.044_715 * v * v * v)).tanh());
        close(&out, x.iter().map(|x| tanh(wide(x))), 2e-6, "gelu_tanh");
        out.copy_from_slice(&x);
        kernels.gelu(&mut out);
        // The two forms of GELU differ by less than 5e-4; the exact one has known values in `math`.
        close(&out, x.iter().map(|x| tanh(wide(x))), 5e-4, "gelu");
        out.copy_from_slice(&x);
        kernels.quick_gelu(&mut out);
        close(&out, x.iter().map(|x| wide(x) / (1.0 + (-1.702 * wide(x)).exp())), 1e-6, "quick_gelu");
        out.copy_from_slice(&x);
        kernels.add(&mut out, &y);
        close(&out, x.iter().zip(&y).map(|(x, y)| wide(x) + wide(y)), 1e-6, "add");
    }
}

#[test]
fn softmax_sums_to_one_and_takes_masks() {
    let cols = 61;
    let mut x: Vec<f32> = Bits(8).floats(300 * cols).iter().map(|v| v * 30.0).collect();
    x[cols + 3..2 * cols].fill(f32::NEG_INFINITY);
    x[..cols].fill(f32::NEG_INFINITY);
    for level in levels() {
        let mut out = x.clone();
        kernels(level, 2).softmax(&mut out, cols);
        assert_eq!(out[..cols], [0.0; 61]);
        let want = (cols..300 * cols).map(|i| {
            let row = &x[i / cols * cols..][..cols];
            let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            let e = |v: f32| f64::from(v - max).exp();
            e(x[i]) / row.iter().map(|&v| e(v)).sum::<f64>()
        });
        close(&out[cols..], want, 1e-6, "softmax");
    }
}

#[test]
fn rope_rotates_pairs_of_either_layout() {
    let (heads, dim, dims) = (3, 12, 8);
    let positions: Vec<u32> = (0..40).map(|i| i * 97 % 2000).collect();
    let table = RopeTable::from_base(10_000.0, dims, 2000);
    let x = Bits(4).floats(positions.len() * heads * dim);
    for style in [RopeStyle::Interleaved, RopeStyle::HalfSplit] {
        for level in levels() {
            let mut out = x.clone();
            kernels(level, 2).rope(&mut out, heads, &positions, &table, style);
            let want = (0..x.len()).map(|i| {
                let (head, d) = (i / dim * dim, i % dim);
                if d >= dims {
                    return f64::from(x[i]);
                }
                let (pair, second, other) = match style {
                    RopeStyle::Interleaved => (d / 2, d % 2 == 1, d ^ 1),
                    RopeStyle::HalfSplit => (d % 4, d >= 4, (d + 4) % 8),
                };
                let position = f64::from(positions[i / (heads * dim)]);
                let (sin, cos) = (position * 10_000f64.powf(-2.0 * pair as f64 / dims as f64)).sin_cos();
                let (own, other) = (f64::from(x[i]), f64::from(x[head + other]));
                own * cos + if second { other * sin } else { -other * sin }
            });
            // The frequencies are stored in f32: at position 2000 an angle is off by up to 1e-4.
            close(&out, want, 2e-4, "rope");
        }
    }
}

#[test]
fn a_rope_table_grows() {
    let mut table = RopeTable::from_base(1e5, 64, 3);
    assert_eq!((table.positions(), table.dims()), (3, 64));
    table.extend(10);
    let whole = RopeTable::from_base(1e5, 64, 10);
    let (mut a, mut b) = (Bits(1).floats(64), Bits(1).floats(64));
    let kernels = kernels(Level::Portable, 1);
    kernels.rope(&mut a, 1, &[9], &table, RopeStyle::HalfSplit);
    kernels.rope(&mut b, 1, &[9], &whole, RopeStyle::HalfSplit);
    assert_eq!(a, b);
}
