//! The formats against a second, literal reading of GGML's `dequantize_row_*`.

use proptest::prelude::*;

use super::*;

/// A deterministic stream of bits (splitmix64).
pub(crate) struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// `rows * cols` random values in `dtype`: random integers, scales of ordinary size.
pub(crate) fn random_bytes(dtype: DType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut bits = Bits(seed);
    let mut bytes: Vec<u8> = Vec::new();
    let put_half = |bytes: &mut [u8], at: usize, value: f32| {
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    for _ in 0..rows * cols / dtype.block_len() {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| bits.next() as u8).collect();
        match dtype {
            DType::F32 => block.copy_from_slice(&bits.float().to_le_bytes()),
            DType::F16 => put_half(&mut block, 0, bits.float()),
            DType::BF16 => block.copy_from_slice(&bf16::from_f32(bits.float()).to_le_bytes()),
            DType::Q6K => put_half(&mut block, 208, bits.float() * 0.001),
            _ => put_half(&mut block, 0, bits.float() * 0.1),
        }
        match dtype {
            DType::Q4_1 | DType::Q5_1 => put_half(&mut block, 2, bits.float()),
            DType::Q4K | DType::Q5K => put_half(&mut block, 2, bits.float() * 0.01),
            _ => {}
        }
        bytes.extend(block);
    }
    bytes
}

fn literal(dtype: DType, x: &[u8]) -> Vec<f64> {
    let h = |at: usize| f16::from_le_bytes([x[at], x[at + 1]]).to_f64();
    let mut y = vec![0.0f64; dtype.block_len()];
    match dtype {
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => {
            let has_min = matches!(dtype, DType::Q4_1 | DType::Q5_1);
            let five = matches!(dtype, DType::Q5_0 | DType::Q5_1);
            let head = if has_min { 4 } else { 2 };
            let qh = if five { u32::from_le_bytes(x[head..head + 4].try_into().unwrap()) } else { 0 };
            let qs = &x[head + if five { 4 } else { 0 }..];
            let (offset, m) = match (has_min, five) {
                (true, _) => (0, h(2)),
                (false, false) => (8, 0.0),
                (false, true) => (16, 0.0),
            };
            for j in 0..16 {
                let xh0 = ((qh >> j) << 4) & 0x10;
                let xh1 = (qh >> (j + 12)) & 0x10;
                y[j] = f64::from((u32::from(qs[j] & 0x0f) | xh0) as i32 - offset) * h(0) + m;
                y[j + 16] = f64::from((u32::from(qs[j] >> 4) | xh1) as i32 - offset) * h(0) + m;
            }
        }
        DType::Q8_0 => (0..32).for_each(|j| y[j] = f64::from(x[2 + j] as i8) * h(0)),
        DType::Q4K | DType::Q5K => {
            let scales = &x[4..16];
            let get = |j: usize| {
                if j < 4 {
                    (scales[j] & 63, scales[j + 4] & 63)
                } else {
                    (scales[j + 4] & 0xf | (scales[j - 4] >> 6) << 4, scales[j + 4] >> 4 | (scales[j] >> 6) << 4)
                }
            };
            let (qh, qs) = if dtype == DType::Q5K { (Some(&x[16..48]), &x[48..]) } else { (None, &x[16..]) };
            for part in 0..4 {
                for (high, y) in y[64 * part..64 * part + 64].chunks_mut(32).enumerate() {
                    let (sc, mn) = get(2 * part + high);
                    for l in 0..32 {
                        let q = qs[32 * part + l] >> (4 * high) & 15;
                        let fifth = qh.map_or(0, |qh| if qh[l] & (1 << (2 * part + high)) != 0 { 16 } else { 0 });
                        y[l] = h(0) * f64::from(sc) * f64::from(q + fifth) - h(2) * f64::from(mn);
                    }
                }
            }
        }
        DType::Q6K => {
            for n in 0..2 {
                let (ql, qh, sc) = (&x[64 * n..], &x[128 + 32 * n..], &x[192 + 8 * n..]);
                for l in 0..32 {
                    let q = [
                        (ql[l] & 0xf) | (qh[l] & 3) << 4,
                        (ql[l + 32] & 0xf) | (qh[l] >> 2 & 3) << 4,
                        (ql[l] >> 4) | (qh[l] >> 4 & 3) << 4,
                        (ql[l + 32] >> 4) | (qh[l] >> 6 & 3) << 4,
                    ];
                    for (k, q) in q.into_iter().enumerate() {
                        let scale = f64::from(sc[l / 16 + 2 * k] as i8);
                        y[128 * n + l + 32 * k] = h(208) * scale * (f64::from(q) - 32.0);
                    }
                }
            }
        }
        _ => unreachable!(),
    }
    y
}

proptest! {
    #[test]
    fn blocks_decode_as_ggml_says(seed: u64, dtype in prop::sample::select(DType::ALL[3..].to_vec())) {
        let bytes = random_bytes(dtype, 3, dtype.block_len(), seed);
        let mut values = vec![0.0; 3 * dtype.block_len()];
        dequantize(dtype, &bytes, &mut values);
        let expected: Vec<f64> = bytes.chunks(dtype.block_bytes()).flat_map(|block| literal(dtype, block)).collect();
        for (index, (value, expected)) in values.iter().zip(expected).enumerate() {
            let close = (f64::from(*value) - expected).abs() <= 1e-5 * (1.0 + expected.abs());
            prop_assert!(close, "{index}: {value} {expected}");
        }
    }
}

#[test]
fn plain_elements_decode() {
    let mut out = [0.0; 3];
    let halves: Vec<u8> = [1.5f32, -0.25, 65504.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    dequantize(DType::F16, &halves, &mut out);
    assert_eq!(out, [1.5, -0.25, 65504.0]);
    dequantize(DType::BF16, &[0x80, 0x3f, 0x00, 0xc0, 0x20, 0x41], &mut out);
    assert_eq!(out, [1.0, -2.0, 10.0]);
    dequantize(DType::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0x20, 0x41], &mut out);
    assert_eq!(out, [1.0, 0.0, 10.0]);
}

/// The values of the fixtures, and what GGML makes of them.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("fixtures/", $name)).as_slice()
    };
}

fn fixture_values() -> Vec<f32> {
    let (values, rest) = fixture!("values.f32").as_chunks::<4>();
    assert!(rest.is_empty());
    values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn blocks_of_32_are_encoded_as_ggml_does() {
    let formats = [
        (DType::Q4_0, fixture!("q4_0.bin")),
        (DType::Q4_1, fixture!("q4_1.bin")),
        (DType::Q5_0, fixture!("q5_0.bin")),
        (DType::Q5_1, fixture!("q5_1.bin")),
        (DType::Q8_0, fixture!("q8_0.bin")),
    ];
    for (dtype, expected) in formats {
        let ours = quantize(dtype, &fixture_values()).unwrap();
        let differs = ours.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((ours.len(), differs), (expected.len(), None), "{dtype}");
    }
}

#[test]
fn blocks_of_256_are_as_near_as_those_of_ggml() {
    let values = fixture_values();
    let error = |dtype: DType, bytes: &[u8]| -> f64 {
        let mut decoded = vec![0.0; values.len()];
        dequantize(dtype, bytes, &mut decoded);
        values.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let formats =
        [(DType::Q4K, fixture!("q4_k.bin")), (DType::Q5K, fixture!("q5_k.bin")), (DType::Q6K, fixture!("q6_k.bin"))];
    for (dtype, expected) in formats {
        let ours = quantize(dtype, &values).unwrap();
        assert_eq!(ours.len(), expected.len());
        let (ours, ggml) = (error(dtype, &ours), error(dtype, expected));
        assert!(ours <= 1.03 * ggml, "{dtype}: squared error {ours:.3e}, GGML has {ggml:.3e}");
    }
}

#[test]
fn plain_formats_are_rounded_and_what_cannot_be_held_is_refused() {
    let values = [1.5, -0.25, 3.0e-5, 70_000.0];
    for dtype in [DType::F32, DType::BF16] {
        let mut decoded = [0.0; 4];
        dequantize(dtype, &quantize(dtype, &values).unwrap(), &mut decoded);
        for (a, b) in values.iter().zip(decoded) {
            assert!((a - b).abs() <= a.abs() / 256.0, "{dtype}");
        }
    }
    let refused = quantize(DType::Q8_0, &[0.0; 33]).unwrap_err();
    assert!(refused.to_string().contains("blocks of 32"), "{refused}");
    let mut infinite = [0.5; 32];
    infinite[7] = f32::INFINITY;
    let refused = quantize(DType::Q4_0, &infinite).unwrap_err();
    assert!(refused.to_string().contains("value 7 is inf"), "{refused}");
}
