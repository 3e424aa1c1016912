//! The index of one column: a graph, and the rows that are not in it yet.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use hypr_common::{Error, Result};
use hypr_tensor::Distances;
use parking_lot::{Mutex, RwLock};

use crate::best::Best;
use crate::graph::{Blocks, Graph};
use crate::metric::ExactQuery;
use crate::rows::Rows;
use crate::search::{Neighbor, Scratch, Search};
use crate::{Metric, Params};

/// Runs of new rows are not joined beyond this many rows: copying them again costs more than it saves.
const JOIN_ROWS: usize = 4096;

/// Why a row has no place in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// It has no vector.
    Null,
    /// Its distance is NULL: a zero vector has no cosine.
    Undefined,
    /// It has a value that is infinite or no number.
    NotFinite,
}

impl Odd {
    /// Why a row with this vector has no place; none for one that has.
    pub fn of(metric: Metric, vector: Option<&[f32]>) -> Option<Self> {
        match vector {
            None => Some(Self::Null),
            Some(vector) => oddity(metric, vector),
        }
    }
}

/// What an index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Rows in the graph.
    pub graph_rows: usize,
    /// Of those, rows known to be gone.
    pub dead_rows: usize,
    /// Rows that are compared one by one, since they are new or few.
    pub pending_rows: usize,
    /// Rows without a distance.
    pub odd_rows: usize,
    /// Memory, about.
    pub bytes: usize,
}

/// The rows of an index at one moment.
#[derive(Debug)]
pub struct Frozen {
    runs: Arc<Vec<Arc<Rows>>>,
    blocks: Option<Arc<Blocks>>,
    odd: BTreeMap<u64, Odd>,
}

/// Runs of rows that are not in the graph.
#[derive(Debug, Default)]
struct Pending {
    runs: Vec<Arc<Rows>>,
    /// The first of them are on their way into the graph and must stay what they are.
    frozen: usize,
}

/// The vectors of one column, searchable by one metric.
#[derive(Debug)]
pub struct Index {
    metric: Metric,
    dims: usize,
    params: Params,
    kernels: Distances,
    pending: Mutex<Pending>,
    /// What searches see of `pending`.
    runs: ArcSwap<Vec<Arc<Rows>>>,
    graph: OnceLock<Graph>,
    odd: RwLock<BTreeMap<u64, Odd>>,
    /// One absorption at a time.
    absorbing: Mutex<()>,
    scratches: Mutex<Vec<Scratch>>,
}

impl Index {
    /// An empty index of vectors of `dims` values.
    ///
    /// # Errors
    /// `InvalidInput` for parameters out of bounds.
    pub fn new(metric: Metric, dims: usize, params: Params) -> Result<Self> {
        if dims == 0 {
            return Err(Error::invalid("an index needs vectors of at least one dimension"));
        }
        if !(2..=128).contains(&params.m) {
            return Err(Error::invalid(format!("m is {}; it is from 2 to 128", params.m)));
        }
        if !(params.m..=10_000).contains(&params.ef_construction) {
            let message = format!("ef_construction is {}; it is from m to 10000", params.ef_construction);
            return Err(Error::invalid(message));
        }
        if !(1..=100_000).contains(&params.ef_search) {
            return Err(Error::invalid(format!("ef_search is {}; it is from 1 to 100000", params.ef_search)));
        }
        Ok(Self {
            metric,
            dims,
            params,
            kernels: Distances::default(),
            pending: Mutex::default(),
            runs: ArcSwap::default(),
            graph: OnceLock::new(),
            odd: RwLock::default(),
            absorbing: Mutex::default(),
            scratches: Mutex::default(),
        })
    }

    /// The metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Values of a vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// How its graph is built.
    pub fn params(&self) -> Params {
        self.params
    }

    /// Adds rows, which the next search finds. A row id is added once.
    ///
    /// # Errors
    /// `InvalidInput` for a vector of another width; nothing is added then.
    pub fn append<'a>(&self, rows: impl IntoIterator<Item = (u64, Option<&'a [f32]>)>) -> Result<()> {
        let (mut ids, mut vectors, mut odd) = (Vec::new(), Vec::new(), Vec::new());
        for (id, vector) in rows {
            match vector {
                None => odd.push((id, Odd::Null)),
                Some(vector) if vector.len() != self.dims => return Err(wrong_width(self.dims, "a row", vector.len())),
                Some(vector) => match oddity(self.metric, vector) {
                    Some(why) => odd.push((id, why)),
                    None => {
                        ids.push(id);
                        vectors.extend_from_slice(vector);
                    }
                },
            }
        }
        if !odd.is_empty() {
            self.odd.write().extend(odd);
        }
        if !ids.is_empty() {
            self.push(Rows::new(ids, vectors, self.dims, self.kernels));
        }
        Ok(())
    }

    fn push(&self, rows: Rows) {
        let mut pending = self.pending.lock();
        pending.runs.push(Arc::new(rows));
        while let [.., a, b] = &pending.runs[pending.frozen..]
            && b.len() * 2 > a.len()
            && a.len() + b.len() <= JOIN_ROWS
        {
            let joined = Arc::new(Rows::concat([&**a, &**b], self.dims));
            let keep = pending.runs.len() - 2;
            pending.runs.truncate(keep);
            pending.runs.push(joined);
        }
        self.runs.store(Arc::new(pending.runs.clone()));
    }

    /// Forgets rows that no later reader sees; searches then need not pass over them.
    pub fn remove(&self, ids: impl IntoIterator<Item = u64>) {
        let blocks = self.graph.get().map(Graph::blocks);
        let pending = self.pending.lock();
        let mut odd = self.odd.write();
        for id in ids {
            let found = pending.runs.iter().any(|rows| rows.remove(id));
            if !found && !blocks.as_ref().is_some_and(|blocks| blocks.remove(id)) {
                odd.remove(&id);
            }
        }
    }

    /// Moves the rows that are compared one by one into the graph, on `threads` threads. Takes as long as it takes;
    /// searches and appends go on.
    pub fn absorb(&self, threads: usize) {
        let _absorbing = self.absorbing.lock();
        let taken = {
            let mut pending = self.pending.lock();
            pending.frozen = pending.runs.len();
            pending.runs.clone()
        };
        let rows = Rows::concat(taken.iter().map(|run| &**run), self.dims);
        if rows.len() > 0 {
            let graph = self.graph.get_or_init(|| Graph::new(self.metric, self.dims, &rows, self.params, self.kernels));
            graph.add(&rows, threads.max(1));
            // Rows that went while the graph was built.
            let blocks = graph.blocks();
            for run in &taken {
                for at in (0..run.len()).filter(|at| run.is_dead(*at)) {
                    blocks.remove(run.ids[at]);
                }
            }
        }
        let mut pending = self.pending.lock();
        pending.runs.drain(..taken.len());
        pending.frozen = 0;
        self.runs.store(Arc::new(pending.runs.clone()));
    }

    /// The rows it holds now, for another index to [restore](Self::restore).
    pub fn frozen(&self) -> Frozen {
        // The runs first, as in a search.
        let runs = self.runs.load_full();
        Frozen { runs, blocks: self.graph.get().map(Graph::blocks), odd: self.odd.read().clone() }
    }

    /// Adds the rows of another index of the same column, but for those that are gone.
    pub fn restore(&self, frozen: &Frozen) {
        let stored = frozen.blocks.iter().flat_map(|blocks| blocks.blocks.iter().map(|block| &block.rows));
        let rows = Rows::concat(stored.chain(frozen.runs.iter().map(|run| &**run)), self.dims).distinct(self.dims);
        self.odd.write().extend(&frozen.odd);
        if rows.len() > 0 {
            self.push(rows);
        }
    }

    /// The nearest rows, ascending by distance, then row id.
    ///
    /// # Errors
    /// `InvalidInput` for a query of another width, with a value that is no finite number, or of length 0 for the
    /// cosine.
    pub fn search(&self, search: &Search<'_>) -> Result<Vec<Neighbor>> {
        Self::check_query(self.metric, self.dims, search.query)?;
        let query = ExactQuery::new(self.metric, search.query, self.kernels);
        let mut best = Best::new(search.k, search.ties);
        if search.k == 0 {
            return Ok(Vec::new());
        }
        // The runs first: a row that moves meanwhile is then seen in both places, and not in neither.
        let runs = self.runs.load_full();
        for run in runs.iter() {
            search.scan(&query, run, &mut best);
        }
        if let Some(graph) = self.graph.get() {
            let mut scratch = self.scratches.lock().pop().unwrap_or_default();
            let ef = search.ef.unwrap_or(self.params.ef_search).max(search.k);
            search.walk(&query, graph, ef, &mut best, &mut scratch);
            self.scratches.lock().push(scratch);
        }
        Ok(best.into_vec())
    }

    /// Checks that a query can be compared with vectors of `dims` values.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn check_query(metric: Metric, dims: usize, query: &[f32]) -> Result<()> {
        if query.len() != dims {
            return Err(wrong_width(dims, "the query", query.len()));
        }
        match oddity(metric, query) {
            None => Ok(()),
            Some(Odd::Undefined) => Err(Error::invalid("the query vector has length 0: it has no cosine with any")),
            Some(_) => Err(Error::invalid("the query vector has a value that is infinite or no number")),
        }
    }

    /// True when a row without a distance passes `visible`.
    pub fn any_odd(&self, mut visible: impl FnMut(u64, Odd) -> bool) -> bool {
        self.odd.read().iter().any(|(id, why)| visible(*id, *why))
    }

    /// What it holds.
    pub fn stats(&self) -> IndexStats {
        let blocks = self.graph.get().map(Graph::blocks);
        let graph_rows = blocks.as_ref().map_or(0, |blocks| blocks.len());
        let runs = self.runs.load();
        IndexStats {
            graph_rows,
            dead_rows: graph_rows - blocks.as_ref().map_or(0, |blocks| blocks.live()),
            pending_rows: runs.iter().map(|run| run.live()).sum(),
            odd_rows: self.odd.read().len(),
            bytes: self.graph.get().map_or(0, Graph::bytes) + runs.iter().map(|run| run.bytes()).sum::<usize>(),
        }
    }

    /// Bytes that an index of `rows` rows will hold, about.
    pub fn estimated_bytes(dims: usize, rows: usize, params: &Params) -> usize {
        let code = (dims + 13).next_multiple_of(64);
        rows.saturating_mul(dims * 4 + code + params.m * 9 + 32)
    }
}

/// Why a vector cannot be compared.
pub(crate) fn oddity(metric: Metric, vector: &[f32]) -> Option<Odd> {
    if vector.iter().any(|value| !value.is_finite()) {
        return Some(Odd::NotFinite);
    }
    let undefined = metric == Metric::Cosine && vector.iter().all(|value| *value == 0.0);
    undefined.then_some(Odd::Undefined)
}

fn wrong_width(dims: usize, what: &str, got: usize) -> Error {
    Error::invalid(format!("the column has vectors of {dims} dimensions, {what} has {got}"))
}
