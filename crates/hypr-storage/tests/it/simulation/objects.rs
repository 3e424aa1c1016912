//! The simulated disk as Lance sees it, with the steps of `object_store`'s `LocalFileSystem::with_fsync(true)`:
//! write beside, sync, rename or link into place, sync the directory. Deletions are not synced.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hypr_storage::disk::{Disk, DiskFile};
use object_store14::path::Path as Location;
use object_store14::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::disk::SimulatedDisk;

#[derive(Clone, Debug)]
pub struct SimulatedObjects(pub SimulatedDisk);

impl fmt::Display for SimulatedObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated disk, fsync: true")
    }
}

fn path_of(location: &Location) -> PathBuf {
    Path::new("/").join(location.as_ref())
}

fn location_of(path: &Path) -> Location {
    Location::parse(path.to_str().unwrap().trim_start_matches('/')).unwrap()
}

fn failed(path: &Path, source: io::Error) -> Error {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
        _ => Error::Generic { store: "simulated", source: source.into() },
    }
}

fn done() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

fn meta(path: &Path, size: usize) -> ObjectMeta {
    let last_modified = SystemTime::now().into();
    ObjectMeta { location: location_of(path), last_modified, size: size as u64, e_tag: None, version: None }
}

impl SimulatedObjects {
    fn create_parents(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap();
        let mut existing = parent;
        while !self.0.exists(existing) {
            existing = existing.parent().unwrap();
        }
        let existing = existing.to_owned();
        self.0.create_dir_all(parent)?;
        let mut dir = parent;
        loop {
            self.0.sync_dir(dir)?;
            if dir == existing {
                return Ok(());
            }
            dir = dir.parent().unwrap();
        }
    }

    fn stage(&self, path: &Path) -> io::Result<(PathBuf, Box<dyn DiskFile>)> {
        let mut number = 1;
        loop {
            let staged = PathBuf::from(format!("{}#{number}", path.display()));
            match self.0.create_new(&staged) {
                Ok(file) => return Ok((staged, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_parents(path)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn publish(&self, staged: &Path, file: &mut dyn DiskFile, path: &Path, create: bool) -> io::Result<()> {
        file.sync()?;
        if create {
            self.0.hard_link(staged, path)?;
        } else {
            self.0.rename(staged, path)?;
        }
        self.0.sync_dir(path.parent().unwrap())?;
        if create {
            // Best effort, as in the original.
            let _ = self.0.remove(staged);
        }
        Ok(())
    }

    fn put(&self, path: &Path, payload: &PutPayload, create: bool) -> io::Result<()> {
        let (staged, mut file) = self.stage(path)?;
        let written = payload.iter().try_for_each(|bytes| file.append(bytes));
        let published = written.and_then(|()| self.publish(&staged, file.as_mut(), path, create));
        if published.is_err() {
            let _ = self.0.remove(&staged);
        }
        published
    }

    fn all(&self, prefix: &Path) -> Vec<Result<ObjectMeta>> {
        let files = self.0.files();
        let below = files.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        let staged = |path: &Path| path.to_str().unwrap().contains('#');
        below.filter(|(path, _)| !staged(path)).map(|(path, content)| Ok(meta(path, content.len()))).collect()
    }
}

#[async_trait]
impl ObjectStore for SimulatedObjects {
    async fn put_opts(&self, location: &Location, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = path_of(location);
        self.put(&path, &payload, options.mode == PutMode::Create).map_err(|error| failed(&path, error))?;
        Ok(done())
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = path_of(location);
        let (staged, file) = self.stage(&path).map_err(|error| failed(&path, error))?;
        Ok(Box::new(Upload { objects: self.clone(), path, staged, file }))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        let path = path_of(location);
        let content = self.0.read(&path).map_err(|error| failed(&path, error))?;
        let len = content.len() as u64;
        let range = match &options.range {
            Some(range) => range.as_range(len).map_err(|error| failed(&path, io::Error::other(error)))?,
            None => 0..len,
        };
        let bytes = Bytes::from(content).slice(range.start as usize..range.end as usize);
        let meta = meta(&path, len as usize);
        let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let disk = self.0.clone();
        let remove = move |location: Result<Location>| {
            let location = location?;
            let path = path_of(&location);
            disk.remove(&path).map_err(|error| failed(&path, error))?;
            Ok(location)
        };
        locations.map(remove).boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::iter(self.all(&prefix.map_or_else(|| PathBuf::from("/"), path_of))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        let dir = prefix.map_or_else(|| PathBuf::from("/"), path_of);
        let mut result =
            ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        let entries = match self.0.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            entries => entries.map_err(|error| failed(&dir, error))?,
        };
        for path in entries {
            match self.0.len(&path) {
                Ok(_) if path.to_str().unwrap().contains('#') => {}
                Ok(len) => result.objects.push(meta(&path, len)),
                Err(_) => result.common_prefixes.push(location_of(&path)),
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Result<()> {
        let (from, to) = (path_of(from), path_of(to));
        let copy = || {
            if options.mode == CopyMode::Overwrite && self.0.exists(&to) {
                self.0.remove(&to)?;
            }
            self.0.hard_link(&from, &to)?;
            self.0.sync_dir(to.parent().unwrap())
        };
        copy().map_err(|error| failed(&to, error))
    }
}

struct Upload {
    objects: SimulatedObjects,
    path: PathBuf,
    staged: PathBuf,
    file: Box<dyn DiskFile>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let written = data.iter().try_for_each(|bytes| self.file.append(bytes));
        let written = written.map_err(|error| failed(&self.path, error));
        async move { written }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let published = self.objects.publish(&self.staged, self.file.as_mut(), &self.path, false);
        published.map_err(|error| failed(&self.path, error))?;
        Ok(done())
    }

    async fn abort(&mut self) -> Result<()> {
        self.objects.0.remove(&self.staged).map_err(|error| failed(&self.staged, error))
    }
}
