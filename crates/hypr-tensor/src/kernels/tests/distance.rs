//! The distance kernels against exact arithmetic and against one another.

use proptest::prelude::*;

use super::levels;
use crate::quant::tests::Bits;
use crate::{CODE_ZERO, Distances, Level};

fn kernels() -> impl Iterator<Item = Distances> {
    levels().into_iter().filter_map(|level| Distances::with_level(level).ok())
}

fn codes(seed: u64, n: usize) -> Vec<u8> {
    Bits(seed).floats(n).iter().map(|v| v.to_bits() as u8).collect()
}

#[test]
fn the_largest_codes_do_not_overflow() {
    for n in [65_536, 65_535] {
        let (high, low) = (vec![255u8; n], vec![0u8; n]);
        for kernels in kernels() {
            assert_eq!(kernels.offset_product(&high, &low), -255 * 128 * n as i32, "{}", kernels.level());
            assert_eq!(kernels.offset_product(&high, &high), 255 * 127 * n as i32, "{}", kernels.level());
        }
    }
}

#[test]
fn a_distance_of_nothing_is_zero() {
    for kernels in kernels() {
        assert_eq!((kernels.dot(&[], &[]), kernels.squared_l2(&[], &[])), (0.0, 0.0));
        assert_eq!(kernels.offset_product(&[], &[]), 0);
        kernels.prefetch(&[]);
        kernels.prefetch(&[0; 200]);
    }
}

proptest! {
    /// To the bit, whatever the level; and close to f64.
    #[test]
    fn exact_products_have_the_same_bits_at_every_level(n in 0usize..900, seed: u64) {
        let (a, b) = (Bits(seed).floats(n), Bits(seed ^ 7).floats(n));
        let reference = Distances::with_level(Level::Portable).unwrap();
        let (dot, l2) = (reference.dot(&a, &b), reference.squared_l2(&a, &b));
        let pairs = || a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let size: f64 = pairs().map(|(a, b)| a.abs().max(b.abs()).powi(2) * 4.0).sum();
        prop_assert!((dot - pairs().map(|(a, b)| a * b).sum::<f64>()).abs() <= 1e-6 * size);
        prop_assert!((l2 - pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).abs() <= 1e-6 * size);
        for kernels in kernels() {
            prop_assert_eq!(kernels.dot(&a, &b).to_bits(), dot.to_bits(), "{} of {}", kernels.level(), n);
            prop_assert_eq!(kernels.squared_l2(&a, &b).to_bits(), l2.to_bits(), "{} of {}", kernels.level(), n);
        }
    }

    #[test]
    fn products_of_codes_are_exact(n in 0usize..900, seed: u64) {
        let (a, b) = (codes(seed, n), codes(seed ^ 7, n));
        let signed = |code: u8| i32::from(code) - i32::from(CODE_ZERO);
        let want: i32 = a.iter().zip(&b).map(|(&a, &b)| signed(a) * signed(b)).sum();
        let sum: i32 = b.iter().map(|&b| signed(b)).sum();
        for kernels in kernels() {
            let got = kernels.offset_product(&a, &b) - i32::from(CODE_ZERO) * sum;
            prop_assert_eq!(got, want, "{} of {}", kernels.level(), n);
        }
    }
}
