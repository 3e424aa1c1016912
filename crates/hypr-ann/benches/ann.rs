//! Build and search of an index over the vectors of a file.
//!
//! `HYPR_ANN_VECTORS` names a file of `f32` rows and `HYPR_ANN_QUERIES` one of queries, both `HYPR_ANN_DIMS` wide,
//! without headers; without them 20,000 seeded rows of 128 values in 100 clusters stand in.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hypr_ann::{ExactScan, Index, Metric, Params, Search};

struct Data {
    dims: usize,
    rows: Vec<f32>,
    queries: Vec<f32>,
}

fn floats(variable: &str) -> Option<Vec<f32>> {
    let bytes = std::fs::read(std::env::var(variable).ok()?).expect("the file can be read");
    Some(bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
}

fn clusters(n: usize, dims: usize, state: &mut u64) -> Vec<f32> {
    let mut float = move || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let centres: Vec<f32> = (0..100 * dims).map(|_| float() * 2.0).collect();
    (0..n * dims).map(|at| centres[(at / dims % 100) * dims + at % dims] + float()).collect()
}

fn data() -> Data {
    match (floats("HYPR_ANN_VECTORS"), floats("HYPR_ANN_QUERIES")) {
        (Some(rows), Some(queries)) => {
            let dims = std::env::var("HYPR_ANN_DIMS").ok().and_then(|dims| dims.parse().ok()).unwrap_or(784);
            Data { dims, rows, queries }
        }
        _ => {
            let all = clusters(21_000, 128, &mut 7);
            Data { dims: 128, rows: all[..20_000 * 128].to_vec(), queries: all[20_000 * 128..].to_vec() }
        }
    }
}

fn build(data: &Data, metric: Metric, threads: usize) -> Index {
    let index = Index::new(metric, data.dims, Params::default()).expect("parameters");
    index.append(data.rows.chunks_exact(data.dims).enumerate().map(|(id, row)| (id as u64, Some(row)))).expect("rows");
    index.absorb(threads);
    index
}

fn search(index: &Index, query: &[f32], ef: usize) -> Vec<u64> {
    let search = Search { query, k: 10, ef: Some(ef), allowed: None, live: &|_| true, ties: false };
    index.search(&search).expect("search").iter().map(|neighbor| neighbor.row_id).collect()
}

fn recall(index: &Index, data: &Data, ef: usize) -> f64 {
    let (mut hits, mut wanted) = (0, 0);
    for query in data.queries.chunks_exact(data.dims).take(300) {
        let mut scan = ExactScan::new(index.metric(), query, 10, false);
        data.rows.chunks_exact(data.dims).enumerate().for_each(|(id, row)| scan.consider(id as u64, row));
        let found = search(index, query, ef);
        wanted += 10;
        hits += scan.finish().iter().filter(|neighbor| found.contains(&neighbor.row_id)).count();
    }
    hits as f64 / wanted as f64
}

fn bench(criterion: &mut Criterion) {
    let data = data();
    for metric in [Metric::L2, Metric::Cosine] {
        let start = Instant::now();
        let index = build(&data, metric, 2);
        let stats = index.stats();
        println!(
            "{}: {} rows built on 2 threads in {:.2} s, {} MiB",
            metric.name(),
            stats.graph_rows,
            start.elapsed().as_secs_f64(),
            stats.bytes >> 20
        );
        let mut group = criterion.benchmark_group(format!("search_{}", metric.name()));
        group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(3));
        for ef in [16, 32, 48, 64, 96, 128] {
            println!("{} ef {ef}: recall@10 {:.4}", metric.name(), recall(&index, &data, ef));
            let mut queries = data.queries.chunks_exact(data.dims).cycle();
            group.bench_function(BenchmarkId::from_parameter(ef), |bencher| {
                bencher.iter(|| queries.next().map(|query| search(&index, query, ef)));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
