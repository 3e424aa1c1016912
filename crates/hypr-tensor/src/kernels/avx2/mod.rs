//! AVX2 with FMA and F16C. Quantised tiles are taken as two halves of eight rows, one lane a row, in the layout of
//! the AVX-512 level at half the width.

mod distance;
mod plain;
mod quantized;
mod unpack;

pub use distance::offset_product;

use super::linear::Tile;
use super::scratch::Line;

/// All outputs of a tile.
pub fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    if tile.dtype.is_quantized() {
        // SAFETY: this level is only used where `Level::is_supported` found all the features.
        unsafe { quantized::tile(tile, memory) }
    } else {
        // SAFETY: as above.
        unsafe { plain::tile(tile) }
    }
}
