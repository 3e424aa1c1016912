//! One layer as an Arrow IPC file that is used where it is mapped.
//!
//! The file is uncompressed, its blocks and buffers aligned to 64 bytes, one record batch a piece, so the
//! `weight_data` of a piece is one contiguous, 64-byte aligned range of the mapping.
//!
//! The *index* of a file is its footer (with length and magic) followed by the message header of each
//! block: all that decides where buffers lie. Its checksum is compared before anything is decoded, so a
//! damaged file is an error, never an access beyond the mapping. The weights themselves are not read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_ipc::{Block, Footer, MetadataVersion, root_as_footer};
use arrow_schema::ArrowError;
use hypr_common::model::{LayerTable, layer_schema};
use hypr_common::{Error, Result};

use super::damaged;
use super::manifest::{FileEntry, LayerEntry};

/// Where buffers start in the file, and so in the mapping: one cache line, one AVX-512 register.
const ALIGNMENT: usize = 64;
/// Footer length and magic at the end of an Arrow IPC file.
const TRAILER_BYTES: usize = 10;

/// Writes and syncs the file of a layer, holding one piece in memory at a time.
pub(super) fn write(dir: &Path, table: &LayerTable) -> Result<FileEntry> {
    let name = format!("layer_{:05}.arrow", table.layer_id);
    let path = dir.join(&name);
    let (bytes, crc32c) = write_file(&path, table)?;
    let mapped = super::map(&path, bytes)?;
    let index_crc32c = Index::parse(&path, &mapped)?.crc32c(&mapped);
    let layer = LayerEntry { layer_id: table.layer_id, pieces: table.pieces.len(), index_crc32c };
    Ok(FileEntry { name, bytes, crc32c, layer: Some(layer) })
}

fn write_file(path: &Path, table: &LayerTable) -> Result<(u64, u32)> {
    let failed = |error: ArrowError| match error {
        ArrowError::IoError(_, error) => Error::io(format!("write {}", path.display()), error),
        error => Error::from(error),
    };
    let file = File::create_new(path).map_err(|error| Error::io(format!("write {}", path.display()), error))?;
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
    let output = BufWriter::new(Checksummed { file, bytes: 0, crc32c: 0 });
    let mut writer = FileWriter::try_new_with_options(output, &layer_schema(), options).map_err(failed)?;
    for piece in &table.pieces {
        check_piece(piece, table.layer_id)?;
        writer.write(piece).map_err(failed)?;
    }
    let output = writer.into_inner().map_err(failed)?;
    let output = output.into_inner().map_err(|error| failed(io::Error::from(error).into()))?;
    output.file.sync_all().map_err(|error| Error::io(format!("sync {}", path.display()), error))?;
    Ok((output.bytes, output.crc32c))
}

fn check_piece(piece: &RecordBatch, layer_id: i32) -> Result<()> {
    if piece.num_rows() == 1 && piece.schema() == layer_schema() {
        return Ok(());
    }
    let found = format!("{} rows of {}", piece.num_rows(), piece.schema());
    Err(Error::invalid(format!("a piece of layer {layer_id} must be one row of the layer schema, found {found}")))
}

/// The batches of a mapped layer file; every buffer is a slice of `mapped`.
pub(super) fn decode(path: &Path, mapped: &Buffer, entry: &LayerEntry) -> Result<LayerTable> {
    let index = Index::parse(path, mapped)?;
    if index.crc32c(mapped) != entry.index_crc32c {
        return Err(damaged(path, "its index does not match the recorded checksum"));
    }
    let schema = index.footer.schema().map(fb_to_schema);
    if schema.as_ref() != Some(layer_schema().as_ref()) {
        return Err(damaged(path, "it does not have the columns of a layer"));
    }
    if index.blocks.len() != entry.pieces {
        return Err(damaged(path, format!("it has {} pieces, recorded were {}", index.blocks.len(), entry.pieces)));
    }
    let decoder = FileDecoder::new(layer_schema(), index.footer.version()).with_require_alignment(true);
    let mut pieces = Vec::with_capacity(index.blocks.len());
    for (block, range) in &index.blocks {
        let bytes = mapped.slice_with_length(range.start, range.len());
        match decoder.read_record_batch(block, &bytes) {
            Ok(Some(piece)) => pieces.push(piece),
            Ok(None) => return Err(damaged(path, "a block holds no record batch")),
            Err(error) => return Err(damaged(path, &error).with_source(error)),
        }
    }
    Ok(LayerTable { layer_id: entry.layer_id, pieces })
}

/// Where the record batches of a file lie; every range is inside the file.
struct Index<'a> {
    footer: Footer<'a>,
    /// Offset of the footer.
    footer_start: usize,
    /// Blocks with their byte ranges, message header included.
    blocks: Vec<(Block, std::ops::Range<usize>)>,
}

impl<'a> Index<'a> {
    fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        let trailer_start = bytes.len().checked_sub(TRAILER_BYTES);
        let trailer_start = trailer_start.ok_or_else(|| damaged(path, "it is too short"))?;
        let mut trailer = [0; TRAILER_BYTES];
        trailer.copy_from_slice(&bytes[trailer_start..]);
        let footer_bytes = read_footer_length(trailer).map_err(|error| damaged(path, error))?;
        let footer_start = trailer_start.checked_sub(footer_bytes);
        let footer_start = footer_start.ok_or_else(|| damaged(path, "its footer is longer than the file"))?;
        let footer = root_as_footer(&bytes[footer_start..trailer_start]).map_err(|error| damaged(path, error))?;
        let mut blocks = Vec::new();
        for block in footer.recordBatches().into_iter().flatten() {
            let range = block_range(block, footer_start).ok_or_else(|| damaged(path, "a block lies outside it"))?;
            blocks.push((*block, range));
        }
        Ok(Self { footer, footer_start, blocks })
    }

    fn crc32c(&self, bytes: &[u8]) -> u32 {
        let footer = crc32c::crc32c(&bytes[self.footer_start..]);
        self.blocks.iter().fold(footer, |crc, (block, range)| {
            // `block_range` has checked that the header lies inside the range.
            let header_bytes = usize::try_from(block.metaDataLength()).unwrap_or(0);
            crc32c::crc32c_append(crc, &bytes[range.start..range.start + header_bytes])
        })
    }
}

/// The bytes of a block, or `None` when they are not all before `limit`.
fn block_range(block: &Block, limit: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(block.offset()).ok()?;
    let header = usize::try_from(block.metaDataLength()).ok().filter(|&bytes| bytes >= 8)?;
    let end = start.checked_add(header)?.checked_add(usize::try_from(block.bodyLength()).ok()?)?;
    (end <= limit).then_some(start..end)
}

/// A file that is counted and checksummed as it is written.
struct Checksummed {
    file: File,
    bytes: u64,
    crc32c: u32,
}

impl Write for Checksummed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
