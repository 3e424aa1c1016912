//! The file operations of a database directory, so that tests can lose unsynced data, tear a write, fill the
//! disk or fail a sync anywhere: in the log, in the catalog and in Lance's files alike.
//!
//! Left out: `LOCK`, which only the operating system can hold, and the model files, which are mapped.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store14::ObjectStore;
use object_store14::local::LocalFileSystem;

/// A file open for appending.
pub trait DiskFile: Send {
    /// Writes `bytes` at the end. After an error any prefix of them may be there.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes everything appended so far durable.
    fn sync(&mut self) -> Result<()>;

    /// Cuts the file to `len` bytes; later appends go there.
    fn truncate(&mut self, len: u64) -> Result<()>;
}

/// Where a database directory lies. Nothing but [`DiskFile::sync`] (for content) and [`Disk::sync_dir`] (for
/// names) makes anything durable; [`Disk::objects`] does both by itself.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates an empty file, replacing one of the same name.
    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>>;

    /// Opens a file at its end, creating it where it is missing.
    fn append(&self, path: &Path) -> Result<Box<dyn DiskFile>>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;

    /// The files and directories in `dir`, in any order.
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>>;

    /// The whole content of a file.
    fn read(&self, path: &Path) -> Result<Vec<u8>>;

    /// Cuts a closed file to `len` bytes and makes that durable.
    fn truncate(&self, path: &Path, len: u64) -> Result<()>;

    /// Gives a file another name, replacing what has it.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Creates a directory and those above it.
    fn create_dir_all(&self, dir: &Path) -> Result<()>;

    /// Removes a directory and what is in it.
    fn remove_dir_all(&self, dir: &Path) -> Result<()>;

    /// The same files for Lance. What it writes is durable, content and names, when a write returns.
    fn objects(&self) -> Arc<dyn ObjectStore>;
}

/// Replaces `path` atomically and durably.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = disk.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}

/// The content of a file, `None` where there is none.
pub(crate) fn read_if_exists(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>> {
    match disk.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileDisk;

struct RealFile(File);

impl DiskFile for RealFile {
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

impl Disk for FileDisk {
    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        // Append mode: after a truncation the next write lands at the new end.
        drop(File::create(path)?);
        self.append(path)
    }

    fn append(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().append(true).create(true).open(path)?)))
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

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path)
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn remove_dir_all(&self, dir: &Path) -> Result<()> {
        std::fs::remove_dir_all(dir)
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::new(LocalFileSystem::new().with_fsync(true))
    }
}
