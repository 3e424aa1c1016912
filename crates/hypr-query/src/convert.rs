//! Values as the columns of a table: the casts of `INSERT`, of parameters and of bulk ingest, with errors
//! that name the column and what it takes.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Field, SchemaRef};
use hypr_common::{Error, Result, types};

use crate::functions::vector::{VectorColumn, is_vector_like};
use crate::rules::Rules;

const STRICT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow_cast::display::FormatOptions::new() };

/// Casts `array` to the type of `field`.
///
/// # Errors
/// `InvalidInput` for a value that does not fit, a vector of the wrong dimension, or text that is not JSON.
pub(crate) fn column(array: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    let target = field.data_type();
    if array.data_type() == target {
        return Ok(Arc::clone(array));
    }
    if array.data_type().is_null() {
        return Ok(new_null_array(target, array.len()));
    }
    match target {
        DataType::FixedSizeList(item, dimension)
            if item.data_type() == &DataType::Float32 && is_vector_like(array.data_type()) =>
        {
            fixed_vectors(array, field, *dimension)
        }
        DataType::List(item) if types::is_vector(field) && array.data_type().is_string() => {
            // Text such as '[0.1, 0.2]' goes by way of its parsed values.
            let vectors = VectorColumn::new(array).map_err(crate::error::from_datafusion)?;
            let mut list = arrow_array::builder::ListBuilder::new(arrow_array::builder::Float32Builder::new())
                .with_field(Arc::clone(item));
            for row in 0..array.len() {
                let vector = vectors.get(row);
                list.values().append_slice(vector.unwrap_or_default());
                list.append(vector.is_some());
            }
            Ok(Arc::new(list.finish()))
        }
        _ => cast_with_options(array, target, &STRICT).map_err(|error| {
            Error::invalid(format!("column \"{}\" is {}: {}", field.name(), types::sql_type_name(field), plain(&error)))
                .with_source(error)
        }),
    }
}

fn plain(error: &arrow_schema::ArrowError) -> String {
    let text = error.to_string();
    text.strip_prefix("Cast error: ").unwrap_or(&text).to_owned()
}

fn fixed_vectors(array: &ArrayRef, field: &Field, dimension: i32) -> Result<ArrayRef> {
    let width = dimension as usize;
    let vectors = VectorColumn::new(array).map_err(crate::error::from_datafusion)?;
    let mut values = Vec::with_capacity(array.len() * width);
    for row in 0..array.len() {
        match vectors.get(row) {
            Some(vector) if vector.len() == width => values.extend_from_slice(vector),
            Some(vector) => {
                return Err(Error::invalid(format!(
                    "column \"{}\" is VECTOR({dimension}), and row {} has a vector of {} dimensions",
                    field.name(),
                    row + 1,
                    vector.len()
                )));
            }
            None if array.is_null(row) => values.resize(values.len() + width, 0.0),
            None => {
                return Err(Error::invalid(format!(
                    "column \"{}\": the vector of row {} has a NULL in it",
                    field.name(),
                    row + 1
                )));
            }
        }
    }
    let DataType::FixedSizeList(item, _) = field.data_type() else {
        return Err(Error::internal("a fixed vector was expected"));
    };
    let nulls = array.nulls().cloned();
    let values = Arc::new(Float32Array::from(values));
    Ok(Arc::new(FixedSizeListArray::try_new(Arc::clone(item), dimension, values, nulls)?))
}

/// Casts the columns of `batch`, by position, to `schema`.
pub(crate) fn batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(array, field)| column(array, field))
        .collect::<Result<Vec<_>>>()?;
    build(schema, columns, batch.num_rows())
}

/// Casts the columns of `batch`, by name, to `schema`; columns that `batch` lacks get what `rules` says.
///
/// # Errors
/// `InvalidInput` for a column that `schema` lacks.
pub(crate) fn batch_by_name(
    batch: &RecordBatch,
    schema: &SchemaRef,
    table: &str,
    rules: &Rules,
) -> Result<RecordBatch> {
    for field in batch.schema_ref().fields() {
        if schema.index_of(field.name()).is_err() {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let hint = crate::error::hint(field.name(), names);
            return Err(Error::invalid(format!("table \"{table}\" has no column \"{}\"{hint}", field.name())));
        }
    }
    let rows = batch.num_rows();
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(array) => column(array, field),
            None => rules.value(field, rows),
        })
        .collect::<Result<Vec<_>>>()?;
    build(schema, columns, rows)
}

/// A batch of `schema`; a NULL in a NOT NULL column is the caller's error.
pub(crate) fn build(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    for (field, array) in schema.fields().iter().zip(&columns) {
        if !field.is_nullable() && array.null_count() > 0 {
            return Err(Error::invalid(format!("column \"{}\" is NOT NULL and has no value", field.name())));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float32Type, Float64Type};
    use arrow_array::{ListArray, StringArray};

    fn floats(array: &ArrayRef) -> Vec<f32> {
        let values = match array.data_type() {
            DataType::FixedSizeList(_, _) => array.as_fixed_size_list().values(),
            _ => array.as_list::<i32>().values(),
        };
        values.as_primitive::<Float32Type>().values().to_vec()
    }

    fn doubles(rows: &[Option<Vec<f64>>]) -> ArrayRef {
        let rows = rows.iter().map(|row| row.as_ref().map(|row| row.iter().map(|x| Some(*x)).collect::<Vec<_>>()));
        Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(rows))
    }

    #[test]
    fn lists_of_doubles_become_vectors_and_null_rows_stay_null() {
        let column = column(&doubles(&[Some(vec![1.0, 2.0]), None]), &types::vector_field("v", 2, true)).unwrap();
        assert_eq!(floats(&column), [1.0, 2.0, 0.0, 0.0]);
        assert!(column.is_valid(0) && column.is_null(1));
    }

    #[test]
    fn a_wrong_dimension_names_column_row_and_both_widths() {
        let rows = doubles(&[Some(vec![1.0, 2.0]), Some(vec![1.0])]);
        let error = column(&rows, &types::vector_field("embedding", 2, true)).unwrap_err();
        assert_eq!(error.message(), "column \"embedding\" is VECTOR(2), and row 2 has a vector of 1 dimensions");
    }

    #[test]
    fn text_becomes_a_vector() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("[0.5, -1]"), None]));
        assert_eq!(floats(&column(&text, &types::vector_field("v", 2, true)).unwrap()), [0.5, -1.0, 0.0, 0.0]);
        let dynamic = column(&text, &types::dynamic_vector_field("v", true)).unwrap();
        assert_eq!(floats(&dynamic), [0.5, -1.0]);
        assert!(dynamic.is_null(1));
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["seven"]));
        let error = column(&text, &Field::new("n", DataType::Int32, true)).unwrap_err();
        assert!(error.message().starts_with("column \"n\" is INT: "), "{error}");
    }
}
