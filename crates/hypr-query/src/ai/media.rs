//! What `embed` takes besides text: columns of pictures and of sound.

use std::sync::Arc;

use arrow::compute::cast;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef};
use arrow_buffer::Buffer;
use arrow_schema::DataType;
use datafusion::common::Result;
use hypr_common::model::ModelMetadata;
use hypr_inference::api::{EmbedInput, Inference, InputKind};

/// The kind of input that values of a type are, apart from text.
pub(super) fn kind(data_type: &DataType) -> Option<InputKind> {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Some(InputKind::Binary)
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
            if item.data_type().is_numeric() =>
        {
            Some(InputKind::Samples)
        }
        _ => None,
    }
}

/// The model that would embed values of a type; those of no known type, a parameter's, are whatever the model takes.
///
/// # Errors
/// As `Inference::resolve`.
pub(super) fn model(
    inference: &dyn Inference,
    data_type: &DataType,
    name: Option<&str>,
) -> hypr_common::Result<ModelMetadata> {
    let resolve = |kind: InputKind| kind.resolve(inference, name).map(|(_, model)| model);
    let text = |error| if data_type.is_null() { resolve(InputKind::Binary).map_err(|_| error) } else { Err(error) };
    kind(data_type).map_or_else(|| resolve(InputKind::Text).or_else(text), resolve)
}

/// The input of row `row`; `None` for NULL, and for a list with a NULL in it.
pub(super) fn input(values: &ArrayRef, kind: InputKind, row: usize) -> Result<Option<EmbedInput>> {
    let value = values.slice(row, 1);
    if value.is_null(0) {
        return Ok(None);
    }
    match kind {
        InputKind::Text => Ok(None),
        InputKind::Binary => {
            let bytes = cast(&value, &DataType::LargeBinary)?;
            let bytes = bytes.as_binary::<i64>();
            let (start, end) = (bytes.value_offsets()[0] as usize, bytes.value_offsets()[1] as usize);
            let bytes: Buffer = bytes.values().slice_with_length(start, end - start);
            Ok(Some(EmbedInput::Binary(bytes)))
        }
        InputKind::Samples => {
            let items = match value.data_type() {
                DataType::LargeList(_) => value.as_list::<i64>().value(0),
                DataType::FixedSizeList(_, _) => value.as_fixed_size_list().value(0),
                _ => value.as_list::<i32>().value(0),
            };
            let items = cast(&items, &DataType::Float32)?;
            let samples = items.as_primitive::<Float32Type>();
            Ok((samples.null_count() == 0).then(|| EmbedInput::Samples(Arc::from(samples.values().as_ref()))))
        }
    }
}
