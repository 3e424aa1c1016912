//! A foundation model as Arrow tables: what an importer makes, the store keeps and the engine reads.
//!
//! A tensor is stored as one or more *pieces*, each a row of `model_weights`. A piece holds whole matrix
//! rows and at most [`MAX_PIECE_BYTES`], so it fits one Flight message and kernels can walk the pieces of a
//! tensor without joining them. Every piece is a record batch of its own, so that its bytes start 64-byte
//! aligned inside the mapped Arrow IPC file.
//!
//! Layers: `-1` holds the embeddings, `0..n` the transformer blocks, `n` what follows them (final norm,
//! output head, pooler).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The most bytes of `weight_data` one piece holds: 8 MiB.
pub const MAX_PIECE_BYTES: usize = 8 << 20;
/// `layer_id` of embeddings.
pub const EMBEDDING_LAYER: i32 = -1;
/// Side file with the tokenizer in the `tokenizers` JSON format.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Side file with the chat template (Jinja).
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// One row of `model_metadata`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// What SQL calls the model.
    pub model_id: String,
    /// Architecture family and size, for example `llama` or `bert`.
    pub model_type: String,
    /// Number of parameters over all tensors.
    pub total_parameters: i64,
    /// Everything the engine needs to run the weights: family, shapes, norms, positions, special tokens;
    /// `tokenizer` names the tokenizer side file.
    pub architecture_config: serde_json::Value,
    /// Rows of the token embedding.
    pub vocab_size: i32,
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Query heads per layer.
    pub num_attention_heads: i32,
    /// Transformer blocks.
    pub num_hidden_layers: i32,
}

/// The columns of one layer file. The table `model_weights` puts `model_id` before them.
///
/// `shape` is the tensor's logical shape `[rows, cols]` (or `[n]`), of the whole tensor and not of the
/// piece. `encoding` names the element or block format of `weight_data` as GGML spells it (`F32`, `F16`,
/// `BF16`, `Q4_1`, ..). `weight_shard_id` counts the pieces of a tensor from 0, in row order.
pub fn layer_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("layer_id", DataType::Int32, false),
        Field::new("parameter_type", DataType::Utf8, false),
        Field::new("parameter_name", DataType::Utf8, false),
        Field::new("weight_shard_id", DataType::Int32, false),
        Field::new("encoding", DataType::Utf8, false),
        Field::new("shape", DataType::List(Arc::new(Field::new("item", DataType::Int32, false))), false),
        Field::new("weight_data", DataType::LargeBinary, false),
    ]))
}

/// One layer: the pieces of all its tensors, one record batch of [`layer_schema`] each.
#[derive(Clone, Debug)]
pub struct LayerTable {
    /// See the module documentation for the numbering.
    pub layer_id: i32,
    /// One single-row batch a piece, tensors in order, pieces of a tensor in row order.
    pub pieces: Vec<RecordBatch>,
}

/// A whole model, ready to run: its buffers lie in mapped files (or on the heap, in tests).
#[derive(Clone, Debug)]
pub struct ModelTables {
    /// The row of `model_metadata`.
    pub metadata: ModelMetadata,
    /// Version of the published weights; grows by one with each change.
    pub version: u64,
    /// Ascending by `layer_id`.
    pub layers: Vec<LayerTable>,
    /// Side files by name, such as [`TOKENIZER_FILE`].
    pub files: BTreeMap<String, Buffer>,
}

/// Where the engine and SQL find models. The store implements it; tests may hold models in memory.
pub trait ModelSource: Send + Sync + fmt::Debug {
    /// The rows of `model_metadata`, sorted by id.
    fn models(&self) -> Result<Vec<ModelMetadata>>;

    /// The row of one model, if there is one.
    ///
    /// # Errors
    /// Those of reading.
    fn model(&self, model_id: &str) -> Result<Option<ModelMetadata>> {
        Ok(self.models()?.into_iter().find(|model| model.model_id == model_id))
    }

    /// Maps the newest version of a model.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, naming those that exist; `Corrupted` for a damaged file.
    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>>;

    /// Forgets what is kept of an opened model, so that its memory is free once nobody has it any more; the next
    /// [`ModelSource::open`] maps it again.
    fn release(&self, model_id: &str) {
        let _ = model_id;
    }

    /// When a version was imported, in microseconds since the Unix epoch; `None` where that is not known.
    ///
    /// # Errors
    /// Those of reading.
    fn imported_us(&self, model_id: &str, version: u64) -> Result<Option<i64>> {
        let _ = (model_id, version);
        Ok(None)
    }
}
