use arrow_buffer::Buffer;
use proptest::prelude::*;

use super::*;
use crate::DType;
use crate::quant::tests::{Bits, random_bytes};

mod attention;
mod distance;
mod elementwise;

/// The levels that this processor has, and `Amx`, whose tiles are emulated where there are none.
fn levels() -> Vec<Level> {
    let can_run = |level| match level {
        Level::Amx => Level::Avx512.is_supported(),
        level => level.is_supported(),
    };
    Level::ALL.into_iter().filter(|&level| can_run(level)).collect()
}

pub(super) fn kernels(level: Level, threads: usize) -> Kernels {
    assert!(levels().contains(&level), "{level}");
    Kernels { level, pool: Pool::new(threads) }
}

/// Random weights in pieces of `piece` rows.
pub(super) fn weight(dtype: DType, rows: usize, cols: usize, piece: usize, seed: u64) -> WeightArray {
    let buffer = Buffer::from(random_bytes(dtype, rows, cols, seed));
    let stride = dtype.row_bytes(cols).unwrap();
    let pieces = (0..rows)
        .step_by(piece)
        .map(|first| buffer.slice_with_length(first * stride, piece.min(rows - first) * stride))
        .collect();
    WeightArray::new(dtype, vec![rows, cols], pieces).unwrap()
}

pub(super) fn linear(kernels: &Kernels, x: &[f32], n: usize, weight: &WeightArray, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; n * weight.rows()];
    kernels.linear(x, n, weight, bias, &mut out, &mut Scratch::new());
    out
}

/// The exact product in f64, and how far off a kernel may be: half a step of the 8-bit activations for each group,
/// and 1e-5 of the largest possible sum for the order of summation in f32.
fn exact(x: &[f32], row: &[f32], dtype: DType) -> (f64, f64) {
    let sum = x.iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    let largest = |v: &[f32]| f64::from(v.iter().fold(0.0f32, |m, v| m.max(v.abs())));
    let mut bound = 1e-5 * x.len() as f64 * largest(x) * largest(row);
    if dtype.is_quantized() {
        for (x, w) in x.chunks(32).zip(row.chunks(32)) {
            bound += largest(x) / 254.0 * w.iter().map(|&w| f64::from(w.abs())).sum::<f64>();
        }
    }
    (sum, bound)
}

#[test]
fn levels_have_names() {
    for level in Level::ALL {
        assert_eq!(Level::parse(level.name()).unwrap(), level);
    }
    assert!(Level::parse("sse").unwrap_err().message().ends_with("portable, avx2, avx512, amx, neon"));
    assert!(detect().is_supported());
}

/// A run that is meant for one level, as under emulation, must not pass without it.
#[test]
fn the_level_to_be_tested_is_the_best_of_this_processor() {
    if let Ok(name) = std::env::var("HYPRSTREAM_TEST_LEVEL") {
        assert_eq!(detect().name(), name);
    }
}

#[test]
fn a_level_that_the_processor_lacks_is_refused() {
    for level in Level::ALL {
        assert_eq!(Kernels::with_level(level, Pool::new(1)).is_ok(), level.is_supported(), "{level}");
        assert_eq!(Distances::with_level(level).is_ok(), level.is_supported(), "{level}");
    }
}

#[test]
fn products_of_one_call_share_the_activations() {
    let (n, cols) = (5, 256);
    let x = Bits(1).floats(n * cols);
    let weights: Vec<_> =
        [(DType::Q4_1, 40), (DType::F32, 7), (DType::Q6K, 33)].map(|(t, rows)| weight(t, rows, cols, 16, 9)).into();
    let bias = Bits(3).floats(40);
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; n * w.rows()]).collect();
        let mut products: Vec<_> = weights
            .iter()
            .zip(&mut outs)
            .map(|(weight, out)| Linear { weight, bias: (weight.rows() == 40).then_some(&bias[..]), out })
            .collect();
        kernels.linear_many(&x, n, &mut products, &mut Scratch::new());
        for (weight, out) in weights.iter().zip(&outs) {
            let bias = (weight.rows() == 40).then_some(&bias[..]);
            assert_eq!(out, &linear(&kernels, &x, n, weight, bias), "{level} {}", weight.dtype());
        }
    }
}

#[test]
fn odd_activations_stay_what_they_are() {
    let weight = weight(DType::Q4_1, 20, 64, 20, 4);
    for level in levels() {
        let kernels = kernels(level, 1);
        assert_eq!(linear(&kernels, &[0.0; 64], 1, &weight, None), [0.0; 20]);
        let mut x = vec![1.0; 64];
        x[40] = f32::NAN;
        assert!(linear(&kernels, &x, 1, &weight, None).iter().all(|v| v.is_nan()), "{level}");
        let tiny = vec![1e-38; 64];
        assert!(linear(&kernels, &tiny, 1, &weight, None).iter().all(|v| v.abs() < 1e-30), "{level}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Portable against f64; the others against portable.
    #[test]
    fn levels_agree_with_exact_arithmetic(
        dtype in prop::sample::select(DType::ALL.to_vec()),
        n in 1usize..20, rows in 1usize..70, blocks in 1usize..5, extra in 0usize..40,
        piece in 1usize..40, threads in 1usize..4, with_bias: bool, seed: u64,
    ) {
        let cols = if dtype.is_quantized() { blocks * dtype.block_len() } else { blocks * 40 + extra };
        let weight = weight(dtype, rows, cols, piece, seed);
        let values = weight.to_f32();
        let x = Bits(seed ^ 1).floats(n * cols);
        let bias = with_bias.then(|| Bits(seed ^ 2).floats(rows));
        let reference = linear(&kernels(Level::Portable, threads), &x, n, &weight, bias.as_deref());
        for level in levels() {
            let out = linear(&kernels(level, threads), &x, n, &weight, bias.as_deref());
            for i in 0..n {
                for r in 0..rows {
                    let row = &values[r * cols..][..cols];
                    let (sum, bound) = exact(&x[i * cols..][..cols], row, dtype);
                    let got = f64::from(out[i * rows + r]);
                    let want = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[r]));
                    prop_assert!((got - want).abs() <= bound + 1e-6, "{level} {dtype} [{i}, {r}]: {got}, not {want} +- {bound}");
                    // Same integers, another order in f32: far closer to one another than to the exact sum.
                    let (_, order) = exact(&x[i * cols..][..cols], row, DType::F32);
                    let same = f64::from(reference[i * rows + r]);
                    prop_assert!((got - same).abs() <= order + 1e-6, "{level} {dtype} [{i}, {r}]: {got}, portable {same}");
                }
            }
        }
    }

    /// A row's result is the same to the bit in any batch and with any number of threads.
    #[test]
    fn batches_do_not_change_bits(
        dtype in prop::sample::select(DType::ALL.to_vec()),
        n in 2usize..30, rows in 1usize..40, blocks in 1usize..10, seed: u64,
    ) {
        let cols = if dtype.is_quantized() { blocks * dtype.block_len() } else { blocks * 37 };
        let weight = weight(dtype, rows, cols, 16, seed);
        let x = Bits(seed ^ 1).floats(n * cols);
        for level in levels() {
            let together = linear(&kernels(level, 3), &x, n, &weight, None);
            let alone = kernels(level, 1);
            for i in 0..n {
                let one = linear(&alone, &x[i * cols..][..cols], 1, &weight, None);
                prop_assert_eq!(&together[i * rows..][..rows], &one[..], "{} {} row {}", level, dtype, i);
            }
        }
    }
}

#[test]
fn long_batches_go_in_several_passes() {
    let (n, rows, cols) = (300, 20, 64);
    let x = Bits(1).floats(n * cols);
    for dtype in [DType::Q4_1, DType::F32] {
        let weight = weight(dtype, rows, cols, 7, 2);
        for level in levels() {
            let out = linear(&kernels(level, 2), &x, n, &weight, None);
            for i in [0, 255, 256, 299] {
                let one = linear(&kernels(level, 1), &x[i * cols..][..cols], 1, &weight, None);
                assert_eq!(out[i * rows..][..rows], one, "{level} {dtype} row {i}");
            }
        }
    }
}
