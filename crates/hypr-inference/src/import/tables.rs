//! Cuts tensors into the pieces of `hypr_common::model`.
//!
//! Invariant: a piece's `weight_data` is a slice of the importer's input buffer; nothing is copied.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, Int32Array, LargeBinaryArray, RecordBatch, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, SchemaRef};
use hypr_common::model::{LayerTable, MAX_PIECE_BYTES, ModelMetadata, ModelTables, layer_schema};
use hypr_common::{Error, Result};
use hypr_tensor::DType;

use crate::config::ModelConfig;
use crate::families::Slot;

/// A tensor of a model file, named and placed.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Where it belongs in the model.
    pub slot: Slot,
    /// How its values are encoded.
    pub dtype: DType,
    /// `[.., cols]`: all but the last dimension count rows.
    pub shape: Vec<usize>,
    /// Its bytes, row after row.
    pub data: Buffer,
}

impl Tensor {
    fn row_bytes_and_count(&self) -> Result<(usize, usize)> {
        let Some((&cols, outer)) = self.shape.split_last() else {
            return Err(Error::unsupported(format!("tensor {} has no dimensions", self.slot.name)));
        };
        let rows = outer
            .iter()
            .try_fold(1_usize, |rows, &dim| rows.checked_mul(dim))
            .ok_or_else(|| Error::corrupted(format!("tensor {} has the shape {:?}", self.slot.name, self.shape)))?;
        let row_bytes = byte_len(self.dtype, 1, cols)
            .ok_or_else(|| Error::corrupted(format!("tensor {} has rows of {cols} values", self.slot.name)))?;
        if row_bytes == 0 || rows == 0 || row_bytes.checked_mul(rows) != Some(self.data.len()) {
            return Err(Error::corrupted(format!(
                "tensor {} of shape {:?} as {} does not fill its {} bytes",
                self.slot.name,
                self.shape,
                self.dtype.name(),
                self.data.len()
            )));
        }
        Ok((row_bytes, rows))
    }

    fn pieces(&self, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let (row_bytes, rows) = self.row_bytes_and_count()?;
        let rows_per_piece = (MAX_PIECE_BYTES / row_bytes).max(1);
        let mut pieces = Vec::with_capacity(rows.div_ceil(rows_per_piece));
        for first_row in (0..rows).step_by(rows_per_piece) {
            let len = rows_per_piece.min(rows - first_row) * row_bytes;
            let data = self.data.slice_with_length(first_row * row_bytes, len);
            pieces.push(self.piece(schema, pieces.len() as i32, data)?);
        }
        Ok(pieces)
    }

    fn piece(&self, schema: &SchemaRef, shard: i32, data: Buffer) -> Result<RecordBatch> {
        let mut shape = ListBuilder::new(Int32Builder::new()).with_field(Field::new("item", DataType::Int32, false));
        for &dim in &self.shape {
            let dim = i32::try_from(dim)
                .map_err(|_| Error::unsupported(format!("tensor {} has a dimension of {dim}", self.slot.name)))?;
            shape.values().append_value(dim);
        }
        shape.append(true);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, data.len() as i64]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![self.slot.layer_id])),
            Arc::new(StringArray::from(vec![self.slot.parameter_type])),
            Arc::new(StringArray::from(vec![self.slot.name.as_str()])),
            Arc::new(Int32Array::from(vec![shard])),
            Arc::new(StringArray::from(vec![self.dtype.name()])),
            Arc::new(shape.finish()),
            Arc::new(LargeBinaryArray::try_new(offsets, data, None)?),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

/// The bytes of `rows` rows of `cols` values, or `None` where the blocks of `dtype` do not divide a row or
/// the product does not fit.
pub(super) fn byte_len(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    if !cols.is_multiple_of(dtype.block_len()) {
        return None;
    }
    (cols / dtype.block_len()).checked_mul(dtype.block_bytes())?.checked_mul(rows)
}

/// The tensors by layer, and how many values they hold; layers ascend and a layer's tensors keep their order.
pub(super) fn layers(tensors: &[Tensor]) -> Result<(Vec<LayerTable>, i64)> {
    let schema = layer_schema();
    let mut layers: BTreeMap<i32, Vec<RecordBatch>> = BTreeMap::new();
    let mut total_parameters = 0_i64;
    let mut names = HashSet::new();
    for tensor in tensors {
        if !names.insert((tensor.slot.layer_id, &tensor.slot.name)) {
            return Err(Error::corrupted(format!(
                "the model has {} of layer {} twice",
                tensor.slot.name, tensor.slot.layer_id
            )));
        }
        layers.entry(tensor.slot.layer_id).or_default().extend(tensor.pieces(&schema)?);
        total_parameters += tensor.shape.iter().product::<usize>() as i64;
    }
    let layers = layers.into_iter().map(|(layer_id, pieces)| LayerTable { layer_id, pieces }).collect();
    Ok((layers, total_parameters))
}

/// Puts a model together; see [`layers`].
pub(super) fn assemble(
    model_id: &str,
    config: &ModelConfig,
    tensors: &[Tensor],
    files: BTreeMap<String, Buffer>,
) -> Result<ModelTables> {
    let (layers, total_parameters) = layers(tensors)?;
    Ok(ModelTables {
        metadata: ModelMetadata {
            model_id: model_id.to_owned(),
            model_type: config.family.name().to_owned(),
            total_parameters,
            architecture_config: serde_json::to_value(config)
                .map_err(|error| Error::internal(format!("the configuration of {model_id}: {error}")))?,
            vocab_size: config.vocab_size as i32,
            hidden_size: config.hidden_size as i32,
            num_attention_heads: config.num_attention_heads as i32,
            num_hidden_layers: config.num_hidden_layers as i32,
        },
        version: 0,
        layers,
        files,
    })
}
