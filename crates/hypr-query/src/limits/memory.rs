//! The memory of the process, whoever holds it.
//!
//! When the process holds more than its limit, the statement that has moved the most data is stopped, and the next
//! one if that does not help. A statement that has moved little is left alone: it is not the one to blame, and the
//! allocator may keep pages long after they were freed.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use datafusion::physical_plan::ExecutionPlan;
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

/// A look at the process is good for so long.
const FRESH: Duration = Duration::from_millis(20);
/// After a statement was stopped, its memory gets so long to come back.
const RELIEF: Duration = Duration::from_millis(500);
/// Statements that have moved less than this are not stopped.
const INNOCENT_BYTES: usize = 32 << 20;

/// Watches the process.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Weak<Statement>>,
    /// When the process was looked at, and what it held.
    seen: Option<(Instant, usize)>,
    relieved: Option<Instant>,
}

#[derive(Debug)]
struct Statement {
    plan: Arc<dyn ExecutionPlan>,
}

/// A statement that runs, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Running(Arc<Statement>);

impl MemoryWatch {
    pub(super) fn new(limit_bytes: Option<usize>) -> Self {
        let limit_bytes = limit_bytes.or_else(nine_tenths_of_machine).unwrap_or(usize::MAX);
        Self { limit_bytes, state: Mutex::default() }
    }

    pub(super) fn enter(&self, plan: Arc<dyn ExecutionPlan>) -> Running {
        let statement = Arc::new(Statement { plan });
        let mut state = self.state.lock();
        state.running.retain(|other| other.strong_count() > 0);
        state.running.push(Arc::downgrade(&statement));
        Running(statement)
    }

    /// # Errors
    /// `ResourceExhausted` when the process holds too much and `running` is the one to stop.
    pub(super) fn check(&self, running: &Running) -> Result<()> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let held = match state.seen {
            Some((at, held)) if now.duration_since(at) < FRESH => held,
            _ => held_bytes().unwrap_or(0),
        };
        state.seen = Some((now, held));
        let resting = state.relieved.is_some_and(|at| now.duration_since(at) < RELIEF);
        if held <= self.limit_bytes || resting {
            return Ok(());
        }
        let heaviest = state
            .running
            .iter()
            .filter_map(Weak::upgrade)
            .map(|statement| (moved_bytes(&statement.plan), statement))
            .max_by_key(|(moved, _)| *moved);
        match heaviest {
            Some((moved, statement)) if moved >= INNOCENT_BYTES && Arc::ptr_eq(&statement, &running.0) => {
                state.relieved = Some(now);
                state.seen = None;
                Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    format!(
                        "the process holds {} MiB, more than query.process_memory_limit_mb = {} allows, and this \
                         statement has moved the most data; ask for less, or raise the limit",
                        held >> 20,
                        self.limit_bytes >> 20
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// What the busiest operator of a plan has put out so far, by the width of its rows.
fn moved_bytes(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let rows = plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0);
    let width: usize =
        plan.schema().fields().iter().map(|field| field.data_type().primitive_width().unwrap_or(64)).sum();
    plan.children().into_iter().map(moved_bytes).fold(rows.saturating_mul(width.max(1)), usize::max)
}

/// Anonymous memory of this process: without files that are mapped, such as models.
fn held_bytes() -> Option<usize> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()?.checked_mul(1024)
}

fn nine_tenths_of_machine() -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemTotal:"));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let least = match (machine, group) {
        (Some(machine), Some(group)) => machine.min(group),
        (machine, group) => machine.or(group)?,
    };
    Some(least / 10 * 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_the_process_holds() {
        assert_eq!(kilobytes("Name:\tx\nRssAnon:\t    2048 kB\n", "RssAnon:"), Some(2 << 20));
        let before = held_bytes().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = held_bytes().unwrap();
        assert!(after >= before + (60 << 20), "{before} {after} {}", block[1000]);
        assert!(nine_tenths_of_machine().unwrap() > 64 << 20);
    }
}
