//! Downloaded files by their checksum.
//!
//! ```text
//! CACHE/downloads/<sha256>        complete and verified
//! CACHE/downloads/<sha256>.part   what has arrived so far; the next attempt continues it
//! CACHE/downloads/<sha256>.lock   held while a process downloads, so that two share the work
//! ```
//! Invariant: a file under its checksum has that checksum; it is moved there only after it was compared.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use hypr_common::{Error, Result};
use sha2::{Digest, Sha256};

/// Environment variable that moves the cache.
pub const CACHE_DIR_VARIABLE: &str = "HYPRSTREAM_CACHE_DIR";
const BUFFER_BYTES: usize = 1 << 20;

/// The directory of downloaded files.
#[derive(Clone, Debug)]
pub struct Cache {
    downloads: PathBuf,
}

impl Cache {
    /// `$HYPRSTREAM_CACHE_DIR`, else `$XDG_CACHE_HOME/hyprstream`, else `~/.cache/hyprstream`.
    pub fn from_environment() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set(CACHE_DIR_VARIABLE)
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("hyprstream")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/hyprstream")))
            .ok_or_else(|| Error::invalid(format!("no cache directory: set {CACHE_DIR_VARIABLE}")))?;
        Self::open(&dir)
    }

    /// The cache below `dir`, which is created.
    pub fn open(dir: &Path) -> Result<Self> {
        let downloads = dir.join("downloads");
        fs::create_dir_all(&downloads)
            .map_err(|error| Error::io(format!("create the cache {}", downloads.display()), error))?;
        Ok(Self { downloads })
    }

    /// Where the file with this checksum is, once complete.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.downloads.join(sha256)
    }

    /// Where the file with this checksum grows.
    pub fn part_path(&self, sha256: &str) -> PathBuf {
        self.downloads.join(format!("{sha256}.part"))
    }

    /// The complete file; one that no longer has its checksum is deleted and counts as absent.
    pub fn find(&self, sha256: &str) -> Result<Option<PathBuf>> {
        let path = self.path(sha256);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
        };
        let mut hash = Sha256::new();
        let hashed = chunks(file, |bytes| {
            hash.update(bytes);
            Ok(())
        });
        hashed.map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        if hex(hash) == sha256 {
            return Ok(Some(path));
        }
        tracing::warn!(path = %path.display(), "a cached file has changed and is fetched again");
        fs::remove_file(&path).map_err(|error| Error::io(format!("delete {}", path.display()), error))?;
        Ok(None)
    }

    /// Waits until no other process downloads this file; holds the others off until dropped.
    pub fn lock(&self, sha256: &str) -> Result<File> {
        let path = self.downloads.join(format!("{sha256}.lock"));
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| Error::io(format!("lock {}", path.display()), error))
    }

    /// Moves a finished part file, whose checksum the caller has compared, to its place.
    pub fn complete(&self, sha256: &str, part: &File) -> Result<PathBuf> {
        let path = self.path(sha256);
        let moved = part.sync_all().and_then(|()| fs::rename(self.part_path(sha256), &path));
        moved.map_err(|error| Error::io(format!("store {}", path.display()), error))?;
        Ok(path)
    }

    /// Copies `reader` into the cache under `sha256`.
    ///
    /// # Errors
    /// `Corrupted` when the bytes have another checksum; `what` names them.
    pub fn store(&self, sha256: &str, what: &str, reader: impl Read) -> Result<PathBuf> {
        let part = self.part_path(sha256);
        let written = File::create(&part).and_then(|file| {
            let mut hash = Sha256::new();
            chunks(reader, |bytes| {
                hash.update(bytes);
                (&file).write_all(bytes)
            })?;
            Ok((file, hash))
        });
        let (file, hash) =
            written.map_err(|error| Error::io(format!("extract {what} to {}", part.display()), error))?;
        let found = hex(hash);
        if found != sha256 {
            self.discard(sha256);
            return Err(Error::corrupted(format!("{what} has sha256 {found}, expected {sha256}")));
        }
        self.complete(sha256, &file)
    }

    /// Deletes what is there of a file, whole or partial; it costs disk space if that fails, nothing else.
    pub fn discard(&self, sha256: &str) {
        for path in [self.part_path(sha256), self.path(sha256)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a cached file could not be deleted");
            }
        }
    }
}

/// Hexadecimal form of a finished hash.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hands all of `reader` to `take`, at most a megabyte at a time.
pub fn chunks(mut reader: impl Read, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => take(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
