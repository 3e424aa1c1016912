//! Record batches to Flight messages: streamed, of a bounded size, and in types every client reads.
//!
//! Stock clients refuse a message above 16 MiB, and a batch of model weights or images easily exceeds that, so
//! batches are cut by their actual bytes; only a single row may be larger than [`TARGET_MESSAGE_BYTES`].
//! String views and dictionaries become plain arrays: their buffers may be shared by many batches, and Arrow IPC would
//! send all of them with each slice.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_cast::cast;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use hypr_common::Result;
use hypr_query::from_datafusion;
use tonic::Status;

use super::FlightStream;
use super::cancel::Running;
use crate::error::to_status;
use crate::http::panic_status;

/// What messages are cut to, in bytes of array data.
const TARGET_MESSAGE_BYTES: usize = 2 << 20;

/// A query's result as Flight messages. `schema` is what the client was told to expect ([`wire_schema`]).
/// Dropping the stream, or cancelling `running`, drops `rows` and with it whatever computes them.
pub(super) fn stream_rows(schema: SchemaRef, rows: SendableRecordBatchStream, running: Running) -> FlightStream {
    let token = running.token();
    let expected = Arc::clone(&schema);
    let batches = rows.map_err(from_datafusion).map(move |batch| to_messages(&batch?, &expected)).flat_map(|batches| {
        stream::iter(match batches {
            Ok(batches) => batches.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(FlightError::from(to_status(error)))],
        })
    });
    let messages = encoder(schema).build(batches).map_err(Status::from);
    let guarded = AssertUnwindSafe(messages)
        .catch_unwind()
        .map(|message| message.unwrap_or_else(|panic| Err(panic_status(&*panic))));
    let cancelled = stream::once(async move {
        let query = running;
        query.token().is_cancelled().then(|| Err(Status::cancelled("the query was cancelled")))
    });
    Box::pin(guarded.take_until(token.cancelled_owned()).chain(cancelled.filter_map(std::future::ready)))
}

/// One batch that is at hand, such as metadata.
pub(super) fn stream_batch(batch: RecordBatch) -> FlightStream {
    let messages = chunks(batch.clone(), TARGET_MESSAGE_BYTES);
    let batches = stream::iter(messages.into_iter().map(Ok));
    Box::pin(encoder(batch.schema()).build(batches).map_err(Status::from))
}

/// The schema as it is sent: views and dictionaries, at any depth, become the plain types they stand for.
pub(super) fn wire_schema(schema: &Schema) -> SchemaRef {
    let fields: Fields = schema.fields().iter().map(wire_field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn encoder(schema: SchemaRef) -> FlightDataEncoderBuilder {
    FlightDataEncoderBuilder::new().with_schema(schema).with_max_flight_data_size(usize::MAX)
}

fn wire_field(field: &FieldRef) -> FieldRef {
    let wire = wire_type(field.data_type());
    if wire == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::new(field.name(), wire, field.is_nullable()).with_metadata(field.metadata().clone()))
}

fn wire_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => wire_type(value),
        DataType::List(item) => DataType::List(wire_field(item)),
        DataType::LargeList(item) => DataType::LargeList(wire_field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(wire_field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(wire_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(wire_field(entries), *sorted),
        other => other.clone(),
    }
}

fn to_messages(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        })
        .collect::<std::result::Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?;
    Ok(chunks(batch, TARGET_MESSAGE_BYTES))
}

/// Slices of `batch`, in order, of at most `max_bytes` each unless a single row is larger.
fn chunks(batch: RecordBatch, max_bytes: usize) -> Vec<RecordBatch> {
    let mut done = Vec::new();
    let mut open = vec![batch];
    while let Some(batch) = open.pop() {
        let rows = batch.num_rows();
        let bytes: usize = batch.columns().iter().map(|column| sent_bytes(column)).sum();
        if bytes <= max_bytes || rows <= 1 {
            done.push(batch);
        } else {
            open.push(batch.slice(rows / 2, rows - rows / 2));
            open.push(batch.slice(0, rows / 2));
        }
    }
    done
}

/// Bytes Arrow IPC sends for the array: of a slice, only what it shows.
fn sent_bytes(array: &dyn Array) -> usize {
    let validity = array.nulls().map_or(0, |_| array.len().div_ceil(8));
    let offset_range = |first: usize, last: usize, values: &ArrayRef, width: usize| {
        width * (array.len() + 1) + sent_bytes(&values.slice(first, last - first))
    };
    let body = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            offset_range(offsets[0] as usize, offsets[list.len()] as usize, list.values(), 4)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            offset_range(offsets[0] as usize, offsets[list.len()] as usize, list.values(), 8)
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let offsets = map.value_offsets();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            offset_range(offsets[0] as usize, offsets[map.len()] as usize, &entries, 4)
        }
        DataType::FixedSizeList(..) => sent_bytes(array.as_fixed_size_list().values()),
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| sent_bytes(column)).sum(),
        _ => return array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
    };
    validity + body
}

#[cfg(test)]
mod tests;
