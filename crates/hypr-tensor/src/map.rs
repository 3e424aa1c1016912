//! The one place where a file becomes memory.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_buffer::Buffer;
use memmap2::Mmap;

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
    // SAFETY: `start` points at `len` readable bytes, which stay mapped and unmoved for as long as `owner`,
    // and the buffer keeps `owner`.
    Ok(unsafe { Buffer::from_custom_allocation(start, len, owner) })
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

    #[test]
    fn an_empty_file_is_an_empty_buffer() {
        assert!(map_file(&tempfile::tempfile().unwrap()).unwrap().is_empty());
    }
}
