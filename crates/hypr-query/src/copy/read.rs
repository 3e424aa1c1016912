//! Files to batches, on a thread of their own, a few batches ahead of who takes them.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::Stream;
use hypr_common::{Error, Result};
use tokio::sync::mpsc;

use super::location::SourceFile;
use super::options::{FileFormat, FileOptions};
use super::source::{self, BytesRead, Chunks};
use super::target::Target;
use super::{read_arrow, read_csv, read_json};
use crate::ingest;

/// Rows of a batch that is made of text.
pub(super) const BATCH_ROWS: usize = 8192;
/// Bytes of text at which a batch is full before it has [`BATCH_ROWS`].
pub(super) const BATCH_BYTES: usize = 8 << 20;
/// Rows that the types of a text file's columns are made out from.
pub(super) const INFERENCE_ROWS: usize = 10_000;
/// Batches that wait for who takes them.
const PENDING: usize = 2;

/// Takes a batch; an error ends the reading.
pub(super) type Sink<'a> = dyn FnMut(RecordBatch) -> Result<()> + 'a;

/// The columns that a file has or seems to have.
pub(super) async fn infer(file: &SourceFile, options: &FileOptions) -> Result<SchemaRef> {
    let format = options.format_of(&file.shown)?;
    let read = BytesRead::default();
    let reader = match format {
        FileFormat::Parquet => None,
        _ => Some(source::open(file, &read).await?),
    };
    let (chunks, shown, options) = (Chunks::new(file, &read), file.shown.clone(), options.clone());
    let schema = tokio::task::spawn_blocking(move || match (format, reader) {
        (FileFormat::Csv, Some(reader)) => read_csv::infer(&shown, reader, &options),
        (FileFormat::Json, Some(reader)) => read_json::infer(&shown, reader),
        (FileFormat::Arrow, Some(reader)) => read_arrow::arrow(&shown, reader).map(|(schema, _)| schema),
        (_, _) => read_arrow::parquet(&shown, chunks).map(|(schema, _)| schema),
    });
    let schema = schema.await.map_err(|_| Error::internal("a reader of a file failed"))??;
    Ok(Arc::new(arrow_schema::Schema::new(ingest::table_columns(&schema)?)))
}

/// The rows of `files`, one after the other. Dropping the stream ends the reading.
pub(super) fn rows(
    files: Vec<SourceFile>,
    options: FileOptions,
    target: Target,
    read: BytesRead,
) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(PENDING);
    tokio::spawn(async move {
        for file in files {
            if let Err(error) = one(&file, &options, &target, &read, &sender).await {
                // Who asked has gone if it cannot be told.
                let _ = sender.send(Err(error)).await;
                return;
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

async fn one(
    file: &SourceFile,
    options: &FileOptions,
    target: &Target,
    read: &BytesRead,
    sender: &mpsc::Sender<Result<RecordBatch>>,
) -> Result<()> {
    let format = options.format_of(&file.shown)?;
    let reader = match format {
        FileFormat::Parquet => None,
        _ => Some(source::open(file, read).await?),
    };
    let (chunks, shown) = (Chunks::new(file, read), file.shown.clone());
    let (options, target, sender) = (options.clone(), target.clone(), sender.clone());
    let (again, runtime) = (file.clone(), tokio::runtime::Handle::current());
    let done = tokio::task::spawn_blocking(move || {
        let mut sink = |batch| {
            sender.blocking_send(Ok(batch)).map_err(|_| Error::new(hypr_common::ErrorKind::Cancelled, "stopped"))
        };
        match (format, reader) {
            (FileFormat::Csv, Some(reader)) => {
                let reopen = || runtime.block_on(source::open(&again, &BytesRead::default()));
                read_csv::read(&shown, reader, &reopen, &options, &target, &mut sink)
            }
            (FileFormat::Json, Some(reader)) => read_json::read(&shown, reader, &target, &mut sink),
            (FileFormat::Arrow, Some(reader)) => {
                read_arrow::read(&shown, read_arrow::arrow(&shown, reader)?, &target, &mut sink)
            }
            (_, _) => read_arrow::read(&shown, read_arrow::parquet(&shown, chunks)?, &target, &mut sink),
        }
    });
    done.await.map_err(|_| Error::internal("a reader of a file failed"))?
}
