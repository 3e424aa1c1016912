//! What embeds: a model of text, of pictures or of sound, behind one interface.
//!
//! Invariant: an input's vector is the same whatever it is embedded with. Deliberately absent: the queue and what is
//! put into one pass, which are the engine's.

use std::sync::Arc;

use arrow_buffer::Buffer;
use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};
use hypr_tensor::{Kernels, Pool};
use parking_lot::Mutex;

use crate::audio::{self, Wave};
use crate::config::ModelConfig;
use crate::families::VISION;
use crate::input::{EmbedInput, InputKind};
use crate::model::{self, Model};
use crate::onnx::{OnnxConfig, OnnxEncoder, OnnxInput};
use crate::paging;
use crate::transformer::Workspace;
use crate::vision::VisionTower;
use crate::weights::Weights;

/// A model that embeds.
#[derive(Clone, Debug)]
pub enum Encoder {
    /// A family's transformer over tokens.
    Text(Arc<Model>),
    /// A family's transformer over pictures.
    Picture(Arc<VisionTower>),
    /// Both, into one space.
    Joint(Arc<Model>, Arc<VisionTower>),
    /// A graph over pictures or sound.
    Onnx(Arc<OnnxEncoder>),
}

/// An input that is ready for a pass. Pictures are decoded in the pass: their numbers are far larger than their file.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// Of a text.
    Tokens(Vec<u32>),
    /// An encoded picture.
    Picture(Buffer),
    /// Sound.
    Sound(Wave),
}

impl Encoder {
    /// Opens a model that is not one of text alone, for texts of up to `max_positions` tokens; `None` for those of text.
    ///
    /// # Errors
    /// `Corrupted` where weights or graph are missing or damaged.
    pub fn open(tables: &Arc<ModelTables>, max_positions: usize) -> Result<Option<Self>> {
        if OnnxConfig::is_of(&tables.metadata) {
            return Ok(Some(Self::Onnx(Arc::new(OnnxEncoder::open(tables)?))));
        }
        let config = ModelConfig::from_metadata(&tables.metadata)?;
        let tower = |prefix: &str, config: &ModelConfig| -> Result<Arc<VisionTower>> {
            Ok(Arc::new(VisionTower::open(&Weights::new(tables)?.tower(prefix), config)?))
        };
        Ok(match &config.vision {
            Some(vision) => {
                let text = Model::open(Arc::clone(tables), max_positions)?;
                Some(Self::Joint(Arc::new(text), tower(VISION, vision)?))
            }
            None if config.image.is_some() => Some(Self::Picture(tower("", &config)?)),
            None => None,
        })
    }

    /// The memory that a model takes once it is open. Weights are mapped; a graph's are copied as well.
    pub(crate) fn memory_bytes(tables: &ModelTables) -> usize {
        let copies = if OnnxConfig::is_of(&tables.metadata) { 2 } else { 1 };
        copies * paging::weight_bytes(tables)
    }

    /// Whether `other` is the same opened model, so that a pass can hold inputs of both.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Arc::ptr_eq(a, b),
            (Self::Picture(a), Self::Picture(b)) => Arc::ptr_eq(a, b),
            (Self::Joint(a, _), Self::Joint(b, _)) => Arc::ptr_eq(a, b),
            (Self::Onnx(a), Self::Onnx(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// How many hold it, this one included.
    pub(crate) fn references(&self) -> usize {
        match self {
            Self::Text(model) => Arc::strong_count(model),
            Self::Picture(tower) => Arc::strong_count(tower),
            Self::Joint(model, tower) => Arc::strong_count(model).max(Arc::strong_count(tower)),
            Self::Onnx(encoder) => Arc::strong_count(encoder),
        }
    }

    /// Makes an input ready.
    ///
    /// # Errors
    /// `InvalidInput` for one that the model does not take, saying what it takes.
    pub fn prepare(&self, input: &EmbedInput) -> Result<Prepared> {
        match (self, input) {
            (Self::Text(model) | Self::Joint(model, _), EmbedInput::Text(text)) => {
                Ok(Prepared::Tokens(model.encode_input(text)?))
            }
            (Self::Picture(_) | Self::Joint(..), EmbedInput::Binary(bytes)) => Ok(Prepared::Picture(bytes.clone())),
            (Self::Onnx(encoder), EmbedInput::Binary(bytes)) => match encoder.config().description.input {
                OnnxInput::Image { .. } => Ok(Prepared::Picture(bytes.clone())),
                OnnxInput::Audio { .. } => audio::decode_wav(bytes.as_slice()).map(Prepared::Sound),
            },
            (Self::Onnx(encoder), EmbedInput::Samples(samples)) => match encoder.config().description.input {
                OnnxInput::Audio { sample_rate, .. } => {
                    Ok(Prepared::Sound(Wave { sample_rate, samples: samples.to_vec() }))
                }
                OnnxInput::Image { .. } => Err(self.refuses(input.kind())),
            },
            _ => Err(self.refuses(input.kind())),
        }
    }

    fn refuses(&self, kind: InputKind) -> Error {
        let takes = match self {
            Self::Text(_) => "text",
            Self::Picture(_) => "encoded pictures",
            Self::Joint(..) => "text and encoded pictures",
            Self::Onnx(encoder) => match encoder.config().description.input {
                OnnxInput::Image { .. } => "encoded pictures",
                OnnxInput::Audio { .. } => "WAV files and lists of samples",
            },
        };
        let given = match kind {
            InputKind::Text => "text",
            InputKind::Binary => "binary data",
            InputKind::Samples => "a list of numbers",
        };
        Error::invalid(format!("the model embeds {takes} and was given {given}"))
    }

    /// What an input takes of a pass's budget of tokens, on `threads` threads.
    pub fn cost(&self, input: &Prepared, budget: usize, threads: usize) -> usize {
        match (input, self) {
            (Prepared::Tokens(tokens), _) => tokens.len(),
            (Prepared::Picture(_), Self::Picture(tower) | Self::Joint(_, tower)) => tower.tokens(),
            // A graph runs on one thread: a pass is one input for each.
            (Prepared::Picture(_) | Prepared::Sound(_), _) => budget / threads.max(1),
        }
    }

    /// Embeds inputs of one kind in one pass; a vector each, or why one has none: a picture or sound that cannot be read
    /// fails alone.
    ///
    /// # Errors
    /// What the network says of the whole pass.
    pub fn embed(
        &self,
        kernels: &Kernels,
        inputs: &[&Prepared],
        normalize: bool,
        work: &mut Workspace,
    ) -> Result<Vec<Result<Vec<f32>>>> {
        let tokens: Vec<&[u32]> = inputs.iter().filter_map(|input| input.tokens()).collect();
        let pictures: Vec<&[u8]> = inputs.iter().filter_map(|input| input.picture()).collect();
        let sounds: Vec<&Wave> = inputs.iter().filter_map(|input| input.sound()).collect();
        let all = |vectors: Vec<Vec<f32>>| vectors.into_iter().map(Ok).collect();
        let mut vectors: Vec<Result<Vec<f32>>> = match self {
            Self::Text(model) => all(model.embed(kernels, &tokens, false, work)?),
            Self::Joint(model, _) if !tokens.is_empty() => all(model.embed(kernels, &tokens, false, work)?),
            Self::Picture(tower) | Self::Joint(_, tower) => pictures_by(tower, kernels, &pictures, work)?,
            Self::Onnx(encoder) if !pictures.is_empty() => encoder.embed_images(kernels.pool(), &pictures),
            Self::Onnx(encoder) => encoder.embed_waves(kernels.pool(), &sounds),
        };
        if vectors.len() != inputs.len() {
            return Err(Error::internal("a pass was made of inputs of different kinds"));
        }
        if normalize {
            vectors.iter_mut().flatten().for_each(|vector| model::to_length_one(vector));
        }
        Ok(vectors)
    }
}

/// Those that can be read, in one pass.
fn pictures_by(
    tower: &VisionTower,
    kernels: &Kernels,
    pictures: &[&[u8]],
    work: &mut Workspace,
) -> Result<Vec<Result<Vec<f32>>>> {
    let mut readable = Vec::with_capacity(pictures.len());
    let read = parallel(kernels.pool(), pictures.len(), &|at| tower.processor().pixels(pictures[at]));
    let read: Vec<Result<()>> = read.into_iter().map(|pixels| pixels.map(|pixels| readable.push(pixels))).collect();
    let vectors = if readable.is_empty() { Vec::new() } else { tower.embed(kernels, &readable, work)? };
    let mut vectors = vectors.into_iter();
    let missing = || Error::internal("a picture was not embedded");
    Ok(read.into_iter().map(|read| read.and_then(|()| vectors.next().ok_or_else(missing))).collect())
}

/// `job` for `0..n`, over the pool's threads.
pub(crate) fn parallel<T: Send>(pool: &Pool, n: usize, job: &(dyn Fn(usize) -> Result<T> + Sync)) -> Vec<Result<T>> {
    let results: Vec<Mutex<Option<Result<T>>>> = (0..n).map(|_| Mutex::new(None)).collect();
    pool.for_each_range(n, 1, &|_, range| range.for_each(|at| *results[at].lock() = Some(job(at))));
    let missing = || Err(Error::internal("an input was not embedded"));
    results.into_iter().map(|result| result.into_inner().unwrap_or_else(missing)).collect()
}

impl Prepared {
    fn tokens(&self) -> Option<&[u32]> {
        match self {
            Self::Tokens(tokens) => Some(tokens),
            _ => None,
        }
    }

    fn picture(&self) -> Option<&[u8]> {
        match self {
            Self::Picture(bytes) => Some(bytes.as_slice()),
            _ => None,
        }
    }

    fn sound(&self) -> Option<&Wave> {
        match self {
            Self::Sound(wave) => Some(wave),
            _ => None,
        }
    }
}
