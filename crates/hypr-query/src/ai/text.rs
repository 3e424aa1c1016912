//! Values as the model reads them.

use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_array::{Array, RecordBatch};
use datafusion::common::Result;

/// Renders values of one column: texts as they are, others as SQL shows them. NULL has no text.
pub(super) struct Texts<'a> {
    array: &'a dyn Array,
    formatter: ArrayFormatter<'a>,
}

impl<'a> Texts<'a> {
    pub fn new(array: &'a dyn Array, options: &'a FormatOptions<'a>) -> Result<Self> {
        Ok(Self { array, formatter: ArrayFormatter::try_new(array, options)? })
    }

    /// The text of row `row`.
    pub fn at(&self, row: usize) -> Result<Option<String>> {
        if self.array.is_null(row) || self.array.data_type() == &arrow_schema::DataType::Null {
            return Ok(None);
        }
        Ok(Some(self.formatter.value(row).try_to_string()?))
    }
}

/// Each row of `batch` as a passage: the value itself for one column, else a line `name: value` for each column
/// that is not NULL. A row of NULLs is no passage.
pub(super) fn passages(batch: &RecordBatch) -> Result<Vec<Option<String>>> {
    let options = FormatOptions::default();
    let columns = batch
        .schema_ref()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| Ok((field.name().as_str(), Texts::new(column.as_ref(), &options)?)))
        .collect::<Result<Vec<_>>>()?;
    (0..batch.num_rows())
        .map(|row| {
            if let [(_, column)] = columns.as_slice() {
                return column.at(row);
            }
            let mut lines = Vec::with_capacity(columns.len());
            for (name, column) in &columns {
                if let Some(value) = column.at(row)? {
                    lines.push(format!("{name}: {value}"));
                }
            }
            Ok((!lines.is_empty()).then(|| lines.join("\n")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Float64Array, StringArray};

    use super::*;

    #[test]
    fn rows_become_passages() {
        let title: ArrayRef = Arc::new(StringArray::from(vec![Some("A Scandal"), None, None]));
        let score: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.5), Some(1.0), None]));
        let one = RecordBatch::try_from_iter([("title", title.clone())]).unwrap();
        assert_eq!(passages(&one).unwrap(), [Some("A Scandal".to_owned()), None, None]);
        let two = RecordBatch::try_from_iter([("title", title), ("score", score)]).unwrap();
        let expected = [Some("title: A Scandal\nscore: 0.5".to_owned()), Some("score: 1.0".to_owned()), None];
        assert_eq!(passages(&two).unwrap(), expected);
    }
}
