//! Parquet and Arrow IPC: columns have types, so rows are cast, not parsed.

use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::ipc::reader::StreamReader;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use hypr_common::{Error, ErrorKind, Result};

use super::read::Sink;
use super::source::Chunks;
use super::target::{Numbered, Target, in_file};

/// What an Arrow IPC file begins with; the stream format follows after padding, and then a footer that a reader from
/// front to back does not need.
const FILE_MAGIC: [u8; 8] = *b"ARROW1\0\0";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// The columns of a Parquet file and its rows.
pub(super) fn parquet(shown: &str, file: Chunks) -> Result<(SchemaRef, Batches)> {
    let unreadable = |e: &dyn std::fmt::Display| damaged(shown, "Parquet", e);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(&e))?;
    let schema = Arc::clone(builder.schema());
    let reader = builder.build().map_err(|e| unreadable(&e))?;
    let shown = shown.to_owned();
    Ok((schema, Box::new(reader.map(move |batch| batch.map_err(|e| damaged(&shown, "Parquet", &e))))))
}

/// The columns of an Arrow IPC file or stream and its rows.
pub(super) fn arrow(shown: &str, reader: Box<dyn Read + Send>) -> Result<(SchemaRef, Batches)> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let mut begin = [0; 8];
    let mut next = || reader.read_exact(&mut begin).map(|()| begin).map_err(|e| damaged(shown, "Arrow", &e));
    let mut begin = next()?;
    if begin == FILE_MAGIC {
        // Zeros align the stream; its first message does not begin with one.
        while {
            begin = next()?;
            begin == [0; 8]
        } {}
    }
    let stream = std::io::Cursor::new(begin).chain(reader);
    let reader = StreamReader::try_new(stream, None).map_err(|e| damaged(shown, "Arrow", &e))?;
    let schema = reader.schema();
    let shown = shown.to_owned();
    Ok((schema, Box::new(reader.map(move |batch| batch.map_err(|e| damaged(&shown, "Arrow", &e))))))
}

fn damaged(shown: &str, format: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{shown} cannot be read as {format}: {error}"))
}

/// Casts the rows to the target's columns.
pub(super) fn read(
    shown: &str,
    (schema, batches): (SchemaRef, Batches),
    target: &Target,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (at, field) in schema.fields().iter().enumerate() {
        columns.push(target.column(field.name(), at).map_err(|e| in_file(shown, "", e.message()))?);
    }
    let mut first = 0;
    for batch in batches {
        let batch = batch?;
        let given: Vec<_> = columns.iter().copied().zip(batch.columns().iter().cloned()).collect();
        let places = Numbered { first };
        first += batch.num_rows() as u64;
        sink(target.build(shown, &given, batch.num_rows(), &places)?)?;
    }
    Ok(())
}
