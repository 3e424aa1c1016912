//! The log thread: drains the queue of commits, writes their frames, syncs once for all of them (group
//! commit), applies them in log order and only then acknowledges them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use hypr_common::{Error, ErrorKind, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::frame::{Frame, MAGIC, SEGMENT_HEADER_BYTES};
use super::recover::{Recovered, Segment};
use super::segment_path;
use crate::disk::{Disk, DiskFile};
use crate::table::TableShared;

/// A group stops growing at this many bytes, so that one sync never waits for much.
const GROUP_BYTES: usize = 8 << 20;
/// Small frames are joined into writes of up to this many bytes.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// What a durable commit does to the state readers see. Dropping it unapplied takes back what was reserved
/// for it (keys, ids).
pub(crate) trait Effect: Send {
    /// Runs on the log thread, in log order. `lsn` is that of the commit's last frame, `first_lsn` of its
    /// first.
    fn apply(self: Box<Self>, first_lsn: u64, lsn: u64, touched: &mut Touched);
}

/// What the effects of a group have in common.
#[derive(Default)]
pub(crate) struct Touched {
    /// Tables whose readers must be shown a new snapshot after the group.
    tables: Vec<Arc<TableShared>>,
    /// Position of the oldest state that is pinned.
    oldest_pin: Option<u64>,
    /// What waits until readers are shown the group.
    after: Vec<Box<dyn FnOnce() + Send>>,
}

impl Touched {
    pub(crate) fn add(&mut self, table: &Arc<TableShared>) {
        if !self.tables.iter().any(|known| Arc::ptr_eq(known, table)) {
            self.tables.push(Arc::clone(table));
        }
    }

    /// Runs `then` when readers are shown the group.
    pub(crate) fn after_publish(&mut self, then: impl FnOnce() + Send + 'static) {
        self.after.push(Box::new(then));
    }

    pub(crate) fn oldest_pin(&self) -> Option<u64> {
        self.oldest_pin
    }
}

/// Says that somebody works on the state at [`Pin::lsn`], until it is dropped.
pub(crate) struct Pin {
    shared: Arc<Shared>,
    lsn: u64,
}

impl Log {
    /// True while somebody works on a pinned state.
    pub(crate) fn has_pins(&self) -> bool {
        !self.shared.pins.lock().is_empty()
    }
}

impl Pin {
    pub(crate) fn lsn(&self) -> u64 {
        self.lsn
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.lock();
        if let Some(count) = pins.get_mut(&self.lsn) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.lsn);
            }
        }
    }
}

struct Commit {
    frames: Vec<Frame>,
    effect: Box<dyn Effect>,
    done: oneshot::Sender<Result<u64>>,
    _permit: OwnedSemaphorePermit,
}

impl Commit {
    fn bytes(&self) -> usize {
        self.frames.iter().map(Frame::len).sum()
    }
}

/// A handle on the log. The thread ends when the last handle is dropped.
pub(crate) struct Log {
    queue: Option<mpsc::Sender<Commit>>,
    queued_kib: Arc<Semaphore>,
    queue_kib: u32,
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Ascending; the last one is being written.
    segments: Mutex<Vec<Segment>>,
    applied_lsn: AtomicU64,
    /// Held for writing while a group is applied and its snapshots are published.
    applying: RwLock<()>,
    /// How many pins there are of each position.
    pins: Mutex<BTreeMap<u64, usize>>,
}

impl Log {
    /// Starts the log thread on a new segment after what was recovered. `keep_alive` is dropped when the
    /// thread has ended.
    pub(crate) fn start(
        dir: &Path,
        recovered: Recovered,
        options: &crate::StorageOptions,
        keep_alive: impl Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            applied_lsn: AtomicU64::new(recovered.next_lsn - 1),
            segments: Mutex::new(recovered.segments),
            applying: RwLock::default(),
            pins: Mutex::default(),
        });
        let disk = Arc::clone(&options.disk);
        let mut writer = Writer {
            dir: dir.to_owned(),
            disk: Arc::clone(&disk),
            shared: Arc::clone(&shared),
            segment_bytes: options.segment_bytes,
            file: None,
            len: 0,
            place: 0,
            next_lsn: recovered.next_lsn,
            poisoned: None,
        };
        writer.new_segment()?;
        let (queue, commits) = mpsc::channel(options.queue_commits.max(1));
        let thread = std::thread::Builder::new()
            .name("hypr-log".to_owned())
            .spawn(move || {
                writer.run(commits);
                drop(keep_alive);
            })
            .map_err(|e| Error::io("starting the log thread", e))?;
        let queue_kib = u32::try_from(options.queue_bytes >> 10).unwrap_or(u32::MAX >> 4).max(1);
        let queued_kib = Arc::new(Semaphore::new(queue_kib as usize));
        Ok(Self { queue: Some(queue), queued_kib, queue_kib, shared, disk, thread: Some(thread) })
    }

    /// Hands a commit to the log thread, waiting for a place in the queue. Once this returns, the commit is
    /// on its way even if nobody waits for the receiver. The receiver gets the LSN of the last frame.
    pub(crate) async fn submit(
        &self,
        frames: Vec<Frame>,
        effect: Box<dyn Effect>,
    ) -> Result<oneshot::Receiver<Result<u64>>> {
        let bytes: usize = frames.iter().map(Frame::len).sum();
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, self.queue_kib);
        let permit = Arc::clone(&self.queued_kib).acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (done, receiver) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.send(Commit { frames, effect, done, _permit: permit }).await.map_err(|_| closed())?;
        Ok(receiver)
    }

    /// Waits until every submitted commit is applied or refused, then refuses new ones.
    pub(crate) async fn close(&self) {
        let all = self.queued_kib.acquire_many(self.queue_kib).await;
        self.queued_kib.close();
        drop(all);
    }

    /// Runs `read` between two groups of commits, so that the published snapshots of all tables show one state,
    /// and pins that state.
    pub(crate) fn pin<T>(&self, read: impl FnOnce() -> T) -> (Pin, T) {
        let _between = self.shared.applying.read();
        let lsn = self.applied_lsn();
        *self.shared.pins.lock().entry(lsn).or_default() += 1;
        (Pin { shared: Arc::clone(&self.shared), lsn }, read())
    }

    /// Every commit up to this LSN is applied.
    pub(crate) fn applied_lsn(&self) -> u64 {
        self.shared.applied_lsn.load(Ordering::Acquire)
    }

    /// Removes segments that hold only frames below `lsn`.
    pub(crate) fn cut(&self, lsn: u64) -> Result<()> {
        let mut segments = self.shared.segments.lock();
        // A segment ends where the next one starts; the last one is being written.
        let obsolete = segments.windows(2).take_while(|pair| pair[1].first_lsn <= lsn).count();
        for _ in 0..obsolete {
            let path = &segments[0].path;
            // Synced one by one: a crash that kept an earlier segment but not a later one would leave a gap.
            let removed = match self.disk.remove(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
            let synced = removed.and_then(|()| path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir)));
            synced.map_err(|e| Error::io(path.display(), e))?;
            segments.remove(0);
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the log thread panicked");
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("applied_lsn", &self.applied_lsn()).finish_non_exhaustive()
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the database is closed")
}

struct Writer {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    segment_bytes: u64,
    file: Option<Box<dyn DiskFile>>,
    /// Bytes of whole, synced commits in `file`, and of the mark after them.
    len: u64,
    /// Frames of the next group that are written already: the mark.
    place: u32,
    next_lsn: u64,
    /// Why the log refuses writes until it is opened again.
    poisoned: Option<String>,
}

impl Writer {
    fn run(mut self, mut commits: mpsc::Receiver<Commit>) {
        while let Some(first) = commits.blocking_recv() {
            let group = gather(first, &mut commits);
            match self.write(&group) {
                Ok(()) => self.apply(group),
                Err(error) => refuse(group, &error),
            }
        }
    }

    /// Appends and syncs a group, or leaves the log as it was.
    fn write(&mut self, group: &[Commit]) -> Result<()> {
        if let Some(why) = &self.poisoned {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the log refuses writes since {why}; restart the server to recover"),
            ));
        }
        if self.len >= self.segment_bytes || self.file.is_none() {
            self.new_segment()?;
        }
        let Some(file) = self.file.as_mut() else {
            return Err(Error::internal("the log has no open segment"));
        };
        if let Err(error) = append_group(file.as_mut(), self.next_lsn, self.place, group) {
            // Synced, or a crash could bring back rows that were refused.
            if let Err(again) = file.truncate(self.len).and_then(|()| file.sync()) {
                self.poisoned = Some(format!("a failed write could not be taken back: {again}"));
            }
            return Err(Error::io(
                "writing to the log failed and nothing was stored; free disk space and retry",
                error,
            ));
        }
        if let Err(error) = file.sync() {
            self.poisoned = Some(format!("syncing the log failed: {error}"));
            // Best effort: whether these bytes survive is unknown either way.
            let _ = file.truncate(self.len);
            let message = format!("syncing the log failed ({error}); whether the rows are kept is decided at restart");
            return Err(Error::internal(message).with_source(error));
        }
        self.len += group.iter().map(Commit::bytes).sum::<usize>() as u64;
        self.place = 0;
        Ok(())
    }

    /// Says that what was written so far is durable. Without it (a full disk) damage of the last group would
    /// be taken for a torn write, no more.
    fn mark(&mut self) {
        let Some(file) = self.file.as_mut() else { return };
        let mark = Frame::mark();
        if file.append(&mark.header(self.next_lsn, 0, false)).is_ok() {
            self.len += mark.len() as u64;
            self.next_lsn += 1;
            self.place = 1;
        } else if let Err(again) = file.truncate(self.len) {
            self.poisoned = Some(format!("a failed write could not be taken back: {again}"));
        }
    }

    fn apply(&mut self, group: Vec<Commit>) {
        let shared = Arc::clone(&self.shared);
        let applying = shared.applying.write();
        let oldest_pin = shared.pins.lock().keys().next().copied();
        let mut touched = Touched { oldest_pin, ..Touched::default() };
        let mut acknowledgements = Vec::with_capacity(group.len());
        for commit in group {
            let first = self.next_lsn;
            self.next_lsn += commit.frames.len() as u64;
            commit.effect.apply(first, self.next_lsn - 1, &mut touched);
            acknowledgements.push((commit.done, self.next_lsn - 1));
        }
        self.mark();
        touched.tables.iter().for_each(|table| table.publish());
        self.shared.applied_lsn.store(self.next_lsn - 1, Ordering::Release);
        drop(applying);
        touched.after.into_iter().for_each(|then| then());
        for (done, lsn) in acknowledgements {
            // A caller that stopped waiting is no error: its rows are durable.
            let _ = done.send(Ok(lsn));
        }
    }

    fn new_segment(&mut self) -> Result<()> {
        if let Some(file) = self.file.as_mut() {
            // Neither its mark nor the cut of a failed write is synced: a closed segment must not lack its last
            // frame, nor have half of one too much.
            if let Err(error) = file.sync() {
                self.poisoned = Some(format!("syncing the log failed: {error}"));
                return Err(Error::io("syncing the log failed and nothing was stored; restart the server", error));
            }
        }
        self.place = 0;
        let path = segment_path(&self.dir, self.next_lsn);
        let create = || -> std::io::Result<Box<dyn DiskFile>> {
            let mut file = self.disk.create(&path)?;
            file.append(&[&MAGIC[..], &self.next_lsn.to_le_bytes()[..]].concat())?;
            file.sync()?;
            self.disk.sync_dir(&self.dir)?;
            Ok(file)
        };
        let file = create().map_err(|e| Error::io(format!("starting log segment {}", path.display()), e))?;
        self.file = Some(file);
        self.len = SEGMENT_HEADER_BYTES as u64;
        self.shared.segments.lock().push(Segment { first_lsn: self.next_lsn, path });
        Ok(())
    }
}

fn gather(first: Commit, commits: &mut mpsc::Receiver<Commit>) -> Vec<Commit> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while bytes < GROUP_BYTES
        && let Ok(commit) = commits.try_recv()
    {
        bytes += commit.bytes();
        group.push(commit);
    }
    group
}

fn append_group(file: &mut dyn DiskFile, mut lsn: u64, mut place: u32, group: &[Commit]) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for commit in group {
        for (index, frame) in commit.frames.iter().enumerate() {
            let continued = index + 1 < commit.frames.len();
            buffer.extend_from_slice(&frame.header(lsn, place, continued));
            lsn += 1;
            place += 1;
            if frame.len() >= WRITE_BUFFER_BYTES {
                file.append(&buffer)?;
                buffer.clear();
                file.append(frame.payload())?;
            } else {
                buffer.extend_from_slice(frame.payload());
            }
            if buffer.len() >= WRITE_BUFFER_BYTES {
                file.append(&buffer)?;
                buffer.clear();
            }
        }
    }
    if buffer.is_empty() { Ok(()) } else { file.append(&buffer) }
}

fn refuse(group: Vec<Commit>, error: &Error) {
    tracing::error!(commits = group.len(), error = %error, "the log refused a group of commits");
    for commit in group {
        // The effect goes first: what it reserved must be free again when the caller learns of the failure.
        drop(commit.effect);
        let _ = commit.done.send(Err(Error::new(error.kind(), error.message())));
    }
}
