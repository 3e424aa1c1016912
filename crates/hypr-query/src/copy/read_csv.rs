//! CSV: every value is text until it meets the column that it is for, so that an error knows its record. Its line is
//! found by reading the file again: records span lines, and blank lines are none.

use std::collections::HashSet;
use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::csv::reader::Format;
use arrow_array::ArrayRef;
use arrow_array::builder::StringBuilder;
use arrow_schema::{Field, Schema, SchemaRef};
use hypr_common::Result;

use super::options::FileOptions;
use super::read::{BATCH_BYTES, BATCH_ROWS, INFERENCE_ROWS, Sink};
use super::target::{Places, Target, in_file};

/// The columns that a file seems to have, by its first [`INFERENCE_ROWS`] rows.
pub(super) fn infer(shown: &str, reader: Box<dyn Read + Send>, options: &FileOptions) -> Result<SchemaRef> {
    let format = Format::default()
        .with_header(options.header)
        .with_delimiter(options.delimiter_of(shown))
        .with_quote(options.quote);
    let (schema, _) = format
        .infer_schema(reader, Some(INFERENCE_ROWS))
        .map_err(|e| in_file(shown, "", &format!("the columns cannot be made out: {e}")))?;
    let fields = schema.fields().iter().enumerate().map(|(at, field)| {
        let name = if field.name().is_empty() { format!("column_{}", at + 1) } else { field.name().clone() };
        Field::new(name, field.data_type().clone(), true)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// Opens the file once more.
pub(super) type Reopen<'a> = dyn Fn() -> Result<Box<dyn Read + Send>> + 'a;

/// Finds the lines of records.
struct Records<'a> {
    reopen: &'a Reopen<'a>,
    quote: u8,
    /// Records before the batch, the header among them.
    before: u64,
}

impl Places for Records<'_> {
    fn place(&self, row: usize) -> String {
        let wanted = self.before + row as u64;
        let line = (self.reopen)().ok().and_then(|reader| line_of(reader, self.quote, wanted));
        line.map_or_else(|| format!("record {}", wanted + 1), |line| format!("line {line}"))
    }
}

/// The line on which the record begins that has `before` records before it.
fn line_of(reader: impl Read, quote: u8, before: u64) -> Option<u64> {
    let (mut line, mut records, mut quoted, mut begun) = (1, 0, false, None);
    for byte in BufReader::new(reader).bytes() {
        let byte = byte.ok()?;
        if byte == b'\n' && !quoted {
            if let Some(start) = begun.take() {
                if records == before {
                    return Some(start);
                }
                records += 1;
            }
        } else if byte != b'\r' {
            begun.get_or_insert(line);
        }
        quoted ^= byte == quote;
        line += u64::from(byte == b'\n');
    }
    begun.filter(|_| records == before)
}

/// Reads a file to its end.
pub(super) fn read(
    shown: &str,
    reader: Box<dyn Read + Send>,
    reopen: &Reopen<'_>,
    options: &FileOptions,
    target: &Target,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(options.header)
        .delimiter(options.delimiter_of(shown))
        .quote(options.quote)
        .flexible(true)
        .from_reader(reader);
    let columns = if options.header {
        let names = reader.headers().map_err(|e| in_file(shown, "line 1", &reason(&e)))?.clone();
        let names: Vec<&str> = names.iter().collect();
        columns(shown, &names, target)?
    } else {
        let width = target.listed.as_ref().map_or(target.schema.fields().len(), Vec::len);
        let names: Vec<&str> = target.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let all = &names[..width.min(names.len())];
        columns(shown, all, target)?
    };
    let mut rows = Rows::new(columns.len());
    let mut record = csv::StringRecord::new();
    let mut places = Records { reopen, quote: options.quote, before: u64::from(options.header) };
    loop {
        let read = reader.read_record(&mut record);
        let more = read.map_err(|e| in_file(shown, &places.place(rows.count), &reason(&e)))?;
        if more && record.len() != columns.len() {
            let message = format!("{} values where {} were expected", record.len(), columns.len());
            return Err(in_file(shown, &places.place(rows.count), &message));
        }
        if more {
            rows.push(&record, &options.null);
        }
        if !more || rows.count == BATCH_ROWS || rows.bytes >= BATCH_BYTES {
            let count = rows.count as u64;
            rows.emit(shown, &columns, target, &places, sink)?;
            places.before += count;
        }
        if !more {
            return Ok(());
        }
    }
}

/// The table's column for each of the file's.
fn columns(shown: &str, names: &[&str], target: &Target) -> Result<Vec<usize>> {
    let mut seen = HashSet::new();
    let mut columns = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let column = target.column(name, at).map_err(|e| in_file(shown, "", e.message()))?;
        if !seen.insert(column) {
            return Err(in_file(shown, "line 1", &format!("column \"{name}\" stands there twice")));
        }
        columns.push(column);
    }
    if let Some(listed) = &target.listed
        && listed.len() != columns.len()
    {
        let message = format!("the file has {} columns, COPY lists {}", columns.len(), listed.len());
        return Err(in_file(shown, "line 1", &message));
    }
    Ok(columns)
}

struct Rows {
    columns: Vec<StringBuilder>,
    count: usize,
    bytes: usize,
}

impl Rows {
    fn new(columns: usize) -> Self {
        Self { columns: (0..columns).map(|_| StringBuilder::new()).collect(), count: 0, bytes: 0 }
    }

    fn push(&mut self, record: &csv::StringRecord, null: &str) {
        for (column, value) in self.columns.iter_mut().zip(record) {
            column.append_option((value != null).then_some(value));
        }
        self.bytes += record.as_slice().len();
        self.count += 1;
    }

    fn emit(
        &mut self,
        shown: &str,
        columns: &[usize],
        target: &Target,
        places: &Records<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let arrays = self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let columns: Vec<(usize, ArrayRef)> = columns.iter().copied().zip(arrays).collect();
        let batch = target.build(shown, &columns, self.count, places)?;
        (self.count, self.bytes) = (0, 0);
        sink(batch)
    }
}

fn reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "text that is not UTF-8".to_owned(),
        csv::ErrorKind::Io(io) => format!("reading failed: {io}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_past_quotes_blank_lines_and_both_line_ends() {
        let file = "id,name\r\n1,\"two\r\nlines \"\"quoted\"\"\"\r\n\r\nx,bad\r\nlast";
        let lines: Vec<_> = (0..5).map(|before| line_of(file.as_bytes(), b'"', before)).collect();
        assert_eq!(lines, [Some(1), Some(2), Some(5), Some(6), None]);
    }
}
