//! Fixtures, real models and models made in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arrow_buffer::Buffer;
use hypr_common::model::{ModelMetadata, ModelSource, ModelTables};
use hypr_common::{Error, Result};
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::{EngineHandle, EngineOptions, EngineService, engine};
use hypr_tensor::{Kernels, Level, Pool};
use parking_lot::Mutex;
use serde_json::Value;

/// An engine over the models of `source`, and its thread.
pub fn start(source: Arc<dyn ModelSource>, options: EngineOptions) -> (EngineHandle, JoinHandle<()>) {
    let (handle, service) = engine(source, options);
    (handle, thread::spawn(|| EngineService::run(service)))
}

/// Read when the test runs: a target directory that several checkouts share may hold a test built in another one.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures").join(name)
}

pub fn read(path: &Path) -> Buffer {
    Buffer::from_vec(std::fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(read(path).as_slice()).unwrap()
}

/// The files of a checkpoint by their names below `directory`.
pub fn checkpoint(directory: &Path) -> BTreeMap<String, Buffer> {
    let names =
        ["model.safetensors", "config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"];
    let present = names.into_iter().filter(|name| directory.join(name).exists());
    present.map(|name| (name.to_owned(), read(&directory.join(name)))).collect()
}

/// A file of the real models, or `None` with a word about it where they are not there.
pub fn real(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("HYPRSTREAM_TEST_MODELS") else {
        println!("skipped: HYPRSTREAM_TEST_MODELS is not set");
        return None;
    };
    let found = find(Path::new(&root), name, 4);
    if found.is_none() {
        println!("skipped: {name} is not below {}", root.display());
    }
    found
}

fn find(directory: &Path, name: &str, depth: u32) -> Option<PathBuf> {
    if directory.join(name).is_file() {
        return Some(directory.join(name));
    }
    let entries = std::fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut directories: Vec<PathBuf> = entries.filter(|path| path.is_dir() && depth > 0).collect();
    directories.sort();
    directories.into_iter().find_map(|directory| find(&directory, name, depth - 1))
}

/// Every level that this processor runs.
pub fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_supported())
}

pub fn kernels(level: Level, threads: usize) -> Kernels {
    Kernels::with_level(level, Pool::new(threads)).unwrap()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

pub fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u32).collect()
}

/// Logits after each of `tokens`, run in pieces of `chunk` tokens: the last token of a piece has logits.
pub fn logits(
    transformer: &Transformer,
    kernels: &Kernels,
    tokens: &[u32],
    chunk: usize,
    precision: KvPrecision,
) -> Vec<Vec<f32>> {
    let mut cache = transformer.new_cache(precision);
    let mut work = Workspace::new();
    let pieces = tokens.chunks(chunk).map(|tokens| {
        let mut batch = [Chunk { tokens, cache: Some(&mut cache), logits: true }];
        transformer.forward(kernels, &mut batch, &mut work).unwrap();
        work.logits_mut().to_vec()
    });
    pieces.collect()
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| if (a - b).abs() <= largest { largest } else { (a - b).abs() })
}

/// Models in memory; a test can replace one by a newer version.
#[derive(Debug, Default)]
pub struct Models(Mutex<BTreeMap<String, Arc<ModelTables>>>);

impl Models {
    pub fn new(models: impl IntoIterator<Item = ModelTables>) -> Arc<Self> {
        let source = Arc::new(Self::default());
        models.into_iter().for_each(|tables| source.publish(tables));
        source
    }

    pub fn publish(&self, tables: ModelTables) {
        self.0.lock().insert(tables.metadata.model_id.clone(), Arc::new(tables));
    }

    pub fn remove(&self, model_id: &str) {
        self.0.lock().remove(model_id);
    }
}

impl ModelSource for Models {
    fn models(&self) -> Result<Vec<ModelMetadata>> {
        Ok(self.0.lock().values().map(|tables| tables.metadata.clone()).collect())
    }

    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>> {
        let found = self.0.lock().get(model_id).cloned();
        found.ok_or_else(|| Error::not_found(format!("no model {model_id}")))
    }
}
