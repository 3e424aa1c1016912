//! The one place where a file becomes memory, and where pages of it are asked for and let go of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow_buffer::Buffer;
use memmap2::Mmap;

/// The mappings of this process, by address: a buffer does not say whether it lies in one.
static MAPPINGS: Mutex<BTreeMap<usize, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

/// Maps a whole file read-only and shared: the pages are the page cache's, so they cost no private memory
/// and every process that maps the file shares them. The mapping lives as long as the buffer or any slice
/// of it. The buffer starts page-aligned.
///
/// The file must not shrink while it is mapped: a page past the new end raises `SIGBUS` when touched.
/// Hyprstream's model files are published by rename and never written again.
///
/// # Errors
/// What the operating system says; an empty file gives an empty buffer.
pub fn map_file(file: &File) -> io::Result<Buffer> {
    if file.metadata()?.len() == 0 {
        return Ok(Buffer::from(&[] as &[u8]));
    }
    // SAFETY: the bytes are only ever read, through `Buffer`. That nobody writes or truncates the file while
    // it is mapped is the rule for model files stated above; weights are plain numbers, for which any bit
    // pattern is valid.
    let map = unsafe { Mmap::map(file)? };
    let (len, owner) = (map.len(), Arc::new(map));
    let start = NonNull::new(owner.as_ptr().cast_mut()).ok_or_else(|| io::Error::other("file mapped at address 0"))?;
    let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    mappings.retain(|_, map| map.strong_count() > 0);
    mappings.insert(start.as_ptr() as usize, Arc::downgrade(&owner));
    drop(mappings);
    // SAFETY: `start` points at `len` readable bytes, which stay mapped and unmoved for as long as `owner`,
    // and the buffer keeps `owner`.
    Ok(unsafe { Buffer::from_custom_allocation(start, len, owner) })
}

/// A file that is mapped, for as long as this lives.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// The mapping that `bytes` lie in, and where in it; `None` for bytes that are not of a file of [`map_file`].
    pub fn of(bytes: &[u8]) -> Option<(Self, Range<usize>)> {
        let at = bytes.as_ptr() as usize;
        let mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is gone may have left its entry before the one that is meant.
        let map = mappings.range(..=at).rev().find_map(|(_, map)| map.upgrade())?;
        drop(mappings);
        let start = at - map.as_ptr() as usize;
        let end = start.checked_add(bytes.len()).filter(|&end| end <= map.len())?;
        Some((Self(map), start..end))
    }

    /// Tells mappings apart.
    pub fn id(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Asks the system to read the pages of `range` soon, without waiting for them.
    ///
    /// # Errors
    /// What the operating system says, and for a range outside the file.
    pub fn prefetch(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        #[cfg(unix)]
        self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len())?;
        Ok(())
    }

    /// Lets go of the pages of `range`: they count no more as this process's memory, and are read again where they
    /// are touched. The system's page cache may still have them.
    ///
    /// # Errors
    /// As [`MappedFile::prefetch`].
    pub fn release(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        // SAFETY: the mapping is shared and read-only, so that a page that is dropped comes back from the file with
        // the same bytes; whoever reads meanwhile waits for them.
        #[cfg(unix)]
        unsafe {
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())?;
        }
        Ok(())
    }

    fn check(&self, range: &Range<usize>) -> io::Result<()> {
        match range.start < range.end && range.end <= self.0.len() {
            true => Ok(()),
            false => Err(io::Error::other("a range outside the mapped file")),
        }
    }
}

/// How much of the files that `slices` lie in is in this process's memory, in bytes, each file counted once; slices of
/// no mapped file count for nothing. `None` where the system does not tell.
pub fn resident_bytes<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> Option<u64> {
    let files = slices.into_iter().filter_map(MappedFile::of);
    let files: BTreeSet<usize> = files.map(|(file, _)| file.id()).collect();
    if files.is_empty() {
        return Some(0);
    }
    // Grammar, from proc_pid_smaps(5): "start-end perms offset dev inode path", then "Name: value kB" lines.
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let (mut wanted, mut bytes) = (false, 0);
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Rss:") {
            let kb = value.trim_start().split(' ').next().and_then(|kb| kb.parse::<u64>().ok())?;
            bytes += if wanted { kb * 1024 } else { 0 };
        } else if let Some((start, _)) = line.split_once('-')
            && let Ok(start) = usize::from_str_radix(start, 16)
        {
            wanted = files.contains(&start);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_buffer_is_the_mapping_and_slices_keep_it_alive() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let buffer = map_file(&file).unwrap();
        assert_eq!(buffer.as_slice(), bytes);
        assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inside = maps.lines().any(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let (start, end) = (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap());
            (start..end).contains(&(buffer.as_ptr() as usize)) && line.contains("r--s")
        });
        assert!(inside, "no shared read-only mapping holds the buffer");

        let slice = buffer.slice_with_length(5_000, 100);
        drop(buffer);
        drop(file);
        assert_eq!(slice.as_slice(), &bytes[5_000..5_100]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_let_go_of_and_come_back_the_same() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..1_u32 << 20).map(|i| ((i * 31) >> 3) as u8).collect();
        file.write_all(&bytes).unwrap();
        let buffer = map_file(&file).unwrap();
        assert_eq!(buffer.as_slice(), bytes);
        assert_eq!(resident_bytes([&buffer[..]]), Some(1 << 20));
        let (mapped, range) = MappedFile::of(&buffer[1 << 18..1 << 19]).unwrap();
        assert_eq!((mapped.bytes(), &range), (1 << 20, &(1 << 18..1 << 19)));
        mapped.release(range.clone()).unwrap();
        assert_eq!(resident_bytes([&buffer[..], &buffer[9..10]]), Some(3 << 18));
        mapped.prefetch(range).unwrap();
        assert_eq!(buffer.as_slice(), bytes);
        assert!(mapped.release(0..(1 << 20) + 1).is_err());
        assert!(MappedFile::of(&bytes).is_none());
        assert_eq!(resident_bytes([&bytes[..]]), Some(0));
    }

    #[test]
    fn an_empty_file_is_an_empty_buffer() {
        assert!(map_file(&tempfile::tempfile().unwrap()).unwrap().is_empty());
    }
}
