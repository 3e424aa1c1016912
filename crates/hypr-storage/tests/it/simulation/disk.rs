//! A disk in memory that forgets what was not synced.
//!
//! A file's content and the names in a directory each have two states: what a reader sees, and what would
//! survive. A sync makes one the other. [`SimulatedDisk::crash`] lets any subset of what was not synced survive:
//! writes whole, torn at a sector, or not at all, and names created, renamed or removed in any combination.
//! Until then a fuse can stop every operation at a chosen one, and operations can fail with a full disk or an
//! I/O error. A sync that fails loses what it pleases, and a later one that succeeds does not bring it back.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hypr_storage::disk::{Disk, DiskFile};
use object_store14::ObjectStore;
use parking_lot::Mutex;

use super::objects::SimulatedObjects;
use super::random::Random;

const SECTOR_BYTES: usize = 512;

type Id = usize;

#[derive(Clone)]
enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Clone, Default)]
struct File {
    /// What readers see.
    seen: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    /// What a sync would add to it, in order.
    pending: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    At(usize, Vec<u8>),
    Truncate(usize),
}

impl Write {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::At(at, bytes) => {
                content.resize(content.len().max(at + bytes.len()), 0);
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate(len) => content.resize(*len, 0),
        }
    }
}

#[derive(Clone, Default)]
struct Dir {
    seen: BTreeMap<String, Id>,
    durable: BTreeMap<String, Id>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Set(String, Id),
    Remove(String),
    Rename(String, String, Id),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, Id>) {
        match self {
            Self::Set(name, id) => _ = names.insert(name.clone(), *id),
            Self::Remove(name) => _ = names.remove(name),
            Self::Rename(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
        }
    }
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }
}

struct State {
    nodes: Vec<Node>,
    random: Random,
    /// Operations until the machine stops.
    fuse: Option<u64>,
    stopped: bool,
    /// One in this many operations fails; 0 for none.
    faults: u64,
    /// Bytes that may still be written.
    room: Option<usize>,
    /// Operations so far that change something.
    operations: u64,
}

/// Shared by everything that runs on it.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimulatedDisk")
    }
}

fn stopped() -> Error {
    Error::other("the machine has stopped")
}

fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl SimulatedDisk {
    /// An empty disk with a durable directory `root`.
    pub fn new(seed: u64, root: &Path) -> Self {
        let state = State {
            nodes: vec![Node::Dir(Dir::default())],
            random: Random::new(seed, 1),
            fuse: None,
            stopped: false,
            faults: 0,
            room: None,
            operations: 0,
        };
        let disk = Self(Arc::new(Mutex::new(state)));
        disk.create_dir_all(root).unwrap();
        for node in &mut disk.0.lock().nodes {
            if let Node::Dir(dir) = node {
                dir.durable = dir.seen.clone();
                dir.pending.clear();
            }
        }
        disk
    }

    /// The machine stops after this many more operations that change something.
    pub fn stop_after(&self, operations: u64) {
        self.0.lock().fuse = Some(operations);
    }

    /// One in `one_in` operations fails from now on; 0 for none.
    pub fn fail(&self, one_in: u64) {
        self.0.lock().faults = one_in;
    }

    /// So many more bytes fit; `None` for any number.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.0.lock().room = bytes;
    }

    pub fn has_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The machine starts again, with what survived.
    pub fn crash(&self) {
        let mut state = self.0.lock();
        let State { nodes, random, .. } = &mut *state;
        for node in nodes.iter_mut() {
            match node {
                Node::File(file) => {
                    file.seen = survive(file, random);
                    file.durable = file.seen.clone();
                    file.pending.clear();
                }
                Node::Dir(dir) => {
                    let style = random.below(4);
                    let keep = random.below(dir.pending.len() as u64 + 1) as usize;
                    for (index, change) in dir.pending.drain(..).enumerate() {
                        let kept = match style {
                            0 => false,
                            1 => true,
                            2 => index < keep,
                            _ => random.below(2) == 0,
                        };
                        if kept {
                            change.apply(&mut dir.durable);
                        }
                    }
                    dir.seen = dir.durable.clone();
                }
            }
        }
        (state.stopped, state.fuse, state.faults, state.room) = (false, None, 0, None);
    }

    /// The process is gone, the machine is not: what was written is there.
    pub fn restart(&self) {
        self.calm();
        let mut state = self.0.lock();
        (state.stopped, state.fuse) = (false, None);
    }

    /// Nothing fails any more, but for the fuse.
    pub fn calm(&self) {
        let mut state = self.0.lock();
        (state.faults, state.room) = (0, None);
    }

    /// A copy of all files, by path, as a reader sees them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        let mut found = BTreeMap::new();
        let mut open = vec![(PathBuf::from("/"), 0)];
        while let Some((path, id)) = open.pop() {
            match &state.nodes[id] {
                Node::Dir(dir) => open.extend(dir.seen.iter().map(|(name, id)| (path.join(name), *id))),
                Node::File(file) => _ = found.insert(path, file.seen.clone()),
            }
        }
        found
    }

    /// Whether there is a file or directory.
    pub fn exists(&self, path: &Path) -> bool {
        self.0.lock().find(path).is_ok()
    }

    /// The size of a file.
    pub fn len(&self, path: &Path) -> Result<usize> {
        let state = self.0.lock();
        let id = state.find(path)?;
        state.file(id).map(|file| file.seen.len()).ok_or_else(|| missing(path))
    }

    /// Creates a file that must not be there.
    pub fn create_new(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        if self.exists(path) {
            return Err(Error::new(ErrorKind::AlreadyExists, path.display().to_string()));
        }
        self.create(path)
    }

    /// A second name, which must not be there.
    pub fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        let id = state.find(from)?;
        let (dir, name) = state.parent(to)?;
        if state.dir(dir).is_some_and(|dir| dir.seen.contains_key(&name)) {
            return Err(Error::new(ErrorKind::AlreadyExists, to.display().to_string()));
        }
        state.change(dir, Change::Set(name, id));
        Ok(())
    }
}

/// What is left of a file: each write that was not synced is there, torn, or not.
fn survive(file: &File, random: &mut Random) -> Vec<u8> {
    let mut content = file.durable.clone();
    let style = random.below(4);
    for write in &file.pending {
        let kept = match style {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        };
        match write {
            _ if !kept => {}
            Write::At(at, bytes) if style == 3 => {
                // Sectors of one write reach the disk in any order; what did not is zeros.
                for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    let torn = sector.len() - random.below(sector.len() as u64 + 1) as usize;
                    let kept = match random.below(4) {
                        0 => 0,
                        1 => torn,
                        _ => sector.len(),
                    };
                    Write::At(at + index * SECTOR_BYTES, sector[..kept].to_vec()).apply(&mut content);
                }
            }
            write => write.apply(&mut content),
        }
    }
    content
}

impl State {
    fn find(&self, path: &Path) -> Result<Id> {
        let mut id = 0;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let dir = self.dir(id).ok_or_else(|| missing(path))?;
            id = *dir.seen.get(name.to_str().unwrap()).ok_or_else(|| missing(path))?;
        }
        Ok(id)
    }

    fn dir(&self, id: Id) -> Option<&Dir> {
        match &self.nodes[id] {
            Node::Dir(dir) => Some(dir),
            Node::File(_) => None,
        }
    }

    fn file(&self, id: Id) -> Option<&File> {
        match &self.nodes[id] {
            Node::File(file) => Some(file),
            Node::Dir(_) => None,
        }
    }

    fn file_mut(&mut self, id: Id) -> &mut File {
        match &mut self.nodes[id] {
            Node::File(file) => file,
            Node::Dir(_) => panic!("a directory is no file"),
        }
    }

    fn parent(&self, path: &Path) -> Result<(Id, String)> {
        let dir = self.find(path.parent().ok_or_else(|| missing(path))?)?;
        Ok((dir, path.file_name().unwrap().to_str().unwrap().to_owned()))
    }

    fn change(&mut self, dir: Id, change: Change) {
        match &mut self.nodes[dir] {
            Node::Dir(dir) => dir.change(change),
            Node::File(_) => panic!("a file has no names"),
        }
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Counts an operation that changes something.
    fn operation(&mut self) -> Result<()> {
        self.alive()?;
        self.operations += 1;
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                self.stopped = true;
                return Err(stopped());
            }
            *left -= 1;
        }
        if self.faults > 0 && self.random.below(self.faults) == 0 {
            return Err(match self.random.below(2) {
                0 => ErrorKind::StorageFull.into(),
                _ => Error::other("an I/O error"),
            });
        }
        Ok(())
    }

    fn alive(&self) -> Result<()> {
        if self.stopped { Err(stopped()) } else { Ok(()) }
    }

    /// Some or all of `bytes` reach the file.
    fn write(&mut self, id: Id, bytes: &[u8]) -> Result<()> {
        let allowed = self.operation();
        let part = match (&allowed, self.room) {
            (Err(_), _) => self.random.below(bytes.len() as u64 + 1) as usize,
            (Ok(()), Some(room)) => room.min(bytes.len()),
            (Ok(()), None) => bytes.len(),
        };
        if let Some(room) = &mut self.room {
            *room = room.saturating_sub(part);
        }
        let file = self.file_mut(id);
        let write = Write::At(file.seen.len(), bytes[..part].to_vec());
        write.apply(&mut file.seen);
        file.pending.push(write);
        allowed?;
        if part < bytes.len() { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&mut self, id: Id, len: u64) -> Result<()> {
        self.operation()?;
        let file = self.file_mut(id);
        let write = Write::Truncate(len as usize);
        write.apply(&mut file.seen);
        file.pending.push(write);
        Ok(())
    }

    fn sync(&mut self, id: Id) -> Result<()> {
        let allowed = self.operation();
        if allowed.is_err() && self.stopped {
            return allowed;
        }
        let Self { nodes, random, .. } = self;
        let Node::File(file) = &mut nodes[id] else { return Err(Error::other("not a file")) };
        for write in file.pending.drain(..) {
            // A failed sync forgets what it could not write; the next one will not know of it.
            if allowed.is_ok() || random.below(2) == 0 {
                write.apply(&mut file.durable);
            }
        }
        allowed
    }
}

struct OpenFile {
    disk: SimulatedDisk,
    id: Id,
}

impl DiskFile for OpenFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.disk.0.lock().write(self.id, bytes)
    }

    fn sync(&mut self) -> Result<()> {
        self.disk.0.lock().sync(self.id)
    }

    fn truncate(&mut self, len: u64) -> Result<()> {
        self.disk.0.lock().truncate(self.id, len)
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.operation()?;
        let (dir, name) = state.parent(path)?;
        let existing = state.dir(dir).and_then(|dir| dir.seen.get(&name).copied());
        let id = match existing {
            Some(id) => {
                let file = state.file_mut(id);
                file.seen.clear();
                file.pending.push(Write::Truncate(0));
                id
            }
            None => {
                let id = state.add(Node::File(File::default()));
                state.change(dir, Change::Set(name, id));
                id
            }
        };
        Ok(Box::new(OpenFile { disk: self.clone(), id }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        let existing = self.0.lock().find(path);
        match existing {
            Ok(id) => Ok(Box::new(OpenFile { disk: self.clone(), id })),
            Err(_) => self.create(path),
        }
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.0.lock();
        let allowed = state.operation();
        if allowed.is_err() && state.stopped {
            return allowed;
        }
        let id = state.find(path)?;
        let State { nodes, random, .. } = &mut *state;
        let Node::Dir(dir) = &mut nodes[id] else { return Err(missing(path)) };
        for change in std::mem::take(&mut dir.pending) {
            if allowed.is_ok() || random.below(2) == 0 {
                change.apply(&mut dir.durable);
            } else {
                dir.pending.push(change);
            }
        }
        allowed
    }

    fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let state = self.0.lock();
        state.alive()?;
        let id = state.find(path)?;
        let dir = state.dir(id).ok_or_else(|| missing(path))?;
        Ok(dir.seen.keys().map(|name| path.join(name)).collect())
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let mut state = self.0.lock();
        state.alive()?;
        let faults = state.faults * 8;
        if faults > 0 && state.random.below(faults) == 0 {
            return Err(Error::other("an I/O error"));
        }
        let id = state.find(path)?;
        state.file(id).map(|file| file.seen.clone()).ok_or_else(|| missing(path))
    }

    fn truncate(&self, path: &Path, len: u64) -> Result<()> {
        let mut state = self.0.lock();
        let id = state.find(path)?;
        state.truncate(id, len)?;
        state.sync(id)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        let id = state.find(from)?;
        let ((from_dir, from), (to_dir, to)) = (state.parent(from)?, state.parent(to)?);
        if from_dir == to_dir {
            state.change(from_dir, Change::Rename(from, to, id));
        } else {
            state.change(to_dir, Change::Set(to, id));
            state.change(from_dir, Change::Remove(from));
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.0.lock();
        state.operation()?;
        state.find(path)?;
        let (dir, name) = state.parent(path)?;
        state.change(dir, Change::Remove(name));
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        let mut state = self.0.lock();
        state.alive()?;
        let mut at = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let dir = state.find(&at)?;
            at.push(name);
            if state.find(&at).is_err() {
                state.operation()?;
                let id = state.add(Node::Dir(Dir::default()));
                state.change(dir, Change::Set(name.to_str().unwrap().to_owned(), id));
            }
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        let names: Vec<(String, Id, bool)> = {
            let state = self.0.lock();
            let id = state.find(path)?;
            let dir = state.dir(id).ok_or_else(|| missing(path))?;
            dir.seen.iter().map(|(name, id)| (name.clone(), *id, state.dir(*id).is_some())).collect()
        };
        for (name, _, is_dir) in names {
            let child = path.join(name);
            if is_dir { self.remove_dir_all(&child)? } else { self.remove(&child)? }
        }
        self.remove(path)
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::new(SimulatedObjects(self.clone()))
    }
}
