//! JSON, one object a line.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::zip::zip;
use hypr_common::{Error, Result, types};
use serde_json::{Map, Value};

use super::read::{BATCH_BYTES, BATCH_ROWS, INFERENCE_ROWS, Sink};
use super::target::{Lines, Target, in_file};

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// The columns that a file seems to have, by its first [`INFERENCE_ROWS`] rows.
pub(super) fn infer(shown: &str, reader: Box<dyn Read + Send>) -> Result<SchemaRef> {
    let (schema, _) = arrow::json::reader::infer_json_schema(BufReader::new(reader), Some(INFERENCE_ROWS))
        .map_err(|e| in_file(shown, "", &format!("the columns cannot be made out: {e}")))?;
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Null => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        _ => Arc::clone(field),
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// Reads a file to its end.
pub(super) fn read(shown: &str, reader: Box<dyn Read + Send>, target: &Target, sink: &mut Sink<'_>) -> Result<()> {
    if target.listed.is_some() {
        return Err(Error::invalid("JSON objects name their columns; leave the list of columns out"));
    }
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let mut rows = Rows { objects: Vec::new(), lines: Vec::new(), bytes: 0 };
    let (mut text, mut line) = (Vec::new(), 0);
    loop {
        text.clear();
        let read = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
        let read = read.map_err(|e| in_file(shown, "", &format!("reading failed: {e}")))?;
        line += 1;
        if read == 0 {
            return rows.emit(shown, target, sink);
        }
        if read as u64 == MAX_LINE_BYTES {
            return Err(in_file(shown, &format!("line {line}"), "longer than 256 MiB"));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        rows.push(object(&text, target).map_err(|e| in_file(shown, &format!("line {line}"), e.message()))?, line, read);
        if rows.lines.len() == BATCH_ROWS || rows.bytes >= BATCH_BYTES {
            rows.emit(shown, target, sink)?;
        }
    }
}

/// The line as an object with the names of the table's columns; JSONB columns hold text.
fn object(line: &[u8], target: &Target) -> Result<Map<String, Value>> {
    let parsed: Value = serde_json::from_slice(line).map_err(|e| Error::invalid(format!("no JSON: {e}")))?;
    let Value::Object(parsed) = parsed else {
        return Err(Error::invalid("each line must hold one JSON object"));
    };
    let mut object = Map::new();
    for (name, value) in parsed {
        let field = target.schema.field(target.column(&name, 0)?);
        let value = if types::is_json(field) && !value.is_null() { Value::String(value.to_string()) } else { value };
        object.insert(field.name().clone(), value);
    }
    Ok(object)
}

struct Rows {
    objects: Vec<Map<String, Value>>,
    lines: Vec<u64>,
    bytes: usize,
}

impl Rows {
    fn push(&mut self, object: Map<String, Value>, line: u64, bytes: usize) {
        self.objects.push(object);
        self.lines.push(line);
        self.bytes += bytes;
    }

    fn emit(&mut self, shown: &str, target: &Target, sink: &mut Sink<'_>) -> Result<()> {
        if self.objects.is_empty() {
            return Ok(());
        }
        let batch = match decode(&self.objects, target) {
            Ok(batch) => batch,
            Err(error) => {
                // Only now, to say where: row by row.
                let bad = self
                    .objects
                    .iter()
                    .zip(&self.lines)
                    .find_map(|(object, line)| Some((line, decode(std::slice::from_ref(object), target).err()?)));
                return Err(match bad {
                    Some((line, error)) => in_file(shown, &format!("line {line}"), error.message()),
                    None => in_file(shown, "", error.message()),
                });
            }
        };
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (at, (column, field)) in batch.columns().iter().zip(target.schema.fields()).enumerate() {
            // A key that is not there means the column's default, as a column that is not there does.
            let there: BooleanArray =
                self.objects.iter().map(|object| Some(object.contains_key(field.name()))).collect();
            match there.true_count() {
                0 => {}
                count if count == there.len() => columns.push((at, Arc::clone(column))),
                _ => {
                    let default = target.rules.value(field, there.len())?;
                    columns.push((at, zip(&there, column, &default)?));
                }
            }
        }
        let batch = target.build(shown, &columns, batch.num_rows(), &Lines(&self.lines))?;
        self.objects.clear();
        self.lines.clear();
        self.bytes = 0;
        sink(batch)
    }
}

/// The table's columns, all nullable: what is missing is found with its line afterwards.
fn decode(objects: &[Map<String, Value>], target: &Target) -> Result<RecordBatch> {
    let fields = target.schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let plain = |e: arrow_schema::ArrowError| {
        let text = e.to_string();
        Error::invalid(text.strip_prefix("Json error: ").unwrap_or(&text).to_owned()).with_source(e)
    };
    let builder = arrow::json::ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(objects.len());
    let mut decoder = builder.build_decoder().map_err(plain)?;
    decoder.serialize(objects).map_err(plain)?;
    match decoder.flush().map_err(plain)? {
        Some(batch) => Ok(batch),
        None => Ok(RecordBatch::new_empty(schema)),
    }
}
