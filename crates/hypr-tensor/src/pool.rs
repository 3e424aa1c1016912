//! A fork-join thread pool for work that takes microseconds.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread without work spins before it sleeps: longer than the gaps between the products of one
/// token, short enough to leave the processor to others between requests.
const SPIN: Duration = Duration::from_micros(60);

/// The work of one [`Pool::run`]: called once per thread with `(thread, threads)`.
type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Persistent threads that share one piece of work at a time. The caller's thread takes part, so a pool of one
/// has no thread of its own and calls the work directly. A run allocates nothing.
///
/// A pool has one owner at a time: it can move to another thread but not be shared (`!Sync`), so two runs never
/// overlap. A run started inside a run of the same pool calls its work inline, for all threads in turn.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Cell<bool>,
    one_owner: PhantomData<Cell<()>>,
}

struct Shared {
    threads: usize,
    /// Grows by one with each run, after `job` is set.
    epoch: AtomicU64,
    /// The caller's `Job`, valid while `remaining` is above zero.
    job: AtomicPtr<Job<'static>>,
    /// Workers that have not finished the current run.
    remaining: AtomicUsize,
    asleep: Vec<AtomicBool>,
    owner: Mutex<Option<Thread>>,
    owner_asleep: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

impl Pool {
    /// A pool of `threads` threads, the caller's among them; 0 counts as 1. Threads that the operating system
    /// refuses are done without.
    pub fn new(threads: usize) -> Self {
        let mut threads = threads.max(1);
        loop {
            match Self::try_new(threads) {
                Ok(pool) => return pool,
                Err(started) => threads = started,
            }
        }
    }

    /// All `threads`, or the number that could be had.
    fn try_new(threads: usize) -> Result<Self, usize> {
        let shared = Arc::new(Shared {
            threads,
            epoch: AtomicU64::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
            remaining: AtomicUsize::new(0),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            owner: Mutex::new(None),
            owner_asleep: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), running: Cell::new(false), one_owner: PhantomData };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            match thread::Builder::new().name(format!("hypr-kernel-{index}")).spawn(move || shared.work(index)) {
                Ok(worker) => pool.workers.push(worker),
                Err(_) => return Err(index),
            }
        }
        Ok(pool)
    }

    /// Number of threads that share a run.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `job(thread, threads)` once for every thread and returns when all calls have returned.
    ///
    /// # Panics
    /// With the first panic of a call, after all calls have ended; the pool stays usable.
    pub fn run(&self, job: Job<'_>) {
        let shared = &*self.shared;
        if self.workers.is_empty() || self.running.get() {
            (0..shared.threads).for_each(|thread| job(thread, shared.threads));
            return;
        }
        self.running.set(true);
        let own = self.fork(job);
        self.running.set(false);
        let other = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = own.err().or(other) {
            panic::resume_unwind(payload);
        }
    }

    /// Calls `job(first, end)` for ranges of at most `grain` that cover `0..total`, whichever thread is free taking
    /// the next.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_each_range(&self, total: usize, grain: usize, job: &(dyn Fn(usize, std::ops::Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if total <= grain {
            if total > 0 {
                job(0, 0..total);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|thread, _| {
            loop {
                let first = next.fetch_add(grain, Ordering::Relaxed);
                if first >= total {
                    return;
                }
                job(thread, first..(first + grain).min(total));
            }
        });
    }

    fn fork(&self, job: Job<'_>) -> thread::Result<()> {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers use the reference between the new epoch and their decrement
        // of `remaining`, and this function returns only once `remaining` is zero, also when `job` panics.
        let mut job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        shared.job.store(&raw mut job, Ordering::Relaxed);
        shared.remaining.store(self.workers.len(), Ordering::Relaxed);
        // Sequentially consistent with a worker's "asleep, then look at the epoch once more": one of the two
        // sides sees the other.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep[1..].iter().zip(&self.workers) {
            if asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = panic::catch_unwind(AssertUnwindSafe(|| job(0, shared.threads)));
        shared.wait_for_workers();
        own
    }
}

impl Shared {
    fn wait_for_workers(&self) {
        let done = || self.remaining.load(Ordering::Acquire) == 0;
        if spin_until(&done) {
            return;
        }
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.owner_asleep.store(true, Ordering::SeqCst);
        while self.remaining.load(Ordering::SeqCst) != 0 {
            thread::park();
        }
        self.owner_asleep.store(false, Ordering::SeqCst);
    }

    /// The life of worker `index`.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_epoch(index, seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            seen += 1;
            // SAFETY: `epoch` was read after `run` stored the pointer and raised it, and `run` keeps the
            // pointee alive until this worker has decremented `remaining` below.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| job(index, self.threads))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            if self.remaining.fetch_sub(1, Ordering::SeqCst) == 1 && self.owner_asleep.load(Ordering::SeqCst) {
                // Cloned first: after the owner wakes, nothing of this run may be touched.
                let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(owner) = owner {
                    owner.unpark();
                }
            }
        }
    }

    fn wait_for_epoch(&self, index: usize, seen: u64) {
        let called = || self.epoch.load(Ordering::Acquire) != seen;
        if spin_until(&called) {
            return;
        }
        loop {
            // Raised again before every sleep: the owner may clear it late, for a run that this worker saw by
            // itself and has finished.
            self.asleep[index].store(true, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) != seen {
                break;
            }
            thread::park();
        }
        self.asleep[index].store(false, Ordering::SeqCst);
    }
}

/// Spins until `ready` or for [`SPIN`]; says whether it is ready.
fn spin_until(ready: &impl Fn() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return ready();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs, so it has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.shared.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_takes_part_in_every_run() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for run in 0..2000 {
                if run % 500 == 0 {
                    // Long enough for the workers to fall asleep.
                    thread::sleep(Duration::from_millis(2));
                }
                pool.run(&|thread, of| {
                    assert_eq!(of, threads);
                    calls[thread].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == run + 1));
            }
        }
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for culprit in 0..3 {
            let seen = AtomicUsize::new(0);
            let caught = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread, _| {
                    seen.fetch_add(1, Ordering::Relaxed);
                    assert!(thread != culprit, "thread {thread} fails");
                });
            }));
            let message = caught.unwrap_err();
            assert_eq!(message.downcast_ref::<String>().unwrap(), &format!("thread {culprit} fails"));
            assert_eq!(seen.load(Ordering::Relaxed), 3);
        }
        pool.run(&|_, _| {});
    }

    #[test]
    fn a_slow_worker_is_waited_for() {
        let pool = Pool::new(2);
        let done = AtomicBool::new(false);
        pool.run(&|thread, _| {
            if thread == 1 {
                thread::sleep(Duration::from_millis(20));
                done.store(true, Ordering::Relaxed);
            }
        });
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn ranges_cover_everything_once() {
        let pool = Pool::new(3);
        for total in [0, 1, 7, 8, 9, 1000] {
            let hits: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each_range(total, 8, &|_, range| {
                assert!(range.len() <= 8);
                range.for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
            });
            assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 1));
        }
    }
}
