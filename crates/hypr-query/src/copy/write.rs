//! Batches to a file. It appears under its name when it is complete, or not at all.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::json::writer::{EncoderOptions, LineDelimited, WriterBuilder as JsonBuilder, make_encoder};
use arrow_array::builder::StringBuilder;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::properties::WriterProperties;
use futures::TryStreamExt;
use hypr_common::{Error, Result};
use object_store::buffered::BufWriter;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

use super::location::{Location, store_error};
use super::options::{FileFormat, FileOptions};
use crate::error;

/// Encoded bytes that are collected before they are handed to the store.
const WRITE_BYTES: usize = 1 << 20;

/// Writes all of `rows` and returns their number.
pub(super) async fn write(
    mut rows: SendableRecordBatchStream,
    location: Location,
    options: &FileOptions,
) -> Result<u64> {
    let (store, path, shown) = location.target();
    let buffer = Shared::default();
    let mut encoder = Encoder::new(&shown, rows.schema(), options, buffer.clone())?;
    let mut out = BufWriter::new(store, path);
    let mut count = 0;
    let done = async {
        while let Some(batch) = rows.try_next().await.map_err(error::from_datafusion)? {
            count += batch.num_rows() as u64;
            encoder.write(&batch)?;
            let encoded = buffer.take(WRITE_BYTES);
            out.write_all(&encoded).await.map_err(|e| failed(&shown, e))?;
        }
        encoder.finish()?;
        out.write_all(&buffer.take(0)).await.map_err(|e| failed(&shown, e))?;
        out.shutdown().await.map_err(|e| failed(&shown, e))
    }
    .await;
    if let Err(error) = done {
        // What was uploaded is of no use; the first error says why.
        if let Err(abort) = out.abort().await {
            tracing::debug!(%abort, file = shown, "an unfinished file was left behind");
        }
        return Err(error);
    }
    Ok(count)
}

fn failed(shown: &str, error: io::Error) -> Error {
    match error.downcast::<object_store::Error>() {
        Ok(store) => store_error(shown, store),
        Err(error) => Error::io(shown, error),
    }
}

/// What encoders write into and the store is fed from.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// Everything, if it is at least `least` bytes.
    fn take(&self, least: usize) -> Vec<u8> {
        let mut bytes = self.0.lock();
        if bytes.len() < least { Vec::new() } else { std::mem::take(&mut bytes) }
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder {
    Csv { writer: Box<arrow::csv::Writer<Shared>>, schema: SchemaRef },
    Json(arrow::json::LineDelimitedWriter<Shared>),
    Arrow(Box<FileWriter<Shared>>),
    Parquet(Box<ArrowWriter<Shared>>),
}

impl Encoder {
    fn new(shown: &str, schema: SchemaRef, options: &FileOptions, out: Shared) -> Result<Self> {
        if shown.ends_with(".gz") {
            return Err(Error::unsupported("files are not packed while they are written; leave .gz out of the name"));
        }
        let format = options.format_of(shown)?;
        if options.compression.is_some() && matches!(format, FileFormat::Csv | FileFormat::Json) {
            return Err(Error::invalid("COMPRESSION is for parquet and arrow files"));
        }
        Ok(match format {
            FileFormat::Csv => {
                let schema = text_of_nested(&schema);
                let mut writer = arrow::csv::WriterBuilder::new()
                    .with_header(options.header)
                    .with_delimiter(options.delimiter_of(shown))
                    .with_quote(options.quote)
                    .with_null(options.null.clone())
                    .build(out);
                // The header stands there also when no row follows.
                writer.write(&RecordBatch::new_empty(Arc::clone(&schema)))?;
                Self::Csv { writer: Box::new(writer), schema }
            }
            FileFormat::Json => Self::Json(JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out)),
            FileFormat::Arrow => {
                let packed = match options.compression.as_deref() {
                    None | Some("none" | "uncompressed") => None,
                    Some("lz4") => Some(CompressionType::LZ4_FRAME),
                    Some("zstd") => Some(CompressionType::ZSTD),
                    Some(other) => return Err(no_compression(other, "none, lz4 or zstd")),
                };
                let write = IpcWriteOptions::default().try_with_compression(packed)?;
                Self::Arrow(Box::new(FileWriter::try_new_with_options(out, &schema, write)?))
            }
            FileFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(parquet_compression(options.compression.as_deref())?)
                    .set_max_row_group_row_count(Some(options.row_group_rows))
                    .build();
                let writer = ArrowWriter::try_new(out, schema, Some(properties)).map_err(|e| unwritten(&e))?;
                Self::Parquet(Box::new(writer))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Csv { writer, schema } => writer.write(&nested_as_json(batch, schema)?)?,
            Self::Json(writer) => writer.write(batch)?,
            Self::Arrow(writer) => writer.write(batch)?,
            Self::Parquet(writer) => writer.write(batch).map_err(|e| unwritten(&e))?,
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Csv { .. } => Ok(()),
            Self::Json(mut writer) => Ok(writer.finish()?),
            Self::Arrow(mut writer) => Ok(writer.finish()?),
            Self::Parquet(writer) => writer.close().map(drop).map_err(|e| unwritten(&e)),
        }
    }
}

fn unwritten(error: &ParquetError) -> Error {
    Error::unsupported(format!("the rows cannot be written as Parquet: {error}"))
}

fn no_compression(name: &str, there_is: &str) -> Error {
    Error::invalid(format!("\"{name}\" is no compression of this format; use {there_is}"))
}

fn parquet_compression(name: Option<&str>) -> Result<Compression> {
    Ok(match name {
        None | Some("zstd") => Compression::ZSTD(ZstdLevel::default()),
        Some("none" | "uncompressed") => Compression::UNCOMPRESSED,
        Some("snappy") => Compression::SNAPPY,
        Some("gzip") => Compression::GZIP(GzipLevel::default()),
        Some("brotli") => Compression::BROTLI(BrotliLevel::default()),
        Some("lz4") => Compression::LZ4_RAW,
        Some(other) => return Err(no_compression(other, "none, snappy, gzip, lz4, brotli or zstd")),
    })
}

/// `schema` with nullable text in place of nested columns, which CSV has no form for.
pub fn text_of_nested(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type().is_nested() {
        true => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        false => Arc::clone(field),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The batch with its nested columns as JSON text; `schema` is [`text_of_nested`] of its own.
///
/// # Errors
/// `InvalidInput` for a type that JSON has no form for.
pub fn nested_as_json(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (column, field) in batch.columns().iter().zip(batch.schema_ref().fields()) {
        columns.push(if column.data_type().is_nested() { json_text(column, field)? } else { Arc::clone(column) });
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn json_text(column: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(field, column, &options)?;
    let mut text = StringBuilder::with_capacity(column.len(), column.len() * 64);
    let mut json = Vec::new();
    for row in 0..column.len() {
        if encoder.is_null(row) {
            text.append_null();
            continue;
        }
        json.clear();
        encoder.encode(row, &mut json);
        text.append_value(std::str::from_utf8(&json).map_err(|e| Error::internal("JSON is not UTF-8").with_source(e))?);
    }
    Ok(Arc::new(text.finish()))
}
