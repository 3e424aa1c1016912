//! What rows become: the columns of a table, or those that a file says it has.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef};
use hypr_common::{Error, Result, types};
use serde::de::IgnoredAny;

use crate::rules::Rules;
use crate::{convert, error};

/// The columns that rows are read for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The name of the table, for messages.
    pub table: String,
    pub schema: SchemaRef,
    /// The columns that the file holds, in its order, where the statement lists them.
    pub listed: Option<Vec<String>>,
    /// Defaults of columns that are missing, and checks.
    pub rules: Arc<Rules>,
}

/// Where a row came from.
pub(super) trait Places {
    /// `line 7`, `row 12`: the place of row `row` of the batch.
    fn place(&self, row: usize) -> String;
}

/// Rows counted from a first one.
pub(super) struct Numbered {
    pub first: u64,
}

impl Places for Numbered {
    fn place(&self, row: usize) -> String {
        format!("row {}", self.first + row as u64 + 1)
    }
}

/// Lines of each row.
pub(super) struct Lines<'a>(pub &'a [u64]);

impl Places for Lines<'_> {
    fn place(&self, row: usize) -> String {
        format!("line {}", self.0.get(row).copied().unwrap_or_default())
    }
}

/// Adds the file to a message about its content.
pub(super) fn in_file(file: &str, place: &str, message: &str) -> Error {
    let comma = if place.is_empty() { "" } else { ", " };
    Error::invalid(format!("{file}{comma}{place}: {message}"))
}

impl Target {
    /// The column of the table that the file's column `name`, its `at`th, is for.
    pub(super) fn column(&self, name: &str, at: usize) -> Result<usize> {
        let listed = match &self.listed {
            None => name,
            Some(listed) => listed.get(at).map(String::as_str).ok_or_else(|| {
                Error::invalid(format!("the file has more columns than the {} that COPY lists", listed.len()))
            })?,
        };
        let names = || self.schema.fields().iter().map(|field| field.name().as_str());
        let exact = names().position(|column| column == listed);
        exact.or_else(|| names().position(|column| column == listed.to_lowercase())).ok_or_else(|| {
            let hint = error::suggest(listed, names()).map_or_else(
                || format!("it has {}", names().collect::<Vec<_>>().join(", ")),
                |c| format!("did you mean \"{c}\"?"),
            );
            Error::invalid(format!("table \"{}\" has no column \"{listed}\"; {hint}", self.table))
        })
    }

    /// A batch of the table's columns. `columns` are the file's, each with the table's column that it is for; the
    /// others are NULL.
    pub(super) fn build(
        &self,
        file: &str,
        columns: &[(usize, ArrayRef)],
        rows: usize,
        places: &dyn Places,
    ) -> Result<RecordBatch> {
        let mut built: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (at, field) in self.schema.fields().iter().enumerate() {
            let given = columns.iter().find(|(column, _)| *column == at);
            let column = match given {
                Some((_, array)) => converted(file, array, field, places)?,
                None => self.rules.value(field, rows)?,
            };
            if !field.is_nullable() && column.null_count() > 0 {
                let row = (0..rows).find(|row| column.is_null(*row)).unwrap_or_default();
                let message = format!("column \"{}\" is NOT NULL and has no value", field.name());
                return Err(in_file(file, &places.place(row), &message));
            }
            built.push(column);
        }
        let batch = convert::build(&self.schema, built, rows)?;
        self.rules.check(std::slice::from_ref(&batch)).map_err(|error| {
            // Only now, to say where: row by row.
            let bad = (0..rows).find(|row| self.rules.check(&[batch.slice(*row, 1)]).is_err());
            let place = bad.map(|row| places.place(row)).unwrap_or_default();
            in_file(file, &place, error.message().split_once(" violates ").map_or(error.message(), |(_, what)| what))
        })?;
        Ok(batch)
    }
}

fn converted(file: &str, array: &ArrayRef, field: &FieldRef, places: &dyn Places) -> Result<ArrayRef> {
    match convert_column(array, field) {
        Ok(column) => Ok(column),
        Err(error) => {
            // Only now, to say where: row by row.
            let bad = (0..array.len()).find_map(|row| Some((row, convert_column(&array.slice(row, 1), field).err()?)));
            Err(match bad {
                Some((row, error)) => in_file(file, &places.place(row), error.message()),
                None => in_file(file, "", error.message()),
            })
        }
    }
}

fn convert_column(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
    use arrow_array::cast::AsArray;
    let from_text = array.data_type() == &DataType::Utf8;
    match field.data_type() {
        DataType::Utf8 if types::is_json(field) && from_text => {
            for text in array.as_string::<i32>().iter().flatten() {
                serde_json::from_str::<IgnoredAny>(text)
                    .map_err(|e| Error::invalid(format!("column \"{}\" is JSONB: {e}", field.name())))?;
            }
            Ok(Arc::clone(array))
        }
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) | DataType::Struct(_) if from_text => {
            through_json(array, field)
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..)
            if from_text && !types::is_vector(field) =>
        {
            through_json(array, field)
        }
        _ => convert::column(array, field),
    }
}

/// Values that text files hold as JSON: lists and structs as they are, binary ones as hexadecimal text.
fn through_json(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
    use arrow_array::cast::AsArray;
    let failed = |e: &dyn std::fmt::Display| {
        let message = format!("column \"{}\" is {}: {e}", field.name(), types::sql_type_name(field));
        Error::invalid(message)
    };
    let nested = field.data_type().is_nested();
    let mut rows = Vec::with_capacity(array.len());
    for text in array.as_string::<i32>() {
        let value = match text {
            None => serde_json::Value::Null,
            Some(text) if nested => serde_json::from_str(text).map_err(|e| failed(&e))?,
            Some(text) => serde_json::Value::String(text.to_owned()),
        };
        rows.push(serde_json::Map::from_iter([("v".to_owned(), value)]));
    }
    let plain = Field::new("v", field.data_type().clone(), true);
    let schema = Arc::new(arrow_schema::Schema::new(vec![plain]));
    let mut decoder = arrow::json::ReaderBuilder::new(schema)
        .with_batch_size(rows.len().max(1))
        .build_decoder()
        .map_err(|e| failed(&e))?;
    decoder.serialize(&rows).map_err(|e| failed(&e))?;
    match decoder.flush().map_err(|e| failed(&e))? {
        Some(batch) => Ok(Arc::clone(batch.column(0))),
        None => Ok(new_null_array(field.data_type(), 0)),
    }
}
