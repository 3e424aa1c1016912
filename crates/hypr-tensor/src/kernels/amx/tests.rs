//! The level against `Avx512`, with emulated tiles where the processor has none; the test at detection against flawed
//! tiles; and the encoding of the instructions.

use super::detect::gives_known_answer;
use super::emulated::{Emulated, Flaw};
use super::tiles::{Config, Instructions, Tiles};
use crate::kernels::tests::{kernels, linear, weight};
use crate::kernels::{Level, Linear, Scratch};
use crate::quant::tests::Bits;
use crate::{DType, Kernels, WeightArray};

/// Compares one product at the two levels, NaN with NaN and all else to the bit.
fn assert_same(x: &[f32], n: usize, weight: &WeightArray, bias: Option<&[f32]>, threads: usize) {
    let want = linear(&kernels(Level::Avx512, threads), x, n, weight, bias);
    let got = linear(&kernels(Level::Amx, threads), x, n, weight, bias);
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        let (i, r) = (index / weight.rows(), index % weight.rows());
        let (dtype, cols) = (weight.dtype(), weight.cols());
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{dtype} n {n} cols {cols} [{i}, {r}]: {got}, not {want}");
    }
}

fn quantized() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.is_quantized())
}

#[test]
fn the_bits_are_those_of_avx512() {
    if !Level::Avx512.is_supported() {
        return;
    }
    for dtype in quantized() {
        for (blocks, rows) in [(1, 16), (2, 5), (3, 37), (5, 32), (7, 20)] {
            let cols = blocks * dtype.block_len();
            let weight = weight(dtype, rows, cols, 11, 5 + blocks as u64);
            let bias = Bits(6).floats(rows);
            for n in (1..=40).chain([100]) {
                let x = Bits(n as u64).floats(n * cols);
                assert_same(&x, n, &weight, (n % 2 == 0).then_some(&bias[..]), 1 + n % 3);
            }
        }
    }
}

/// A pass ends after 256 activations; the next has three.
#[test]
fn the_bits_are_those_of_avx512_in_several_passes() {
    if !Level::Avx512.is_supported() {
        return;
    }
    for dtype in quantized() {
        let (n, rows, cols) = (256 + 3, 33, 256 + dtype.block_len());
        let x: Vec<f32> = Bits(1).floats(n * cols).iter().map(|v| v * 40.0).collect();
        assert_same(&x, n, &weight(dtype, rows, cols, 9, 3), None, 2);
        let (n, cols) = (256 + 13, dtype.block_len());
        assert_same(&x[..n * cols], n, &weight(dtype, rows, cols, 9, 3), None, 2);
    }
}

#[test]
fn odd_activations_are_those_of_avx512() {
    if !Level::Avx512.is_supported() {
        return;
    }
    for dtype in quantized() {
        let (n, cols) = (21, 512);
        let mut x = Bits(8).floats(n * cols);
        x[..cols].fill(0.0);
        x[cols..2 * cols].fill(1e-38);
        x[2 * cols..3 * cols].fill(1.0);
        x[3 * cols..4 * cols].fill(-1.0);
        (x[5 * cols + 40], x[17 * cols + 300], x[20 * cols + 7]) = (f32::NAN, f32::INFINITY, 3e38);
        assert_same(&x, n, &weight(dtype, 40, cols, 40, 2), None, 1);
    }
}

#[test]
fn plain_and_quantised_weights_share_a_call() {
    if !Level::Avx512.is_supported() {
        return;
    }
    let (n, cols) = (50, 256);
    let x = Bits(1).floats(n * cols);
    let weights = [(DType::Q4K, 40), (DType::F32, 7), (DType::Q6K, 33), (DType::BF16, 20)];
    let weights = weights.map(|(dtype, rows)| weight(dtype, rows, cols, 16, 9));
    let run = |kernels: Kernels| {
        let mut outs = weights.each_ref().map(|weight| vec![f32::NAN; n * weight.rows()]);
        let mut products: Vec<_> =
            weights.iter().zip(&mut outs).map(|(weight, out)| Linear { weight, bias: None, out }).collect();
        kernels.linear_many(&x, n, &mut products, &mut Scratch::new());
        outs
    };
    assert_eq!(run(kernels(Level::Amx, 2)), run(kernels(Level::Avx512, 2)));
}

#[test]
fn a_known_answer_tells_flawed_tiles() {
    for flaw in [
        Flaw::SwappedSigns,
        Flaw::SignedWeights,
        Flaw::SwappedOperands,
        Flaw::Saturates,
        Flaw::IgnoresStride,
        Flaw::DoesNotZero,
        Flaw::IgnoresRows,
    ] {
        // SAFETY: emulated, on arrays with room for sixteen rows also where the shape has fewer.
        assert!(!unsafe { gives_known_answer(&mut Emulated::with_flaw(flaw)) }, "{flaw:?}");
    }
    let mut tiles = Emulated::default();
    // SAFETY: as above.
    assert!(unsafe { gives_known_answer(&mut tiles) });
    assert!(tiles.is_released());
    let [configured, released, zeroed, loaded, multiplied, stored] = tiles.calls;
    assert_eq!((configured, released), (16, 16));
    assert_eq!((zeroed, loaded, multiplied, stored), (40, 80, 40, 40));
}

#[cfg(target_os = "linux")]
#[test]
fn a_system_call_does_what_its_name_says() {
    const ARCH_GET_FS: usize = 0x1003;
    let (mut base, own): (usize, usize);
    base = 0;
    // SAFETY: writes one word. On Linux, the first word at the base of `fs` is that base (System V ABI, x86-64
    // supplement: the thread pointer).
    let result = unsafe {
        std::arch::asm!("mov {}, fs:[0]", out(reg) own, options(readonly, nostack, preserves_flags));
        super::detect::arch_prctl(ARCH_GET_FS, (&raw mut base).expose_provenance())
    };
    assert_eq!((result, base), (0, own));
    // SAFETY: a code that does not exist.
    assert!(unsafe { super::detect::arch_prctl(usize::MAX >> 33, 0) } < 0);
}

/// Functions of one instruction each, to look at, never to call.
mod compiled {
    use super::*;

    macro_rules! compiled {
        ($($name:ident($($arg:ident: $type:ty),*) $body:expr;)*) => {
            $(#[inline(never)] pub extern "C" fn $name($($arg: $type),*) {
                // SAFETY: never called.
                unsafe { $body }
            })*
        };
    }

    compiled! {
        ldtilecfg(config: &Config) Instructions.configure(config);
        tilerelease() Instructions.release();
        tilezero() Instructions.zero::<3>();
        tileloadd_5(from: *const u8, stride: usize) Instructions.load::<5>(from, stride);
        tileloadd_6(from: *const u8, stride: usize) Instructions.load::<6>(from, stride);
        tdpbsud_0(_tiles: usize) Instructions.multiply::<0, 4, 6>();
        tdpbsud_1(_tiles: usize) Instructions.multiply::<1, 5, 7>();
        tilestored(to: *mut u8, stride: usize) Instructions.store::<2>(to, stride);
    }
}

/// What an instruction encodes to. All are VEX.128 of map 0F38 with W0, in the form of three bytes: C4, then R X B
/// (inverted) and the map, then W, vvvv (inverted), L and the prefix pp: 0 none, 2 F3, 3 F2.
struct Encoding {
    pp: u8,
    vvvv: u8,
    opcode: u8,
    /// The ModRM byte under a mask.
    modrm: (u8, u8),
    /// The SIB byte under a mask, where there is one.
    sib: Option<(u8, u8)>,
}

impl Encoding {
    fn is_at(&self, code: &[u8]) -> bool {
        // R, of the tile, is never extended; X and B are where a pointer lies in R8 to R15.
        code[0] == 0xc4
            && code[1] & 0x9f == 0x82
            && code[2] == (!self.vvvv & 15) << 3 | self.pp
            && code[3] == self.opcode
            && code[4] & self.modrm.0 == self.modrm.1
            && self.sib.is_none_or(|(mask, bits)| code[5] & mask == bits)
    }
}

/// Opcodes of the pages LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TDPBSUD and TILESTORED in volume 2 of Intel's
/// Software Developer's Manual, as compiled into this program.
#[test]
fn instructions_are_encoded_as_the_manual_says() {
    let register = |reg: u8, rm: u8| (0xff, 0xc0 | reg << 3 | rm);
    // A SIB byte with any base, a factor of one and an index, for which 100 would stand for none.
    let memory = |reg: u8| ((0xff, reg << 3 | 4), Some((0xc0, 0)));
    let plain = |pp, opcode, modrm| Encoding { pp, vvvv: 0, opcode, modrm, sib: None };
    let strided = |pp, tile| {
        let (modrm, sib) = memory(tile);
        Encoding { pp, vvvv: 0, opcode: 0x4b, modrm, sib }
    };
    let dot = |c, a, b| Encoding { pp: 2, vvvv: b, opcode: 0x5e, modrm: register(c, a), sib: None };
    let cases = [
        // VEX.128.NP.0F38.W0 49 !(11):000:bbb
        ("ldtilecfg", compiled::ldtilecfg as *const u8, plain(0, 0x49, (0xf8, 0))),
        // VEX.128.NP.0F38.W0 49 C0
        ("tilerelease", compiled::tilerelease as *const u8, plain(0, 0x49, register(0, 0))),
        // VEX.128.F2.0F38.W0 49 11:rrr:000
        ("tilezero", compiled::tilezero as *const u8, plain(3, 0x49, register(3, 0))),
        // VEX.128.F2.0F38.W0 4B !(11):rrr:100
        ("tileloadd tmm5", compiled::tileloadd_5 as *const u8, strided(3, 5)),
        ("tileloadd tmm6", compiled::tileloadd_6 as *const u8, strided(3, 6)),
        // VEX.128.F3.0F38.W0 5E 11:rrr:bbb, C in reg, A (signed) in r/m, B (unsigned) in vvvv
        ("tdpbsud tmm0", compiled::tdpbsud_0 as *const u8, dot(0, 4, 6)),
        ("tdpbsud tmm1", compiled::tdpbsud_1 as *const u8, dot(1, 5, 7)),
        // VEX.128.F3.0F38.W0 4B !(11):rrr:100
        ("tilestored", compiled::tilestored as *const u8, strided(2, 2)),
    ];
    for (name, code, encoding) in cases {
        // SAFETY: code of this program, of a function that is followed by many others.
        let code = unsafe { std::slice::from_raw_parts(code, 48) };
        assert!(code.windows(6).any(|code| encoding.is_at(code)), "{name}: {code:02x?}");
    }
}
