//! Integer products: `sdot` of signed weights and activations, four columns of eight rows at a time.

use std::arch::aarch64::*;

use super::super::linear::{TILE_ROWS, Tile};
use super::super::scratch::{Activations, Line};
use super::dot_columns;
use super::unpack::{self, GROUP_BYTES, ROWS, Rows};
use crate::DType;
use crate::quant::GROUP;

/// How integers become floats.
mod form {
    /// A scale for a group.
    pub const SCALE: u8 = 0;
    /// A scale and a minimum for a group.
    pub const MINIMUM: u8 = 1;
    /// A scale for each half of a group.
    pub const HALVES: u8 = 2;
}

/// A half tile unpacked into working memory; see [`unpack`] for the layout.
#[derive(Clone, Copy)]
struct Packed {
    groups: usize,
    values: *const i8,
    mins: *const f32,
    scales: *const f32,
}

/// Eight rows' sums.
type Sums = [float32x4_t; 2];

/// All outputs of a tile of quantised rows.
///
/// # Safety
/// The processor has the features of `Level::Neon`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn tile(mut tile: Tile<'_>, memory: &mut [Line]) {
    let groups = tile.input.cols / GROUP;
    assert!(size_of_val(memory) >= groups * (GROUP_BYTES + 3 * ROWS * size_of::<f32>()));
    let values = memory.as_mut_ptr().cast::<i8>();
    for first_row in (0..tile.valid).step_by(ROWS) {
        let rows: Rows<'_> = std::array::from_fn(|r| tile.rows[first_row + r]);
        // SAFETY: the values, then minima and scales, all inside `memory` as just asserted. It starts at a cache line
        // and values take 256 bytes a group, so the floats are aligned.
        unsafe {
            let mins = values.add(GROUP_BYTES * groups).cast::<f32>();
            let scales = mins.add(ROWS * groups);
            unpack::pack(tile.dtype, &rows, groups, values, mins, scales);
            let packed = Packed { groups, values, mins, scales };
            match tile.dtype {
                DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => products::<{ form::SCALE }>(&mut tile, packed, first_row),
                DType::Q6K => products::<{ form::HALVES }>(&mut tile, packed, first_row),
                _ => products::<{ form::MINIMUM }>(&mut tile, packed, first_row),
            }
        }
    }
}

/// # Safety
/// `packed` is the half tile from `first_row` on, of values that `FORM` is for.
#[target_feature(enable = "neon,dotprod")]
unsafe fn products<const FORM: u8>(tile: &mut Tile<'_>, packed: Packed, first_row: usize) {
    let mut i = 0;
    while i < tile.n {
        // SAFETY: by the caller's promise; the driver quantised at least `first + n` rows.
        unsafe {
            if tile.n - i >= 4 {
                store(tile, i, first_row, dot::<4, FORM>(packed, tile.input.quantized, tile.first + i));
                i += 4;
            } else {
                store(tile, i, first_row, dot::<1, FORM>(packed, tile.input.quantized, tile.first + i));
                i += 1;
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn store<const N: usize>(tile: &mut Tile<'_>, i: usize, first_row: usize, sums: [Sums; N]) {
    let rows = first_row..tile.valid.min(first_row + ROWS);
    for (k, [low, high]) in sums.into_iter().enumerate() {
        let mut values = [0.0f32; ROWS];
        // SAFETY: two times four floats.
        unsafe {
            vst1q_f32(values.as_mut_ptr(), low);
            vst1q_f32(values.as_mut_ptr().add(4), high);
        }
        let bias = tile.bias;
        let out = &mut tile.out.row(i + k, tile.valid)[rows.clone()];
        match bias {
            Some(bias) => {
                out.iter_mut().zip(values).zip(&bias[rows.clone()]).for_each(|((o, v), b)| *o = v + b);
            }
            None => out.copy_from_slice(&values[..rows.len()]),
        }
    }
}

/// The products of eight rows with activations `first .. first + N`.
///
/// Written as loops: a closure that a function of `core` calls is often left a call, and this is the inner loop.
///
/// # Safety
/// `packed` points at a whole half tile; the activations hold `first + N` rows of `32 * groups` columns.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn dot<const N: usize, const FORM: u8>(packed: Packed, input: &Activations, first: usize) -> [Sums; N] {
    let groups = packed.groups;
    assert!(input.cols == groups * GROUP && input.q.len() >= (first + N) * input.cols);
    let mut sums = [[vdupq_n_f32(0.0); 2]; N];
    for g in 0..groups {
        let mut integers = [[vdupq_n_s32(0); 2]; N];
        for half in 0..2 {
            // SAFETY: half `half` of group `g` of the half tile, and of rows `first .. first + N`.
            unsafe {
                let w = load_weights(packed.values.add(GROUP_BYTES * g + GROUP_BYTES / 2 * half));
                for (i, integers) in integers.iter_mut().enumerate() {
                    let q = vld1q_s8(input.q.as_ptr().add(((first + i) * groups + g) * GROUP + GROUP / 2 * half));
                    *integers = dot_columns(*integers, &w, q);
                }
                // Otherwise both scales of a group are the same.
                if FORM == form::HALVES || half == 1 {
                    let scales = load(packed.scales.add(ROWS * (2 * g + half)));
                    for (i, (sums, integers)) in sums.iter_mut().zip(&integers).enumerate() {
                        let scale = *input.scale.as_ptr().add((first + i) * groups + g);
                        for k in 0..2 {
                            sums[k] = vfmaq_f32(sums[k], vcvtq_f32_s32(integers[k]), vmulq_n_f32(scales[k], scale));
                        }
                    }
                    integers = [[vdupq_n_s32(0); 2]; N];
                }
            }
        }
        if FORM == form::MINIMUM {
            // SAFETY: the minima of group `g`, and the sums of the activations in it.
            unsafe {
                let mins = load(packed.mins.add(ROWS * g));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let sum = *input.scaled_sum.as_ptr().add((first + i) * groups + g);
                    *sums = [vfmaq_n_f32(sums[0], mins[0], sum), vfmaq_n_f32(sums[1], mins[1], sum)];
                }
            }
        }
    }
    sums
}

/// Eight floats.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load(at: *const f32) -> Sums {
    // SAFETY: by the caller's promise.
    unsafe { [vld1q_f32(at), vld1q_f32(at.add(4))] }
}

/// Sixteen columns of eight rows.
///
/// # Safety
/// They are readable.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load_weights(at: *const i8) -> [int8x16_t; 8] {
    let mut w = [vdupq_n_s8(0); 8];
    for (j, w) in w.iter_mut().enumerate() {
        // SAFETY: by the caller's promise.
        *w = unsafe { vld1q_s8(at.add(16 * j)) };
    }
    w
}

const _: () = assert!(TILE_ROWS == 2 * ROWS, "a tile is two halves");
