//! Distances between vectors: exact ones in `f32`, and products of 8-bit codes for traversing an index.
//!
//! The exact products are summed in sixteen fixed lanes, so that every level gives the same bits: a distance does not
//! depend on whether an index or a scan computed it, nor on the machine. Products of codes are integers, exact at
//! every level.

use hypr_common::{Error, Result};

use super::{Level, by_level, detect};

/// Lanes of an exact sum; as many as the widest register holds.
const LANES: usize = 16;

/// Codes are unsigned bytes; this one stands for zero.
pub const CODE_ZERO: u8 = 128;

/// The distance kernels of one [`Level`].
#[derive(Clone, Copy, Debug)]
pub struct Distances {
    /// Private, so that it is always one that this processor has.
    level: Level,
}

impl Default for Distances {
    fn default() -> Self {
        Self { level: detect() }
    }
}

impl Distances {
    /// The kernels of `level`.
    ///
    /// # Errors
    /// `InvalidInput` when this processor does not support the level.
    pub fn with_level(level: Level) -> Result<Self> {
        if !level.is_supported() {
            return Err(Error::invalid(format!("this processor does not support level {level}: use {}", detect())));
        }
        Ok(Self { level })
    }

    /// The instruction set in use.
    pub fn level(self) -> Level {
        self.level
    }

    /// The sum of `a[i] * b[i]`, the same to the bit at every level.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dot(self, a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len(), "dimensions");
        dot(self.level, a, b)
    }

    /// The sum of `(a[i] - b[i])^2`, the same to the bit at every level.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn squared_l2(self, a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len(), "dimensions");
        squared_l2(self.level, a, b)
    }

    /// The sum of `a[i] * (b[i] - CODE_ZERO)`, exact for up to 65,536 codes.
    ///
    /// With `sum_b`, the sum of `b[i] - CODE_ZERO`, the product of the two vectors of signed codes is
    /// `offset_product(a, b) - CODE_ZERO * sum_b`. The asymmetry is that of the instruction (VNNI's `vpdpbusd`
    /// multiplies unsigned by signed bytes).
    ///
    /// # Panics
    /// When the lengths differ.
    #[inline]
    pub fn offset_product(self, a: &[u8], b: &[u8]) -> i32 {
        assert_eq!(a.len(), b.len(), "codes");
        match self.level {
            // SAFETY: `self.level` is one that this processor has, and the lengths are equal.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => unsafe { super::avx512::offset_product(a, b) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { super::avx2::offset_product(a, b) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { super::neon::offset_product(a, b) },
            _ => offset_product(a, b),
        }
    }

    /// Asks for the cache lines of `bytes`, which will be read soon.
    #[inline]
    pub fn prefetch(self, bytes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        for line in bytes.chunks(64) {
            // SAFETY: a prefetch of an address that is valid; it changes nothing but the cache.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) };
        }
        #[cfg(target_arch = "aarch64")]
        for line in bytes.chunks(64) {
            // SAFETY: as above.
            unsafe {
                std::arch::asm!(
                    "prfm pldl1keep, [{at}]",
                    at = in(reg) line.as_ptr(),
                    options(readonly, nostack, preserves_flags)
                );
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = bytes;
    }
}

by_level! {
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        sum_over_pairs(a, b, |x, y| x * y)
    }
}

by_level! {
    fn squared_l2(a: &[f32], b: &[f32]) -> f64 {
        sum_over_pairs(a, b, |x, y| (x - y) * (x - y))
    }
}

/// No fused multiply-add, which would round differently from level to level.
#[inline(always)]
fn sum_over_pairs(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&x, &y)| term(x, y)).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(rest)
}

/// The reference.
pub(super) fn offset_product(a: &[u8], b: &[u8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * (i32::from(b) - i32::from(CODE_ZERO))).sum()
}
