//! What one statement may cost: bytes of its text, time, rows and bytes of its result, and its part in the memory of
//! the process.
//!
//! Sorting, joining and grouping ask DataFusion's memory pool before they grow, and spill. Some operators do not ask
//! (window functions over whole partitions, for one), and neither do the rows that a change collects before it is
//! stored. [`memory`] watches the process as a whole for their sake.
//!
//! Invariant: an error names the configuration key of the limit that was reached.

mod memory;

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{Array, ArrayRef, RecordBatch};
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{StreamExt, TryStreamExt, stream};
use hypr_common::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::error;
use memory::MemoryWatch;

/// How often a running statement looks at the clock and at the memory.
const TICK: Duration = Duration::from_millis(25);

/// Bounds of a statement. `None` is no bound.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of its text (`query.max_statement_kb`). Default 16 MiB.
    pub statement_bytes: usize,
    /// Rows of its result (`query.max_result_rows`).
    pub result_rows: Option<u64>,
    /// Bytes of its result in memory (`query.max_result_mb`).
    pub result_bytes: Option<usize>,
    /// How long it may run (`query.statement_timeout_ms`).
    pub timeout: Option<Duration>,
    /// Bytes that the process may hold (`query.process_memory_limit_mb`); nine tenths of what the machine or its
    /// control group has, if none.
    pub process_memory_bytes: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            statement_bytes: 16 << 20,
            result_rows: None,
            result_bytes: None,
            timeout: None,
            process_memory_bytes: None,
        }
    }
}

/// The limits and the memory of a running engine; an extension of its session states.
#[derive(Debug)]
pub(crate) struct Enforced {
    limits: Limits,
    memory: MemoryWatch,
}

impl Enforced {
    pub(crate) fn new(limits: Limits) -> Self {
        let memory = MemoryWatch::new(limits.process_memory_bytes);
        Self { limits, memory }
    }
}

/// Starts `plan`; what comes is bounded in time and memory.
pub(crate) fn start(state: &SessionState, plan: Arc<dyn ExecutionPlan>) -> Result<SendableRecordBatchStream> {
    let rows = execute_stream(Arc::clone(&plan), state.task_ctx()).map_err(error::from_datafusion)?;
    let Some(enforced) = state.config().get_extension::<Enforced>() else { return Ok(rows) };
    let deadline = enforced.limits.timeout.map(|timeout| (Instant::now() + timeout, timeout));
    let schema = rows.schema();
    let running = enforced.memory.enter(plan);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watched = stream::unfold(Some((rows, running, tick)), move |state| {
        let enforced = Arc::clone(&enforced);
        async move {
            let (mut rows, running, mut tick) = state?;
            loop {
                let checked = tokio::select! {
                    biased;
                    _ = tick.tick() => check(&enforced, &running, deadline),
                    batch = rows.next() => return Some((batch?, Some((rows, running, tick)))),
                };
                if let Err(error) = checked {
                    return Some((Err(error::to_datafusion(error)), None));
                }
            }
        }
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, watched)))
}

fn check(enforced: &Enforced, running: &memory::Running, deadline: Option<(Instant, Duration)>) -> Result<()> {
    if let Some((deadline, timeout)) = deadline
        && Instant::now() >= deadline
    {
        return Err(exhausted(format!(
            "the statement ran longer than query.statement_timeout_ms = {} allows and was stopped",
            timeout.as_millis()
        )));
    }
    enforced.memory.check(running)
}

/// Runs `plan` to its end.
pub(crate) async fn collect(state: &SessionState, plan: Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
    start(state, plan)?.try_collect().await.map_err(error::from_datafusion)
}

/// A result for a client, which may have so many rows and bytes.
pub(crate) fn result(state: &SessionState, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let Some(enforced) = state.config().get_extension::<Enforced>() else { return rows };
    let Limits { result_rows, result_bytes, .. } = enforced.limits;
    if result_rows.is_none() && result_bytes.is_none() {
        return rows;
    }
    let schema = rows.schema();
    let (mut count, mut bytes) = (0_u64, 0_usize);
    let counted = rows.map(move |batch| {
        let batch = batch?;
        count += batch.num_rows() as u64;
        bytes += row_bytes(&batch);
        let over = match (result_rows, result_bytes) {
            (Some(limit), _) if count > limit => format!("rows than query.max_result_rows = {limit} allows"),
            (_, Some(limit)) if bytes > limit => {
                format!("bytes than query.max_result_mb = {} allows", limit >> 20)
            }
            _ => return Ok(batch),
        };
        Err(over_limit(&over))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, counted))
}

/// Bytes of the rows themselves: a batch may be a few rows out of large buffers.
fn row_bytes(batch: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(column.get_array_memory_size());
    batch.columns().iter().map(of).sum()
}

fn over_limit(over: &str) -> DataFusionError {
    error::to_datafusion(exhausted(format!("the result has more {over}; ask for less, by LIMIT or fewer columns")))
}

fn exhausted(message: String) -> Error {
    Error::new(ErrorKind::ResourceExhausted, message)
}
