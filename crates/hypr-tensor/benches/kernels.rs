//! Throughput of the products that decide the speed of generation, embedding and prompt reading.
//!
//! Floors. A matrix-vector product reads each weight once, so it cannot be faster than memory: bytes per second here
//! stand against the machine's read bandwidth (some 10 to 15 GB/s a core for the 98 MB of SmolLM2-135M, which
//! stays out of the second-level cache; about 300 tokens/s on two cores). A matrix-matrix product is bound by
//! arithmetic: with VNNI, two 512-bit instructions a cycle of 64 multiply-adds, about 350 G multiply-adds a
//! second and core at 2.8 GHz; in `f32`, two of 16, about 90 G.
//!
//! `networks` strings the products of a network together, without attention and norms: the 211 of SmolLM2-135M-Instruct
//! Q4_1, the 36 of MiniLM in Q8_0, some layers of Qwen2.5-1.5B in Q4_K.

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
    let shapes = [
        (DType::Q4_1, 576, 1536),
        (DType::Q4_1, 1536, 576),
        (DType::Q8_0, 49152, 576),
        (DType::F32, 384, 1536),
        (DType::Q6K, 151_936, 1536),
        (DType::Q4K, 151_936, 1536),
    ];
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

/// The products of a network's layers, one after the other.
struct Network {
    name: &'static str,
    dtype: DType,
    layers: usize,
    hidden: usize,
    inner: usize,
    /// Rows of the products of each call; the last has `inner` columns and the others `hidden`.
    calls: &'static [&'static [usize]],
    /// Rows of the output head, in `Q8_0`.
    vocab: usize,
}

const SMOLLM2: Network = Network {
    name: "smollm2",
    dtype: DType::Q4_1,
    layers: 30,
    hidden: 576,
    inner: 1536,
    calls: &[&[576, 192, 192], &[576], &[1536, 1536], &[576]],
    vocab: 49152,
};
const MINILM: Network = Network {
    name: "minilm",
    dtype: DType::Q8_0,
    layers: 6,
    hidden: 384,
    inner: 1536,
    calls: &[&[384, 384, 384], &[384], &[1536], &[384]],
    vocab: 0,
};
/// A seventh of the layers of Qwen2.5-1.5B.
const QWEN2: Network = Network {
    name: "qwen2_1.5b_4_layers",
    dtype: DType::Q4K,
    layers: 4,
    hidden: 1536,
    inner: 8960,
    calls: &[&[1536, 256, 256], &[1536], &[8960, 8960], &[1536]],
    vocab: 0,
};

fn networks(c: &mut Criterion) {
    for (network, n) in
        [(SMOLLM2, 1), (SMOLLM2, 4), (SMOLLM2, 256), (MINILM, 12), (MINILM, 128), (QWEN2, 1), (QWEN2, 128)]
    {
        let Network { name, dtype, hidden, inner, calls, .. } = network;
        let cols = |call: usize| if call + 1 == calls.len() { inner } else { hidden };
        let call = |at: usize| calls[at].iter().map(|&rows| weight(dtype, rows, cols(at))).collect();
        let layers: Vec<Vec<Vec<WeightArray>>> =
            (0..network.layers).map(|_| (0..calls.len()).map(call).collect()).collect();
        let head = (network.vocab > 0).then(|| weight(DType::Q8_0, network.vocab, hidden));
        let mut group = c.benchmark_group(format!("{name}_n{n}"));
        group.throughput(Throughput::Elements(n as u64));
        let x = values(n * inner);
        let widest = calls.iter().map(|call| call.iter().sum::<usize>()).max().unwrap_or(0);
        let (mut out, mut logits, mut scratch) = (vec![0.0; n * widest], vec![0.0; network.vocab], Scratch::new());
        for level in levels() {
            let kernels = kernels(level);
            group.bench_function(BenchmarkId::from_parameter(level), |b| {
                b.iter(|| {
                    for (at, weights) in layers.iter().flat_map(|layer| layer.iter().enumerate()) {
                        let mut left = &mut out[..];
                        let mut products: Vec<Linear<'_>> = Vec::new();
                        for weight in weights {
                            let (out, rest) = left.split_at_mut(n * weight.rows());
                            left = rest;
                            products.push(Linear { weight, bias: None, out });
                        }
                        kernels.linear_many(&x[..n * cols(at)], n, &mut products, &mut scratch);
                    }
                    if let Some(head) = &head {
                        kernels.linear(&x[..hidden], 1, head, None, &mut logits, &mut scratch);
                    }
                });
            });
        }
    }
}

/// SmolLM2-135M-Instruct with one and with all queries of 512 tokens, and a passage in all-MiniLM-L6-v2.
fn attention(c: &mut Criterion) {
    for (heads, kv_heads, head_dim, n, tokens, full) in
        [(9, 3, 64, 1, 512, false), (9, 3, 64, 512, 512, false), (12, 12, 32, 105, 105, true)]
    {
        let cache = values(tokens * kv_heads * head_dim);
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
                mask: if full { Mask::Full } else { Mask::Causal { start: tokens - n } },
            };
            group.bench_function(BenchmarkId::from_parameter(level), |b| {
                b.iter(|| kernels.attention(&attention, &mut out));
            });
        }
    }
}

/// One query over 512 tokens of SmolLM2-135M-Instruct in half precision, in as many layers as no cache holds.
fn attention_from_memory(c: &mut Criterion) {
    const LAYERS: usize = 240;
    let (heads, kv_heads, head_dim, tokens) = (9, 3, 64, 512);
    let cache = |layer: usize| -> Vec<half::f16> {
        let values = values(tokens * kv_heads * head_dim);
        values.into_iter().map(|v| half::f16::from_f32(v * (layer + 1) as f32)).collect()
    };
    let caches: Vec<_> = (0..LAYERS).map(|layer| (cache(layer), cache(layer))).collect();
    let (queries, mut out) = (values(heads * head_dim), vec![0.0; heads * head_dim]);
    let mut group = c.benchmark_group(format!("attention_1x{tokens}_layers_{LAYERS}"));
    group.throughput(Throughput::Bytes((2 * LAYERS * size_of_val(&caches[0].0[..])) as u64));
    for level in levels() {
        let kernels = kernels(level);
        group.bench_function(BenchmarkId::from_parameter(level), |b| {
            b.iter(|| {
                for (keys, values) in &caches {
                    let (keys, values) = (KvRows::F16(keys), KvRows::F16(values));
                    let mask = Mask::Causal { start: tokens - 1 };
                    let attention =
                        Attention { queries: &queries, keys, values, heads, kv_heads, head_dim, scale: 0.125, mask };
                    kernels.attention(&attention, &mut out);
                }
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = products, networks, attention, attention_from_memory
}
criterion_main!(benches);
