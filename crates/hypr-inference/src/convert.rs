//! The weights of a model in another format: smaller, and faster where reading them is what takes the time.
//!
//! Invariant: only matrices change. Norms, biases and tables of positions stay as they are: they are small, and
//! every value passes through them. Deliberately absent: a second rounding. A model in blocks already would lose
//! twice, so it is refused.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, LargeBinaryArray, RecordBatch, StringArray};
use hypr_common::model::{LayerTable, ModelTables};
use hypr_common::{Error, Result};
use hypr_tensor::{DType, quant};

use crate::families::VISION;
use crate::onnx::OnnxConfig;

/// Tables that are added to the states as they are.
const ADDED: [&str; 2] = ["embed_positions", "embed_token_types"];
/// The matrices of the first and the last step, where few bits cost most.
const ENDS: [&str; 2] = ["embed_tokens", "lm_head"];

/// `tables` as the model `model_id`, its matrices in `format`. Where the rows of a matrix are no whole number of
/// blocks, a format of smaller blocks and at least as many bits takes its place; of a format of 4 or 5 bits the
/// embedding and the output get 6.
///
/// # Errors
/// `InvalidInput` for a model that is in blocks already, unless `format` is a plain one, and for weights that are not
/// finite; `Unsupported` for an ONNX graph, whose operators name their formats; `Corrupted` for tables that are not of `hypr_common::model::layer_schema`.
pub fn convert(tables: &ModelTables, model_id: &str, format: DType) -> Result<ModelTables> {
    if OnnxConfig::is_of(&tables.metadata) {
        return Err(Error::unsupported("an ONNX graph keeps its formats; convert it before it is imported"));
    }
    let mut converted = tables.clone();
    converted.metadata.model_id = model_id.to_owned();
    for layer in &mut converted.layers {
        *layer = LayerTable {
            layer_id: layer.layer_id,
            pieces: layer.pieces.iter().map(|piece| self::piece(piece, format)).collect::<Result<_>>()?,
        };
    }
    Ok(converted)
}

/// One piece: whole rows of a tensor.
fn piece(piece: &RecordBatch, format: DType) -> Result<RecordBatch> {
    let text = |name: &str| -> Result<&str> {
        let column = piece.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        column.filter(|column| column.len() == 1).map(|column| column.value(0)).ok_or_else(|| malformed(name))
    };
    let (name, from) = (text("parameter_name")?, DType::parse(text("encoding")?)?);
    let shape = piece.column_by_name("shape").and_then(|column| column.as_list_opt::<i32>());
    let shape = shape.filter(|shape| shape.len() == 1).ok_or_else(|| malformed("shape"))?.value(0);
    let shape = shape.as_primitive_opt::<Int32Type>().ok_or_else(|| malformed("shape"))?.values().to_vec();
    let [rows, cols] = shape[..] else { return Ok(piece.clone()) };
    let cols = usize::try_from(cols).map_err(|_| malformed("shape"))?;
    if rows < 2 || ADDED.contains(&name.strip_prefix(VISION).unwrap_or(name)) {
        return Ok(piece.clone());
    }
    let to = format_of(name, cols, format);
    if from == to {
        return Ok(piece.clone());
    }
    if from.is_quantized() && to.is_quantized() {
        return Err(Error::invalid(format!(
            "weight {name} is {from} already and would lose twice; convert the F32, F16 or BF16 model to {to}"
        )));
    }
    let data = piece.column_by_name("weight_data").and_then(|column| column.as_binary_opt::<i64>());
    let data = data.filter(|data| data.len() == 1).ok_or_else(|| malformed("weight_data"))?.value(0);
    let encoded = reencode(data, from, to, cols)
        .map_err(|error| Error::new(error.kind(), format!("weight {name} cannot be {to}: {error}")))?;
    let schema = piece.schema();
    let columns = schema.fields().iter().zip(piece.columns()).map(|(field, column)| -> ArrayRef {
        match field.name().as_str() {
            "encoding" => Arc::new(StringArray::from(vec![to.name()])),
            "weight_data" => Arc::new(LargeBinaryArray::from_iter_values([&encoded])),
            _ => Arc::clone(column),
        }
    });
    let columns = columns.collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}

fn malformed(column: &str) -> Error {
    Error::corrupted(format!("a layer of the model has no column \"{column}\" as a layer file has it"))
}

/// Row by row, so that no more than a row is decoded at a time.
fn reencode(data: &[u8], from: DType, to: DType, cols: usize) -> Result<Vec<u8>> {
    let row_bytes = from.row_bytes(cols)?;
    if row_bytes == 0 || !data.len().is_multiple_of(row_bytes) {
        return Err(Error::corrupted(format!("{} bytes are no whole rows of {cols} values as {from}", data.len())));
    }
    let mut encoded = Vec::with_capacity(data.len() / row_bytes * to.row_bytes(cols)?);
    let mut values = vec![0.0; cols];
    for row in data.chunks_exact(row_bytes) {
        quant::dequantize(from, row, &mut values);
        encoded.extend(quant::quantize(to, &values)?);
    }
    Ok(encoded)
}

/// The format of a matrix of rows of `cols` values.
fn format_of(name: &str, cols: usize, format: DType) -> DType {
    use DType::{F16, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let few_bits = matches!(format, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4K | Q5K);
    let wanted = if few_bits && ENDS.contains(&name) { Q6K } else { format };
    let smaller = |format| match format {
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        _ => F16,
    };
    let fits = |format: &DType| cols.is_multiple_of(format.block_len());
    std::iter::successors(Some(wanted), |format| Some(smaller(*format))).find(fits).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_blocks_get_smaller_ones() {
        assert_eq!(format_of("q_proj", 512, DType::Q4K), DType::Q4K);
        assert_eq!(format_of("q_proj", 576, DType::Q4K), DType::Q5_0);
        assert_eq!(format_of("q_proj", 100, DType::Q4K), DType::F16);
        assert_eq!(format_of("embed_tokens", 512, DType::Q4_0), DType::Q6K);
        assert_eq!(format_of("embed_tokens", 576, DType::Q4_0), DType::Q8_0);
        assert_eq!(format_of("embed_tokens", 384, DType::Q8_0), DType::Q8_0);
        assert_eq!(format_of("lm_head", 384, DType::BF16), DType::BF16);
    }
}
