//! The driver of all products: checks, quantises the activations, and deals tiles of rows to the threads.

use super::scratch::{Activations, Line};
use super::{Kernels, Level, Scratch, SharedMut, portable};
use crate::{DType, WeightArray, quant};

/// Weight rows in one tile: the `f32` lanes of the widest vector.
pub(super) const TILE_ROWS: usize = 16;
/// Activation rows that are multiplied before the next pass over the weights: they fit the second-level cache.
const PASS_ROWS: usize = 256;
/// Products that share one call of the threads.
const MAX_PRODUCTS: usize = 8;

/// One product of [`Kernels::linear_many`].
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[rows, cols]`.
    pub weight: &'a WeightArray,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[n, rows]`.
    pub out: &'a mut [f32],
}

/// What the threads need of one product.
#[derive(Clone, Copy)]
struct Product<'a> {
    weight: &'a WeightArray,
    bias: Option<&'a [f32]>,
    out: SharedMut<f32>,
}

/// The activations of a call.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[n, cols]`.
    pub x: &'a [f32],
    /// The same, quantised; only filled when a product needs it.
    pub quantized: &'a Activations,
    pub cols: usize,
}

/// Rows `first_row .. first_row + rows` of a product, for activations `first .. first + n`.
pub(super) struct Tile<'a> {
    pub input: Input<'a>,
    pub first: usize,
    pub n: usize,
    pub dtype: DType,
    /// The encoded rows; those past the end of the weight repeat the last.
    pub rows: [&'a [u8]; TILE_ROWS],
    /// How many of them count.
    pub valid: usize,
    /// Where the rows begin that this thread will need next.
    pub next: Option<&'a [u8]>,
    /// Bias of the rows, `valid` long.
    pub bias: Option<&'a [f32]>,
    pub out: Output,
}

/// Where a tile writes: element `(i, r)` of activation `i` and tile row `r` is at `start + i * stride + r`.
pub(super) struct Output {
    values: SharedMut<f32>,
    start: usize,
    stride: usize,
}

impl Output {
    /// The places of the tile's first `rows` rows for its activation `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize, rows: usize) -> &mut [f32] {
        // SAFETY: the driver gives every (activation, row) of an output to exactly one tile, and the tile is
        // borrowed for as long as the slice.
        unsafe { self.values.slice(self.start + i * self.stride, rows) }
    }
}

pub fn run(kernels: &Kernels, x: &[f32], n: usize, products: &mut [Linear<'_>], scratch: &mut Scratch) {
    let Some(cols) = products.first().map(|first| first.weight.cols()) else { return };
    assert_eq!(x.len(), n * cols, "activations are not [{n}, {cols}]");
    for product in &*products {
        let rows = product.weight.rows();
        assert_eq!(product.weight.cols(), cols, "products of one call need weights of one width");
        assert_eq!(product.out.len(), n * rows, "output is not [{n}, {rows}]");
        assert!(product.bias.is_none_or(|bias| bias.len() == rows), "bias is not [{rows}]");
    }
    if products.iter().any(|product| product.weight.dtype().is_quantized()) {
        scratch.activations.quantize(kernels, x, n, cols);
    }
    scratch.reserve(kernels.pool().threads(), tile_bytes(cols));
    for products in products.chunks_mut(MAX_PRODUCTS) {
        run_chunk(kernels, x, n, cols, products, scratch);
    }
}

/// Working memory of a tile: its rows unpacked, with scales and minima (see the levels' tile functions), or one
/// row in `f32`.
fn tile_bytes(cols: usize) -> usize {
    let groups = cols.div_ceil(quant::GROUP);
    groups * (quant::GROUP * TILE_ROWS + 3 * TILE_ROWS * size_of::<f32>())
}

fn run_chunk(kernels: &Kernels, x: &[f32], n: usize, cols: usize, products: &mut [Linear<'_>], scratch: &mut Scratch) {
    let count = products.len();
    let mut tiles = 0;
    // Entries past `count` are never looked at: the search below ends before them.
    let mut ends = [usize::MAX; MAX_PRODUCTS];
    let mut shared: [Option<Product<'_>>; MAX_PRODUCTS] = [None; MAX_PRODUCTS];
    for (index, product) in products.iter_mut().enumerate() {
        tiles += product.weight.rows().div_ceil(TILE_ROWS);
        ends[index] = tiles;
        shared[index] = Some(Product { weight: product.weight, bias: product.bias, out: SharedMut::new(product.out) });
    }
    let input = Input { x, quantized: &scratch.activations, cols };
    let threads = SharedMut::new(&mut scratch.threads);
    let level = kernels.level();
    let items = tiles * n.div_ceil(PASS_ROWS);
    let grain = items.div_ceil(kernels.pool().threads() * 16).min(tiles.max(1));
    let place = |item: usize| {
        let (pass, tile) = if item < tiles { (0, item) } else { (item / tiles, item % tiles) };
        let index = ends[..count].partition_point(|&end| end <= tile);
        let first_tile = if index == 0 { 0 } else { ends[index - 1] };
        let first = pass * PASS_ROWS;
        shared[index].map(|product| Place {
            product,
            first_row: (tile - first_tile) * TILE_ROWS,
            first,
            n: (n - first).min(PASS_ROWS),
        })
    };
    kernels.pool().for_each_range_ahead(items, grain, &|thread, range, following| {
        // SAFETY: each thread uses the element of its own number.
        let memory = &mut unsafe { threads.slice(thread, 1) }[0];
        let mut here = place(range.start);
        for item in range.clone() {
            let next = if item + 1 < range.end { item + 1 } else { following };
            let next = if next < items { place(next) } else { None };
            if let Some(here) = here {
                run_tile(level, input, here, next, memory);
            }
            here = next;
        }
    });
}

/// Where a tile lies: rows from `first_row` of a product, for activations `first .. first + n`.
#[derive(Clone, Copy)]
struct Place<'a> {
    product: Product<'a>,
    first_row: usize,
    first: usize,
    n: usize,
}

/// The encoded rows `first .. first + valid`, the last one repeated up to a whole tile.
fn tile_rows(weight: &WeightArray, first: usize, valid: usize) -> [&[u8]; TILE_ROWS] {
    let (bytes, row) = (weight.rows_from(first), weight.row_stride());
    if bytes.len() >= valid * row {
        std::array::from_fn(|r| &bytes[r.min(valid - 1) * row..][..row])
    } else {
        std::array::from_fn(|r| weight.row_bytes(first + r.min(valid - 1)))
    }
}

fn run_tile(
    level: Level,
    input: Input<'_>,
    Place { product, first_row, first, n }: Place<'_>,
    next: Option<Place<'_>>,
    memory: &mut [Line],
) {
    let weight = product.weight;
    let valid = (weight.rows() - first_row).min(TILE_ROWS);
    let tile = Tile {
        input,
        first,
        n,
        dtype: weight.dtype(),
        rows: tile_rows(weight, first_row, valid),
        valid,
        next: next.map(|next| next.product.weight.rows_from(next.first_row)),
        bias: product.bias.map(|bias| &bias[first_row..first_row + valid]),
        out: Output { values: product.out, start: first * weight.rows() + first_row, stride: weight.rows() },
    };
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::avx2::tile(tile, memory),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::avx512::tile(tile, memory),
        #[cfg(target_arch = "x86_64")]
        Level::Amx => super::amx::tile(tile, memory),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => super::neon::tile(tile, memory),
        // `Portable`, and what `Kernels` never holds: the levels of other architectures.
        _ => portable::tile(tile, memory),
    }
}
