//! Checksums of Lance's files, which have none of their own: without them a flipped bit is a wrong row.
//!
//! [`Verified`] is the object store that Lance writes and reads through. What is written is summed up on its
//! way, in blocks of 64 KiB; what is read is compared the first time this process touches a block. Lance's
//! files stay as they are, so that other programs read them; the sums lie beside them in
//! `tables/<uuid>/checksums`, see [`table`] for its grammar.
//!
//! Invariants: a recorded file was durable, whole, when its line was written. The lines of a version's files
//! are durable before its manifest is; the manifest's own line is durable before the next one's. A file
//! without a line (written by another program, or by a crash's last commit) is read as it is.
//!
//! Deliberately absent: Lance's version hint, a second opinion on which version is the newest. It is neither
//! written nor read.

mod table;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use hypr_common::{Error as HyprError, Result as HyprResult};
use object_store14::path::Path as Location;
use object_store14::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;

use crate::disk::Disk;

pub(crate) use table::{FILE, Sums, TableChecksums};

/// Lance's note of its newest version.
const HINT_FILE: &str = "latest_version_hint.json";

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamagedFile {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
}

impl fmt::Display for DamagedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged: {}; restore it from a backup, or drop the table", self.path.display(), self.why)
    }
}

impl std::error::Error for DamagedFile {}

impl DamagedFile {
    /// The one behind an error, however deep.
    pub(crate) fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut source = Some(error);
        while let Some(inner) = source {
            if let Some(damaged) = inner.downcast_ref::<Self>() {
                return Some(damaged);
            }
            // An I/O error hides what it wraps from `source`.
            let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            source = match wrapped {
                Some(wrapped) => Some(wrapped),
                None => inner.source(),
            };
        }
        None
    }
}

impl From<DamagedFile> for Error {
    fn from(damaged: DamagedFile) -> Self {
        Error::Generic { store: "checksum", source: Box::new(damaged) }
    }
}

/// The checksums of all tables of one database directory.
#[derive(Debug)]
pub(crate) struct Checksums {
    disk: Arc<dyn Disk>,
    tables_dir: PathBuf,
    /// `tables_dir` as the object store spells it.
    prefix: Location,
    tables: Mutex<HashMap<String, Arc<TableChecksums>>>,
}

impl Checksums {
    pub(crate) fn new(disk: Arc<dyn Disk>, tables_dir: &Path) -> HyprResult<Self> {
        let tables_dir = std::path::absolute(tables_dir).map_err(|e| HyprError::io(tables_dir.display(), e))?;
        let prefix = Location::from_absolute_path(&tables_dir).map_err(|e| {
            HyprError::invalid(format!("the data directory {} has a name that cannot be used", tables_dir.display()))
                .with_source(e)
        })?;
        Ok(Self { disk, tables_dir, prefix, tables: Mutex::default() })
    }

    /// Those of the table in `dir`.
    pub(crate) fn table(&self, dir: &Path) -> HyprResult<Arc<TableChecksums>> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        self.named(&name).map_err(|e| HyprError::io(dir.join(FILE).display(), e))
    }

    /// Forgets a table whose files are gone.
    pub(crate) fn forget(&self, dir: &Path) {
        self.tables.lock().remove(dir.file_name().unwrap_or_default().to_string_lossy().as_ref());
    }

    fn named(&self, name: &str) -> std::io::Result<Arc<TableChecksums>> {
        if let Some(table) = self.tables.lock().get(name) {
            return Ok(Arc::clone(table));
        }
        let loaded = Arc::new(TableChecksums::load(Arc::clone(&self.disk), &self.tables_dir.join(name))?);
        Ok(Arc::clone(self.tables.lock().entry(name.to_owned()).or_insert(loaded)))
    }

    /// The table a file belongs to, and the file's name in it.
    fn find(&self, location: &Location) -> Result<Option<(Arc<TableChecksums>, String)>> {
        let Some(mut parts) = location.prefix_match(&self.prefix) else { return Ok(None) };
        let Some(table) = parts.next() else { return Ok(None) };
        let file = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        if file.is_empty() {
            return Ok(None);
        }
        let table = self.named(table.as_ref()).map_err(generic)?;
        Ok(Some((table, file)))
    }
}

fn generic(error: std::io::Error) -> Error {
    Error::Generic { store: "checksum", source: Box::new(error) }
}

/// An object store whose files are compared with their checksums.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) checksums: Arc<Checksums>,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verified {}", self.inner)
    }
}

fn is_hint(location: &Location) -> bool {
    location.filename() == Some(HINT_FILE)
}

fn is_manifest(file: &str) -> bool {
    file.starts_with("_versions/")
}

fn no_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

/// The bytes a request asks for; `None` when the store must answer (an error, or nothing).
fn requested(range: Option<&GetRange>, len: u64) -> Option<Range<u64>> {
    let range = match range {
        None => 0..len,
        Some(GetRange::Bounded(range)) => range.start..range.end.min(len),
        Some(GetRange::Offset(start)) => *start..len,
        Some(GetRange::Suffix(bytes)) => len.saturating_sub(*bytes)..len,
    };
    (range.start < range.end).then_some(range)
}

impl Verified {
    /// Reads `range` in whole blocks and compares those that were not compared before.
    async fn get_verified(&self, location: &Location, sums: &Sums, range: Range<u64>) -> Result<GetResult> {
        let aligned = sums.aligned(&range);
        let options = GetOptions { range: Some(GetRange::Bounded(aligned.clone())), ..Default::default() };
        let path = || PathBuf::from(format!("/{location}"));
        let found = self.inner.get_opts(location, options).await?;
        let (mut meta, attributes, extensions) =
            (found.meta.clone(), found.attributes.clone(), found.extensions.clone());
        if meta.size != sums.len() {
            let why = format!("it has {} bytes, {} were written", meta.size, sums.len());
            return Err(DamagedFile { path: path(), why }.into());
        }
        let bytes = found.bytes().await?;
        sums.compare(aligned.start, &bytes).map_err(|offset| {
            let why = format!("the 64 KiB at offset {offset} do not match their checksum");
            DamagedFile { path: path(), why }
        })?;
        let start = (range.start - aligned.start) as usize;
        let bytes = bytes.slice(start..start + (range.end - range.start) as usize);
        meta.location = location.clone();
        let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    /// Before a file is written: what its version depends on is durable, and no old sum speaks of it.
    async fn before_write(&self, table: &Arc<TableChecksums>, file: &str, replaces: bool) -> Result<()> {
        let forgets = replaces && table.sums(file).is_some();
        if !forgets && !is_manifest(file) {
            return Ok(());
        }
        let (table, file) = (Arc::clone(table), file.to_owned());
        let synced = tokio::task::spawn_blocking(move || {
            if forgets {
                table.forget(&file);
            }
            table.sync()
        });
        synced.await.map_err(Error::from)?.map_err(generic)
    }
}

#[async_trait]
impl ObjectStore for Verified {
    async fn put_opts(&self, location: &Location, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if is_hint(location) {
            return Ok(no_result());
        }
        let Some((table, file)) = self.checksums.find(location)? else {
            return self.inner.put_opts(location, payload, options).await;
        };
        self.before_write(&table, &file, options.mode != PutMode::Create).await?;
        let sums = Sums::of(payload.iter());
        let result = self.inner.put_opts(location, payload, options).await?;
        table.record(&file, sums);
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let found = self.checksums.find(location)?;
        if let Some((table, file)) = &found {
            self.before_write(table, file, true).await?;
        }
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(match found {
            Some((table, file)) => Box::new(SummedUpload { inner, sums: Some(Sums::default()), table, file }),
            None => inner,
        })
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        if is_hint(location) {
            let source = "the newest version is found by listing".into();
            return Err(Error::NotFound { path: location.to_string(), source });
        }
        let sums = self.checksums.find(location)?.and_then(|(table, file)| table.sums(&file));
        let Some(sums) = sums.filter(|_| !options.head) else {
            return self.inner.get_opts(location, options).await;
        };
        match requested(options.range.as_ref(), sums.len()) {
            Some(range) if !sums.are_compared(&range) => self.get_verified(location, &sums, range).await,
            _ => self.inner.get_opts(location, options).await,
        }
    }

    async fn get_ranges(&self, location: &Location, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let sums = self.checksums.find(location)?.and_then(|(table, file)| table.sums(&file));
        if let Some(sums) = sums.filter(|sums| !ranges.iter().all(|range| sums.are_compared(range))) {
            for range in ranges.iter().filter(|range| range.start < range.end.min(sums.len())) {
                self.get_verified(location, &sums, range.start..range.end.min(sums.len())).await?;
            }
        }
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let checksums = Arc::clone(&self.checksums);
        let deleted = self.inner.delete_stream(locations);
        deleted
            .and_then(move |location| {
                if let Ok(Some((table, file))) = checksums.find(&location) {
                    table.forget(&file);
                }
                futures::future::ready(Ok(location))
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Result<()> {
        let (source, target) = (self.checksums.find(from)?, self.checksums.find(to)?);
        if let Some((table, file)) = &target {
            self.before_write(table, file, true).await?;
        }
        self.inner.copy_opts(from, to, options).await?;
        if let (Some((source, from)), Some((target, to))) = (source, target)
            && let Some(sums) = source.sums(&from)
        {
            target.record(&to, sums.fresh());
        }
        Ok(())
    }

    async fn rename_opts(&self, from: &Location, to: &Location, options: RenameOptions) -> Result<()> {
        let (source, target) = (self.checksums.find(from)?, self.checksums.find(to)?);
        if let Some((table, file)) = &target {
            self.before_write(table, file, true).await?;
        }
        self.inner.rename_opts(from, to, options).await?;
        if let (Some((source, from)), Some((target, to))) = (source, target)
            && let Some(sums) = source.sums(&from)
        {
            target.record(&to, sums.fresh());
            source.forget(&from);
        }
        Ok(())
    }
}

/// Sums up the parts of a file as they pass.
struct SummedUpload {
    inner: Box<dyn MultipartUpload>,
    sums: Option<Sums>,
    table: Arc<TableChecksums>,
    file: String,
}

impl fmt::Debug for SummedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SummedUpload").field("file", &self.file).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for SummedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if let Some(sums) = &mut self.sums {
            data.iter().for_each(|bytes| sums.add(bytes));
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        if let Some(sums) = self.sums.take() {
            self.table.record(&self.file, sums);
        }
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
