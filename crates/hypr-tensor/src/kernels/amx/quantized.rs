//! Products of eight or sixteen activations with sixteen rows by tiles.
//!
//! The rows are unpacked as for AVX-512, whose vectors of four columns of sixteen rows are the lines of a tile of
//! weights. A product spans a group of 32 columns, or half of one in `Q6_K`, which has a scale per half: between groups
//! the sums are scaled in `f32` and cannot stay in a tile.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::avx512::quantized::{self, Factors, Packed};
use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::tiles::{BATCH, Config, Configured, Operands, Products, Tiles};
use crate::DType;
use crate::quant::{self, GROUP};

/// The fewest activations that tiles are used for, and the size of the smaller block.
pub const LEAST: usize = 8;
/// The size of the larger block: as many activations as a tile has rows.
const MOST: usize = 16;

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Avx512`, and this thread can use `tiles`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn tile<T: Tiles>(tiles: &mut T, tile: Tile<'_>, memory: &mut [Line]) {
    // SAFETY: the driver has checked that each row is `cols` values long and sized `memory` for a tile.
    unsafe {
        let packed = quantized::pack(&tile, memory);
        match quant::zero_point(tile.dtype) {
            0 => products::<T, 0>(tiles, tile, packed),
            8 => products::<T, 8>(tiles, tile, packed),
            16 => products::<T, 16>(tiles, tile, packed),
            128 => products::<T, 128>(tiles, tile, packed),
            _ => products::<T, { quant::zero_point(DType::Q6K) }>(tiles, tile, packed),
        }
    }
}

/// Columns that one product spans, by the zero point of the format.
const fn width(zero: i32) -> usize {
    if quantized::halves(zero) { GROUP / 2 } else { GROUP }
}

/// The next block of activations when those from `i` to `n` are left: where it starts, and its size. It may start
/// before `i` and compute some outputs again, to the same bits, where that is less work than several smaller blocks.
/// None when too few are left.
fn next_block(n: usize, i: usize) -> Option<(usize, usize)> {
    let size = match n - i {
        9.. if n >= MOST => MOST,
        5.. if n >= LEAST => LEAST,
        _ => return None,
    };
    Some((i.min(n - size), size))
}

/// # Safety
/// As [`tile`]; `packed` is the tile, unpacked, of a format with that zero point.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn products<T: Tiles, const ZERO: i32>(tiles: &mut T, mut tile: Tile<'_>, packed: Packed) {
    let large = const { &Config::new(MOST, width(ZERO)) };
    let small = const { &Config::new(LEAST, width(ZERO)) };
    let mut i = 0;
    // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
    unsafe {
        let mut shape = if tile.n < MOST { LEAST } else { MOST };
        let mut tiles = Configured::new(tiles, if shape == MOST { large } else { small });
        while let Some((start, size)) = next_block(tile.n, i) {
            if size == MOST {
                block::<T, { MOST / 8 }, ZERO>(&mut tiles, &mut tile, packed, start);
            } else {
                if shape == MOST {
                    tiles.configure(small);
                    shape = LEAST;
                }
                block::<T, { LEAST / 8 }, ZERO>(&mut tiles, &mut tile, packed, start);
            }
            i = start + size;
        }
        drop(tiles);
        while i < tile.n {
            i += quantized::largest_block::<ZERO>(&mut tile, packed, i);
        }
    }
}

/// Activations `i .. i + 8 * EIGHTS` of the tile. While the tiles multiply one batch of groups, the vectors scale and
/// add the one before.
///
/// # Safety
/// As [`products`], with `tiles` in the shape for as many activations, and `i + 8 * EIGHTS <= n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block<T: Tiles, const EIGHTS: usize, const ZERO: i32>(
    tiles: &mut Configured<'_, T>,
    tile: &mut Tile<'_>,
    packed: Packed,
    i: usize,
) {
    let input = tile.input.quantized;
    let (first, cols, groups) = (tile.first + i, input.cols, packed.groups);
    assert!(cols == groups * GROUP && input.q.len() >= (first + 8 * EIGHTS) * cols);
    let (width, per_group) = (const { width(ZERO) }, const { GROUP / width(ZERO) });
    let batch = BATCH / per_group;
    let mut buffers = [const { MaybeUninit::<Products>::uninit() }; 2];
    let mut sums = [[_mm512_setzero_ps(); 8]; EIGHTS];
    let (mut done, mut ready) = (0, 0);
    while done < groups {
        let next = (ready + batch).min(groups);
        // SAFETY: groups `ready .. next` of the tile and of each activation; then groups `done .. ready`, whose
        // products lie in the other buffer.
        unsafe {
            if ready < next {
                let operands = Operands {
                    activations: input.q.as_ptr().add(first * cols + ready * GROUP),
                    stride: cols,
                    weights: packed.values.add(8 * ready).cast(),
                    width,
                };
                tiles.multiply(operands, (next - ready) * per_group, buffers[ready / batch % 2].as_mut_ptr());
            }
            let products = buffers[done / batch % 2].as_mut_ptr();
            for g in done..ready {
                let index = (g - done) * per_group;
                let place = |index| Products::place(products, index).cast_const();
                let products = [place(index), place(index + per_group - 1)];
                let factors = packed.factors::<ZERO>(g);
                // Not a loop, which would be too long for the compiler to unroll, and so keep the sums in memory.
                add_eight::<ZERO>(&mut sums[0], products, factors, input, first, g);
                if let Some(sums) = sums.get_mut(1) {
                    add_eight::<ZERO>(sums, products.map(|p| p.add(8)), factors, input, first + 8, g);
                }
            }
        }
        (done, ready) = (ready, next);
    }
    for (eight, sums) in sums.into_iter().enumerate() {
        quantized::store(tile, i + 8 * eight, sums);
    }
}

/// Adds the products of group `g` with activations `first .. first + 8`, in lines of sixteen rows, to their sums.
///
/// # Safety
/// The products of eight activations are readable, of both halves where they are apart, and the activations hold the group.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn add_eight<const ZERO: i32>(
    sums: &mut [__m512; 8],
    products: [*const [i32; TILE_ROWS]; 2],
    factors: Factors,
    input: &Activations,
    first: usize,
    g: usize,
) {
    let groups = input.cols / GROUP;
    for (k, sum) in sums.iter_mut().enumerate() {
        let at = (first + k) * groups + g;
        // SAFETY: by the caller's promise.
        unsafe {
            let mut products = products.map(|p| _mm512_load_si512(p.add(k).cast()));
            if ZERO > 0 {
                let [left, right] = quantized::offsets::<ZERO>(input, at);
                products = [_mm512_add_epi32(products[0], left), _mm512_add_epi32(products[1], right)];
            }
            *sum = quantized::add_products::<ZERO>(*sum, products, factors, input, at);
        }
    }
}

const _: () = assert!(TILE_ROWS * size_of::<i32>() == size_of::<__m512i>());
