//! Reads the log when a directory is opened: replays whole commits, cuts off a torn end, refuses damage.

use std::path::{Path, PathBuf};

use hypr_common::{Error, Result};

use super::frame::{FRAME_HEADER_BYTES, FrameKind, FrameRef, MAGIC, SEGMENT_HEADER_BYTES};
use crate::disk::{self, Disk};

/// A segment on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) first_lsn: u64,
    pub(crate) path: PathBuf,
}

/// What to do with the torn end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Torn {
    /// Cut it off, to write on behind it.
    CutOff,
    /// Leave it, to look only.
    Leave,
}

/// Frames that were durable once and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The first lost LSN.
    pub(crate) from_lsn: u64,
    /// The first LSN that is readable again.
    pub(crate) to_lsn: u64,
    /// The file, the offset, and what to do.
    pub(crate) why: String,
}

impl Gap {
    /// Whether rows of a table may be among the lost: one that Lance holds up to `position`, and that was
    /// created at `created` if the log says so.
    pub(crate) fn may_hide(&self, position: u64, created: Option<u64>) -> bool {
        position + 1 < self.to_lsn && created.is_none_or(|created| created < self.to_lsn)
    }
}

/// What is left after a replay.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Segments that hold frames, ascending.
    pub(crate) segments: Vec<Segment>,
    /// The LSN of the next frame.
    pub(crate) next_lsn: u64,
    /// Ascending.
    pub(crate) gaps: Vec<Gap>,
    /// Bytes after the last whole commit, and where they begin.
    pub(crate) torn: Option<String>,
    /// Where the last commit lies in the last segment, when it is a mark.
    mark_at: Option<usize>,
    /// Segments whose first bytes are damaged, which costs nothing: their names say the same.
    pub(crate) header_damage: Vec<String>,
}

impl Recovered {
    /// The tables or the catalog have seen every position below `lsn`: what the log lacks of them is lost.
    pub(crate) fn reach(&mut self, lsn: u64, dir: &Path) {
        if self.next_lsn < lsn {
            let why = format!(
                "the log in {} ends before position {}: segments are missing; restore them from a backup",
                dir.display(),
                lsn - 1
            );
            self.gaps.push(Gap { from_lsn: self.next_lsn, to_lsn: lsn, why });
            self.next_lsn = lsn;
        }
    }
}

/// Replays every whole commit in log order: `apply` gets its frames. Damage of what was durable becomes a
/// [`Gap`], behind which the replay goes on.
pub(crate) fn replay(
    disk: &dyn Disk,
    dir: &Path,
    torn: Torn,
    mut apply: impl FnMut(&[FrameRef<'_>]) -> Result<()>,
) -> Result<Recovered> {
    let mut segments = list_segments(disk, dir)?;
    let next_lsn = segments.first().map_or(1, |segment| segment.first_lsn);
    let mut recovered = Recovered {
        segments: Vec::new(),
        next_lsn,
        gaps: Vec::new(),
        torn: None,
        mark_at: None,
        header_damage: Vec::new(),
    };
    let mut unread: Option<String> = None;
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        if segment.first_lsn != recovered.next_lsn {
            let missing = || format!("the log before {} is missing; restore it from a backup", segment.path.display());
            let why = unread.take().unwrap_or_else(missing);
            recovered.gaps.push(Gap { from_lsn: recovered.next_lsn, to_lsn: segment.first_lsn, why });
            recovered.next_lsn = segment.first_lsn;
        }
        let bytes = disk.read(&segment.path).map_err(|e| Error::io(segment.path.display(), e))?;
        let good = replay_segment(&bytes, segment, is_last, &mut recovered, &mut apply)?;
        unread = (good < bytes.len()).then(|| damaged(segment, good, "later segments exist"));
        if good < bytes.len() && is_last {
            let end = format!("{} has {} torn bytes at offset {good}", segment.path.display(), bytes.len() - good);
            tracing::warn!("{end}; cut off, they were never acknowledged");
            recovered.torn = Some(end);
        }
        // Damage stays as it is, with the evidence that it is no torn write.
        if is_last && torn == Torn::CutOff && recovered.gaps.is_empty() {
            let cut = end_durably(disk, segment, &bytes[..good], &mut recovered);
            cut.map_err(|e| Error::io(segment.path.display(), e))?;
        }
    }
    // An empty last segment stays on disk, where its name says how far the log has come; the writer
    // starts there and replaces it.
    segments.retain(|segment| segment.first_lsn < recovered.next_lsn);
    recovered.segments = segments;
    Ok(recovered)
}

/// Makes `good`, the whole commits of the last segment, what the disk holds of it, since it will lie below what is
/// written from here on. What a killed process has written may be seen and yet be lost with the next power failure,
/// and a sync that has failed once is no help: the next one may succeed without writing anything.
fn end_durably(disk: &dyn Disk, segment: &Segment, good: &[u8], recovered: &mut Recovered) -> std::io::Result<()> {
    match recovered.mark_at.take() {
        // What lies before a mark is durable; the mark itself may not be, and is not needed any more.
        Some(mark) => {
            recovered.next_lsn -= 1;
            disk.truncate(&segment.path, mark as u64)
        }
        None if good.len() <= SEGMENT_HEADER_BYTES => disk.truncate(&segment.path, good.len() as u64),
        None => disk::replace(disk, &segment.path, good),
    }
}

fn list_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Segment>> {
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

/// The number of bytes that hold whole commits, or gaps.
fn replay_segment(
    bytes: &[u8],
    segment: &Segment,
    is_last: bool,
    recovered: &mut Recovered,
    apply: &mut impl FnMut(&[FrameRef<'_>]) -> Result<()>,
) -> Result<usize> {
    if is_last && bytes.len() < SEGMENT_HEADER_BYTES {
        recovered.mark_at = None;
        return Ok(0);
    }
    let header = [&MAGIC[..], &segment.first_lsn.to_le_bytes()[..]].concat();
    if bytes.get(..SEGMENT_HEADER_BYTES) != Some(&header[..]) {
        // What follows speaks for itself.
        let why = damaged(segment, 0, "its header is not that of a log segment");
        tracing::warn!("{why}");
        recovered.header_damage.push(why);
    }
    let (mut offset, mut good) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
    let mut lsn = recovered.next_lsn;
    let mut commit = Vec::new();
    recovered.mark_at = None;
    while offset < bytes.len() {
        let Some(frame) = FrameRef::parse(&bytes[offset..]).filter(|frame| frame.lsn == lsn) else {
            let Some((later, later_lsn)) = later_group(bytes, offset + 1, lsn) else { break };
            let why = damaged(segment, offset, &format!("a later write, at offset {later}, is whole"));
            recovered.gaps.push(Gap { from_lsn: recovered.next_lsn, to_lsn: later_lsn, why });
            commit.clear();
            (offset, good, lsn, recovered.next_lsn) = (later, later, later_lsn, later_lsn);
            continue;
        };
        offset += frame.len();
        lsn += 1;
        let complete = !frame.continued;
        commit.push(frame);
        if complete {
            apply(&commit).map_err(|e| name_place(e, segment, good))?;
            recovered.mark_at = (commit.len() == 1 && commit[0].kind == FrameKind::Mark).then_some(good);
            commit.clear();
            good = offset;
            recovered.next_lsn = lsn;
        }
    }
    Ok(good)
}

/// Offset and LSN of the first whole frame at or after `from` that was written when the frame `lsn` was durable
/// already, and begins a group and with it a commit.
fn later_group(bytes: &[u8], from: usize, lsn: u64) -> Option<(usize, u64)> {
    let last = bytes.len().checked_sub(FRAME_HEADER_BYTES)?;
    (from..=last).find_map(|offset| {
        // The LSN can only be a little ahead; this spares the checksum at almost every offset.
        let ahead = u64::from_le_bytes(bytes[offset + 8..offset + 16].try_into().unwrap_or_default());
        let most = lsn + ((bytes.len() - from) / FRAME_HEADER_BYTES) as u64 + 1;
        let near = (lsn..=most).contains(&ahead);
        let frame = near.then(|| FrameRef::parse(&bytes[offset..])).flatten()?;
        (frame.group_lsn > lsn && frame.group_lsn == frame.lsn).then_some((offset, frame.lsn))
    })
}

fn damaged(segment: &Segment, offset: usize, why: &str) -> String {
    format!(
        "log segment {} is damaged at offset {offset}: {why}; restore the file from a backup",
        segment.path.display()
    )
}

fn name_place(error: Error, segment: &Segment, offset: usize) -> Error {
    let message = format!("log segment {} at offset {offset}: {}", segment.path.display(), error.message());
    Error::new(error.kind(), message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::super::frame::Frame;
    use super::super::segment_path;
    use super::*;
    use crate::disk::FileDisk;

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
        let recovered = replay(&FileDisk, dir.path(), Torn::CutOff, |frames| {
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
    fn a_hole_before_a_later_group_is_a_gap_behind_which_the_log_goes_on() {
        let (mut bytes, starts) = segment(&[(0, false), (0, false), (1, true), (2, false), (0, false), (1, false)]);
        bytes[starts[2] + FRAME_HEADER_BYTES] ^= 1;
        let (recovered, commits, len) = recover(&bytes);
        let recovered = recovered.unwrap();
        let [gap] = &recovered.gaps[..] else { panic!("{recovered:?}") };
        assert_eq!((gap.from_lsn, gap.to_lsn), (3, 5), "the rest of a commit goes with its damaged frame");
        assert!(gap.why.contains(&format!("offset {}", starts[2])), "{gap:?}");
        assert_eq!((recovered.next_lsn, commits), (7, vec![1, 1, 1, 1]));
        assert_eq!(len, bytes.len() as u64, "a damaged log is left as it is");
    }

    #[test]
    fn a_gap_hides_rows_of_tables_that_neither_hold_it_nor_came_later() {
        let gap = Gap { from_lsn: 3, to_lsn: 5, why: String::new() };
        assert!(gap.may_hide(3, None) && gap.may_hide(0, Some(1)));
        assert!(!gap.may_hide(4, None) && !gap.may_hide(0, Some(5)));
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
