//! The checksums of one table's files.
//!
//! # Grammar of `tables/<uuid>/checksums`
//! ```text
//! file  = line*
//! line  = crc " " name " " length " " blocks "\n"     a file was written
//!       | crc " " name "\n"                           a file was removed, or is about to be replaced
//! crc   = 8 hexadecimal digits, CRC-32C of the line after "crc "
//! blocks = 8 hexadecimal digits for every 64 KiB, CRC-32C of the block
//! ```
//! `name` is relative to the table's directory. The last line on a name counts. An unfinished last line is
//! what a crash leaves; any other line that does not match its checksum is damage.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::disk::{self, Disk, DiskFile};

/// The name of the file in a table's directory.
pub(crate) const FILE: &str = "checksums";
/// A read is compared in units of this many bytes: small, since a row taken by its id touches one.
const BLOCK_BYTES: u64 = 64 << 10;
/// Lines that speak of files that are gone, beyond as many as are not, before the file is written anew.
const SPARE_LINES: usize = 256;

/// The checksums of one file.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    len: u64,
    /// CRC-32C of each [`BLOCK_BYTES`]; the last one may be shorter.
    blocks: Vec<u32>,
    /// A bit for each block that this process has compared.
    compared: Vec<AtomicU64>,
}

impl Sums {
    /// Those of the concatenation of `pieces`.
    pub(crate) fn of<T: AsRef<[u8]>>(pieces: impl IntoIterator<Item = T>) -> Self {
        let mut sums = Self::default();
        pieces.into_iter().for_each(|piece| sums.add(piece.as_ref()));
        sums
    }

    /// More of the file.
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let in_block = self.len % BLOCK_BYTES;
            if in_block == 0 {
                self.blocks.push(0);
            }
            let (now, later) = bytes.split_at(bytes.len().min((BLOCK_BYTES - in_block) as usize));
            if let Some(last) = self.blocks.last_mut() {
                *last = crc32c::crc32c_append(*last, now);
            }
            self.len += now.len() as u64;
            bytes = later;
        }
        self.compared.resize_with(self.blocks.len().div_ceil(64), AtomicU64::default);
    }

    /// The same of a copy of the file: nothing of it is compared.
    pub(crate) fn fresh(&self) -> Self {
        let compared = self.compared.iter().map(|_| AtomicU64::default()).collect();
        Self { len: self.len, blocks: self.blocks.clone(), compared }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn touched(&self, range: &Range<u64>) -> Range<usize> {
        let end = range.end.min(self.len).div_ceil(BLOCK_BYTES) as usize;
        ((range.start / BLOCK_BYTES) as usize).min(end)..end
    }

    /// The whole blocks around `range`.
    pub(crate) fn aligned(&self, range: &Range<u64>) -> Range<u64> {
        let blocks = self.touched(range);
        blocks.start as u64 * BLOCK_BYTES..(blocks.end as u64 * BLOCK_BYTES).min(self.len)
    }

    pub(crate) fn are_compared(&self, range: &Range<u64>) -> bool {
        self.touched(range).all(|block| self.compared[block / 64].load(Ordering::Acquire) >> (block % 64) & 1 == 1)
    }

    /// Compares whole blocks from `start` on; the offset of the first that differs is the error.
    pub(crate) fn compare(&self, start: u64, bytes: &[u8]) -> Result<(), u64> {
        let first = (start / BLOCK_BYTES) as usize;
        for (index, found) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            let block = first + index;
            if self.blocks.get(block) != Some(&crc32c::crc32c(found)) {
                return Err(block as u64 * BLOCK_BYTES);
            }
            self.compared[block / 64].fetch_or(1 << (block % 64), Ordering::AcqRel);
        }
        Ok(())
    }

    fn parse(len: &str, blocks: &str) -> Option<Self> {
        let len: u64 = len.parse().ok()?;
        let digits = blocks.as_bytes().chunks(8).map(std::str::from_utf8);
        let blocks: Option<Vec<u32>> = digits.map(|hex| u32::from_str_radix(hex.ok()?, 16).ok()).collect();
        let blocks = blocks.filter(|blocks| blocks.len() as u64 == len.div_ceil(BLOCK_BYTES))?;
        let compared = (0..blocks.len().div_ceil(64)).map(|_| AtomicU64::default()).collect();
        Some(Self { len, blocks, compared })
    }
}

/// The checksums of one table's files, and the file they are kept in.
pub(crate) struct TableChecksums {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: Mutex<State>,
}

impl std::fmt::Debug for TableChecksums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableChecksums").field("path", &self.path).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    files: HashMap<String, Arc<Sums>>,
    file: Option<Box<dyn DiskFile>>,
    /// Lines in the file.
    lines: usize,
    /// Numbers of the lines that are damaged, from 1.
    damaged: Vec<usize>,
    /// The file must be written anew before anything is appended.
    rewrite: bool,
    /// Something was appended since the last sync.
    dirty: bool,
    /// The table's directory has a durable name.
    rooted: bool,
}

impl TableChecksums {
    /// Reads what is recorded of the table in `dir`.
    pub(crate) fn load(disk: Arc<dyn Disk>, dir: &Path) -> std::io::Result<Self> {
        let path = dir.join(FILE);
        let mut state = State::default();
        if let Some(bytes) = disk::read_if_exists(disk.as_ref(), &path)? {
            state.read(&bytes);
        }
        Ok(Self { disk, path, state: Mutex::new(state) })
    }

    /// What is recorded of a file.
    pub(crate) fn sums(&self, file: &str) -> Option<Arc<Sums>> {
        self.state.lock().files.get(file).cloned()
    }

    /// The recorded files, by name.
    pub(crate) fn files(&self) -> Vec<(String, Arc<Sums>)> {
        let mut files: Vec<_> =
            self.state.lock().files.iter().map(|(name, sums)| (name.clone(), Arc::clone(sums))).collect();
        files.sort_by(|left, right| left.0.cmp(&right.0));
        files
    }

    /// Numbers of the lines that are damaged.
    pub(crate) fn damaged_lines(&self) -> Vec<usize> {
        self.state.lock().damaged.clone()
    }

    /// A file is there, durably. A record that cannot be written costs the check, not the file.
    pub(crate) fn record(&self, file: &str, sums: Sums) {
        let mut state = self.state.lock();
        let line = record_line(file, &sums);
        state.files.insert(file.to_owned(), Arc::new(sums));
        self.append(&mut state, &line);
    }

    /// A file is gone, or about to be replaced.
    pub(crate) fn forget(&self, file: &str) {
        let mut state = self.state.lock();
        if state.files.remove(file).is_some() {
            self.append(&mut state, &sealed(file));
        }
    }

    /// Makes the records durable.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        let mut state = self.state.lock();
        self.root(&mut state)?;
        if state.rewrite {
            return self.rewrite(&mut state);
        }
        if !std::mem::take(&mut state.dirty) {
            return Ok(());
        }
        let synced = state.file.as_mut().map_or(Ok(()), |file| file.sync());
        let synced = synced.and_then(|()| self.path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir)));
        // After a failed sync the file's content is unknown.
        state.rewrite |= synced.is_err();
        synced
    }

    /// The object store syncs a directory when it creates it, and not when it finds one that a killed process,
    /// or a sync that failed, has left with a name that is not durable.
    fn root(&self, state: &mut State) -> std::io::Result<()> {
        if !state.rooted
            && let Some(tables) = self.path.parent().and_then(Path::parent)
        {
            self.disk.sync_dir(tables)?;
            state.rooted = true;
        }
        Ok(())
    }

    fn append(&self, state: &mut State, line: &str) {
        if state.lines > 2 * state.files.len() + SPARE_LINES || !state.damaged.is_empty() {
            state.rewrite = true;
        }
        state.lines += 1;
        state.dirty = true;
        if state.rewrite {
            // With the next sync.
            return;
        }
        let appended = match &mut state.file {
            Some(file) => file.append(line.as_bytes()),
            None => self.disk.append(&self.path).and_then(|mut file| {
                file.append(line.as_bytes())?;
                state.file = Some(file);
                Ok(())
            }),
        };
        if let Err(error) = appended {
            tracing::warn!(file = %self.path.display(), %error, "recording a checksum failed; it is tried again");
            state.rewrite = true;
        }
    }

    fn rewrite(&self, state: &mut State) -> std::io::Result<()> {
        let mut lines: Vec<String> = state.files.iter().map(|(name, sums)| record_line(name, sums)).collect();
        lines.sort();
        state.file = None;
        disk::replace(self.disk.as_ref(), &self.path, lines.concat().as_bytes())?;
        (state.lines, state.rewrite, state.dirty) = (lines.len(), false, false);
        state.damaged.clear();
        Ok(())
    }
}

impl State {
    fn read(&mut self, bytes: &[u8]) {
        let mut bad = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.lines += 1;
            if self.read_line(line).is_some() {
                continue;
            }
            // Zeros are a write that a crash lost; what was not synced covers no file that a version needs.
            if line.windows(2).any(|pair| pair == [0, 0]) {
                self.rewrite = true;
            } else {
                bad.push(self.lines);
            }
        }
        if bad.last() == Some(&self.lines) && bytes.last() != Some(&b'\n') {
            bad.pop();
            self.rewrite = true;
        }
        self.damaged = bad;
    }

    fn read_line(&mut self, line: &[u8]) -> Option<()> {
        let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
        let (crc, content) = line.split_at_checked(9)?;
        if u32::from_str_radix(crc.strip_suffix(' ')?, 16).ok()? != crc32c::crc32c(content.as_bytes()) {
            return None;
        }
        match content.split(' ').collect::<Vec<_>>()[..] {
            [name] => drop(self.files.remove(name)),
            [name, len, blocks] => drop(self.files.insert(name.to_owned(), Arc::new(Sums::parse(len, blocks)?))),
            _ => return None,
        }
        Some(())
    }
}

fn record_line(file: &str, sums: &Sums) -> String {
    let mut content = format!("{file} {} ", sums.len);
    // Writing to a string cannot fail.
    sums.blocks.iter().for_each(|crc| _ = write!(content, "{crc:08x}"));
    sealed(&content)
}

fn sealed(content: &str) -> String {
    format!("{:08x} {content}\n", crc32c::crc32c(content.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    fn load(dir: &Path) -> TableChecksums {
        TableChecksums::load(Arc::new(FileDisk), dir).unwrap()
    }

    #[test]
    fn blocks_are_the_same_however_a_file_was_cut_into_pieces() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|value| (value * 7 % 251) as u8).collect();
        let whole = Sums::of([&bytes]);
        let pieces = Sums::of(bytes.chunks(999));
        assert_eq!((whole.len, &whole.blocks), (pieces.len, &pieces.blocks));
        assert_eq!(whole.blocks.len(), 4);
        assert!(!whole.are_compared(&(70_000..70_001)));
        let range = whole.aligned(&(70_000..140_000));
        assert_eq!(range, 65_536..196_608);
        whole.compare(range.start, &bytes[range.start as usize..range.end as usize]).unwrap();
        assert!(whole.are_compared(&(70_000..140_000)) && !whole.are_compared(&(0..1)));
        let mut wrong = bytes[65_536..].to_vec();
        wrong[70_000] ^= 1;
        assert_eq!(whole.compare(65_536, &wrong), Err(131_072));
    }

    #[test]
    fn records_are_read_back_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let table = load(dir.path());
        table.record("data/a.lance", Sums::of([b"one"]));
        table.record("data/b.lance", Sums::of([b"two"]));
        table.record("data/a.lance", Sums::of([b"three"]));
        table.forget("data/b.lance");
        table.sync().unwrap();
        let again = load(dir.path());
        assert_eq!(again.files().len(), 1);
        assert_eq!(again.sums("data/a.lance").unwrap().blocks, Sums::of([b"three"]).blocks);
        assert!(again.damaged_lines().is_empty());
    }

    #[test]
    fn a_torn_end_is_dropped_and_a_damaged_line_is_numbered() {
        let dir = tempfile::tempdir().unwrap();
        let table = load(dir.path());
        ["a", "b", "c"].iter().for_each(|name| table.record(name, Sums::of([name.as_bytes()])));
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let torn = load(dir.path());
        assert_eq!((torn.files().len(), torn.damaged_lines()), (2, vec![]));
        torn.record("d", Sums::of([b"d"]));
        torn.sync().unwrap();
        assert_eq!(load(dir.path()).files().len(), 3, "what is appended after a torn end is not lost in it");

        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 4;
        std::fs::write(&path, damaged).unwrap();
        let damaged = load(dir.path());
        assert_eq!((damaged.files().len(), damaged.damaged_lines()), (2, vec![2]));
    }

    #[test]
    fn the_file_stays_small_while_files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let table = load(dir.path());
        for number in 0..400 {
            table.record(&format!("data/{number}"), Sums::of([b"x"]));
            table.forget(&format!("data/{number}"));
            table.sync().unwrap();
        }
        let lines = std::fs::read_to_string(dir.path().join(FILE)).unwrap().lines().count();
        assert!(lines <= SPARE_LINES + 2, "{lines} lines");
        assert!(load(dir.path()).files().is_empty());
    }
}
