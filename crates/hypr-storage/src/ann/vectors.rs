//! A vector column of a batch, row by row.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{Array, FixedSizeListArray, RecordBatch};
use arrow_schema::{DataType, Field};
use hypr_common::types::is_vector;
use hypr_common::{Error, Result};

/// The width of a `VECTOR(n)` column.
///
/// # Errors
/// `InvalidInput` for a column of another type.
pub(crate) fn width(field: &Field) -> Result<usize> {
    match field.data_type() {
        DataType::FixedSizeList(item, width) if is_vector(field) && item.data_type() == &DataType::Float32 => {
            Ok(*width as usize)
        }
        _ => Err(Error::invalid(format!(
            "column \"{}\" is {}; nearest rows are found by VECTOR(n) columns",
            field.name(),
            hypr_common::types::sql_type_name(field)
        ))),
    }
}

/// The vectors at `column` of a batch whose last column is the row id.
pub(crate) struct Vectors<'a> {
    list: &'a FixedSizeListArray,
    values: &'a [f32],
    ids: &'a [u64],
}

impl<'a> Vectors<'a> {
    pub(crate) fn new(batch: &'a RecordBatch, column: usize) -> Result<Self> {
        let list = batch.column(column).as_fixed_size_list_opt();
        let ids = batch.columns().last().and_then(|ids| ids.as_primitive_opt::<UInt64Type>());
        let values = list.and_then(|list| list.values().as_primitive_opt::<Float32Type>());
        match (list, values, ids) {
            (Some(list), Some(values), Some(ids)) => Ok(Self { list, values: values.values(), ids: ids.values() }),
            _ => Err(Error::internal("a batch of vectors has no vectors or no row ids")),
        }
    }

    /// Row ids and vectors; none for NULL.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Option<&'a [f32]>)> + '_ {
        let width = self.list.value_length() as usize;
        self.ids.iter().enumerate().map(move |(row, id)| {
            let start = self.list.value_offset(row) as usize;
            (*id, self.list.is_valid(row).then(|| &self.values[start..start + width]))
        })
    }
}
