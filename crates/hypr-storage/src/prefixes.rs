//! Saved prefixes: what models have computed of the beginnings of texts, a file each.
//!
//! ```text
//! DIR/prefixes/<name>.kv    8 bytes    magic, `HYPRKV01`
//!                           u32        length of the header
//!                           header     JSON: name, origin, shape, tokens, time and length of the states
//!                           u32        CRC-32C of everything before
//!                           states     see `hypr_common::prefix::Prefix`
//!                           u32        CRC-32C of the states
//! DIR/prefixes/.tmp-*       work in progress; the next start clears what a crash left
//! ```
//! Numbers are little-endian. A file is written beside its place, synced and renamed, so a name has the old states or the
//! new. Invariant: no byte of a file is believed before its checksum is compared; a damaged file is refused by name.
//! Deliberately absent: whether the states still fit a model, which whoever asks decides ([`PrefixStore::retain`]).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_buffer::Buffer;
use hypr_common::prefix::{Prefix, PrefixOrigin};
use hypr_common::{Error, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const DIR: &str = "prefixes";
const EXTENSION: &str = "kv";
const TEMPORARY: &str = ".tmp-";
const MAGIC: &[u8; 8] = b"HYPRKV01";
const LONGEST_NAME: usize = 100;
/// No header is longer: some millions of tokens.
const LONGEST_HEADER: u32 = 64 << 20;

/// The saved prefixes of one data directory.
#[derive(Debug)]
pub struct PrefixStore {
    dir: PathBuf,
    /// Held while a file gets its name, or loses it.
    changing: Mutex<()>,
}

/// What is known of a saved prefix without reading its states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedPrefix {
    /// What it was saved as.
    pub name: String,
    /// What computed it.
    pub origin: PrefixOrigin,
    /// Layers of the network.
    pub layers: usize,
    /// Values of a key, and of a value, in one layer.
    pub width: usize,
    /// See [`Prefix::encoding`].
    pub encoding: String,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// When it was saved, in microseconds since the Unix epoch.
    pub saved_us: i64,
    /// Bytes of the states.
    pub bytes: u64,
}

impl PrefixStore {
    /// The prefixes of the data directory `dir`. Nothing is made before one is saved.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.join(DIR), changing: Mutex::default() }
    }

    /// Writes `prefix` as `name`, in place of what has that name; durable when it returns.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no plain one, those of writing.
    pub fn save(&self, name: &str, prefix: &Prefix, saved_us: i64) -> Result<SavedPrefix> {
        let path = self.path(name)?;
        let saved = SavedPrefix {
            name: name.to_owned(),
            origin: prefix.origin.clone(),
            layers: prefix.layers,
            width: prefix.width,
            encoding: prefix.encoding.clone(),
            tokens: prefix.tokens.clone(),
            saved_us,
            bytes: prefix.states.len() as u64,
        };
        let header = serde_json::to_vec(&saved)
            .map_err(|error| Error::internal(format!("the header of prefix {name}: {error}")))?;
        self.clear()?;
        let _turn = self.changing.lock();
        let temporary = self.dir.join(unique_name());
        let written = write(&temporary, &header, &prefix.states).and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            // It is ours alone; failing to delete it only leaves it to the next writer.
            let _ = fs::remove_file(&temporary);
            return Err(Error::io(format!("write {}", path.display()), error));
        }
        sync_dir(&self.dir)?;
        Ok(saved)
    }

    /// Reads what was saved as `name`.
    ///
    /// # Errors
    /// `NotFound`, naming those that there are; `Corrupted`, naming the file, for one that is damaged.
    pub fn load(&self, name: &str) -> Result<Prefix> {
        let path = self.path(name)?;
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(self.unknown(name)),
            Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
        };
        let saved = read_header(&path, &mut file)?;
        let length = file.metadata().map_err(|error| Error::io(format!("read {}", path.display()), error))?.len();
        // Before memory is taken for what a header says.
        let (wanted, expected) = (saved.bytes, length.saturating_sub(12 + 4 + 4));
        if saved.name != name || wanted > expected {
            return Err(damaged(&path, "its header does not fit it"));
        }
        let mut states = vec![0; wanted as usize];
        let mut checksum = [0; 4];
        file.read_exact(&mut states).map_err(|error| unreadable(&path, error))?;
        file.read_exact(&mut checksum).map_err(|error| unreadable(&path, error))?;
        if crc32c::crc32c(&states) != u32::from_le_bytes(checksum) {
            return Err(damaged(&path, "the checksum of its states differs"));
        }
        let SavedPrefix { origin, layers, width, encoding, tokens, .. } = saved;
        Ok(Prefix { origin, layers, width, encoding, tokens, states: Buffer::from_vec(states) })
    }

    /// Every prefix that can be read, sorted by name. Damaged ones are told to the log and left out; loading them says
    /// what is wrong.
    ///
    /// # Errors
    /// Those of listing the directory.
    pub fn list(&self) -> Result<Vec<SavedPrefix>> {
        let mut found = Vec::new();
        for name in self.names()? {
            match self.header(&name) {
                Ok(saved) => found.push(saved),
                Err(error) => tracing::warn!(prefix = name, %error, "saved prefix left out"),
            }
        }
        Ok(found)
    }

    fn header(&self, name: &str) -> Result<SavedPrefix> {
        let path = self.path(name)?;
        let mut file = File::open(&path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        read_header(&path, &mut file)
    }

    /// Reads every file whole: its name, where it is, and its bytes of states or what is wrong with it.
    ///
    /// # Errors
    /// Those of listing the directory.
    pub fn verify(&self) -> Result<Vec<(String, PathBuf, Result<u64>)>> {
        let check = |name: String| {
            let outcome = self.load(&name).map(|prefix| prefix.states.len() as u64);
            Ok((name.clone(), self.path(&name)?, outcome))
        };
        self.names()?.into_iter().map(check).collect()
    }

    /// Deletes what was saved as `name`.
    ///
    /// # Errors
    /// `NotFound`, naming those that there are.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _turn = self.changing.lock();
        self.delete(name)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.unknown(name)),
            Err(error) => Err(Error::io(format!("delete {}", path.display()), error)),
        }
    }

    /// Deletes those that `is_current` says no to, and returns the others.
    ///
    /// # Errors
    /// Those of listing; a file that cannot be deleted is told to the log.
    pub fn retain(&self, is_current: impl Fn(&PrefixOrigin) -> bool) -> Result<Vec<SavedPrefix>> {
        let (current, stale): (Vec<_>, Vec<_>) = self.list()?.into_iter().partition(|saved| is_current(&saved.origin));
        for saved in stale {
            let _turn = self.changing.lock();
            // Somebody may have saved another by this name meanwhile.
            if self.header(&saved.name).ok().as_ref() != Some(&saved) {
                continue;
            }
            tracing::info!(prefix = saved.name, model = saved.origin.model_id, "prefix of older weights dropped");
            if let Err(error) = self.delete(&saved.name) {
                tracing::warn!(prefix = saved.name, %error, "prefix of older weights not deleted");
            }
        }
        Ok(current)
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > LONGEST_NAME || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(Error::invalid(format!(
                "'{name}' is no name of a prefix; use at most {LONGEST_NAME} letters, digits, '-', '_' and inner '.'"
            )));
        }
        Ok(self.dir.join(format!("{name}.{EXTENSION}")))
    }

    /// The names of all files, sorted.
    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("list {}", self.dir.display()), error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(format!("list {}", self.dir.display()), error))?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let plain = name.strip_suffix(EXTENSION).and_then(|name| name.strip_suffix('.'));
            names.extend(plain.filter(|name| self.path(name).is_ok()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Makes the directory, and removes what a crash left of other writers.
    fn clear(&self) -> Result<()> {
        let existed = self.dir.exists();
        let made = fs::create_dir_all(&self.dir);
        made.map_err(|error| Error::io(format!("create {}", self.dir.display()), error))?;
        if !existed && let Some(parent) = self.dir.parent() {
            sync_dir(parent)?;
        }
        let Ok(entries) = fs::read_dir(&self.dir) else { return Ok(()) };
        let own = format!("{TEMPORARY}{}-", std::process::id());
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(TEMPORARY) && !name.starts_with(&own) {
                // One process has the directory, so nobody writes it any more.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.names().unwrap_or_default();
        let known =
            if known.is_empty() { "none is saved".to_owned() } else { format!("there are: {}", known.join(", ")) };
        Error::not_found(format!("no saved prefix '{name}'; {known}"))
    }
}

fn write(path: &Path, header: &[u8], states: &[u8]) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(MAGIC.len() + 4 + header.len() + 4);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&(header.len() as u32).to_le_bytes());
    head.extend_from_slice(header);
    let checksum = crc32c::crc32c(&head);
    head.extend_from_slice(&checksum.to_le_bytes());
    let mut file = File::create(path)?;
    file.write_all(&head)?;
    file.write_all(states)?;
    file.write_all(&crc32c::crc32c(states).to_le_bytes())?;
    file.sync_all()
}

fn read_header(path: &Path, file: &mut File) -> Result<SavedPrefix> {
    let mut head = vec![0; MAGIC.len() + 4];
    file.read_exact(&mut head).map_err(|error| unreadable(path, error))?;
    let (magic, length) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged(path, "it does not begin as a saved prefix does"));
    }
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    if length > LONGEST_HEADER {
        return Err(damaged(path, "its header is too long"));
    }
    let start = head.len();
    head.resize(start + length as usize, 0);
    file.read_exact(&mut head[start..]).map_err(|error| unreadable(path, error))?;
    let mut checksum = [0; 4];
    file.read_exact(&mut checksum).map_err(|error| unreadable(path, error))?;
    if crc32c::crc32c(&head) != u32::from_le_bytes(checksum) {
        return Err(damaged(path, "the checksum of its header differs"));
    }
    serde_json::from_slice(&head[start..]).map_err(|error| damaged(path, format!("its header: {error}")))
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(path, "it ends too early"),
        _ => Error::io(format!("read {}", path.display()), error),
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::corrupted(format!("saved prefix {} is damaged: {what}; drop it and save it again", path.display()))
}

fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Error::io(format!("sync {}", dir.display()), error))
}

/// A name that no other writer of this process uses at the same time.
fn unique_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{TEMPORARY}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use hypr_common::ErrorKind;

    use super::*;

    fn prefix(version: u64) -> Prefix {
        let origin = PrefixOrigin {
            model_id: "m".to_owned(),
            model_version: version,
            adapter_version: 0,
            kernels: "portable".to_owned(),
        };
        let states = Buffer::from_vec((0..1024_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        Prefix { origin, layers: 2, width: 8, encoding: "F16".to_owned(), tokens: (0..16).collect(), states }
    }

    #[test]
    fn what_is_saved_is_found_and_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = PrefixStore::new(dir.path());
        assert_eq!(store.list().unwrap(), []);
        assert!(store.load("a").unwrap_err().message().contains("none is saved"));
        store.save("a", &prefix(1), 5).unwrap();
        store.save("b", &prefix(1), 6).unwrap();
        store.save("a", &prefix(2), 7).unwrap();
        assert_eq!(store.load("a").unwrap(), prefix(2));
        let listed: Vec<_> = store.list().unwrap().into_iter().map(|saved| (saved.name, saved.saved_us)).collect();
        assert_eq!(listed, [("a".to_owned(), 7), ("b".to_owned(), 6)]);
        let kept = store.retain(|origin| origin.model_version == 2).unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(store.load("b").unwrap_err().message(), "no saved prefix 'b'; there are: a");
        store.remove("a").unwrap();
        assert_eq!(store.remove("a").unwrap_err().kind(), ErrorKind::NotFound);
        for name in ["", ".a", "a/b", "ä", &"a".repeat(101)] {
            assert_eq!(store.save(name, &prefix(1), 0).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn every_damaged_byte_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = PrefixStore::new(dir.path());
        store.save("a", &prefix(1), 5).unwrap();
        let path = dir.path().join("prefixes/a.kv");
        let good = fs::read(&path).unwrap();
        let damages = (0..good.len()).step_by(7).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            bytes
        });
        let cuts = (0..good.len()).step_by(13).map(|end| good[..end].to_vec());
        for bytes in damages.chain(cuts) {
            fs::write(&path, bytes).unwrap();
            let error = store.load("a").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupted, "{error}");
            assert!(error.message().contains("a.kv"), "{error}");
        }
        let found = store.verify().unwrap();
        assert!(matches!(&found[..], [(name, at, Err(_))] if name == "a" && *at == path), "{found:?}");
        // Those whose header is damaged are not listed, and are no error of the list.
        fs::write(&path, &good[..20]).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }
}
