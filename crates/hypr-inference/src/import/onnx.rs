//! ONNX files: an encoder's graph beside `encoder.json` (an [`OnnxDescription`]) or `preprocessor_config.json`.
//!
//! Invariant: what is imported can be run; the graph is planned once, which also says how wide its vectors are.
//! Deliberately absent: graphs that take text or generate it, and weights in other files.

use std::collections::BTreeMap;

use arrow_buffer::Buffer;
use hypr_common::model::{LayerTable, ModelMetadata, ModelTables};
use hypr_common::{Error, Result};

use super::tables::{self, Tensor};
use crate::api::Task;
use crate::config::Pooling;
use crate::families::Slot;
use crate::image_processor::{ImageProcessor, PREPROCESSOR_FILE};
use crate::onnx::{
    self, DESCRIPTION_FILE, FAMILY, GRAPH_FILE, Layout, OnnxConfig, OnnxDescription, OnnxEncoder, OnnxInput,
};
use crate::weights::Weights;

/// Reads an encoder from its files by name: `*.onnx`, and `encoder.json` or `preprocessor_config.json`.
///
/// # Errors
/// `InvalidInput` for a missing file or a description that does not fit the graph, `Corrupted` for a damaged one,
/// `Unsupported` for a graph that tract cannot run.
pub fn onnx(files: &BTreeMap<String, Buffer>, model_id: &str) -> Result<ModelTables> {
    let mut graphs = files.iter().filter(|(name, _)| name.ends_with(".onnx"));
    let (Some((name, bytes)), None) = (graphs.next(), graphs.next()) else {
        return Err(Error::invalid(format!("model {model_id} needs exactly one .onnx file")));
    };
    let mut description = description(files)?;
    let picture = match &description.input {
        OnnxInput::Image { preprocessor: Some(settings), .. } => Some(ImageProcessor::from_json(settings)?.size()?),
        _ => None,
    };
    let imported = onnx::import(bytes.as_slice(), &mut description, picture)
        .map_err(|error| Error::new(error.kind(), format!("{name}: {error}")))?;
    let task = match &description.input {
        OnnxInput::Image { .. } => Task::EmbedImage,
        OnnxInput::Audio { .. } => Task::EmbedAudio,
    };
    let mut config =
        OnnxConfig { family: FAMILY.to_owned(), tasks: vec![task.name().to_owned()], embedding_size: 0, description };
    let (layers, total_parameters) = layers(imported.weights)?;
    let mut tables = ModelTables {
        metadata: metadata(model_id, &config, total_parameters)?,
        version: 0,
        layers,
        files: BTreeMap::from([(GRAPH_FILE.to_owned(), Buffer::from_vec(imported.graph))]),
    };
    let encoder = OnnxEncoder::plan(config.clone(), tables.files[GRAPH_FILE].as_slice(), &Weights::new(&tables)?)
        .map_err(|error| Error::new(error.kind(), format!("{name}: {error}")))?;
    config.embedding_size = encoder.width()?;
    tables.metadata = metadata(model_id, &config, total_parameters)?;
    Ok(tables)
}

/// What the files say of the graph's use; `preprocessor` is filled in.
fn description(files: &BTreeMap<String, Buffer>) -> Result<OnnxDescription> {
    let json = |name: &str| files.get(name).map(|bytes| bytes.as_slice());
    let invalid = |name: &str, error| Error::invalid(format!("{name} cannot be used: {error}"));
    let settings = json(PREPROCESSOR_FILE).map(serde_json::from_slice).transpose();
    let settings: Option<serde_json::Value> = settings.map_err(|error| invalid(PREPROCESSOR_FILE, error))?;
    let described = json(DESCRIPTION_FILE).map(serde_json::from_slice).transpose();
    let described: Option<OnnxDescription> = described.map_err(|error| invalid(DESCRIPTION_FILE, error))?;
    let mut description = match (described, &settings) {
        (Some(description), _) => description,
        (None, Some(_)) => OnnxDescription {
            input: OnnxInput::Image { layout: Layout::default(), preprocessor: None },
            output: None,
            pooling: None,
        },
        (None, None) => {
            return Err(Error::invalid(format!(
                "an ONNX file does not say what goes into it; put {DESCRIPTION_FILE} or {PREPROCESSOR_FILE} beside it \
                 (docs/models.md)"
            )));
        }
    };
    if description.pooling == Some(Pooling::Eos) {
        return Err(Error::invalid(format!("{DESCRIPTION_FILE} says pooling is eos; graphs know cls and mean")));
    }
    match &mut description.input {
        OnnxInput::Image { preprocessor, .. } => {
            *preprocessor = preprocessor.take().or(settings);
            if preprocessor.is_none() {
                return Err(Error::invalid(format!("{DESCRIPTION_FILE} gives no preprocessor for its pictures")));
            }
        }
        OnnxInput::Audio { sample_rate, window, context, .. } => {
            if *sample_rate == 0 || *window == 0 || window.max(context) > &mut (1 << 24) {
                return Err(Error::invalid(format!("{DESCRIPTION_FILE} needs a sample_rate and a window above 0")));
            }
        }
    }
    Ok(description)
}

fn metadata(model_id: &str, config: &OnnxConfig, total_parameters: i64) -> Result<ModelMetadata> {
    Ok(ModelMetadata {
        model_id: model_id.to_owned(),
        model_type: FAMILY.to_owned(),
        total_parameters,
        architecture_config: serde_json::to_value(config)
            .map_err(|error| Error::internal(format!("the configuration of {model_id}: {error}")))?,
        vocab_size: 0,
        hidden_size: config.embedding_size as i32,
        num_attention_heads: 0,
        num_hidden_layers: 1,
    })
}

/// All weights in one layer: a graph has no others.
fn layers(weights: Vec<onnx::Weight>) -> Result<(Vec<LayerTable>, i64)> {
    let mut tensors: Vec<Tensor> = weights
        .into_iter()
        .map(|weight| Tensor {
            slot: Slot { layer_id: onnx::LAYER, parameter_type: "initializer", name: weight.name },
            dtype: weight.dtype,
            shape: weight.shape,
            data: weight.data,
        })
        .collect();
    tensors.sort_by(|a, b| a.slot.name.cmp(&b.slot.name));
    tables::layers(&tensors)
}
