//! Reads the log when a directory is opened: replays whole commits, cuts off a torn end, refuses damage.

use std::path::{Path, PathBuf};

use hypr_common::{Error, Result};

use super::disk::LogDisk;
use super::frame::{FRAME_HEADER_BYTES, FrameRef, MAGIC, SEGMENT_HEADER_BYTES};

/// A segment on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) first_lsn: u64,
    pub(crate) path: PathBuf,
}

/// What is left after a replay.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Segments that hold frames, ascending.
    pub(crate) segments: Vec<Segment>,
    /// The LSN of the next frame.
    pub(crate) next_lsn: u64,
}

/// Replays every whole commit in log order: `apply` gets its frames.
///
/// # Errors
/// `Corrupted` names the file and the offset of a damaged frame that is not the torn end of the log.
pub(crate) fn replay(
    disk: &dyn LogDisk,
    dir: &Path,
    mut apply: impl FnMut(&[FrameRef<'_>]) -> Result<()>,
) -> Result<Recovered> {
    let mut segments = list_segments(disk, dir)?;
    let mut next_lsn = segments.first().map_or(1, |segment| segment.first_lsn);
    let last = segments.len().saturating_sub(1);
    for (index, segment) in segments.iter().enumerate() {
        if segment.first_lsn != next_lsn {
            return Err(Error::corrupted(format!(
                "the log before {} is missing: it starts at position {}, expected {next_lsn}",
                segment.path.display(),
                segment.first_lsn
            )));
        }
        let bytes = disk.read(&segment.path).map_err(|e| Error::io(segment.path.display(), e))?;
        let good = replay_segment(&bytes, segment, index == last, &mut next_lsn, &mut apply)?;
        if good < bytes.len() {
            tracing::warn!(
                file = %segment.path.display(), offset = good, bytes = bytes.len() - good,
                "cut off a torn write at the end of the log; it was never acknowledged"
            );
            disk.truncate(&segment.path, good as u64).map_err(|e| Error::io(segment.path.display(), e))?;
        }
    }
    // An empty last segment stays on disk, where its name says how far the log has come; the writer
    // starts there and replaces it.
    segments.retain(|segment| segment.first_lsn < next_lsn);
    Ok(Recovered { segments, next_lsn })
}

fn list_segments(disk: &dyn LogDisk, dir: &Path) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for path in disk.list(dir).map_err(|e| Error::io(dir.display(), e))? {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        match stem {
            Some(first_lsn) if path.extension().is_some_and(|ext| ext == "wal") => {
                segments.push(Segment { first_lsn, path });
            }
            _ => tracing::warn!(file = %path.display(), "ignored a file in the log that is not a segment"),
        }
    }
    segments.sort_by_key(|segment| segment.first_lsn);
    Ok(segments)
}

/// The number of bytes that hold whole commits.
fn replay_segment(
    bytes: &[u8],
    segment: &Segment,
    is_last: bool,
    next_lsn: &mut u64,
    apply: &mut impl FnMut(&[FrameRef<'_>]) -> Result<()>,
) -> Result<usize> {
    let header = [&MAGIC[..], &segment.first_lsn.to_le_bytes()[..]].concat();
    if bytes.get(..SEGMENT_HEADER_BYTES) != Some(&header[..]) {
        let torn = is_last && bytes.len() <= SEGMENT_HEADER_BYTES && later_group(bytes, 0, 0).is_none();
        return if torn { Ok(0) } else { Err(damaged(segment, 0, "its header is not that of a log segment")) };
    }
    let (mut offset, mut good) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
    let mut lsn = *next_lsn;
    let mut commit = Vec::new();
    while offset < bytes.len() {
        let Some(frame) = FrameRef::parse(&bytes[offset..]).filter(|frame| frame.lsn == lsn) else {
            if let Some(later) = later_group(bytes, offset + 1, lsn) {
                return Err(damaged(segment, offset, &format!("a later write, at offset {later}, is whole")));
            }
            break;
        };
        offset += frame.len();
        lsn += 1;
        let complete = !frame.continued;
        commit.push(frame);
        if complete {
            apply(&commit).map_err(|e| name_place(e, segment, good))?;
            commit.clear();
            good = offset;
            *next_lsn = lsn;
        }
    }
    if good < bytes.len() && !is_last {
        return Err(damaged(segment, good, "later segments exist"));
    }
    Ok(good)
}

/// Offset of a whole frame at or after `from` that was written when the frame `lsn` was durable already.
fn later_group(bytes: &[u8], from: usize, lsn: u64) -> Option<usize> {
    let last = bytes.len().checked_sub(FRAME_HEADER_BYTES)?;
    (from..=last).find(|&offset| {
        // The LSN can only be a little ahead; this spares the checksum at almost every offset.
        let ahead = u64::from_le_bytes(bytes[offset + 8..offset + 16].try_into().unwrap_or_default());
        let most = lsn + ((bytes.len() - from) / FRAME_HEADER_BYTES) as u64 + 1;
        (lsn..=most).contains(&ahead)
            && FrameRef::parse(&bytes[offset..]).is_some_and(|frame| frame.group_lsn > lsn || lsn == 0)
    })
}

fn damaged(segment: &Segment, offset: usize, why: &str) -> Error {
    Error::corrupted(format!(
        "log segment {} is damaged at offset {offset}: {why}; restore the file from a backup",
        segment.path.display()
    ))
}

fn name_place(error: Error, segment: &Segment, offset: usize) -> Error {
    let message = format!("log segment {} at offset {offset}: {}", segment.path.display(), error.message());
    Error::new(error.kind(), message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::super::disk::FileDisk;
    use super::super::frame::Frame;
    use super::super::segment_path;
    use super::*;

    /// A segment from LSN 1 with frames of `(place in the group, further frames follow)`.
    fn segment(frames: &[(u32, bool)]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = [&MAGIC[..], &1_u64.to_le_bytes()[..]].concat();
        let mut starts = Vec::new();
        for (index, (place, continued)) in frames.iter().enumerate() {
            let frame = Frame::ddl(format!("frame {index}").into_bytes()).unwrap();
            starts.push(bytes.len());
            bytes.extend(frame.header(index as u64 + 1, *place, *continued));
            bytes.extend(frame.payload());
        }
        (bytes, starts)
    }

    fn recover(bytes: &[u8]) -> (Result<Recovered>, Vec<usize>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = segment_path(dir.path(), 1);
        std::fs::write(&path, bytes).unwrap();
        let mut commits = Vec::new();
        let recovered = replay(&FileDisk, dir.path(), |frames| {
            commits.push(frames.len());
            Ok(())
        });
        (recovered, commits, std::fs::metadata(&path).unwrap().len())
    }

    #[test]
    fn a_hole_in_the_last_group_is_a_torn_write() {
        // Groups: {1}, {2, 3, 4}; the disk kept 2 and 4 but not 3.
        let (mut bytes, starts) = segment(&[(0, false), (0, false), (1, false), (2, false)]);
        bytes[starts[2] + FRAME_HEADER_BYTES] ^= 1;
        let (recovered, commits, len) = recover(&bytes);
        assert_eq!((recovered.unwrap().next_lsn, commits, len), (3, vec![1, 1], starts[2] as u64));
    }

    #[test]
    fn a_hole_before_a_later_group_is_corruption() {
        let (mut bytes, starts) = segment(&[(0, false), (0, false), (1, false), (0, false)]);
        bytes[starts[2] + FRAME_HEADER_BYTES] ^= 1;
        let (recovered, _, len) = recover(&bytes);
        let error = recovered.unwrap_err();
        assert!(error.message().contains(&format!("offset {}", starts[2])), "{error}");
        assert_eq!(len, bytes.len() as u64, "a damaged log is left as it is");
    }

    #[test]
    fn a_commit_is_replayed_whole_or_not_at_all() {
        let (bytes, starts) = segment(&[(0, false), (0, true), (1, true), (2, false)]);
        assert_eq!(recover(&bytes).1, [1, 3]);
        for cut in starts[1]..bytes.len() {
            let (recovered, commits, len) = recover(&bytes[..cut]);
            assert_eq!((recovered.unwrap().next_lsn, commits, len), (2, vec![1], starts[1] as u64), "cut at {cut}");
        }
    }
}
