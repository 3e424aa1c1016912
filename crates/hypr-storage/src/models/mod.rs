//! Models on disk: Arrow IPC files that are mapped, never read into memory.
//!
//! ```text
//! DIR/models/<id, percent-encoded>/v<version>/metadata.json      see `manifest`
//!                                            /layer_-0001.arrow  embeddings, see `layer`
//!                                            /layer_00000.arrow  one file a layer ..
//!                                            /tokenizer.json     side files, as imported
//! DIR/models/.lock                 held while a writer changes the directory
//! DIR/models/.retired/<id>         last version of a removed model: numbers are never used twice
//! DIR/models/.tmp-*, .removed-*    work in progress; the next writer clears what a crash left
//! ```
//!
//! A version is written into a `.tmp-` directory, synced file by file, renamed into place and the parent
//! synced: a `v<version>` directory is therefore complete, and never changes. Readers take no lock. A
//! reader that has mapped a version keeps it, also after the version is superseded or removed.
//!
//! Invariant: opening a model copies no weight and reads no more than its footers and side files, so it costs
//! next to no private memory. A thread compares the weights with their checksums behind the first open; a model
//! that is damaged is refused from then on, by name. Deliberately absent: the data directory's `LOCK` (models can be added beside a running
//! server) and any notion of what the weights mean.

mod layer;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arrow_buffer::Buffer;
use hypr_common::model::{LayerTable, ModelMetadata, ModelSource, ModelTables};
use hypr_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use manifest::{FileEntry, MANIFEST_FILE, Manifest};

const MODELS_DIR: &str = "models";
const LOCK_FILE: &str = ".lock";
const RETIRED_DIR: &str = ".retired";
const TEMPORARY_PREFIX: &str = ".tmp-";
const REMOVED_PREFIX: &str = ".removed-";
/// The longest directory name that common file systems take.
const MAX_DIR_NAME_BYTES: usize = 255;
/// Read at once where weights are compared with their checksums.
const VERIFIED_BYTES: usize = 256 << 10;
/// How often an open starts over because a writer replaced the version it was reading.
const OPEN_ATTEMPTS: usize = 4;

/// The models of one data directory. Cheap to share behind an `Arc`; two opens of a model share one mapping.
#[derive(Debug)]
pub struct ModelStore {
    dir: PathBuf,
    cache: Mutex<HashMap<String, Cached>>,
}

/// What is known of a model's newest version.
#[derive(Debug)]
struct Cached {
    manifest: Arc<Manifest>,
    tables: Option<Arc<ModelTables>>,
    /// What the comparison of its weights with their checksums has found, which runs behind the first open.
    damage: Option<Arc<OnceLock<Error>>>,
}

/// One model of [`ModelStore::list`].
#[derive(Debug)]
pub struct ModelEntry {
    /// What SQL calls the model.
    pub model_id: String,
    /// Newest version.
    pub version: u64,
    /// Size of the newest version's files on disk.
    pub bytes: u64,
    /// The row of `model_metadata`, or why it cannot be read.
    pub metadata: Result<ModelMetadata>,
}

impl ModelStore {
    /// Opens the models of the data directory `dir`, creating `dir/models` where it is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = dir.join(MODELS_DIR);
        fs::create_dir_all(&dir).map_err(|error| Error::io(format!("create {}", dir.display()), error))?;
        Ok(Self { dir, cache: Mutex::default() })
    }

    /// Writes `tables` as the next version of `tables.metadata.model_id` and makes it the one that readers
    /// see; durable when it returns. `tables.version` is ignored. Memory: one piece at a time.
    ///
    /// # Errors
    /// `InvalidInput` for an empty or overlong id, a piece that is no row of `layer_schema`, or a side file
    /// whose name is not plain; `ResourceExhausted` for a full disk, which leaves nothing behind.
    pub fn publish(&self, tables: &ModelTables) -> Result<u64> {
        let model_id = &tables.metadata.model_id;
        let model_dir = self.model_dir(model_id)?;
        let _lock = self.write_lock()?;
        let version = self.newest_version(&model_dir)?.max(self.retired_version(model_id)?).unwrap_or(0) + 1;
        let temporary = self.unique_dir(TEMPORARY_PREFIX)?;
        let published =
            write_version(&temporary, tables, version).and_then(|()| move_into_place(&temporary, &model_dir, version));
        if let Err(error) = published {
            // The directory is ours alone and incomplete; failing to delete it only leaves it to the next writer.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        sync_dir(&self.dir)?;
        self.prune(&model_dir, version);
        Ok(version)
    }

    /// Deletes every version of a model. Readers that have it open go on.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    pub fn remove(&self, model_id: &str) -> Result<()> {
        let model_dir = self.model_dir(model_id)?;
        let _lock = self.write_lock()?;
        let Some(version) = self.newest_version(&model_dir)? else {
            return Err(self.unknown_model(model_id));
        };
        self.retire(model_id, version)?;
        let removed = self.dir.join(unique_name(REMOVED_PREFIX));
        fs::rename(&model_dir, &removed).map_err(|error| Error::io(format!("remove model '{model_id}'"), error))?;
        sync_dir(&self.dir)?;
        self.cache.lock().remove(model_id);
        fs::remove_dir_all(&removed).map_err(|error| Error::io(format!("delete {}", removed.display()), error))
    }

    /// Every model with its newest version, sorted by id; damaged ones too, with the reason.
    pub fn list(&self) -> Result<Vec<ModelEntry>> {
        let mut entries = Vec::new();
        for model_id in self.model_ids()? {
            let Some(version) = self.newest_version(&self.model_dir(&model_id)?)? else { continue };
            let manifest = self.manifest(&model_id, version);
            let bytes = manifest.as_ref().map_or(0, |manifest| manifest.files.iter().map(|file| file.bytes).sum());
            let metadata = manifest.map(|manifest| manifest.model.clone());
            entries.push(ModelEntry { model_id, version, bytes, metadata });
        }
        Ok(entries)
    }

    /// Reads every byte of a model's newest version and compares it with the recorded checksums.
    ///
    /// # Errors
    /// `Corrupted`, naming the first file that differs.
    pub fn verify(&self, model_id: &str) -> Result<()> {
        let model_dir = self.model_dir(model_id)?;
        let version = self.newest_version(&model_dir)?.ok_or_else(|| self.unknown_model(model_id))?;
        let version_dir = version_dir(&model_dir, version);
        let manifest = self.manifest(model_id, version)?;
        manifest.files.iter().try_for_each(|file| {
            let path = version_dir.join(&file.name);
            let bytes = map(&path, file.bytes)?;
            compare(&path, &bytes, file.crc32c)
        })
    }

    fn model_dir(&self, model_id: &str) -> Result<PathBuf> {
        Ok(self.dir.join(encode_id(model_id)?))
    }

    /// The ids of all model directories, sorted.
    fn model_ids(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for name in dir_names(&self.dir)? {
            if name.starts_with('.') {
                continue;
            }
            match decode_id(&name) {
                Some(id) => ids.push(id),
                None => tracing::warn!(directory = %self.dir.join(&name).display(), "not a model directory, ignored"),
            }
        }
        ids.sort();
        Ok(ids)
    }

    fn newest_version(&self, model_dir: &Path) -> Result<Option<u64>> {
        Ok(versions(model_dir)?.into_iter().max())
    }

    /// The checked manifest of one version; cached, since a version never changes.
    fn manifest(&self, model_id: &str, version: u64) -> Result<Arc<Manifest>> {
        if let Some(cached) = self.cache.lock().get(model_id).filter(|cached| cached.manifest.version == version) {
            return Ok(Arc::clone(&cached.manifest));
        }
        let path = version_dir(&self.model_dir(model_id)?, version).join(MANIFEST_FILE);
        let manifest = Arc::new(Manifest::read(&path)?);
        if manifest.version != version || manifest.model.model_id != model_id {
            let found = format!("it describes '{}' v{}", manifest.model.model_id, manifest.version);
            return Err(damaged(&path, found));
        }
        let cached = Cached { manifest: Arc::clone(&manifest), tables: None, damage: None };
        self.cache.lock().insert(model_id.to_owned(), cached);
        Ok(manifest)
    }

    fn open_version(&self, model_id: &str, version: u64) -> Result<Arc<ModelTables>> {
        let manifest = self.manifest(model_id, version)?;
        let mut cache = self.cache.lock();
        let known = cache.get(model_id).filter(|known| known.manifest.version == version);
        let damage = known.and_then(|known| known.damage.clone());
        if let Some(error) = damage.as_ref().and_then(|damage| damage.get()) {
            return Err(Error::corrupted(error.message()));
        }
        if let Some(tables) = known.and_then(|known| known.tables.as_ref()) {
            return Ok(Arc::clone(tables));
        }
        // Opened under the lock, so that concurrent first opens map the files once.
        let version_dir = version_dir(&self.model_dir(model_id)?, version);
        let (tables, unverified) = map_version(&version_dir, &manifest)?;
        let tables = Arc::new(tables);
        // Once a version: one that was released and is opened again has been read before.
        let damage = damage.unwrap_or_else(|| verify_behind(unverified));
        let cached = Cached { manifest, tables: Some(Arc::clone(&tables)), damage: Some(damage) };
        cache.insert(model_id.to_owned(), cached);
        Ok(tables)
    }

    /// Forgets cached models whose directory is gone, and with them their mappings.
    fn evict_removed(&self, existing: &[String]) {
        self.cache.lock().retain(|id, _| existing.binary_search(id).is_ok());
    }

    fn unknown_model(&self, model_id: &str) -> Error {
        let known = self.model_ids().unwrap_or_default();
        let known = if known.is_empty() {
            "none is imported yet".to_owned()
        } else {
            format!("there are: {}", known.join(", "))
        };
        Error::not_found(format!(
            "no model '{model_id}'; {known} (add one with 'hyprstream model pull' or 'hyprstream model import')"
        ))
    }

    /// Holds off other writers of this directory, in this process and in others, and clears what a crash left.
    fn write_lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK_FILE);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        lock.lock().map_err(|error| Error::io(format!("lock {}", path.display()), error))?;
        for name in dir_names(&self.dir)? {
            if name.starts_with(TEMPORARY_PREFIX) || name.starts_with(REMOVED_PREFIX) {
                let stale = self.dir.join(name);
                fs::remove_dir_all(&stale).map_err(|error| Error::io(format!("delete {}", stale.display()), error))?;
            }
        }
        Ok(lock)
    }

    fn unique_dir(&self, prefix: &str) -> Result<PathBuf> {
        let path = self.dir.join(unique_name(prefix));
        fs::create_dir(&path).map_err(|error| Error::io(format!("create {}", path.display()), error))?;
        Ok(path)
    }

    fn retired_path(&self, model_id: &str) -> Result<PathBuf> {
        Ok(self.dir.join(RETIRED_DIR).join(encode_id(model_id)?))
    }

    fn retired_version(&self, model_id: &str) -> Result<Option<u64>> {
        let path = self.retired_path(model_id)?;
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| damaged(&path, "it holds no version number")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
        }
    }

    fn retire(&self, model_id: &str, version: u64) -> Result<()> {
        let path = self.retired_path(model_id)?;
        let dir = self.dir.join(RETIRED_DIR);
        let temporary = dir.join(unique_name(TEMPORARY_PREFIX));
        let written = fs::create_dir_all(&dir)
            .and_then(|()| File::create(&temporary))
            .and_then(|mut file| {
                writeln!(file, "{version}")?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        sync_dir(&dir)
    }

    /// Deletes versions older than the one before `newest`, which a reader may just be opening.
    fn prune(&self, model_dir: &Path, newest: u64) {
        for version in versions(model_dir).unwrap_or_default() {
            if version + 1 < newest
                && let Err(error) = fs::remove_dir_all(version_dir(model_dir, version))
            {
                tracing::warn!(directory = %model_dir.display(), version, %error, "old model version not deleted");
            }
        }
    }
}

impl ModelSource for ModelStore {
    fn models(&self) -> Result<Vec<ModelMetadata>> {
        let ids = self.model_ids()?;
        self.evict_removed(&ids);
        let mut models = Vec::with_capacity(ids.len());
        for entry in self.list()? {
            match entry.metadata {
                Ok(metadata) => models.push(metadata),
                Err(error) => tracing::warn!(model = entry.model_id, %error, "model left out"),
            }
        }
        Ok(models)
    }

    fn model(&self, model_id: &str) -> Result<Option<ModelMetadata>> {
        let Some(version) = self.newest_version(&self.model_dir(model_id)?)? else { return Ok(None) };
        self.manifest(model_id, version).map(|manifest| Some(manifest.model.clone()))
    }

    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>> {
        let model_dir = self.model_dir(model_id)?;
        let mut newest = self.newest_version(&model_dir)?;
        for _ in 0..OPEN_ATTEMPTS {
            let Some(version) = newest else { break };
            let opened = self.open_version(model_id, version);
            if opened.is_ok() {
                return opened;
            }
            // A writer may have replaced or removed the version under our hands; a second look tells.
            newest = self.newest_version(&model_dir)?;
            if newest == Some(version) {
                return opened;
            }
        }
        self.cache.lock().remove(model_id);
        Err(self.unknown_model(model_id))
    }

    fn release(&self, model_id: &str) {
        if let Some(cached) = self.cache.lock().get_mut(model_id) {
            cached.tables = None;
        }
    }

    /// The time of the manifest, which is written once.
    fn imported_us(&self, model_id: &str, version: u64) -> Result<Option<i64>> {
        let path = version_dir(&self.model_dir(model_id)?, version).join(MANIFEST_FILE);
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
        let written = written.map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        let since = written.duration_since(std::time::UNIX_EPOCH).ok();
        Ok(since.and_then(|since| i64::try_from(since.as_micros()).ok()))
    }
}

/// Writes all files of a version into `dir` and syncs each.
fn write_version(dir: &Path, tables: &ModelTables, version: u64) -> Result<()> {
    let mut files = Vec::with_capacity(tables.layers.len() + tables.files.len());
    let mut previous = None;
    for table in &tables.layers {
        if previous >= Some(table.layer_id) {
            return Err(Error::invalid(format!("layer {} is out of order; layers must ascend", table.layer_id)));
        }
        previous = Some(table.layer_id);
        files.push(layer::write(dir, table)?);
    }
    for (name, bytes) in &tables.files {
        files.push(write_side_file(dir, name, bytes)?);
    }
    Manifest::new(version, tables.metadata.clone(), files).write(&dir.join(MANIFEST_FILE))?;
    sync_dir(dir)
}

/// Whether a file of this name lies in the version's own directory.
fn is_plain(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    plain && !name.is_empty() && !name.starts_with('.')
}

fn write_side_file(dir: &Path, name: &str, bytes: &Buffer) -> Result<FileEntry> {
    if !is_plain(name) || name == MANIFEST_FILE || name.starts_with("layer_") {
        return Err(Error::invalid(format!("a model's side file cannot be called '{name}'")));
    }
    let path = dir.join(name);
    let written = File::create_new(&path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|error| Error::io(format!("write {}", path.display()), error))?;
    Ok(FileEntry { name: name.to_owned(), bytes: bytes.len() as u64, crc32c: crc32c::crc32c(bytes), layer: None })
}

fn move_into_place(temporary: &Path, model_dir: &Path, version: u64) -> Result<()> {
    let target = version_dir(model_dir, version);
    fs::create_dir_all(model_dir)
        .and_then(|()| fs::rename(temporary, &target))
        .map_err(|error| Error::io(format!("publish {}", target.display()), error))?;
    sync_dir(model_dir)
}

/// Maps every file of a version; reads footers only.
fn map_version(dir: &Path, manifest: &Manifest) -> Result<(ModelTables, Vec<Unverified>)> {
    let mut layers: Vec<LayerTable> = Vec::new();
    let mut unverified = Vec::new();
    let mut files = BTreeMap::new();
    for file in &manifest.files {
        let path = dir.join(&file.name);
        let bytes = map(&path, file.bytes)?;
        match &file.layer {
            Some(entry) => {
                layers.push(layer::decode(&path, &bytes, entry)?);
                unverified.push(Unverified { file: open_file(&path)?, path, crc32c: file.crc32c });
            }
            None => {
                compare(&path, &bytes, file.crc32c)?;
                files.insert(file.name.clone(), bytes);
            }
        }
    }
    Ok((ModelTables { metadata: manifest.model.clone(), version: manifest.version, layers, files }, unverified))
}

/// A mapped file of weights that nobody has compared with its checksum.
struct Unverified {
    path: PathBuf,
    file: File,
    crc32c: u32,
}

impl Unverified {
    /// Reads the file and not its mapping: what is compared is no memory of this process, however large the model is.
    fn verify(&mut self) -> Result<()> {
        let mut part = vec![0; VERIFIED_BYTES];
        let mut crc32c = 0;
        loop {
            match self.file.read(&mut part) {
                Ok(0) => return check_crc(&self.path, crc32c, self.crc32c),
                Ok(bytes) => crc32c = crc32c::crc32c_append(crc32c, &part[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("read {}", self.path.display()), error)),
            }
        }
    }
}

/// Compares weights with their checksums on a thread of its own: a first open does not wait for every page of a
/// large model, and what is wrong with it is known soon after.
fn verify_behind(mut files: Vec<Unverified>) -> Arc<OnceLock<Error>> {
    let damage = Arc::new(OnceLock::new());
    let found = Arc::clone(&damage);
    let verify = move || {
        let wrong = files.iter_mut().find_map(|file| file.verify().err());
        if let Some(error) = wrong {
            tracing::error!("{error}");
            let _ = found.set(error);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("hypr-verify".to_owned()).spawn(verify) {
        tracing::warn!(%error, "the weights of a model are not verified");
    }
    damage
}

fn compare(path: &Path, bytes: &[u8], recorded: u32) -> Result<()> {
    check_crc(path, crc32c::crc32c(bytes), recorded)
}

fn check_crc(path: &Path, found: u32, recorded: u32) -> Result<()> {
    match found == recorded {
        true => Ok(()),
        false => Err(damaged(path, format!("checksum is {found:08x}, recorded was {recorded:08x}"))),
    }
}

fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => damaged(path, "the file is missing").with_source(error),
        _ => Error::io(format!("open {}", path.display()), error),
    })
}

/// Maps a file that must hold exactly `bytes` bytes.
fn map(path: &Path, bytes: u64) -> Result<Buffer> {
    let file = open_file(path)?;
    let found = file.metadata().map_err(|error| Error::io(format!("read {}", path.display()), error))?.len();
    if found != bytes {
        return Err(damaged(path, format!("it has {found} bytes, recorded were {bytes}")));
    }
    hypr_tensor::map_file(&file).map_err(|error| Error::io(format!("map {}", path.display()), error))
}

/// The error for a file that is not what was published.
fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::corrupted(format!("model file {} is damaged: {what}; remove the model and import it again", path.display()))
}

fn version_dir(model_dir: &Path, version: u64) -> PathBuf {
    model_dir.join(format!("v{version}"))
}

/// The published versions of a model; empty when there is no such directory.
fn versions(model_dir: &Path) -> Result<Vec<u64>> {
    match dir_names(model_dir) {
        Ok(names) => Ok(names.iter().filter_map(|name| name.strip_prefix('v')?.parse().ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn dir_names(dir: &Path) -> Result<Vec<String>> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>();
    let names = read().map_err(|error| Error::io(format!("list {}", dir.display()), error))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Error::io(format!("sync {}", dir.display()), error))
}

/// A name that no other writer of this or another process uses at the same time.
fn unique_name(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The directory name of a model: its id with everything but `[A-Za-z0-9_-]` and inner dots percent-encoded.
fn encode_id(model_id: &str) -> Result<String> {
    if model_id.is_empty() {
        return Err(Error::invalid("a model id cannot be empty"));
    }
    let mut name = String::with_capacity(model_id.len());
    for (at, byte) in model_id.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte as char),
            b'.' if at > 0 => name.push('.'),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > MAX_DIR_NAME_BYTES {
        return Err(Error::invalid(format!(
            "model id is too long: {} bytes encoded, at most {MAX_DIR_NAME_BYTES}",
            name.len()
        )));
    }
    Ok(name)
}

/// Undoes [`encode_id`]; `None` for a name that it cannot have made.
fn decode_id(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    let id = String::from_utf8(bytes).ok()?;
    (encode_id(&id).ok()? == name).then_some(id)
}
