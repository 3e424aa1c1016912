//! A fork-join thread pool for work that takes microseconds.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
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

/// The state of a run in one word: `run:32 open:1 joined:15 active:16`. Workers join while it is open, and are
/// active until they have finished.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const OPEN: u64 = 1 << 31;
    const ONE_JOINED: u64 = 1 << 16;
    const ONE_ACTIVE: u64 = 1;

    fn run(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn joined(self) -> usize {
        (self.0 >> 16 & 0x7fff) as usize
    }

    fn active(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// The next run, open, with nobody in it.
    fn next(self) -> Self {
        Self(u64::from(self.run().wrapping_add(1)) << 32 | Self::OPEN)
    }
}

struct Shared {
    threads: usize,
    /// The current run; see [`Gate`].
    gate: AtomicU64,
    /// The caller's `Job`, valid while the gate is open or has active workers.
    job: AtomicPtr<Job<'static>>,
    asleep: Vec<AtomicBool>,
    owner: Mutex<Option<Thread>>,
    owner_asleep: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

impl Pool {
    /// A pool of `threads` threads, the caller's among them, at least 1 and at most 1024. Threads that the operating system
    /// refuses are done without.
    pub fn new(threads: usize) -> Self {
        let mut threads = threads.clamp(1, 1024);
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
            gate: AtomicU64::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
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
        if self.workers.is_empty() || self.running.get() {
            (0..self.shared.threads).for_each(|thread| job(thread, self.shared.threads));
            return;
        }
        self.fork(job, self.workers.len());
    }

    /// Calls `job(thread, range)` for ranges of at most `grain` that cover `0..total`, whichever thread is free taking
    /// the next. A thread that the operating system lets in too late is not waited for.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_each_range(&self, total: usize, grain: usize, job: &(dyn Fn(usize, Range<usize>) + Sync)) {
        self.share(total, grain, false, &|thread, range, _| job(thread, range));
    }

    /// As [`Pool::for_each_range`], but a thread takes its next range before it calls `job(thread, range, next)` for one, so
    /// that it can ask for what it will need: `next` is where that range begins, or not below `total`.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_each_range_ahead(&self, total: usize, grain: usize, job: &(dyn Fn(usize, Range<usize>, usize) + Sync)) {
        self.share(total, grain, true, job);
    }

    fn share(&self, total: usize, grain: usize, ahead: bool, job: &(dyn Fn(usize, Range<usize>, usize) + Sync)) {
        let grain = grain.max(1);
        let range = |first: usize| first..(first + grain).min(total);
        if total <= grain || self.workers.is_empty() || self.running.get() {
            (0..total).step_by(grain).for_each(|first| job(0, range(first), first + grain));
            return;
        }
        let next = AtomicUsize::new(0);
        let take = || next.fetch_add(grain, Ordering::Relaxed);
        let share = |thread: usize, _: usize| {
            let mut first = take();
            while first < total {
                let following = if ahead { take() } else { total };
                job(thread, range(first), following);
                first = if ahead { following } else { take() };
            }
        };
        self.fork(&share, 0);
    }

    /// Runs `job` on this thread and on workers, of which at least `needed` take part.
    fn fork(&self, job: Job<'_>, needed: usize) {
        let shared = &*self.shared;
        self.running.set(true);
        // SAFETY: only the lifetime changes. A worker uses the reference only while it is active in this run, which
        // it can become only while the gate is open; this function closes the gate and waits for active workers
        // before it returns, also when `job` panics.
        let mut job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        shared.job.store(&raw mut job, Ordering::Relaxed);
        // Sequentially consistent with a worker's "asleep, then look at the gate once more": one of the two sides
        // sees the other.
        shared.gate.store(shared.gate().next().0, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep[1..].iter().zip(&self.workers) {
            if asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = panic::catch_unwind(AssertUnwindSafe(|| job(0, shared.threads)));
        shared.wait_for(|gate| gate.joined() >= needed);
        shared.gate.fetch_and(!Gate::OPEN, Ordering::SeqCst);
        shared.wait_for(|gate| gate.active() == 0);
        self.running.set(false);
        let other = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = own.err().or(other) {
            panic::resume_unwind(payload);
        }
    }
}

impl Shared {
    fn gate(&self) -> Gate {
        Gate(self.gate.load(Ordering::SeqCst))
    }

    /// The owner waits until the gate is as it should be.
    fn wait_for(&self, ready: impl Fn(Gate) -> bool) {
        if spin_until(&|| ready(self.gate())) {
            return;
        }
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.owner_asleep.store(true, Ordering::SeqCst);
        while !ready(self.gate()) {
            thread::park();
        }
        self.owner_asleep.store(false, Ordering::SeqCst);
    }

    fn wake_owner(&self) {
        if self.owner_asleep.load(Ordering::SeqCst) {
            let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(owner) = owner {
                owner.unpark();
            }
        }
    }

    /// The life of worker `index`.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_run(index, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let (run, joined) = self.join();
            seen = run;
            if !joined {
                continue;
            }
            self.wake_owner();
            // SAFETY: this worker is active, so `fork` has stored the pointer and keeps the pointee alive.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| job(index, self.threads))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            self.gate.fetch_sub(Gate::ONE_ACTIVE, Ordering::SeqCst);
            self.wake_owner();
        }
    }

    /// Becomes active in the current run, if it is still open; says which run that is.
    fn join(&self) -> (u32, bool) {
        let mut gate = self.gate();
        while gate.is_open() {
            let joined = gate.0 + Gate::ONE_JOINED + Gate::ONE_ACTIVE;
            match self.gate.compare_exchange_weak(gate.0, joined, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return (gate.run(), true),
                Err(now) => gate = Gate(now),
            }
        }
        (gate.run(), false)
    }

    fn wait_for_run(&self, index: usize, seen: u32) {
        let called = || self.gate().run() != seen || self.stop.load(Ordering::SeqCst);
        if spin_until(&called) {
            return;
        }
        loop {
            // Raised again before every sleep: the owner may clear it late, for a run that this worker saw by
            // itself and has finished.
            self.asleep[index].store(true, Ordering::SeqCst);
            if called() {
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
        // The gate stays closed: a worker that wakes late for a run before must find no job.
        self.shared.stop.store(true, Ordering::SeqCst);
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
