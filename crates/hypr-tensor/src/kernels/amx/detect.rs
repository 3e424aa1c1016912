//! Whether this process can use tiles.
//!
//! The processor must have AMX-TILE and AMX-INT8 (leaf 7) with tiles of at least the size used here (leaf 1DH), the
//! operating system must save them (`XCR0`) and permit them to the process, and products must be right.
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, sections 13.3 and 18; Linux,
//! `Documentation/arch/x86/xstate.rst`.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::super::linear::TILE_ROWS;
use super::tiles::{BATCH, Config, Configured, Instructions, Operands, Products, Tiles};

/// True when tiles work in every thread of this process. The first call asks the operating system for permission,
/// which a process is given once and for all of its threads.
pub fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        // SAFETY: all that the instructions need has just been found.
        has_tiles() && is_permitted() && unsafe { gives_known_answer(&mut Instructions) }
    })
}

/// True when the processor has tiles and the operating system saves them when it switches threads.
fn has_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_TILE_AND_INT8: u32 = 0b11 << 24;
    const TILECFG_AND_TILEDATA: u64 = 0b11 << 17;
    if __cpuid(0).eax < 0x1d
        || __cpuid(1).ecx & OSXSAVE == 0
        || __cpuid_count(7, 0).edx & AMX_TILE_AND_INT8 != AMX_TILE_AND_INT8
    {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    // SAFETY: the operating system has enabled XGETBV, as the first bit tested says.
    tiles >= 8 && rows >= 16 && row_bytes >= 64 && unsafe { xcr0() } & TILECFG_AND_TILEDATA == TILECFG_AND_TILEDATA
}

/// The states that the operating system saves.
#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the state of tiles, which it makes room for only where it is asked. It refuses where a thread has an
/// alternate signal stack that is too small for that state.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // SAFETY: takes a number, writes to no memory, and changes only what the process may do.
    unsafe { arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// How other systems permit tiles is not known here.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The system call of that name: zero, or minus an error.
///
/// # Safety
/// As the call with this `code` demands of `argument`.
#[cfg(target_os = "linux")]
pub(super) unsafe fn arch_prctl(code: usize, argument: usize) -> isize {
    const SYS_ARCH_PRCTL: isize = 158;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: the convention of system calls: number and result in `rax`, `rcx` and `r11` overwritten.
    unsafe {
        std::arch::asm!(
            "syscall", inlateout("rax") result, in("rdi") code, in("rsi") argument,
            out("rcx") _, out("r11") _, options(nostack)
        );
    }
    result
}

/// True when `tiles` multiply as plain Rust does, in all the shapes that products use, and write no more than they
/// should.
///
/// # Safety
/// This thread can use `tiles`.
pub(super) unsafe fn gives_known_answer<T: Tiles>(tiles: &mut T) -> bool {
    // SAFETY: by the caller's promise.
    [(16, 32), (16, 16), (8, 32), (8, 16)]
        .into_iter()
        .all(|(activations, width)| (1..=BATCH).all(|count| unsafe { is_right(tiles, activations, width, count) }))
}

/// # Safety
/// As [`gives_known_answer`].
unsafe fn is_right<T: Tiles>(tiles: &mut T, activations: usize, width: usize, count: usize) -> bool {
    const STRIDE: usize = 32 * BATCH + 48;
    const UNTOUCHED: i32 = i32::MIN;
    let mut state = 0x2545_f491_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let a: [i8; 16 * STRIDE] = std::array::from_fn(|_| byte() as i8);
    let b: [u8; 32 * (BATCH + 1) * TILE_ROWS] = std::array::from_fn(|_| byte());
    let mut c = MaybeUninit::new(Products([[[UNTOUCHED; TILE_ROWS]; 16]; BATCH]));
    let operands = Operands { activations: a.as_ptr(), stride: STRIDE, weights: b.as_ptr(), width };
    // SAFETY: the arrays have room for sixteen rows of every tile, and so for all shapes.
    let c = unsafe {
        Configured::new(tiles, &Config::new(activations, width)).multiply(operands, count, c.as_mut_ptr());
        c.assume_init().0
    };
    let want = |product: usize, activation: usize, row: usize| {
        if product >= count || activation >= activations {
            return UNTOUCHED;
        }
        (product * width..(product + 1) * width)
            .map(|column| {
                let weight = b[column / 4 * 4 * TILE_ROWS + 4 * row + column % 4];
                i32::from(a[activation * STRIDE + column]) * i32::from(weight)
            })
            .sum()
    };
    (0..BATCH).all(|p| (0..16).all(|i| (0..TILE_ROWS).all(|r| c[p][i][r] == want(p, i, r))))
}
