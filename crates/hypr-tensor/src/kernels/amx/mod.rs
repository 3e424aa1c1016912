//! AVX-512 with the tiles of AMX (AMX-TILE and AMX-INT8) for products of many activations with quantised weights. All
//! else, and all that is rounded, is the code of `avx512`.
//!
//! Invariant: the same bits as `Level::Avx512`. Tiles only multiply integers, which is exact.
//!
//! What no other processor can run is the few instructions behind [`tiles::Tiles`], one a function. Tests run
//! everything else with an emulation of them and check how they are encoded, and [`is_supported`] compares products
//! with their known answers before the first use.
//!
//! Deliberately absent: tiles for plain weights (AMX-BF16 would round the activations), and tiles for fewer than eight
//! activations, where loading weights into a tile should cost about as much as multiplying them by vectors (an estimate
//! by counting instructions, as are the sizes of blocks and batches: there was no machine to measure on).

mod detect;
#[cfg(test)]
mod emulated;
mod quantized;
#[cfg(test)]
mod tests;
mod tiles;

use super::avx512;
use super::linear::Tile;
use super::scratch::Line;

pub use detect::is_supported;

/// All outputs of a tile.
pub fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    if !tile.dtype.is_quantized() || tile.n < quantized::LEAST {
        return avx512::tile(tile, memory);
    }
    #[cfg(test)]
    if !is_supported() {
        // SAFETY: tests use this level where the processor has the features of `Level::Avx512`; the rest is emulated.
        return unsafe { quantized::tile(&mut emulated::Emulated::default(), tile, memory) };
    }
    // SAFETY: this level is only used where `Level::is_supported` found all the features.
    unsafe { quantized::tile(&mut tiles::Instructions, tile, memory) }
}
