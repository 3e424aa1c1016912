//! Files of a store as what decoders read from: decoders are synchronous and run on a thread of their own, so the
//! bytes reach them through a bounded channel, or on request where a format is read in pieces.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::reader::{ChunkReader, Length};
use futures::StreamExt;
use hypr_common::Result;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::location::{SourceFile, store_error};

/// Pieces of a file that wait for the decoder.
const PENDING: usize = 4;

/// Counts bytes as they are read.
pub type BytesRead = Arc<AtomicU64>;

/// The file from its beginning to its end; a `.gz` file as what is packed in it.
pub(super) async fn open(file: &SourceFile, read: &BytesRead) -> Result<Box<dyn Read + Send>> {
    let found = file.store.get(&file.path).await.map_err(|e| store_error(&file.shown, e))?;
    let mut stream = found.into_stream();
    let (sender, receiver) = mpsc::channel(PENDING);
    let read = Arc::clone(read);
    tokio::spawn(async move {
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(io::Error::other);
            let failed = piece.is_err();
            read.fetch_add(piece.as_ref().map_or(0, |piece| piece.len() as u64), Ordering::Relaxed);
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    let plain = ChannelReader { pieces: receiver, current: Bytes::new() };
    Ok(match file.shown.ends_with(".gz") {
        true => Box::new(flate2::read::MultiGzDecoder::new(plain)),
        false => Box::new(plain),
    })
}

struct ChannelReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let count = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

/// A file that is read in pieces, at any place.
#[derive(Clone)]
pub(super) struct Chunks {
    store: Arc<dyn ObjectStore>,
    path: object_store::path::Path,
    bytes: u64,
    read: BytesRead,
    runtime: Handle,
}

/// Bytes fetched at once where the reader does not say how many it wants.
const READ_AHEAD: u64 = 1 << 20;

impl Chunks {
    pub(super) fn new(file: &SourceFile, read: &BytesRead) -> Self {
        Self {
            store: Arc::clone(&file.store),
            path: file.path.clone(),
            bytes: file.bytes,
            read: Arc::clone(read),
            runtime: Handle::current(),
        }
    }

    fn fetch(&self, start: u64, length: u64) -> ParquetResult<Bytes> {
        let range = start..start.saturating_add(length).min(self.bytes);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let fetched = self.runtime.block_on(self.store.get_range(&self.path, range));
        let fetched = fetched.map_err(|e| ParquetError::External(Box::new(e)))?;
        self.read.fetch_add(fetched.len() as u64, Ordering::Relaxed);
        Ok(fetched)
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Chunks {
    type T = ChunkStream;

    fn get_read(&self, start: u64) -> ParquetResult<ChunkStream> {
        Ok(ChunkStream { chunks: self.clone(), at: start, current: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let fetched = self.fetch(start, length as u64)?;
        if fetched.len() == length {
            return Ok(fetched);
        }
        Err(ParquetError::EOF(format!("{} bytes where {length} were expected", fetched.len())))
    }
}

/// [`Chunks`] from one place on.
pub(super) struct ChunkStream {
    chunks: Chunks,
    at: u64,
    current: Bytes,
}

impl Read for ChunkStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            self.current = self.chunks.fetch(self.at, READ_AHEAD).map_err(io::Error::other)?;
            self.at += self.current.len() as u64;
        }
        let count = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}
