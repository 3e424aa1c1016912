//! Brings rows into the exact form of a table, or says which column and row do not fit.

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, RecordBatch};
use arrow_schema::{DataType, Field, SchemaRef};
use hypr_common::types::{is_json, is_vector, sql_type_name};
use hypr_common::{Error, Result};
use serde::de::IgnoredAny;
use std::sync::Arc;

/// `batch` with exactly `schema`; `first_row` is the number of rows of the statement before it, for messages.
///
/// Text and binary columns may come in any of Arrow's layouts, vectors as lists of any number type. Row
/// numbers in errors count from 1.
pub(crate) fn conform(schema: &SchemaRef, batch: &RecordBatch, first_row: usize) -> Result<RecordBatch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(Error::invalid(format!(
            "the table has {} columns, got {} values per row",
            schema.fields().len(),
            batch.num_columns()
        )));
    }
    let columns = schema.fields().iter().zip(batch.columns());
    let columns =
        columns.map(|(field, column)| conform_column(field, column, first_row)).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn conform_column(field: &Field, column: &ArrayRef, first_row: usize) -> Result<ArrayRef> {
    let column = convert(field, column, first_row)?;
    if !field.is_nullable()
        && let Some(row) = first_null(&column)
    {
        return Err(Error::invalid(format!(
            "column {} is NOT NULL, got NULL in row {}",
            field.name(),
            first_row + row + 1
        )));
    }
    if is_json(field) {
        check_json(field, &column, first_row)?;
    } else if is_vector(field) {
        check_elements(field, &column, first_row)?;
    }
    Ok(column)
}

fn convert(field: &Field, column: &ArrayRef, first_row: usize) -> Result<ArrayRef> {
    let (wanted, got) = (field.data_type(), column.data_type());
    if wanted == got {
        return Ok(Arc::clone(column));
    }
    let list_like = matches!(got, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..));
    match wanted {
        DataType::FixedSizeList(item, dimension) if is_vector(field) && list_like => {
            to_vector(field, item, *dimension, column, first_row)
        }
        DataType::List(_) if is_vector(field) && list_like => Ok(cast(field, column)?),
        _ if *got == DataType::Null || same_family(wanted, got) => cast(field, column),
        _ => Err(mismatch(field, got)),
    }
}

fn cast(field: &Field, column: &ArrayRef) -> Result<ArrayRef> {
    let options = arrow_cast::CastOptions { safe: false, ..Default::default() };
    arrow_cast::cast_with_options(column, field.data_type(), &options)
        .map_err(|e| Error::invalid(format!("column {}: {e}", field.name())).with_source(e))
}

fn mismatch(field: &Field, got: &DataType) -> Error {
    let shown = sql_type_name(&Field::new("got", got.clone(), true));
    Error::invalid(format!("column {} is {}, got {shown}; cast the value", field.name(), sql_type_name(field)))
}

/// Types that hold the same values in another layout.
fn same_family(wanted: &DataType, got: &DataType) -> bool {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
    let text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let binary = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView | DataType::FixedSizeBinary(_));
    match (wanted, got) {
        (_, DataType::Dictionary(_, value)) => wanted == value.as_ref() || same_family(wanted, value),
        (DataType::List(a), DataType::List(b) | DataType::LargeList(b)) => {
            a.data_type() == b.data_type() || same_family(a.data_type(), b.data_type())
        }
        // The nullability and name of the item may differ.
        (DataType::FixedSizeList(a, n), DataType::FixedSizeList(b, m)) => n == m && a.data_type() == b.data_type(),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| {
                    a.name() == b.name()
                        && (a.data_type() == b.data_type() || same_family(a.data_type(), b.data_type()))
                })
        }
        _ => (text(wanted) && text(got)) || (binary(wanted) && binary(got)),
    }
}

/// Lists of numbers as fixed-size vectors; each must have `dimension` values.
fn to_vector(
    field: &Field,
    item: &Arc<Field>,
    dimension: i32,
    column: &ArrayRef,
    first_row: usize,
) -> Result<ArrayRef> {
    let width = |row: usize| match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value_length(row) as usize,
        DataType::LargeList(_) => column.as_list::<i64>().value_length(row) as usize,
        DataType::FixedSizeList(_, width) => *width as usize,
        _ => 0,
    };
    for row in (0..column.len()).filter(|&row| column.is_valid(row)) {
        if width(row) != dimension as usize {
            return Err(Error::invalid(format!(
                "column {} is {}, got {} values in row {}",
                field.name(),
                sql_type_name(field),
                width(row),
                first_row + row + 1
            )));
        }
    }
    if matches!(column.data_type(), DataType::FixedSizeList(_, width) if *width != dimension) {
        // Only NULLs are left.
        return Ok(arrow_array::new_null_array(field.data_type(), column.len()));
    }
    let vectors = cast(field, column)?;
    let vectors = vectors.as_fixed_size_list();
    Ok(Arc::new(FixedSizeListArray::try_new(
        Arc::clone(item),
        dimension,
        Arc::clone(vectors.values()),
        vectors.nulls().cloned(),
    )?))
}

fn first_null(column: &ArrayRef) -> Option<usize> {
    if column.null_count() == 0 {
        return None;
    }
    (0..column.len()).find(|&row| column.is_null(row))
}

fn check_json(field: &Field, column: &ArrayRef, first_row: usize) -> Result<()> {
    for (row, text) in column.as_string::<i32>().iter().enumerate() {
        if let Some(text) = text
            && let Err(error) = serde_json::from_str::<IgnoredAny>(text)
        {
            return Err(Error::invalid(format!(
                "column {} is JSONB, got invalid JSON in row {}: {error}",
                field.name(),
                first_row + row + 1
            )));
        }
    }
    Ok(())
}

/// A vector is NULL as a whole or not at all.
fn check_elements(field: &Field, column: &ArrayRef, first_row: usize) -> Result<()> {
    let values = |row: usize| match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(row),
        _ => column.as_fixed_size_list().value(row),
    };
    let child = match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().values(),
        _ => column.as_fixed_size_list().values(),
    };
    if child.as_primitive::<Float32Type>().null_count() == 0 {
        return Ok(());
    }
    match (0..column.len()).find(|&row| column.is_valid(row) && values(row).null_count() > 0) {
        Some(row) => Err(Error::invalid(format!(
            "column {} is {}, got a NULL element in row {}",
            field.name(),
            sql_type_name(field),
            first_row + row + 1
        ))),
        None => Ok(()),
    }
}
