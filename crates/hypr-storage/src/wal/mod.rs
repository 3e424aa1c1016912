//! The write-ahead log: what makes an acknowledged row durable.
//!
//! # Grammar
//! ```text
//! log      = segment*                          files wal/<first_lsn, 20 digits>.wal, ascending and without gaps
//! segment  = "HYPRWAL1" first_lsn:u64 commit*
//! commit   = frame(continued)* frame           applied together or not at all; never spans two segments
//! frame    = len:u32 crc:u32 lsn:u64 place:u32 kind:u8 payload[len]
//! kind     = 1 rows | 2 delete | 3 ddl | 4 mark   + 0x80 when further frames of the commit follow
//! rows     = table_id:u32 first_row_id:u64 stream   an Arrow IPC stream without the row-id column
//! delete   = table_id:u32 row_id:u64*
//! ddl      = JSON, see `catalog::CatalogChange`
//! mark     = nothing                           a commit that changes nothing
//! ```
//! Integers are little endian. `crc` is CRC-32C over everything after it (`lsn` to `payload`). LSNs
//! start at 1 and grow by one with each frame. Frames that share a sync form a group; `place` counts the
//! frames of the group before this one, so `lsn - place` says what was durable when the frame was written. After
//! each sync a mark is written, not synced, as the first frame of the next group: by it the last group on disk is
//! known to have been durable, and its damage is told from a torn write.
//!
//! # Invariants
//! - A commit is applied to the tables and acknowledged only after the sync that made it durable, in log order.
//! - Only the last group of the last segment may be torn, anywhere in it, since a disk orders unsynced writes as
//!   it likes; it is cut off at the first damaged frame when the log is opened. A damaged frame that was
//!   durable (a frame of a later group, or a later segment, exists) is a gap: tables that may have lost rows in it
//!   refuse statements, and the log is kept, until they are restored or dropped.
//! - After a failed sync nobody knows what the disk holds: the log refuses further writes until it is
//!   opened again, and never retries the sync.
//!
//! Deliberately absent: compression (vectors and images do not shrink), and a read path for queries; they
//! read the tails.

pub(crate) mod frame;
pub(crate) mod recover;
pub(crate) mod writer;

use std::path::{Path, PathBuf};

/// The file of the segment that starts at `first_lsn`.
pub(crate) fn segment_path(dir: &Path, first_lsn: u64) -> PathBuf {
    dir.join(format!("{first_lsn:020}.wal"))
}
