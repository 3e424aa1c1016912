//! Builds an index over a file of vectors, searches it for those of another, and prints what that took as JSON.
//!
//!     cargo run --release -p hypr-ann --example recall -- ROWS QUERIES TRUTH DIMS METRIC
//!
//! ROWS and QUERIES are little-endian `f32` without a header, TRUTH the positions of the ten true neighbours of each
//! query as little-endian `u32`.

use std::path::Path;
use std::time::Instant;

use hypr_ann::{Index, Metric, Params, Search};

const K: usize = 10;

fn words(path: &str) -> Result<Vec<[u8; 4]>, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(Path::new(path))?;
    Ok(bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect())
}

fn floats(path: &str) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    Ok(words(path)?.into_iter().map(f32::from_le_bytes).collect())
}

/// Searches for every query on `threads` threads, each all of them.
fn queries_per_second(index: &Index, queries: &[f32], ef: usize, threads: usize) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| queries.chunks_exact(index.dims()).for_each(|query| drop(search(index, query, ef))));
        }
    });
    (threads * queries.len() / index.dims()) as f64 / start.elapsed().as_secs_f64()
}

fn search(index: &Index, query: &[f32], ef: usize) -> Vec<u32> {
    let search = Search { query, k: K, ef: Some(ef), allowed: None, live: &|_| true, ties: false };
    index.search(&search).map(|found| found.iter().map(|neighbor| neighbor.row_id as u32).collect()).unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, queries, truth, dims, metric] = arguments.as_slice() else {
        return Err("usage: recall ROWS QUERIES TRUTH DIMS METRIC".into());
    };
    let (rows, queries, dims) = (floats(rows)?, floats(queries)?, dims.parse::<usize>()?);
    let truth: Vec<u32> = words(truth)?.into_iter().map(u32::from_le_bytes).collect();
    let start = Instant::now();
    let index = Index::new(Metric::parse(metric)?, dims, Params::default())?;
    index.append(rows.chunks_exact(dims).enumerate().map(|(id, row)| (id as u64, Some(row))))?;
    index.absorb(2);
    let build_s = start.elapsed().as_secs_f64();
    drop(rows);
    let mut points = Vec::new();
    for ef in [16, 32, 48, 64, 96, 128] {
        let pairs = queries.chunks_exact(dims).zip(truth.chunks_exact(K));
        let hits: usize = pairs
            .map(|(query, truth)| {
                let found = search(&index, query, ef);
                truth.iter().filter(|row| found.contains(row)).count()
            })
            .sum();
        let recall = hits as f64 / truth.len() as f64;
        let (one, two) = (queries_per_second(&index, &queries, ef, 1), queries_per_second(&index, &queries, ef, 2));
        points.push(format!(r#"{{"ef":{ef},"recall":{recall:.4},"qps_1_thread":{one:.0},"qps_2_threads":{two:.0}}}"#));
    }
    let mib = index.stats().bytes >> 20;
    println!(r#"{{"build_s":{build_s:.2},"memory_mib":{mib},"points":[{}]}}"#, points.join(","));
    Ok(())
}
