use super::linear::Tile;
use super::portable;
use super::scratch::Line;

pub fn tile(tile: Tile<'_>, memory: &mut [Line]) {
    portable::tile(tile, memory);
}
