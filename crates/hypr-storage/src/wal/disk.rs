//! The few file operations the log needs, so that tests can make a disk full, tear a write or fail a sync.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};

/// A log segment open for appending.
pub trait LogFile: Send {
    /// Writes `bytes` at the end. After an error any prefix of them may be there.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes everything appended so far durable.
    fn sync(&mut self) -> Result<()>;

    /// Cuts the file to `len` bytes; later appends go there.
    fn truncate(&mut self, len: u64) -> Result<()>;
}

/// Where log segments live.
pub trait LogDisk: Send + Sync + fmt::Debug {
    /// Creates an empty segment, replacing one of the same name.
    fn create(&self, path: &Path) -> Result<Box<dyn LogFile>>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;

    /// The files in `dir`, in any order.
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>>;

    /// The whole content of a segment.
    fn read(&self, path: &Path) -> Result<Vec<u8>>;

    /// Cuts a closed segment to `len` bytes and makes that durable.
    fn truncate(&self, path: &Path, len: u64) -> Result<()>;

    /// Removes a segment.
    fn remove(&self, path: &Path) -> Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileDisk;

struct RealFile(File);

impl LogFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }
}

impl LogDisk for FileDisk {
    fn create(&self, path: &Path) -> Result<Box<dyn LogFile>> {
        // Append mode: after a truncation the next write lands at the new end.
        drop(File::create(path)?);
        Ok(Box::new(RealFile(OpenOptions::new().append(true).open(path)?)))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        File::open(dir)?.sync_all()
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn truncate(&self, path: &Path, len: u64) -> Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path)
    }
}
