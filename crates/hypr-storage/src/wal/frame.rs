//! Encoding and decoding of frames; the grammar is in the [module documentation](super).

use std::io::Cursor;

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{
    CompressionContext, DictionaryTracker, IpcDataGenerator, IpcWriteOptions, StreamWriter, write_message,
};
use arrow_schema::Schema;
use hypr_common::{Error, Result};

use crate::schema::bare;

/// `HYPRWAL` and the format version.
pub(crate) const MAGIC: [u8; 8] = *b"HYPRWAL1";
/// Bytes of a segment before its first frame.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 16;
/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 21;
/// Rows of one commit are spread over frames of about this many bytes.
pub(crate) const FRAME_TARGET_BYTES: usize = 32 << 20;

const KIND_ROWS: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_DDL: u8 = 3;
const KIND_MARK: u8 = 4;
const CONTINUED: u8 = 0x80;

/// What one frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Rows of one table.
    Rows,
    /// Row ids of one table that are gone.
    Delete,
    /// A change of the catalog, as JSON.
    Ddl,
    /// Everything before it is durable.
    Mark,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Rows => KIND_ROWS,
            Self::Delete => KIND_DELETE,
            Self::Ddl => KIND_DDL,
            Self::Mark => KIND_MARK,
        }
    }

    fn parse(code: u8) -> Option<Self> {
        match code {
            KIND_ROWS => Some(Self::Rows),
            KIND_DELETE => Some(Self::Delete),
            KIND_DDL => Some(Self::Ddl),
            KIND_MARK => Some(Self::Mark),
            _ => None,
        }
    }
}

/// From here on the checksums of header and payload are put together.
const COMBINED_BYTES: usize = 32 << 10;

/// What every stream of a table's rows begins with. Encoding it takes as long as encoding one row, so that it is kept.
#[derive(Debug)]
pub(crate) struct StreamHeader {
    schema_message: Vec<u8>,
    options: IpcWriteOptions,
}

impl StreamHeader {
    /// What ends an Arrow IPC stream: a continuation, and no message.
    const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

    /// That of a table with these columns, none of which is a dictionary.
    pub(crate) fn new(columns: &Schema) -> Result<Self> {
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?;
        let mut schema_message = Vec::new();
        // Field metadata lies in the catalog; repeating it would double the size of a single-row frame.
        StreamWriter::try_new_with_options(&mut schema_message, &bare(columns), options.clone())?;
        Ok(Self { schema_message, options })
    }

    /// Appends the stream of one batch.
    fn write(&self, batch: &RecordBatch, payload: &mut Vec<u8>) -> Result<()> {
        payload.extend_from_slice(&self.schema_message);
        let mut dictionaries = DictionaryTracker::new(false);
        let mut compression = CompressionContext::default();
        let generator = IpcDataGenerator::default();
        let (_, message) = generator.encode(batch, &mut dictionaries, &self.options, &mut compression)?;
        write_message(&mut *payload, message, &self.options)?;
        payload.extend_from_slice(&Self::END);
        Ok(())
    }
}

/// A frame without its place in the log. The checksum of a large payload is computed by the writer of the
/// rows, so that the one log thread does not touch every byte again.
#[derive(Debug)]
pub(crate) struct Frame {
    kind: FrameKind,
    payload: Vec<u8>,
    /// Of a large payload.
    payload_crc: u32,
}

impl Frame {
    fn new(kind: FrameKind, payload: Vec<u8>) -> Result<Self> {
        if u32::try_from(payload.len()).is_err() {
            return Err(Error::invalid("one row is larger than 4 GiB; store large values in smaller rows"));
        }
        let payload_crc = if payload.len() < COMBINED_BYTES { 0 } else { crc32c::crc32c(&payload) };
        Ok(Self { kind, payload, payload_crc })
    }

    /// `batch` without its row-id column, in the table's columns; its rows are `first_row_id`, `first_row_id + 1`, ..
    pub(crate) fn rows(table_id: u32, first_row_id: u64, header: &StreamHeader, batch: &RecordBatch) -> Result<Self> {
        let mut payload = Vec::with_capacity(1024 + batch.get_array_memory_size().min(FRAME_TARGET_BYTES));
        payload.extend_from_slice(&table_id.to_le_bytes());
        payload.extend_from_slice(&first_row_id.to_le_bytes());
        header.write(batch, &mut payload)?;
        Self::new(FrameKind::Rows, payload)
    }

    /// `row_ids` of a table are gone.
    pub(crate) fn delete(table_id: u32, row_ids: &[u64]) -> Result<Self> {
        let mut payload = Vec::with_capacity(4 + 8 * row_ids.len());
        payload.extend_from_slice(&table_id.to_le_bytes());
        row_ids.iter().for_each(|id| payload.extend_from_slice(&id.to_le_bytes()));
        Self::new(FrameKind::Delete, payload)
    }

    /// A change of the catalog.
    pub(crate) fn ddl(json: Vec<u8>) -> Result<Self> {
        Self::new(FrameKind::Ddl, json)
    }

    /// What is written after each sync, see the [module documentation](super).
    pub(crate) fn mark() -> Self {
        Self { kind: FrameKind::Mark, payload: Vec::new(), payload_crc: 0 }
    }

    /// Bytes of the frame in the log.
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload.len()
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The bytes before the payload. `place` counts the frames of the group before this one; `continued`:
    /// further frames of the same commit follow.
    pub(crate) fn header(&self, lsn: u64, place: u32, continued: bool) -> [u8; FRAME_HEADER_BYTES] {
        let mut header = [0u8; FRAME_HEADER_BYTES];
        header[0..4].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        header[8..16].copy_from_slice(&lsn.to_le_bytes());
        header[16..20].copy_from_slice(&place.to_le_bytes());
        header[20] = self.kind.code() | if continued { CONTINUED } else { 0 };
        let own = crc32c::crc32c(&header[8..]);
        let crc = match self.payload.len() {
            // Putting two checksums together takes as long as reading this much.
            0..COMBINED_BYTES => crc32c::crc32c_append(own, &self.payload),
            len => crc32c::crc32c_combine(own, self.payload_crc, len),
        };
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// A frame found in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameRef<'a> {
    pub(crate) lsn: u64,
    /// Everything below this LSN was durable before this frame was written.
    pub(crate) group_lsn: u64,
    pub(crate) kind: FrameKind,
    pub(crate) continued: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> FrameRef<'a> {
    /// The frame that starts at the first of `bytes`, if a whole and undamaged one does.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER_BYTES)?;
        let len = u32::from_le_bytes(header[0..4].try_into().ok()?) as usize;
        let end = FRAME_HEADER_BYTES.checked_add(len)?;
        let checked = bytes.get(8..end)?;
        let crc = u32::from_le_bytes(header[4..8].try_into().ok()?);
        let kind = FrameKind::parse(header[20] & !CONTINUED)?;
        if crc32c::crc32c(checked) != crc {
            return None;
        }
        let lsn = u64::from_le_bytes(header[8..16].try_into().ok()?);
        let place = u32::from_le_bytes(header[16..20].try_into().ok()?);
        let group_lsn = lsn.checked_sub(place.into())?;
        let payload = &bytes[FRAME_HEADER_BYTES..end];
        Some(Self { lsn, group_lsn, kind, continued: header[20] & CONTINUED != 0, payload })
    }

    /// Bytes of the frame in the log.
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload.len()
    }

    /// Table, first row id and rows of a [`FrameKind::Rows`] frame.
    pub(crate) fn decode_rows(&self) -> Result<(u32, u64, Vec<RecordBatch>)> {
        let (table_id, rest) = split_u32(self.payload)?;
        let (first_row_id, stream) = split_u64(rest)?;
        let reader = StreamReader::try_new(Cursor::new(stream), None)?;
        let batches = reader.collect::<Result<Vec<_>, _>>()?;
        Ok((table_id, first_row_id, batches))
    }

    /// The table of a rows or delete frame.
    pub(crate) fn table_id(&self) -> Result<u32> {
        Ok(split_u32(self.payload)?.0)
    }

    /// Table and row ids of a [`FrameKind::Delete`] frame.
    pub(crate) fn decode_delete(&self) -> Result<(u32, Vec<u64>)> {
        let (table_id, mut rest) = split_u32(self.payload)?;
        let mut ids = Vec::with_capacity(rest.len() / 8);
        while !rest.is_empty() {
            let (id, tail) = split_u64(rest)?;
            ids.push(id);
            rest = tail;
        }
        Ok((table_id, ids))
    }
}

fn split_u32(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(short_payload)?;
    Ok((u32::from_le_bytes(*head), rest))
}

fn split_u64(bytes: &[u8]) -> Result<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>().ok_or_else(short_payload)?;
    Ok((u64::from_le_bytes(*head), rest))
}

fn short_payload() -> Error {
    Error::corrupted("a log frame with a valid checksum has a payload that is too short")
}
