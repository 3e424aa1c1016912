//! The operators of a transformer over slices of `f32`, with weights in any [`DType`](crate::DType).
//!
//! Each [`Level`] is an instruction set picked at run time; `Portable` is plain Rust and the reference that the
//! others are tested against. Matrices are row-major, activations `[n, cols]`, weights `[rows, cols]`.
//!
//! Products with quantised weights quantise the activations once per call, to 8 bits with a scale per 32 values
//! (as GGML's `Q8_0` and `Q8_1` do), and multiply integers; products with plain weights are in `f32`.
//!
//! Invariant: at one level, the result of a row is the same to the bit whatever rows it was batched with and
//! however many threads took part: each output has one fixed order of summation, along its row. `Amx` gives the bits
//! of `Avx512`.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod distance;
mod linear;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod ops;
mod portable;
mod rope;
mod scratch;

pub use attention::{Attention, KvRows, Mask};
pub use distance::{CODE_ZERO, Distances};
pub use linear::Linear;
pub use rope::{RopeStyle, RopeTable};
pub use scratch::Scratch;

use std::fmt;

use hypr_common::{Error, Result};

use crate::{Pool, WeightArray};

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust for any processor.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI. BF16 weights are widened by a shift and multiplied in `f32`, so
    /// AVX512_BF16, which would round the activations too, is not needed.
    Avx512,
    /// `Avx512`, and products of eight and more activations with quantised weights by the tiles of AMX (AMX-TILE and
    /// AMX-INT8), to the same bits. Only on Linux, which must permit it to the process.
    Amx,
    /// AArch64 with NEON and the byte dot products of `dotprod` (optional in Armv8.2, always there from Armv8.4 on).
    /// Halves are widened by an instruction of NEON itself, so `fp16` is not needed. Tested under emulation; its
    /// speed has not been measured.
    Neon,
}

impl Level {
    /// Every level; those that one processor can have are slowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon];

    /// True when this processor can run it. Where it has AMX, the first such question about [`Level::Amx`] asks the
    /// operating system to permit it to this process.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.is_supported() && amx::is_supported(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Amx => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => {
                std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }

    /// The name that configuration uses: `portable`, `avx2`, `avx512`, `amx`, `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// The level of this name.
    ///
    /// # Errors
    /// `InvalidInput`, listing the names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid(format!("'{name}' is no processor level: use one of {names}"))
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The best level that this processor supports.
pub fn detect() -> Level {
    Level::ALL.into_iter().rev().find(|level| level.is_supported()).unwrap_or(Level::Portable)
}

/// The kernels of one level, over the threads of one pool.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    pool: Pool,
}

impl Kernels {
    /// The best kernels of this processor over `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { level: detect(), pool: Pool::new(threads) }
    }

    /// The kernels of `level` over `pool`.
    ///
    /// # Errors
    /// `InvalidInput` when this processor does not support the level.
    pub fn with_level(level: Level, pool: Pool) -> Result<Self> {
        if !level.is_supported() {
            return Err(Error::invalid(format!("this processor does not support level {level}: use {}", detect())));
        }
        Ok(Self { level, pool })
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The threads in use.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `out[i] = x[i] * weight^T + bias`: `x` is `[n, cols]`, `bias` `[rows]`, `out` `[n, rows]`.
    ///
    /// # Panics
    /// When a length does not match.
    pub fn linear(
        &self,
        x: &[f32],
        n: usize,
        weight: &WeightArray,
        bias: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.linear_many(x, n, &mut [Linear { weight, bias, out }], scratch);
    }

    /// Several products of the same `x` (query, key and value; gate and up): the activations are quantised once
    /// and the threads are called once.
    ///
    /// # Panics
    /// When a length does not match.
    pub fn linear_many(&self, x: &[f32], n: usize, products: &mut [Linear<'_>], scratch: &mut Scratch) {
        linear::run(self, x, n, products, scratch);
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `x` and `out`, `[n, weight.len()]`.
    /// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    ///
    /// # Panics
    /// When a length does not match.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        ops::rms_norm(self, x, weight, eps, out);
    }

    /// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for each row of `x` and `out`,
    /// `[n, weight.len()]`. Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    ///
    /// # Panics
    /// When a length does not match.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        ops::layer_norm(self, x, weight, bias, eps, out);
    }

    /// Softmax of each row of `x`, `[n, cols]`, in place. A row of negative infinities becomes zeros.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn softmax(&self, x: &mut [f32], cols: usize) {
        ops::softmax(self, x, cols);
    }

    /// `gate = silu(gate) * up`, element by element, where `silu(v) = v / (1 + exp(-v))`.
    /// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        ops::silu_mul(self, gate, up);
    }

    /// `x = x * (1 + erf(x / sqrt(2))) / 2`, in place, to an absolute error of 1e-6 times `max(1, |x|)`.
    /// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    pub fn gelu(&self, x: &mut [f32]) {
        ops::gelu(self, x);
    }

    /// The approximation of [`Kernels::gelu`] by `tanh` that some models were trained with, in place.
    pub fn gelu_tanh(&self, x: &mut [f32]) {
        ops::gelu_tanh(self, x);
    }

    /// The approximation of [`Kernels::gelu`] by the logistic function, `x / (1 + exp(-1.702 x))`, in place.
    pub fn quick_gelu(&self, x: &mut [f32]) {
        ops::quick_gelu(self, x);
    }

    /// `x += y`, element by element.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        ops::add(self, x, y);
    }

    /// Rotates each head of `x`, `[n, heads, head_dim]`, by the position of its row, `positions[n]`. Values of a
    /// head past the table's dimensions stay as they are.
    /// Source: Su et al., "RoFormer", 2021.
    ///
    /// # Panics
    /// When a length does not match or the table does not reach a position.
    pub fn rope(&self, x: &mut [f32], heads: usize, positions: &[u32], table: &RopeTable, style: RopeStyle) {
        rope::run(self, x, heads, positions, table, style);
    }

    /// Scaled dot-product attention of a block of queries over cached keys and values; see [`Attention`].
    ///
    /// # Panics
    /// When a length does not match.
    pub fn attention(&self, attention: &Attention<'_>, out: &mut [f32]) {
        attention::run(self, &mut [(*attention, out)]);
    }

    /// Attention of several sequences in one pass over the threads.
    ///
    /// # Panics
    /// When a length does not match.
    pub fn attention_many(&self, sequences: &mut [(Attention<'_>, &mut [f32])]) {
        attention::run(self, sequences);
    }
}

/// Defines a safe function that runs `$body`, a plain Rust expression of always-inlined functions, compiled for
/// the given level.
macro_rules! by_level {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name(level: $crate::kernels::Level, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn portable($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $type),*) $(-> $ret)? { portable($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $type),*) $(-> $ret)? { portable($($arg),*) }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            #[allow(clippy::too_many_arguments)]
            fn neon($($arg: $type),*) $(-> $ret)? { portable($($arg),*) }
            match level {
                // SAFETY: `Kernels` only holds levels whose features this processor has.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Level::Avx512 | $crate::kernels::Level::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                $crate::kernels::Level::Neon => unsafe { neon($($arg),*) },
                // `Portable`, and what `Kernels` never holds: the levels of other architectures.
                _ => portable($($arg),*),
            }
        }
    };
}
pub(crate) use by_level;

/// A pointer into a slice that several threads write, each to elements of its own.
pub(crate) struct SharedMut<T>(*mut T, usize);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: the pointer is only dereferenced by `slice`, whose callers keep to elements no other thread uses.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Elements `first .. first + len`.
    ///
    /// # Safety
    /// The slice this was made of is still borrowed, and no other reference to these elements is in use.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn slice<'a>(self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: in bounds as just asserted, alive and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), len) }
    }
}

#[cfg(test)]
mod tests;
