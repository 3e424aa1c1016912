//! Eight tile registers, and what can be done with them. Source: Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 1, chapter 18 (AMX) and the instructions' pages in volume 2.
//!
//! A tile has up to sixteen rows of up to 64 bytes. `multiply` takes `[m, 4 k]` signed bytes A and unsigned bytes B,
//! `[k, n, 4]`, and adds `[m, n]` products of 32 bits to C.
//!
//! ```text
//! tile 0..4   sums         [activations][16 rows] i32
//! tile 4..6   activations  [activations][width] i8
//! tile 6..8   weights      [width / 4][16 rows][4] u8
//! ```

use std::arch::asm;

use super::super::linear::TILE_ROWS;

/// Products that are on their way at the same time, one for each tile of sums: a multiplication takes several times
/// as long as the next has to wait before it starts.
pub const BATCH: usize = 4;
/// Bytes from row to row of sums and weights.
const LINE: usize = 64;

/// The shapes of the tiles, as `LDTILECFG` reads them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Config {
    pub palette: u8,
    pub start_row: u8,
    pub reserved: [u8; 14],
    /// Bytes in a row of each tile; only the first eight tiles exist.
    pub row_bytes: [u16; 16],
    pub rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    /// Tiles for `activations` rows of `width` columns.
    pub const fn new(activations: usize, width: usize) -> Self {
        assert!(activations >= 1 && activations <= 16 && width.is_multiple_of(4) && width >= 4 && width <= LINE);
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            let (rows, bytes) = match tile {
                0..4 => (activations, LINE),
                4..6 => (activations, width),
                _ => (width / 4, LINE),
            };
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = bytes as u16;
            tile += 1;
        }
        config
    }
}

/// The tile registers of this thread. The numbers of tiles are constants because instructions name registers.
pub trait Tiles {
    /// Gives the tiles their shapes, and zeros to hold.
    ///
    /// # Safety
    /// This thread can use tiles, and the shapes are ones that [`Config::new`] makes.
    unsafe fn configure(&mut self, config: &Config);

    /// Gives the tiles up, so that no switch to another thread has to save them.
    ///
    /// # Safety
    /// This thread can use tiles.
    unsafe fn release(&mut self);

    /// Fills tile `C` with zeros.
    ///
    /// # Safety
    /// The tiles are configured.
    unsafe fn zero<const C: u8>(&mut self);

    /// Reads tile `T`, its rows `stride` bytes apart.
    ///
    /// # Safety
    /// The tiles are configured, and the rows readable.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);

    /// Adds the products of signed bytes `A` and unsigned bytes `B` to `C`.
    ///
    /// # Safety
    /// The tiles are configured, with shapes that fit and three numbers that differ.
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self);

    /// Writes tile `C`, its rows `stride` bytes apart.
    ///
    /// # Safety
    /// The tiles are configured, and the rows writable.
    unsafe fn store<const C: u8>(&mut self, to: *mut u8, stride: usize);
}

/// The instructions themselves. Compiled code never uses a tile, as no function here enables AMX for the compiler, so
/// tiles keep what they hold from one `asm!` to the next; none is `pure`, so they stay in order.
pub struct Instructions;

impl Tiles for Instructions {
    #[inline(always)]
    unsafe fn configure(&mut self, config: &Config) {
        // SAFETY: reads the 64 bytes of the configuration; the rest by the caller's promise.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(readonly, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        // SAFETY: changes nothing but tiles.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn zero<const C: u8>(&mut self) {
        // SAFETY: changes nothing but a tile.
        unsafe { asm!("tilezero tmm{}", const C, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{}, [{} + {}*1]", const T, in(reg) from, in(reg) stride,
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: changes nothing but a tile.
        unsafe {
            asm!(
                "tdpbsud tmm{}, tmm{}, tmm{}", const C, const A, const B,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const C: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilestored [{} + {}*1], tmm{}", in(reg) to, in(reg) stride, const C,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Configured tiles, released when this goes, also by a panic.
pub struct Configured<'a, T: Tiles>(&'a mut T);

impl<'a, T: Tiles> Configured<'a, T> {
    /// # Safety
    /// As [`Tiles::configure`].
    #[inline(always)]
    pub unsafe fn new(tiles: &'a mut T, config: &Config) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { tiles.configure(config) };
        Self(tiles)
    }

    /// Other shapes.
    ///
    /// # Safety
    /// As [`Tiles::configure`].
    #[inline(always)]
    pub unsafe fn configure(&mut self, config: &Config) {
        // SAFETY: by the caller's promise.
        unsafe { self.0.configure(config) };
    }

    /// The first `count` products of a batch, which end up one after the other in `to`, in the places that
    /// [`Products`] has for them.
    ///
    /// # Safety
    /// The tiles have the shape of the operands, the operands of `count` products are readable, and `to` is writable.
    #[inline(always)]
    pub unsafe fn multiply(&mut self, operands: Operands, count: usize, to: *mut Products) {
        // SAFETY: by the caller's promise.
        unsafe {
            self.product::<0, 4, 6>(operands, 0);
            if count > 1 {
                self.product::<1, 5, 7>(operands, 1);
            }
            if count > 2 {
                self.product::<2, 4, 6>(operands, 2);
            }
            if count > 3 {
                self.product::<3, 5, 7>(operands, 3);
            }
            // The sums are stored after the last multiplication has started, not each behind its own.
            self.0.store::<0>(Products::place(to, 0).cast(), LINE);
            if count > 1 {
                self.0.store::<1>(Products::place(to, 1).cast(), LINE);
            }
            if count > 2 {
                self.0.store::<2>(Products::place(to, 2).cast(), LINE);
            }
            if count > 3 {
                self.0.store::<3>(Products::place(to, 3).cast(), LINE);
            }
        }
    }

    /// Product `index` of a batch, into tile `C`.
    ///
    /// # Safety
    /// As [`Configured::multiply`].
    #[inline(always)]
    unsafe fn product<const C: u8, const A: u8, const B: u8>(&mut self, operands: Operands, index: usize) {
        let Operands { activations, stride, weights, width } = operands;
        // SAFETY: by the caller's promise.
        unsafe {
            self.0.zero::<C>();
            self.0.load::<A>(activations.add(index * width).cast(), stride);
            self.0.load::<B>(weights.add(index * width * TILE_ROWS), LINE);
            self.0.multiply::<C, A, B>();
        }
    }
}

impl<T: Tiles> Drop for Configured<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `new` was promised that this thread can use tiles.
        unsafe { self.0.release() };
    }
}

/// What the products of a batch multiply: product `i` takes columns `i * width ..` of activations and weights.
#[derive(Clone, Copy)]
pub struct Operands {
    /// `[activations][stride]`.
    pub activations: *const i8,
    pub stride: usize,
    /// `[columns / 4][16 rows][4]`.
    pub weights: *const u8,
    pub width: usize,
}

/// Integer products of a batch, `[product][activation][row]`; a smaller batch or one of fewer activations leaves the
/// places of the others.
#[repr(C, align(64))]
pub struct Products(pub [[[i32; TILE_ROWS]; 16]; BATCH]);

impl Products {
    /// Where the products number `index` of a batch start, which may not have been written yet.
    ///
    /// # Safety
    /// `index < BATCH`, and `products` points to a whole `Products`.
    #[inline(always)]
    pub unsafe fn place(products: *mut Self, index: usize) -> *mut [i32; TILE_ROWS] {
        // SAFETY: inside by the caller's promise.
        unsafe { products.cast::<[i32; TILE_ROWS]>().add(16 * index) }
    }
}
