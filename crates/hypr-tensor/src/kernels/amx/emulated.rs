//! Tiles in plain Rust, literally after the pseudocode of the instructions' pages in volume 2 of Intel's Software
//! Developer's Manual. What faults on a processor panics here.

use super::tiles::{Config, Tiles};

/// The tile registers of a thread, and one thing about them that may be wrong.
#[derive(Default)]
pub struct Emulated {
    config: Option<Config>,
    tiles: [Register; 8],
    pub flaw: Flaw,
    /// How often each function was called, in the order of the trait.
    pub calls: [usize; 6],
}

/// A register: sixteen rows of 64 bytes.
#[derive(Clone, Copy)]
struct Register([[u8; 64]; 16]);

impl Default for Register {
    fn default() -> Self {
        Self([[0; 64]; 16])
    }
}

/// What a wrong reading of the manual, or a broken processor, would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    #[default]
    None,
    /// Multiplies unsigned A by signed B.
    SwappedSigns,
    /// Multiplies signed A by signed B.
    SignedWeights,
    /// Takes A for B and B for A.
    SwappedOperands,
    /// Sums of pairs of products saturate at 16 bits, as those of `vpmaddubsw`.
    Saturates,
    /// Reads and writes rows one after the other.
    IgnoresStride,
    /// Leaves what a tile held.
    DoesNotZero,
    /// Reads, multiplies and writes sixteen rows whatever the shape.
    IgnoresRows,
}

impl Emulated {
    pub fn with_flaw(flaw: Flaw) -> Self {
        Self { flaw, ..Self::default() }
    }

    /// True when no shapes are set, as at the start.
    pub fn is_released(&self) -> bool {
        self.config.is_none()
    }

    /// Rows and bytes in a row of a tile.
    fn shape(&self, tile: u8) -> (usize, usize) {
        let config = self.config.expect("#UD: the tiles are not configured");
        let (rows, bytes) = (config.rows[usize::from(tile)], config.row_bytes[usize::from(tile)]);
        assert!(rows > 0 && bytes > 0, "#UD: tile {tile} has no shape");
        (usize::from(rows), usize::from(bytes))
    }

    /// The shape that reads and writes go by.
    fn moved_shape(&self, tile: u8) -> (usize, usize) {
        let (rows, bytes) = self.shape(tile);
        if self.flaw == Flaw::IgnoresRows { (16, bytes) } else { (rows, bytes) }
    }

    /// The sum of four products of bytes.
    fn dot(&self, a: &[u8], b: &[u8]) -> i32 {
        let (signed, unsigned) = (|v: u8| i32::from(v as i8), |v: u8| i32::from(v));
        let products: [i32; 4] = std::array::from_fn(|i| match self.flaw {
            Flaw::SwappedSigns => unsigned(a[i]) * signed(b[i]),
            Flaw::SignedWeights => signed(a[i]) * signed(b[i]),
            _ => signed(a[i]) * unsigned(b[i]),
        });
        if self.flaw == Flaw::Saturates {
            let pair = |i: usize| (products[i] + products[i + 1]).clamp(i32::from(i16::MIN), i32::from(i16::MAX));
            return pair(0) + pair(2);
        }
        products.iter().sum()
    }
}

impl Tiles for Emulated {
    unsafe fn configure(&mut self, config: &Config) {
        self.calls[0] += 1;
        assert!(config.palette == 1 && config.start_row == 0 && config.reserved == [0; 14], "#GP: palette or reserved");
        for (tile, (&rows, &bytes)) in config.rows.iter().zip(&config.row_bytes).enumerate() {
            assert!(rows <= 16 && bytes <= 64 && (tile < 8 || rows == 0 && bytes == 0), "#GP: shape of tile {tile}");
            assert_eq!(rows == 0, bytes == 0, "#GP: half a shape of tile {tile}");
        }
        assert!(std::ptr::from_ref(config).addr().is_multiple_of(64), "a configuration across two cache lines");
        self.config = Some(*config);
        if self.flaw != Flaw::DoesNotZero {
            self.tiles = [Register::default(); 8];
        }
    }

    unsafe fn release(&mut self) {
        self.calls[1] += 1;
        assert!(self.config.is_some(), "released twice");
        self.config = None;
    }

    unsafe fn zero<const C: u8>(&mut self) {
        self.calls[2] += 1;
        self.shape(C);
        if self.flaw != Flaw::DoesNotZero {
            self.tiles[usize::from(C)] = Register::default();
        }
    }

    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        self.calls[3] += 1;
        let (rows, bytes) = self.moved_shape(T);
        let stride = if self.flaw == Flaw::IgnoresStride { bytes } else { stride };
        let mut register = Register::default();
        for (row, to) in register.0.iter_mut().enumerate().take(rows) {
            // SAFETY: the rows of the shape by the caller's promise; those of a flaw are only used with room for them.
            to[..bytes].copy_from_slice(unsafe { std::slice::from_raw_parts(from.add(row * stride), bytes) });
        }
        self.tiles[usize::from(T)] = register;
    }

    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
        self.calls[4] += 1;
        let ((m, n), (a_rows, a_bytes), (b_rows, b_bytes)) = (self.shape(C), self.shape(A), self.shape(B));
        assert!(C != A && C != B && A != B, "#UD: the same tile twice");
        assert!(a_rows == m && b_bytes == n && a_bytes == 4 * b_rows && n.is_multiple_of(4), "#UD: shapes do not fit");
        let (a, b) = if self.flaw == Flaw::SwappedOperands { (B, A) } else { (A, B) };
        let (a, b) = (self.tiles[usize::from(a)], self.tiles[usize::from(b)]);
        let m = if self.flaw == Flaw::IgnoresRows { 16 } else { m };
        let mut c = self.tiles[usize::from(C)];
        for (row, sums) in c.0.iter_mut().enumerate().take(m) {
            for (column, sum) in sums[..n].chunks_exact_mut(4).enumerate() {
                let mut total = i32::from_le_bytes(sum.try_into().expect("four bytes"));
                for k in 0..b_rows {
                    let (a, b) = (&a.0[row][4 * k..][..4], &b.0[k][4 * column..][..4]);
                    total = total.wrapping_add(self.dot(a, b));
                }
                sum.copy_from_slice(&total.to_le_bytes());
            }
        }
        self.tiles[usize::from(C)] = c;
    }

    unsafe fn store<const C: u8>(&mut self, to: *mut u8, stride: usize) {
        self.calls[5] += 1;
        let (rows, bytes) = self.moved_shape(C);
        let stride = if self.flaw == Flaw::IgnoresStride { bytes } else { stride };
        for (row, from) in self.tiles[usize::from(C)].0.iter().enumerate().take(rows) {
            // SAFETY: as in `load`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(row * stride), bytes) };
        }
    }
}
