//! `metadata.json`: what a version consists of.
//!
//! ```text
//! {"format_version": 1, "version": 3, "model": {a row of model_metadata},
//!  "files": [{"name": "layer_00000.arrow", "bytes": 123, "crc32c": 4026531840,
//!             "layer": {"layer_id": 0, "pieces": 9, "index_crc32c": 17}},
//!            {"name": "tokenizer.json", "bytes": 456, "crc32c": 305419896}],
//!  "crc32c": "0badcafe"}
//! ```
//! The last member is the checksum, in hexadecimal, of all bytes before the comma that introduces it; its
//! width is fixed, so a reader checks the bytes before it parses them. Files are in the order of the model's
//! layers, then side files by name. Readers refuse a `format_version` they do not know.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use hypr_common::model::ModelMetadata;
use hypr_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::damaged;

pub(super) const MANIFEST_FILE: &str = "metadata.json";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_LEAD: &str = ",\n  \"crc32c\": \"";
const CHECKSUM_DIGITS: usize = 8;
const CHECKSUM_TAIL: &str = "\"\n}\n";

/// The content of `metadata.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format_version: u32,
    pub version: u64,
    pub model: ModelMetadata,
    pub files: Vec<FileEntry>,
}

/// One file beside `metadata.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    pub name: String,
    pub bytes: u64,
    /// Of the whole file; compared by [`super::ModelStore::verify`].
    pub crc32c: u32,
    /// Set for layer files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerEntry>,
}

/// What a layer file must decode to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerEntry {
    pub layer_id: i32,
    pub pieces: usize,
    /// Of the footer and all message headers, see [`super::layer`]; compared at every open.
    pub index_crc32c: u32,
}

impl Manifest {
    pub fn new(version: u64, model: ModelMetadata, files: Vec<FileEntry>) -> Self {
        Self { format_version: FORMAT_VERSION, version, model, files }
    }

    /// Writes and syncs a new file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::internal("model metadata is not JSON").with_source(error))?;
        let body_bytes = text.trim_end_matches(['}', '\n']).len();
        text.truncate(body_bytes);
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("{CHECKSUM_LEAD}{checksum:08x}{CHECKSUM_TAIL}"));
        let written = File::create_new(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => damaged(path, "the file is missing").with_source(error),
            _ => Error::io(format!("read {}", path.display()), error),
        })?;
        let body_bytes = text.len().saturating_sub(CHECKSUM_LEAD.len() + CHECKSUM_DIGITS + CHECKSUM_TAIL.len());
        let (body, tail) = text.split_at(body_bytes);
        let expected = format!("{CHECKSUM_LEAD}{:08x}{CHECKSUM_TAIL}", crc32c::crc32c(body));
        if tail != expected.as_bytes() {
            return Err(damaged(path, "its checksum does not match"));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| damaged(path, &error).with_source(error))?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} has format {}, this program reads format {FORMAT_VERSION}; update hyprstream",
                    path.display(),
                    manifest.format_version
                ),
            ));
        }
        manifest.check().map_err(|what| damaged(path, what))?;
        Ok(manifest)
    }

    /// What no writer of this program says: a checksum does not tell who made a file.
    fn check(&self) -> std::result::Result<(), String> {
        if let Some(file) = self.files.iter().find(|file| !super::is_plain(&file.name)) {
            return Err(format!("it names a file '{}'", file.name));
        }
        let mut names = HashSet::new();
        if let Some(twice) = self.files.iter().find(|file| !names.insert(&file.name)) {
            return Err(format!("it names {} twice", twice.name));
        }
        let layers: Vec<i32> = self.files.iter().filter_map(|file| Some(file.layer.as_ref()?.layer_id)).collect();
        if !layers.is_sorted_by(|a, b| a < b) {
            return Err("its layers are out of order".to_owned());
        }
        Ok(())
    }
}
