//! Results on standard output, in the format asked for; what is said about them goes to standard error.
//!
//! Batches are printed as they arrive. Only a table needs several rows at once to line up its columns: it is
//! printed in pages, so memory stays bounded whatever the size of the result.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_schema;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use hypr_common::{Error, Result};
use hypr_query::copy::{nested_as_json, text_of_nested};
use hypr_server::ClientOutcome;

use crate::cli::Format;

/// Rows that one table of a long result holds.
const PAGE_ROWS: usize = 10_000;

type Batches = BoxStream<'static, Result<RecordBatch>>;

/// Prints outcomes.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    /// Longest value in a table, in characters.
    max_width: Option<usize>,
    out: Stdout,
}

/// Standard output that remembers whether its reader is still there.
#[derive(Debug)]
struct Stdout {
    out: io::BufWriter<io::Stdout>,
    closed: bool,
}

impl Write for Stdout {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf);
        self.closed |= matches!(&written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.closed |= matches!(&flushed, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        flushed
    }
}

impl Printer {
    pub fn new(format: Format, max_width: Option<usize>) -> Self {
        Self { format, max_width, out: Stdout { out: io::BufWriter::new(io::stdout()), closed: false } }
    }

    /// True once the reader of standard output is gone.
    pub fn pipe_closed(&self) -> bool {
        self.out.closed
    }

    /// Prints what a statement answered; `started` is when it was sent.
    pub async fn print(&mut self, outcome: ClientOutcome, started: Instant) -> Result<()> {
        match outcome {
            ClientOutcome::Affected(rows) => self.summary(rows as usize, "affected", started),
            ClientOutcome::Rows { schema, stream } => {
                let rows = match self.format {
                    Format::Table => self.print_tables(&schema, stream).await,
                    Format::Csv => self.print_csv(&schema, stream).await,
                    Format::Json => self.print_json(stream).await,
                    Format::Arrow => self.print_arrow(&schema, stream).await,
                }?;
                self.out.flush().map_err(output_error)?;
                self.summary(rows, "", started);
            }
        }
        Ok(())
    }

    /// Other formats are read by programs, which want no remarks where all went well.
    fn summary(&self, rows: usize, verb: &str, started: Instant) {
        if self.format == Format::Table {
            let noun = if rows == 1 { "row" } else { "rows" };
            let space = if verb.is_empty() { "" } else { " " };
            eprintln!("({rows} {noun}{space}{verb}, {:.1} ms)", started.elapsed().as_secs_f64() * 1e3);
        }
    }

    async fn print_tables(&mut self, schema: &SchemaRef, mut stream: Batches) -> Result<usize> {
        let schema = all_text(schema);
        let (mut rows, mut page, mut page_rows, mut printed) = (0, Vec::new(), 0, false);
        while let Some(batch) = stream.try_next().await? {
            let mut start = 0;
            while start < batch.num_rows() {
                let count = (batch.num_rows() - start).min(PAGE_ROWS - page_rows);
                page.push(self.displayed(&batch.slice(start, count), &schema)?);
                (start, page_rows, rows) = (start + count, page_rows + count, rows + count);
                if page_rows == PAGE_ROWS {
                    self.print_page(&schema, &page)?;
                    (page, page_rows, printed) = (Vec::new(), 0, true);
                }
            }
        }
        if page_rows > 0 || !printed {
            self.print_page(&schema, &page)?;
        }
        Ok(rows)
    }

    fn print_page(&mut self, schema: &SchemaRef, page: &[RecordBatch]) -> Result<()> {
        let table = pretty_format_batches_with_schema(Arc::clone(schema), page).map_err(Error::from)?;
        writeln!(self.out, "{table}").map_err(output_error)
    }

    /// The batch as the text that people read, cut where it is too long.
    fn displayed(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
        let options = FormatOptions::default().with_null("NULL");
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            let formatter = ArrayFormatter::try_new(column, &options)?;
            let mut text = StringBuilder::with_capacity(batch.num_rows(), batch.num_rows() * 16);
            for row in 0..batch.num_rows() {
                let value = formatter.value(row).try_to_string()?;
                text.append_value(self.max_width.map_or(value.clone(), |width| cut(&value, width)));
            }
            columns.push(Arc::new(text.finish()));
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    async fn print_csv(&mut self, schema: &SchemaRef, stream: Batches) -> Result<usize> {
        let schema = text_of_nested(schema);
        let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut self.out);
        // The header stands there also when no row follows.
        writer.write(&RecordBatch::new_empty(Arc::clone(&schema)))?;
        each(stream, |batch| Ok(writer.write(&nested_as_json(batch, &schema)?)?)).await
    }

    async fn print_json(&mut self, stream: Batches) -> Result<usize> {
        let builder = JsonBuilder::new().with_explicit_nulls(true);
        let mut writer = builder.build::<_, LineDelimited>(&mut self.out);
        let rows = each(stream, |batch| Ok(writer.write(batch)?)).await?;
        writer.finish()?;
        Ok(rows)
    }

    async fn print_arrow(&mut self, schema: &SchemaRef, stream: Batches) -> Result<usize> {
        let mut writer = StreamWriter::try_new(&mut self.out, schema)?;
        let rows = each(stream, |batch| Ok(writer.write(batch)?)).await?;
        writer.finish()?;
        Ok(rows)
    }
}

/// Writes every batch and returns the number of their rows.
async fn each(mut stream: Batches, mut write: impl FnMut(&RecordBatch) -> Result<()>) -> Result<usize> {
    let mut rows = 0;
    while let Some(batch) = stream.try_next().await? {
        write(&batch)?;
        rows += batch.num_rows();
    }
    Ok(rows)
}

fn output_error(error: io::Error) -> Error {
    Error::io("standard output cannot be written", error)
}

/// `schema` with text in place of every column.
fn all_text(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// At most `width` characters on one line; an ellipsis shows where something is missing.
fn cut(value: &str, width: usize) -> String {
    let mut line = value.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = line.by_ref().take(width).collect();
    if line.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_to_the_width_and_a_short_one_is_not() {
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("äbcd", 4), "äbcd");
        assert_eq!(cut("a\nb\tc", 9), "a b c");
    }
}
