//! Encoders that come as ONNX graphs, run by tract behind the same `embed` as the families.
//!
//! A model is imported as its graph without weights (a side file, [`GRAPH_FILE`]) and its weights, the usual rows of
//! `model_weights`. Opening puts the two together again. Invariant: what is asked of a graph is the part of it that
//! [`OnnxDescription::output`] needs; the rest was cut off by the import. What these models do not do, unlike the
//! families: tract copies the weights into memory of its own and packs them, a layer cannot be read in place or
//! taught, `model convert` refuses them, and their products do not run on the kernels of `hypr-tensor`.

mod graph;
mod run;

use hypr_common::model::ModelMetadata;
use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::Pooling;

pub(crate) use graph::{LAYER, Weight, import};
pub use run::OnnxEncoder;

/// `architecture_config.family` of these models.
pub const FAMILY: &str = "onnx";
/// The side file with the graph, an ONNX file whose large tensors are empty.
pub const GRAPH_FILE: &str = "graph.onnx";
/// What a user writes beside an ONNX file: an [`OnnxDescription`].
pub const DESCRIPTION_FILE: &str = "encoder.json";

/// How a graph is used as an encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxDescription {
    /// What goes in.
    pub input: OnnxInput,
    /// The name of the tensor that comes out; the graph's first output where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// How its rows become one vector; absent, all of its values are the vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

/// What a graph takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "modality", rename_all = "lowercase", deny_unknown_fields)]
pub enum OnnxInput {
    /// A picture.
    Image {
        /// The order of the dimensions.
        #[serde(default)]
        layout: Layout,
        /// The keys of `preprocessor_config.json`; that file's content where it is absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preprocessor: Option<Json>,
    },
    /// Sound, in windows that follow one another; the vectors of the windows are averaged.
    Audio {
        /// Samples a second.
        sample_rate: u32,
        /// New samples in a window; the last window is filled with silence.
        window: usize,
        /// Samples of the window before, in front of the new ones.
        #[serde(default)]
        context: usize,
        /// What a window hands to the next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<State>,
        /// Whole numbers for further inputs, by name.
        #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
        constants: std::collections::BTreeMap<String, i64>,
    },
}

/// The order of a picture's dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[1, 3, height, width]`.
    #[default]
    ChannelsFirst,
    /// `[1, height, width, 3]`.
    ChannelsLast,
}

/// An input that takes what an output gave in the window before; zeros in the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The input's name.
    pub input: String,
    /// The output's name.
    pub output: String,
}

/// `architecture_config` of an ONNX encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnnxConfig {
    /// [`FAMILY`].
    pub family: String,
    /// `embed_image` or `embed_audio`.
    pub tasks: Vec<String>,
    /// Values of a vector.
    pub embedding_size: usize,
    /// How the graph is used; `preprocessor` and `output` are filled in.
    #[serde(rename = "encoder")]
    pub description: OnnxDescription,
}

impl OnnxConfig {
    /// Whether `metadata` is of such a model.
    pub fn is_of(metadata: &ModelMetadata) -> bool {
        metadata.architecture_config.get("family").and_then(Json::as_str) == Some(FAMILY)
    }

    /// Reads `architecture_config`.
    ///
    /// # Errors
    /// `Corrupted` for JSON that is not of an ONNX encoder.
    pub fn from_metadata(metadata: &ModelMetadata) -> Result<Self> {
        serde_json::from_value(metadata.architecture_config.clone()).map_err(|error| {
            Error::corrupted(format!("architecture_config of model {}: {error}; import it again", metadata.model_id))
        })
    }
}
