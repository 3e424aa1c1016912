//! Models from files into a data directory: the store maps, an importer parses, the store publishes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use hypr_common::{Error, Result};
use hypr_storage::models::{ModelEntry, ModelStore};
use hypr_tensor::DType;

/// The extension of a GGUF file.
const GGUF: &str = "gguf";
/// The extension of an ONNX file.
const ONNX: &str = "onnx";

/// The models of one data directory.
#[derive(Debug)]
pub struct Library {
    store: ModelStore,
}

impl Library {
    /// Opens the models of `data_dir`, also beside a server that holds it.
    pub fn open(data_dir: &Path) -> Result<Self> {
        Ok(Self { store: ModelStore::open(data_dir)? })
    }

    /// Imports `files`, by their name in the model, as `model_id` and returns what was published. `settings` are further
    /// files and what is in them, `notes` are side files to keep with the model. A model that exists becomes the next version of itself.
    ///
    /// # Errors
    /// `InvalidInput` when the files are no model that an importer reads, naming what is wrong or missing.
    pub fn import(
        &self,
        model_id: &str,
        files: &BTreeMap<String, PathBuf>,
        settings: &[(&str, &str)],
        notes: BTreeMap<String, Vec<u8>>,
    ) -> Result<ModelEntry> {
        let mut buffers = BTreeMap::new();
        for (name, path) in files {
            let mapped = File::open(path).and_then(|file| hypr_tensor::map_file(&file));
            let mapped = mapped.map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
            buffers.insert(name.clone(), mapped);
        }
        for (name, content) in settings {
            buffers.insert((*name).to_owned(), content.as_bytes().into());
        }
        let is = |name: &str, end: &str| Path::new(name).extension().is_some_and(|extension| extension == end);
        let gguf = buffers.iter().find(|(name, _)| is(name, GGUF));
        let weights = buffers.keys().any(|name| is(name, "safetensors"));
        let mut tables = match gguf {
            Some((_, bytes)) => hypr_inference::import::gguf(bytes.clone(), model_id)?,
            // Checkpoints often carry an ONNX copy of themselves; the weights that are used in place come first.
            None if !weights && buffers.keys().any(|name| is(name, ONNX)) => {
                hypr_inference::import::onnx(&buffers, model_id)?
            }
            None => hypr_inference::import::safetensors(&buffers, model_id)?,
        };
        tables.files.extend(notes.into_iter().map(|(name, bytes)| (name, bytes.into())));
        self.store.publish(&tables)?;
        self.find(model_id)?.ok_or_else(|| Error::not_found(format!("model '{model_id}' was removed meanwhile")))
    }

    /// Publishes `model_id` with its matrices in `format` as `as_id`; see `hypr_inference::convert`.
    ///
    /// # Errors
    /// `NotFound` for the model, `InvalidInput` for one that is in blocks already.
    pub fn convert(&self, model_id: &str, as_id: &str, format: DType) -> Result<ModelEntry> {
        let tables = hypr_common::model::ModelSource::open(&self.store, model_id)?;
        self.store.publish(&hypr_inference::convert::convert(&tables, as_id, format)?)?;
        self.find(as_id)?.ok_or_else(|| Error::not_found(format!("model '{as_id}' was removed meanwhile")))
    }

    /// The newest version of a model.
    pub fn find(&self, model_id: &str) -> Result<Option<ModelEntry>> {
        Ok(self.list()?.into_iter().find(|entry| entry.model_id == model_id))
    }

    /// A side file of a model, if it is there.
    pub fn side_file(&self, model_id: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let tables = hypr_common::model::ModelSource::open(&self.store, model_id)?;
        Ok(tables.files.get(name).map(|bytes| bytes.to_vec()))
    }

    /// Compares every byte of a model with its checksums.
    pub fn verify(&self, model_id: &str) -> Result<()> {
        self.store.verify(model_id)
    }

    /// All models, sorted by id.
    pub fn list(&self) -> Result<Vec<ModelEntry>> {
        self.store.list()
    }

    /// Deletes a model.
    pub fn remove(&self, model_id: &str) -> Result<()> {
        self.store.remove(model_id)
    }
}
