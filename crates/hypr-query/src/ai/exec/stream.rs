//! The stream of [`super::GenerateExec`]: batches are cut into units of work that wait for one new request (or
//! one request of texts to embed) each; a bounded window of units runs, in order.
//!
//! The window is wider than the number of requests that may run, so that one long answer does not keep those behind it
//! from being made. Where only so many rows are wanted it is not: what is made ahead might not be read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::compute::{concat_batches, filter_record_batch};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::Result;
use datafusion::common::cast::as_boolean_array;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::BaselineMetrics;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use hypr_common::Error;
use hypr_inference::api::Inference;
use tokio::sync::Semaphore;

use super::answers::{self, Cache, Caller, RowAnswer};
use super::request::{Ask, Asker};
use super::{CallMetrics, PhysicalCall};
use crate::ai::AiOptions;
use crate::ai::answer::{AnswerCache, Pending};
use crate::ai::function::AiFunction;
use crate::ai::options::OnError;
use crate::error;

/// What a running operator works with.
pub(super) struct Work {
    pub calls: Arc<Vec<PhysicalCall>>,
    pub predicate: Option<Arc<dyn PhysicalExpr>>,
    pub schema: SchemaRef,
    pub inference: Arc<dyn Inference>,
    pub options: Arc<AiOptions>,
    pub cache: Option<Arc<AnswerCache>>,
    pub metrics: CallMetrics,
    /// The most rows to emit.
    pub fetch: Option<usize>,
}

/// Units in the window for each request that may run.
const AHEAD: usize = 4;

type Unit = BoxFuture<'static, Result<RecordBatch>>;

/// Rows of `input` with their answers.
pub(super) fn run(
    work: Work,
    input: SendableRecordBatchStream,
    baseline: BaselineMetrics,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let schema = Arc::clone(&work.schema);
    let (window, fetch) = (work.window(), work.fetch);
    let most_units = work.options.max_in_flight.max(1);
    let mut cutter = Cutter::new(work);
    let units = input.flat_map(move |batch| {
        let units = batch.and_then(|batch| cutter.cut(batch));
        stream::iter(units.unwrap_or_else(|error| vec![futures::future::ready(Err(error)).boxed()]))
    });
    let finished = units.buffered(window).ready_chunks(most_units);
    let batches = finished.map(move |done| {
        let done = done.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(concat_batches(&schema, &done)?)
    });
    let batches = batches.filter(|batch| {
        let keep = batch.as_ref().map_or(true, |batch| batch.num_rows() > 0);
        futures::future::ready(keep)
    });
    limited(batches, fetch).map(move |batch| {
        batch.inspect(|batch| {
            baseline.record_output(batch.num_rows());
        })
    })
}

/// The first `fetch` rows; the input is not asked for more, and is dropped with the last of them. Nothing
/// follows an error.
fn limited(
    batches: impl Stream<Item = Result<RecordBatch>> + Send,
    fetch: Option<usize>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let state = (fetch.unwrap_or(usize::MAX), Some(Box::pin(batches)));
    stream::unfold(state, |(left, batches)| async move {
        let mut batches = batches.filter(|_| left > 0)?;
        let batch = match batches.next().await? {
            Ok(batch) => batch,
            Err(error) => return Some((Err(error), (0, None))),
        };
        let batch = if batch.num_rows() > left { batch.slice(0, left) } else { batch };
        let left = left - batch.num_rows();
        Some((Ok(batch), (left, (left > 0).then_some(batches))))
    })
}

impl Work {
    fn embeds(&self) -> bool {
        self.calls.iter().all(|call| call.function == AiFunction::Embed)
    }

    /// Units that run at a time. A unit of texts to embed is a whole request already.
    fn window(&self) -> usize {
        let ahead = if self.fetch.is_some() { 1 } else { AHEAD };
        if self.embeds() { 2 } else { self.options.max_in_flight.max(1) * ahead }
    }

    /// New requests in a unit.
    fn unit_requests(&self) -> usize {
        if self.embeds() { self.options.embed_batch.max(1) } else { 1 }
    }
}

/// Cuts batches into units.
struct Cutter {
    work: Work,
    caller: Caller,
    caches: Vec<Cache>,
    nonce: u64,
    rows_seen: u64,
}

/// What one row waits for, one entry a call.
type RowAnswers = Vec<Option<(Pending, OnError)>>;

impl Cutter {
    fn new(work: Work) -> Self {
        let caller = Caller {
            inference: Arc::clone(&work.inference),
            options: Arc::clone(&work.options),
            metrics: work.metrics.clone(),
            cache: work.cache.clone(),
            permits: Arc::new(Semaphore::new(work.options.max_in_flight.max(1))),
        };
        let caches = work.calls.iter().map(|_| Cache::new(work.options.remembered_answers)).collect();
        let nonce = (work.options.entropy)();
        Self { work, caller, caches, nonce, rows_seen: 0 }
    }

    fn cut(&mut self, batch: RecordBatch) -> Result<Vec<Unit>> {
        let first_row = self.rows_seen;
        self.rows_seen += batch.num_rows() as u64;
        let versions = self.work.cache.as_ref().map(|_| self.work.inference.as_ref());
        let asker = Asker { options: &self.work.options, versions, nonce: self.nonce };
        let asks = self.work.calls.iter().map(|call| asker.requests(call, &batch, first_row));
        let asks = asks.collect::<Result<Vec<_>>>()?;
        let bounds = self.bounds(&asks, batch.num_rows());
        let mut units = Vec::with_capacity(bounds.len());
        let mut start = 0;
        for end in bounds {
            let (rows, started) = self.answers(&asks, start, end);
            units.push(self.unit(batch.slice(start, end - start), rows, started, first_row + start as u64));
            start = end;
        }
        Ok(units)
    }

    /// Where units end: a unit goes on through rows that need nothing new.
    fn bounds(&self, asks: &[Vec<Option<Ask>>], rows: usize) -> Vec<usize> {
        let most = self.work.unit_requests();
        let mut seen: HashSet<(usize, &str)> = HashSet::new();
        let mut bounds = Vec::new();
        let mut requests = 0;
        for row in 0..rows {
            let mut fresh = 0;
            for (call, asks) in asks.iter().enumerate() {
                fresh += usize::from(asks[row].as_ref().is_some_and(|ask| match &ask.key {
                    Some(key) => self.caches[call].get(ask).is_none() && seen.insert((call, key)) && !self.is_kept(key),
                    None => true,
                }));
            }
            if fresh > 0 && requests > 0 && requests + fresh > most {
                bounds.push(row);
                requests = 0;
            }
            requests += fresh;
        }
        if rows > 0 {
            bounds.push(rows);
        }
        bounds
    }

    /// Whether another statement has had the answer.
    fn is_kept(&self, key: &str) -> bool {
        self.work.cache.as_ref().is_some_and(|cache| cache.has(key))
    }

    /// The answers that rows `start..end` wait for, and those of them that no row before waits for. Requests are
    /// made here and start when they are polled.
    fn answers(&mut self, asks: &[Vec<Option<Ask>>], start: usize, end: usize) -> (Vec<RowAnswers>, Vec<Pending>) {
        let mut started = Vec::new();
        let mut rows: Vec<RowAnswers> = vec![vec![None; asks.len()]; end - start];
        for (call, asks) in asks.iter().enumerate() {
            let mut fresh: Vec<(usize, &Ask)> = Vec::new();
            let mut same: Vec<(usize, &Ask)> = Vec::new();
            let mut keys: HashSet<&str> = HashSet::new();
            for (row, ask) in asks[start..end].iter().enumerate() {
                let Some(ask) = ask else {
                    continue;
                };
                match (&ask.key, self.caches[call].get(ask)) {
                    (_, Some(known)) => {
                        self.work.metrics.deduplicated(1);
                        rows[row][call] = Some((known, ask.on_error));
                    }
                    (Some(key), None) if !keys.insert(key) => same.push((row, ask)),
                    _ => fresh.push((row, ask)),
                }
            }
            let pending = self.caller.start(&fresh.iter().map(|(_, ask)| *ask).collect::<Vec<_>>());
            let mut local = HashMap::new();
            for ((row, ask), answer) in fresh.into_iter().zip(pending) {
                self.caches[call].put(ask, &answer);
                started.push(answer.clone());
                if let Some(key) = &ask.key {
                    local.insert(Arc::clone(key), answer.clone());
                }
                rows[row][call] = Some((answer, ask.on_error));
            }
            for (row, ask) in same {
                self.work.metrics.deduplicated(1);
                let known = ask.key.as_ref().and_then(|key| local.get(key)).cloned();
                rows[row][call] = known.map(|known| (known, ask.on_error));
            }
        }
        (rows, started)
    }

    fn unit(&self, rows: RecordBatch, waits: Vec<RowAnswers>, started: Vec<Pending>, first_row: u64) -> Unit {
        let calls = Arc::clone(&self.work.calls);
        let schema = Arc::clone(&self.work.schema);
        let predicate = self.work.predicate.clone();
        let unit = async move {
            // All at once: a row's calls do not wait for one another.
            futures::future::join_all(started).await;
            let mut answers: Vec<Vec<RowAnswer>> = vec![Vec::with_capacity(waits.len()); calls.len()];
            for (row, waits) in waits.into_iter().enumerate() {
                for (call, wait) in waits.into_iter().enumerate() {
                    let answer = match wait {
                        None => None,
                        Some((pending, on_error)) => match (pending.await, on_error) {
                            (Err(_), OnError::Null) => None,
                            (outcome, OnError::Struct) => Some(outcome),
                            (Ok(answer), _) => Some(Ok(answer)),
                            (Err(error), OnError::Fail) => {
                                return Err(failure(&calls[call], first_row + row as u64, error));
                            }
                        },
                    };
                    answers[call].push(answer);
                }
            }
            let mut columns = rows.columns().to_vec();
            for (call, answers) in calls.iter().zip(&answers) {
                columns.push(answers::column(&call.output, answers)?);
            }
            let batch = RecordBatch::try_new(schema, columns)?;
            match predicate {
                None => Ok(batch),
                Some(predicate) => {
                    let mask = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                    Ok(filter_record_batch(&batch, as_boolean_array(&mask)?)?)
                }
            }
        };
        unit.boxed()
    }
}

/// The engine's error, with the row it met it on, from 1.
fn failure(call: &PhysicalCall, row: u64, error: Arc<Error>) -> datafusion::common::DataFusionError {
    let message = format!("{} failed on row {}: {}", call.function.name(), row + 1, error.message());
    error::to_datafusion(Error::new(error.kind(), message).with_source(error))
}
