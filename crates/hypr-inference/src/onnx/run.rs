//! A graph in memory, run on one input after the other.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};
use hypr_tensor::Pool;
use tract_onnx::Onnx;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoRunnable, TractResult, TypedRunnableModel};
use tract_onnx::prelude::{TValue, Tensor, tvec};

use super::{GRAPH_FILE, Layout, OnnxConfig, OnnxInput, graph};
use crate::audio::Wave;
use crate::config::Pooling;
use crate::encoder::parallel;
use crate::image_processor::ImageProcessor;
use crate::weights::Weights;

/// The longest sound that is embedded, in seconds; other requests wait while it is.
const MAX_SECONDS: usize = 600;

/// An opened ONNX encoder.
pub struct OnnxEncoder {
    config: OnnxConfig,
    plan: Arc<TypedRunnableModel>,
    /// Of the outputs in their order; the second is the state.
    outputs: Vec<Vec<usize>>,
    /// Of an image encoder.
    processor: Option<ImageProcessor>,
}

impl fmt::Debug for OnnxEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnnxEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Graphs have their tensors with them; none may name a file of this machine.
struct NoFiles;

impl ModelDataResolver for NoFiles {
    fn read_bytes_from_path(&self, _: &mut Vec<u8>, path: &Path, _: usize, _: Option<usize>) -> TractResult<()> {
        Err(tract_onnx::prelude::TractError::msg(format!("a tensor in another file ({}) is refused", path.display())))
    }
}

impl OnnxEncoder {
    /// Puts graph and weights together and plans the graph; the weights are copied.
    ///
    /// # Errors
    /// `Corrupted` where a part is missing, `Unsupported` for a graph with operators that tract does not have.
    pub fn open(tables: &ModelTables) -> Result<Self> {
        let config = OnnxConfig::from_metadata(&tables.metadata)?;
        let file = tables.files.get(GRAPH_FILE).ok_or_else(|| {
            Error::corrupted(format!("model {} has no {GRAPH_FILE}; import it again", tables.metadata.model_id))
        })?;
        let encoder = Self::plan(config, file.as_slice(), &Weights::new(tables)?)?;
        let width = encoder.width()?;
        if width != encoder.config.embedding_size {
            return Err(Error::corrupted(format!(
                "model {} says its vectors have {} values and gives {width}; import it again",
                tables.metadata.model_id, encoder.config.embedding_size
            )));
        }
        Ok(encoder)
    }

    /// As [`OnnxEncoder::open`], for a configuration whose width may not be known yet.
    pub(crate) fn plan(config: OnnxConfig, graph_file: &[u8], weights: &Weights) -> Result<Self> {
        let processor = match &config.description.input {
            OnnxInput::Image { preprocessor: Some(settings), .. } => Some(ImageProcessor::from_json(settings)?),
            OnnxInput::Image { preprocessor: None, .. } => {
                return Err(Error::corrupted("the model does not say how pictures are prepared; import it again"));
            }
            OnnxInput::Audio { .. } => None,
        };
        let proto = graph::assemble(graph_file, weights)?;
        let planned = || -> TractResult<_> {
            let onnx = Onnx { provider: Arc::new(NoFiles), ..tract_onnx::onnx() };
            let model = onnx.model_for_proto_model(&proto)?.into_optimized()?;
            let outputs = model
                .output_outlets()?
                .iter()
                .map(|&outlet| Ok(model.outlet_fact(outlet)?.shape.as_concrete().map(<[usize]>::to_vec)))
                .collect::<TractResult<Vec<_>>>()?;
            Ok((model.into_runnable()?, outputs))
        };
        let (plan, outputs) =
            quiet(planned).map_err(|error| Error::unsupported(format!("the ONNX graph cannot be run: {error}")))?;
        let outputs: Option<Vec<Vec<usize>>> = outputs.into_iter().collect();
        let outputs = outputs.ok_or_else(|| Error::unsupported("the ONNX graph's output has no fixed shape"))?;
        Ok(Self { config, plan, outputs, processor })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &OnnxConfig {
        &self.config
    }

    /// Values of a vector, by the shape of the graph's output.
    ///
    /// # Errors
    /// `Unsupported` for an output without values.
    pub(crate) fn width(&self) -> Result<usize> {
        let shape = self.outputs.first().map_or(&[][..], Vec::as_slice);
        let width = match self.config.description.pooling {
            None => shape.iter().product(),
            Some(_) => shape.last().copied().unwrap_or(0),
        };
        if shape.is_empty() || width == 0 || width > 1 << 20 {
            return Err(Error::unsupported(format!("an output of shape {shape:?} is no vector; name another output")));
        }
        Ok(width)
    }

    /// Embeds encoded pictures, as many at a time as the pool has threads; a vector of `embedding_size` each, or
    /// `InvalidInput` for one that cannot be read.
    pub fn embed_images(&self, pool: &Pool, pictures: &[&[u8]]) -> Vec<Result<Vec<f32>>> {
        parallel(pool, pictures.len(), &|at| self.embed_image(pictures[at]))
    }

    /// Embeds sounds, as [`OnnxEncoder::embed_images`] does pictures; `InvalidInput` for one of another sampling rate, an
    /// empty or a very long one.
    pub fn embed_waves(&self, pool: &Pool, waves: &[&Wave]) -> Vec<Result<Vec<f32>>> {
        parallel(pool, waves.len(), &|at| self.embed_wave(waves[at]))
    }

    fn embed_image(&self, encoded: &[u8]) -> Result<Vec<f32>> {
        let (OnnxInput::Image { layout, .. }, Some(processor)) = (&self.config.description.input, &self.processor)
        else {
            return Err(Error::invalid("the model embeds no pictures"));
        };
        let pixels = processor.pixels(encoded)?;
        let (height, width, area) = (pixels.height, pixels.width, pixels.height * pixels.width);
        let input = match layout {
            Layout::ChannelsFirst => Tensor::from_shape(&[1, 3, height, width], &pixels.values),
            Layout::ChannelsLast => {
                let at = |pixel: usize, channel: usize| pixels.values[channel * area + pixel];
                let values: Vec<f32> =
                    (0..area).flat_map(|pixel| (0..3).map(move |channel| at(pixel, channel))).collect();
                Tensor::from_shape(&[1, height, width, 3], &values)
            }
        };
        let outputs = self.run(input.map_err(failed)?, None)?;
        self.pooled(&outputs)
    }

    fn embed_wave(&self, wave: &Wave) -> Result<Vec<f32>> {
        let OnnxInput::Audio { sample_rate, window, context, state, .. } = &self.config.description.input else {
            return Err(Error::invalid("the model embeds no sound"));
        };
        if wave.sample_rate != *sample_rate {
            return Err(Error::invalid(format!(
                "the sound has {} samples a second and the model takes {sample_rate}; change its rate first",
                wave.sample_rate
            )));
        }
        let seconds = wave.samples.len() / *sample_rate as usize;
        if wave.samples.is_empty() || seconds >= MAX_SECONDS {
            return Err(Error::invalid(format!(
                "a sound of {seconds} s was given; give one that is shorter than ten minutes"
            )));
        }
        let mut input = vec![0.0; context + window];
        let mut carried = match state {
            None => None,
            Some(_) => Some(self.silence()?),
        };
        let mut sum = vec![0.0_f32; self.config.embedding_size];
        let windows = wave.samples.chunks(*window);
        let n = windows.len() as f32;
        for samples in windows {
            input.copy_within(*window.., 0);
            input[*context..*context + samples.len()].copy_from_slice(samples);
            input[*context + samples.len()..].fill(0.0);
            let tensor = Tensor::from_shape(&[1, input.len()], &input).map_err(failed)?;
            let outputs = self.run(tensor, carried.take())?;
            let vector = self.pooled(&outputs)?;
            sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value / n);
            carried = match state {
                None => None,
                Some(_) => outputs.into_iter().nth(1),
            };
        }
        Ok(sum)
    }

    /// The state before the first window.
    fn silence(&self) -> Result<TValue> {
        let shape = self.outputs.get(1).map_or(&[][..], Vec::as_slice);
        Tensor::zero::<f32>(shape).map(TValue::from).map_err(failed)
    }

    fn run(&self, input: Tensor, state: Option<TValue>) -> Result<Vec<TValue>> {
        let mut inputs = tvec!(TValue::from(input));
        inputs.extend(state);
        Ok(self.plan.run(inputs).map_err(failed)?.into_iter().collect())
    }

    /// The first output as one vector.
    fn pooled(&self, outputs: &[TValue]) -> Result<Vec<f32>> {
        let output = outputs.first().ok_or_else(|| Error::internal("the ONNX graph gave no output"))?;
        let output = output.cast_to::<f32>().map_err(failed)?;
        let view = output.to_plain_array_view::<f32>().map_err(failed)?;
        let values: Vec<f32> = view.iter().copied().collect();
        let width = self.width()?;
        Ok(match self.config.description.pooling {
            None => values,
            Some(Pooling::Cls | Pooling::Eos) => values[..width].to_vec(),
            Some(Pooling::Mean) => crate::model::mean(&values, width),
        })
    }
}

/// tract panics on some graphs that make no sense.
fn quiet<T>(work: impl FnOnce() -> TractResult<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_) => Err("its operators contradict one another".to_owned()),
    }
}

fn failed(error: tract_onnx::prelude::TractError) -> Error {
    Error::internal(format!("the ONNX graph failed: {error:#}"))
}
