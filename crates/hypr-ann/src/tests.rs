//! Recall, freshness, filters and churn, on seeded clusters.

use std::collections::BTreeMap;

use hypr_tensor::Distances;

use crate::{ExactScan, Index, Metric, Neighbor, Odd, Params, RowSet, Search};

/// SplitMix64.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Vectors around cluster centres, which are the same for every seed.
fn clustered(n: usize, dims: usize, clusters: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut bits = Bits(0);
    let centres: Vec<Vec<f32>> = (0..clusters).map(|_| (0..dims).map(|_| bits.float() * 4.0).collect()).collect();
    let mut bits = Bits(seed + 1000);
    let row = |bits: &mut Bits| {
        let centre = bits.below(clusters);
        centres[centre].iter().map(|value| value + bits.float()).collect()
    };
    (0..n).map(|_| row(&mut bits)).collect()
}

/// An index and the rows that should be in it.
struct Model {
    index: Index,
    rows: BTreeMap<u64, Vec<f32>>,
}

impl Model {
    fn new(metric: Metric, dims: usize) -> Self {
        Self { index: Index::new(metric, dims, Params::default()).unwrap(), rows: BTreeMap::new() }
    }

    fn append(&mut self, first: u64, vectors: &[Vec<f32>]) {
        let ids = first..first + vectors.len() as u64;
        self.index.append(ids.clone().zip(vectors.iter().map(|vector| Some(&vector[..])))).unwrap();
        self.rows.extend(ids.zip(vectors.iter().cloned()));
    }

    fn remove(&mut self, id: u64) {
        self.index.remove([id]);
        self.rows.remove(&id);
    }

    fn search(&self, query: &[f32], k: usize, allowed: Option<&RowSet>, ties: bool) -> Vec<Neighbor> {
        let live = |id: u64| self.rows.contains_key(&id);
        self.index.search(&Search { query, k, ef: None, allowed, live: &live, ties }).unwrap()
    }

    fn exact(&self, query: &[f32], k: usize, allowed: Option<&RowSet>, ties: bool) -> Vec<Neighbor> {
        let mut scan = ExactScan::new(self.index.metric(), query, k, ties);
        let allowed = |id: u64| allowed.is_none_or(|allowed| allowed.contains(id));
        self.rows.iter().filter(|(id, _)| allowed(**id)).for_each(|(id, vector)| scan.consider(*id, vector));
        scan.finish()
    }

    /// The share of the true 10 nearest that searches find.
    fn recall(&self, queries: &[Vec<f32>], allowed: Option<&RowSet>) -> f64 {
        let (mut hits, mut wanted) = (0, 0);
        for query in queries {
            let found = self.search(query, 10, allowed, false);
            for neighbor in self.exact(query, 10, allowed, false) {
                wanted += 1;
                hits += usize::from(found.contains(&neighbor));
            }
        }
        hits as f64 / f64::from(wanted)
    }
}

#[test]
fn few_rows_are_compared_exactly() {
    for metric in Metric::ALL {
        let mut model = Model::new(metric, 7);
        model.append(5, &clustered(300, 7, 5, 1));
        for query in clustered(20, 7, 5, 2) {
            assert_eq!(model.search(&query, 10, None, false), model.exact(&query, 10, None, false), "{metric:?}");
        }
        assert_eq!(model.search(&[1.0; 7], 400, None, false).len(), 300);
        assert_eq!(model.search(&[1.0; 7], 0, None, false), []);
    }
}

#[test]
fn a_graph_finds_nearly_all() {
    for metric in Metric::ALL {
        let mut model = Model::new(metric, 24);
        model.append(0, &clustered(6000, 24, 30, 3));
        model.index.absorb(2);
        assert_eq!(model.index.stats().graph_rows, 6000);
        let recall = model.recall(&clustered(200, 24, 30, 4), None);
        assert!(recall >= 0.95, "{metric:?}: {recall}");
    }
}

#[test]
fn more_rows_than_there_are_gives_all_of_them() {
    let mut model = Model::new(Metric::L2, 8);
    model.append(0, &clustered(3000, 8, 10, 5));
    model.index.absorb(2);
    let query = [0.5; 8];
    assert_eq!(model.search(&query, 5000, None, false), model.exact(&query, 5000, None, false));
}

#[test]
fn new_rows_are_found_at_once_and_removed_ones_never() {
    let mut model = Model::new(Metric::Cosine, 16);
    model.append(0, &clustered(3000, 16, 10, 6));
    model.index.absorb(2);
    let query = clustered(1, 16, 10, 7).remove(0);
    model.append(10_000, std::slice::from_ref(&query));
    assert_eq!(model.search(&query, 1, None, false)[0].row_id, 10_000);
    // Not told to the index: only the reader knows.
    let mut missed = 0;
    for _ in 0..200 {
        let (nearest, exact) = (model.search(&query, 1, None, false)[0], model.exact(&query, 1, None, false)[0]);
        assert!(model.rows.contains_key(&nearest.row_id));
        missed += usize::from(nearest != exact);
        model.rows.remove(&exact.row_id);
    }
    assert!(missed <= 20, "{missed} of 200");
}

#[test]
fn churn_keeps_recall() {
    for metric in [Metric::L2, Metric::Cosine] {
        let (n, dims) = (6000, 20);
        let mut model = Model::new(metric, dims);
        model.append(0, &clustered(n, dims, 25, 8));
        model.index.absorb(2);
        let (mut bits, mut next) = (Bits(9), n as u64);
        for round in 0..6u64 {
            for _ in 0..n / 20 {
                let id = bits.next() % next;
                model.remove(id);
            }
            let fresh = clustered(n / 20, dims, 25, 100 + round);
            model.append(next, &fresh);
            next += fresh.len() as u64;
            model.index.absorb(2);
        }
        assert!(model.index.stats().dead_rows > n / 5);
        let queries = clustered(150, dims, 25, 10);
        let recall = model.recall(&queries, None);
        assert!(recall >= 0.95, "{metric:?}: {recall}");
        let next = Index::new(metric, dims, Params::default()).unwrap();
        next.restore(&model.index.frozen());
        next.absorb(2);
        assert_eq!((next.stats().graph_rows, next.stats().dead_rows), (model.rows.len(), 0));
        model.index = next;
        let recall = model.recall(&queries, None);
        assert!(recall >= 0.95, "{metric:?} made anew: {recall}");
    }
}

#[test]
fn filters_of_any_share_are_served() {
    let mut model = Model::new(Metric::L2, 16);
    model.append(0, &clustered(8000, 16, 20, 11));
    model.index.absorb(2);
    let queries = clustered(60, 16, 20, 12);
    for share in [2, 3, 10, 100, 2000] {
        let allowed: RowSet = (0..8000).filter(|id| id % share == 0).collect();
        let recall = model.recall(&queries, Some(&allowed));
        assert!(recall >= 0.95, "one in {share}: {recall}");
        for query in &queries {
            assert!(model.search(query, 10, Some(&allowed), false).iter().all(|n| n.row_id % share == 0));
        }
    }
    let none = RowSet::default();
    assert_eq!(model.search(&queries[0], 10, Some(&none), false), []);
}

/// The allowed rows are the farthest from the query.
#[test]
fn a_filter_against_the_query_is_served() {
    let mut model = Model::new(Metric::L2, 8);
    model.append(0, &clustered(6000, 8, 6, 13));
    model.index.absorb(2);
    let query = clustered(1, 8, 6, 14).remove(0);
    let far = model.exact(&query, 6000, None, false);
    let allowed: RowSet = far[4500..].iter().map(|neighbor| neighbor.row_id).collect();
    let (found, exact) =
        (model.search(&query, 10, Some(&allowed), false), model.exact(&query, 10, Some(&allowed), false));
    let hits = exact.iter().filter(|neighbor| found.contains(neighbor)).count();
    assert!(found.len() == 10 && hits >= 9, "{hits} of 10");
}

#[test]
fn ties_are_all_given_when_asked_for() {
    let mut model = Model::new(Metric::L2, 2);
    let rows: Vec<Vec<f32>> = (0..12).map(|row| vec![(row / 4) as f32, 0.0]).collect();
    model.append(0, &rows);
    let ids = |ties| -> Vec<u64> { model.search(&[0.0, 0.0], 5, None, ties).iter().map(|n| n.row_id).collect() };
    assert_eq!(ids(false), [0, 1, 2, 3, 4]);
    assert_eq!(ids(true), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn rows_without_a_distance_are_kept_apart() {
    let index = Index::new(Metric::Cosine, 2, Params::default()).unwrap();
    let rows: [(u64, Option<&[f32]>); 4] =
        [(0, None), (1, Some(&[0.0, 0.0])), (2, Some(&[f32::NAN, 1.0])), (3, Some(&[1.0, 0.0]))];
    index.append(rows).unwrap();
    let live = |_: u64| true;
    let search = Search { query: &[1.0, 1.0], k: 9, ef: None, allowed: None, live: &live, ties: false };
    assert_eq!(index.search(&search).unwrap().iter().map(|n| n.row_id).collect::<Vec<_>>(), [3]);
    let mut odd = Vec::new();
    index.any_odd(|id, why| {
        odd.push((id, why));
        false
    });
    assert_eq!(odd, [(0, Odd::Null), (1, Odd::Undefined), (2, Odd::NotFinite)]);
    index.remove([1, 2]);
    assert_eq!(index.stats().odd_rows, 1);
}

#[test]
fn bad_input_is_refused_by_name() {
    let index = Index::new(Metric::Cosine, 2, Params::default()).unwrap();
    let message = |query: &[f32]| {
        let live = |_: u64| true;
        let search = Search { query, k: 1, ef: None, allowed: None, live: &live, ties: false };
        index.search(&search).unwrap_err().message().to_owned()
    };
    assert!(message(&[1.0]).contains("2 dimensions, the query has 1"));
    assert!(message(&[0.0, 0.0]).contains("length 0"));
    assert!(message(&[f32::INFINITY, 0.0]).contains("infinite"));
    let wide: [(u64, Option<&[f32]>); 1] = [(0, Some(&[1.0, 2.0, 3.0]))];
    assert!(index.append(wide).unwrap_err().message().contains("a row has 3"));
    let params = |m, ef_construction| Params { m, ef_construction, ..Params::default() };
    for (m, ef) in [(1, 100), (200, 300), (16, 4)] {
        assert!(Index::new(Metric::L2, 2, params(m, ef)).is_err(), "{m} {ef}");
    }
    assert!(Index::new(Metric::L2, 0, Params::default()).is_err());
    assert!(Metric::parse("hamming").unwrap_err().message().contains("cosine, l2, inner_product"));
}

#[test]
fn searches_and_appends_go_on_during_an_absorption() {
    let index = Index::new(Metric::L2, 8, Params::default()).unwrap();
    let rows = clustered(4000, 8, 10, 15);
    let with_ids = |from: usize, to: usize| (from..to).map(|at| (at as u64, Some(&rows[at][..])));
    index.append(with_ids(0, 3000)).unwrap();
    std::thread::scope(|scope| {
        let building = scope.spawn(|| index.absorb(2));
        for (at, row) in rows.iter().enumerate().skip(3000) {
            index.append(with_ids(at, at + 1)).unwrap();
            let search = Search { query: row, k: 1, ef: None, allowed: None, live: &|_| true, ties: false };
            assert_eq!(index.search(&search).unwrap()[0].row_id, at as u64);
        }
        building.join().unwrap();
    });
    index.absorb(2);
    assert_eq!((index.stats().graph_rows, index.stats().pending_rows), (4000, 0));
    let kernels = Distances::default();
    let missed = (0..4000usize).filter(|at| {
        let search = Search { query: &rows[*at], k: 1, ef: None, allowed: None, live: &|_| true, ties: false };
        let found = index.search(&search).unwrap()[0].row_id as usize;
        kernels.squared_l2(&rows[found], &rows[*at]) > 0.0
    });
    assert!(missed.count() < 40);
}

#[test]
fn row_sets_hold_what_was_put_in() {
    let ids = [0u64, 1, 63, 64, 65_535, 65_536, 1_000_000];
    let set: RowSet = ids.into_iter().chain([64]).collect();
    assert_eq!(set.iter().collect::<Vec<_>>(), ids);
    assert_eq!(set.len(), ids.len());
    assert!(!set.contains(2) && !set.contains(u64::from(u32::MAX)) && set.contains(1_000_000));
}
