//! Throughput of the products that decide the speed of generation, embedding and prompt reading.
//!
//! Floors. A matrix-vector product reads each weight once, so it cannot be faster than memory: bytes per second here
//! stand against the machine's read bandwidth (some 10 to 15 GB/s a core for the 98 MB of SmolLM2-135M, which
//! stays out of the second-level cache; about 300 tokens/s on two cores). A matrix-matrix product is bound by
//! arithmetic: with VNNI, two 512-bit instructions a cycle of 64 multiply-adds, about 350 G multiply-adds a
//! second and core at 2.8 GHz; in `f32`, two of 16, about 90 G.
//!
//! `smollm2` strings the 211 products of SmolLM2-135M-Instruct Q4_1 together, without attention and norms.

use std::time::Duration;

use arrow_buffer::Buffer;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hypr_tensor::{Attention, DType, Kernels, KvRows, Level, Linear, Mask, Pool, Scratch, WeightArray};

const THREADS: usize = 2;

/// A tensor of arbitrary integers with scales of about 0.01.
fn weight(dtype: DType, rows: usize, cols: usize) -> WeightArray {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(rows * dtype.row_bytes(cols).expect("whole blocks"));
    for _ in 0..rows * cols / dtype.block_len() {
        let start = bytes.len();
        for _ in 0..dtype.block_bytes() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
        match dtype {
            DType::F32 => bytes[start..].copy_from_slice(&0.01f32.to_le_bytes()),
            _ => bytes[start..start + 2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes()),
        }
        if dtype == DType::Q4_1 {
            bytes[start + 2..start + 4].copy_from_slice(&half::f16::from_f32(-0.08).to_le_bytes());
        }
    }
    WeightArray::new(dtype, vec![rows, cols], vec![Buffer::from(bytes)]).expect("sizes match")
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

fn levels() -> impl Iterator<Item = Level> {
    [Level::Avx2, Level::Avx512, Level::Amx, Level::Neon].into_iter().filter(|level| level.is_supported())
}

fn kernels(level: Level) -> Kernels {
    Kernels::with_level(level, Pool::new(THREADS)).expect("supported")
}

fn products(c: &mut Criterion) {
    let shapes =
        [(DType::Q4_1, 576, 1536), (DType::Q4_1, 1536, 576), (DType::Q8_0, 49152, 576), (DType::F32, 384, 1536)];
    for (dtype, rows, cols) in shapes {
        let weight = weight(dtype, rows, cols);
        for n in [1, 128] {
            let mut group = c.benchmark_group(format!("{dtype}_{rows}x{cols}_n{n}"));
            group.throughput(if n == 1 {
                Throughput::Bytes(weight.bytes() as u64)
            } else {
                Throughput::Elements((rows * cols * n) as u64)
            });
            let (x, mut out, mut scratch) = (values(n * cols), vec![0.0; n * rows], Scratch::new());
            for level in levels() {
                let kernels = kernels(level);
                group.bench_function(BenchmarkId::from_parameter(level), |b| {
                    b.iter(|| kernels.linear(&x, n, &weight, None, &mut out, &mut scratch));
                });
            }
        }
    }
}

fn smollm2(c: &mut Criterion) {
    const SHAPES: [(usize, usize); 7] =
        [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    let layers: Vec<Vec<WeightArray>> =
        (0..30).map(|_| SHAPES.iter().map(|&(rows, cols)| weight(DType::Q4_1, rows, cols)).collect()).collect();
    let head = weight(DType::Q8_0, 49152, 576);
    for n in [1, 4, 256] {
        let mut group = c.benchmark_group(format!("smollm2_n{n}"));
        group.throughput(Throughput::Elements(n as u64));
        let (x, hidden) = (values(n * 576), values(n * 1536));
        let mut outs: Vec<Vec<f32>> = SHAPES.iter().map(|&(rows, _)| vec![0.0; n * rows]).collect();
        let (mut logits, mut scratch) = (vec![0.0; 49152], Scratch::new());
        for level in levels() {
            let kernels = kernels(level);
            group.bench_function(BenchmarkId::from_parameter(level), |b| {
                b.iter(|| {
                    for layer in &layers {
                        for (range, x) in [(0..3, &x), (3..4, &x), (4..6, &x), (6..7, &hidden)] {
                            let mut products: [Option<Linear<'_>>; 3] = [const { None }; 3];
                            for ((slot, weight), out) in
                                products.iter_mut().zip(&layer[range.clone()]).zip(&mut outs[range.clone()])
                            {
                                *slot = Some(Linear { weight, bias: None, out });
                            }
                            let mut products: Vec<_> = products.into_iter().flatten().collect();
                            kernels.linear_many(x, n, &mut products, &mut scratch);
                        }
                    }
                    kernels.linear(&x[..576], 1, &head, None, &mut logits, &mut scratch);
                });
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    let (heads, kv_heads, head_dim, tokens) = (9, 3, 64, 512);
    let cache = values(tokens * kv_heads * head_dim);
    for n in [1, tokens] {
        let (queries, mut out) = (values(n * heads * head_dim), vec![0.0; n * heads * head_dim]);
        let mut group = c.benchmark_group(format!("attention_{n}x{tokens}"));
        group.throughput(Throughput::Elements(n as u64));
        for level in levels() {
            let kernels = kernels(level);
            let attention = Attention {
                queries: &queries,
                keys: KvRows::F32(&cache),
                values: KvRows::F32(&cache),
                heads,
                kv_heads,
                head_dim,
                scale: 0.125,
                mask: Mask::Causal { start: tokens - n },
            };
            group.bench_function(BenchmarkId::from_parameter(level), |b| {
                b.iter(|| kernels.attention(&attention, &mut out));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = products, smollm2, attention
}
criterion_main!(benches);
