//! Full disks, torn writes, failing syncs, damaged bytes, and what is synced when.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypr_common::ErrorKind;
use hypr_storage::disk::{Disk, DiskFile, FileDisk};
use hypr_storage::{Database, StorageOptions, Table};
use object_store14::ObjectStore;
use tempfile::tempdir;

use crate::support::{columns, contents, copy_of, crash, definition, expected, keyed, manual, open, rows};

/// A mark of the log: a frame without a payload.
const MARK_BYTES: u64 = 21;

/// A disk that can be full, tear writes, or fail to sync.
#[derive(Clone, Debug)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug)]
struct Faults {
    /// Bytes that may still be written; a write beyond it is torn there.
    room: AtomicU64,
    sync_fails: AtomicBool,
    truncate_fails: AtomicBool,
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    fn new() -> Self {
        Self(Arc::new(Faults {
            room: AtomicU64::new(u64::MAX),
            sync_fails: AtomicBool::new(false),
            truncate_fails: AtomicBool::new(false),
        }))
    }
}

impl DiskFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.faults.room.load(Ordering::SeqCst);
        let fits = (bytes.len() as u64).min(room);
        self.faults.room.store(room - fits, Ordering::SeqCst);
        self.file.append(&bytes[..fits as usize])?;
        if fits < bytes.len() as u64 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the device is gone"));
        }
        self.file.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        if self.faults.truncate_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the device is gone"));
        }
        self.file.truncate(len)
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile { file: FileDisk.create(path)?, faults: Arc::clone(&self.0) }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        FileDisk.sync_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        FileDisk.list(dir)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        FileDisk.read(path)
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        FileDisk.truncate(path, len)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove(path)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        FileDisk.append(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileDisk.rename(from, to)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        FileDisk.create_dir_all(dir)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        FileDisk.remove_dir_all(dir)
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        FileDisk.objects()
    }
}

async fn faulty(dir: &Path) -> (FaultyDisk, Database, Arc<Table>) {
    let disk = FaultyDisk::new();
    let options = StorageOptions { disk: Arc::new(disk.clone()), ..manual() };
    let db = Database::open(dir, options).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    (disk, db, table)
}

#[tokio::test]
async fn a_full_disk_refuses_the_statement_and_nothing_else() {
    let dir = tempdir().unwrap();
    let (disk, _db, table) = faulty(dir.path()).await;
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    for room in [0, 1, 20, 100] {
        disk.0.room.store(room, Ordering::SeqCst);
        let error = table.insert(vec![rows(5..10, "b")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        assert_eq!(contents(&table).await, expected(0..5, "a"));
    }
    disk.0.room.store(u64::MAX, Ordering::SeqCst);
    table.insert(vec![rows(5..10, "a")]).await.unwrap();
    let (_copy, db) = crash(dir.path()).await;
    assert_eq!(contents(&db.table("public", "t").unwrap()).await, expected(0..10, "a"));
}

#[tokio::test]
async fn after_a_failed_sync_the_log_refuses_writes_until_reopened() {
    let dir = tempdir().unwrap();
    let (disk, _db, table) = faulty(dir.path()).await;
    table.insert(vec![rows(0..5, "a")]).await.unwrap();
    disk.0.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(table.insert(vec![rows(5..6, "a")]).await.unwrap_err().kind(), ErrorKind::Internal);
    disk.0.sync_fails.store(false, Ordering::SeqCst);
    let error = table.insert(vec![rows(6..7, "a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("restart"), "{error}");
    assert_eq!(contents(&table).await, expected(0..5, "a"));
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    assert_eq!(contents(&table).await, expected(0..5, "a"));
    table.insert(vec![rows(5..6, "a")]).await.unwrap();
}

#[tokio::test]
async fn a_write_that_cannot_be_taken_back_poisons_the_log() {
    let dir = tempdir().unwrap();
    let (disk, _db, table) = faulty(dir.path()).await;
    disk.0.room.store(10, Ordering::SeqCst);
    disk.0.truncate_fails.store(true, Ordering::SeqCst);
    table.insert(vec![rows(0..1, "a")]).await.unwrap_err();
    disk.0.room.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(table.insert(vec![rows(0..1, "a")]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let (_copy, db) = crash(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    table.insert(vec![rows(0..1, "a")]).await.unwrap();
    assert_eq!(contents(&table).await, expected(0..1, "a"));
}

fn only_segment(dir: &Path) -> PathBuf {
    let mut found: Vec<_> = std::fs::read_dir(dir.join("wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

#[tokio::test]
async fn a_torn_end_of_the_log_is_cut_off_wherever_it_tears() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    let mut ends = Vec::new();
    for id in 0..4 {
        table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
        ends.push(std::fs::metadata(only_segment(dir.path())).unwrap().len() - MARK_BYTES);
    }
    for cut in (ends[1]..ends[3]).step_by(13).chain([ends[2], ends[2] + 1, ends[2] - 1]) {
        let copy = copy_of(dir.path());
        let path = only_segment(copy.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(cut as usize);
        if ends.contains(&cut) {
            // What follows is not synced.
            bytes.truncate(cut as usize + MARK_BYTES as usize / 2);
        }
        // A crash can also leave something else where data was on its way.
        bytes.extend([0x5a; 64]);
        std::fs::write(&path, bytes).unwrap();
        let db = open(copy.path()).await;
        let table = db.table("public", "t").unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count() as i64;
        assert_eq!(contents(&table).await, expected(0..whole, "a"), "cut at {cut}");
        table.insert(vec![rows(10..11, "a")]).await.unwrap();
        drop((db, table));
        let db = open(copy.path()).await;
        let table = db.table("public", "t").unwrap();
        assert_eq!(contents(&table).await.len() as i64, whole + 1, "reopened after a cut at {cut}");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_named_and_the_rest_is_served() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    db.create_table(definition("flushed", columns(), &[]), false).await.unwrap();
    table.insert(vec![rows(0..1, "a")]).await.unwrap();
    let damaged_from = std::fs::metadata(only_segment(dir.path())).unwrap().len();
    // The last one is damaged in the last round: also the end of the log is known to have been durable.
    table.insert(vec![rows(1..2, "a")]).await.unwrap();
    for round in 0..2 {
        for offset in [0, 4, 9, 16, 20, 21, 40] {
            let copy = copy_of(dir.path());
            let path = only_segment(copy.path());
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[damaged_from as usize + offset] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            let db = open(copy.path()).await;
            let damaged = db.table("public", "t").unwrap();
            let error = damaged.insert(vec![rows(50..51, "x")]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupted, "offset {offset}");
            assert!(error.message().contains(path.to_str().unwrap()), "{error}");
            assert!(error.message().contains(&format!("offset {damaged_from}")), "{error}");
            assert_eq!(damaged.damage(), Some(error.message()));
            db.create_table(definition("later", columns(), &[]), false).await.unwrap();
            db.table("public", "later").unwrap().insert(vec![rows(0..3, "b")]).await.unwrap();
            db.flush().await.unwrap();
            drop((db, damaged));
            let db = open(copy.path()).await;
            assert_eq!(contents(&db.table("public", "later").unwrap()).await, expected(0..3, "b"));
            assert!(db.table("public", "t").unwrap().damage().is_some(), "the log is kept: round {round}");
            for name in ["t", "flushed"] {
                db.drop_table("public", name, true).await.unwrap();
            }
            db.flush().await.unwrap();
            drop(db);
            let db = open(copy.path()).await;
            assert!(db.tables().iter().all(|table| table.damage().is_none()), "dropping mends the directory");
        }
        let more = 2 + 2 * round;
        table.insert(vec![rows(more..more + 2, "a")]).await.unwrap();
    }
}

#[tokio::test]
async fn damage_in_the_log_does_not_touch_tables_that_lance_holds() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    db.create_table(definition("other", columns(), &[]), false).await.unwrap();
    let other = db.table("public", "other").unwrap();
    other.insert(vec![rows(0..5, "a")]).await.unwrap();
    table.insert(vec![rows(0..1, "a")]).await.unwrap();
    table.insert(vec![rows(1..2, "a")]).await.unwrap();
    db.flush().await.unwrap();
    let damaged_from = std::fs::metadata(only_segment(dir.path())).unwrap().len();
    other.insert(vec![rows(5..6, "a")]).await.unwrap();
    let copy = copy_of(dir.path());
    let path = only_segment(copy.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // Below the position of `t`: nothing of it is needed any more.
    bytes[damaged_from as usize - 30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let db = open(copy.path()).await;
    assert_eq!(contents(&db.table("public", "t").unwrap()).await, expected(0..2, "a"));
    assert!(db.table("public", "other").unwrap().damage().is_some(), "other is older than the damage");
}

#[tokio::test]
async fn a_missing_segment_and_a_damaged_catalog_are_named() {
    let dir = tempdir().unwrap();
    let options = StorageOptions { segment_bytes: 1024, ..manual() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    for id in 0..10 {
        table.insert(vec![rows(id..id + 1, "a")]).await.unwrap();
    }
    let copy = copy_of(dir.path());
    let mut logs: Vec<_> = std::fs::read_dir(copy.path().join("wal")).unwrap().map(|e| e.unwrap().path()).collect();
    logs.sort();
    std::fs::remove_file(&logs[1]).unwrap();
    let opened = open(copy.path()).await;
    let damaged = opened.table("public", "t").unwrap();
    assert!(damaged.damage().unwrap().contains("missing"), "{:?}", damaged.damage());

    db.flush().await.unwrap();
    let copy = copy_of(dir.path());
    std::fs::write(copy.path().join("catalog.json"), b"{\"format_version\": 1").unwrap();
    let opened = open(copy.path()).await;
    assert_eq!(contents(&opened.table("public", "t").unwrap()).await, expected(0..10, "a"), "the copy is used");
    drop(opened);
    let mended = std::fs::read_to_string(copy.path().join("catalog.json")).unwrap();
    assert!(mended.contains("crc32c"), "{mended}");
    let renamed = mended.replace("\"t\"", "\"u\"");
    for file in ["catalog.json", "catalog.copy.json"] {
        std::fs::write(copy.path().join(file), &renamed).unwrap();
    }
    let error = Database::open(copy.path(), manual()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupted);
    assert!(error.message().contains("catalog.json"), "{error}");
}

mod synced {
    //! Lance writes go through the store that syncs.

    use std::fmt;
    use std::sync::Arc;

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use hypr_storage::{Database, StorageOptions};
    use lance_io::object_store::WrappingObjectStore;
    use object_store14::list::PaginatedListStore;
    use object_store14::path::Path;
    use object_store14::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
        PutOptions, PutPayload, PutResult, RenameOptions, Result,
    };
    use parking_lot::Mutex;
    use tempfile::tempdir;

    use crate::support::{columns, definition, manual, rows};

    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    #[derive(Debug)]
    struct Recording {
        inner: Arc<dyn ObjectStore>,
        log: Recorder,
    }

    impl fmt::Display for Recording {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "recording {}", self.inner)
        }
    }

    impl WrappingObjectStore for Recorder {
        fn wrap(&self, _: &str, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
            Arc::new(Recording { inner, log: self.clone() })
        }

        fn wrap_paginated(&self, _: &str, _: Arc<dyn PaginatedListStore>) -> Option<Arc<dyn PaginatedListStore>> {
            None
        }
    }

    impl Recording {
        fn record(&self, what: &str, path: &Path) {
            self.log.0.lock().push(format!("{what} {path} on {:?}", self.inner));
        }
    }

    #[async_trait]
    impl ObjectStore for Recording {
        async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.record("put", path);
            self.inner.put_opts(path, payload, options).await
        }

        async fn put_multipart_opts(
            &self,
            path: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.record("put", path);
            self.inner.put_multipart_opts(path, options).await
        }

        async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
            self.inner.get_opts(path, options).await
        }

        fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.record("copy", to);
            self.inner.copy_opts(from, to, options).await
        }

        async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
            self.record("rename", to);
            self.inner.rename_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn every_lance_file_is_written_through_the_syncing_store_data_before_manifest() {
        let dir = tempdir().unwrap();
        let recorder = Recorder::default();
        let options = StorageOptions { lance_wrapper: Some(Arc::new(recorder.clone())), ..manual() };
        let db = Database::open(dir.path(), options).await.unwrap();
        db.create_table(definition("t", columns(), &[]), false).await.unwrap();
        let table = db.table("public", "t").unwrap();
        table.insert(vec![rows(0..10, "a")]).await.unwrap();
        db.flush().await.unwrap();
        crate::support::delete(&table, &[3]).await;
        table.insert(vec![rows(10..20, "a")]).await.unwrap();
        db.flush().await.unwrap();

        let log = recorder.0.lock().clone();
        assert!(log.iter().all(|line| line.contains("fsync: true")), "{log:#?}");
        let at = |part: &str| log.iter().position(|line| line.contains(part)).unwrap();
        assert!(at("/data/") < at("/_versions/"), "{log:#?}");
        assert!(log.iter().any(|line| line.contains("/_deletions/")), "{log:#?}");
        let mut files = Vec::new();
        collect(&dir.path().join("tables"), &mut files);
        // Ours, written by the disk.
        files.retain(|file| file != "checksums");
        for file in files {
            let known = log.iter().any(|line| line.contains(&file));
            assert!(known, "{file} was written behind the syncing store's back: {log:#?}");
        }
    }

    fn collect(dir: &std::path::Path, files: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else {
                files.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
    }
}
