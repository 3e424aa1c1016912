//! Asking memory for what will be needed next.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Bytes that a thread will need when it has done the rows that it is at. Many short streams, one of each row, are too much for
/// the processor to foresee, so they are asked for into the second-level cache (the first has no room for two
/// tiles), a line or two at a time between the steps of the products: a core has a few requests under way at once, and drops
/// those that come while all are taken, or lets the products wait for one.
#[derive(Clone, Copy)]
pub struct Ahead {
    start: *const u8,
    bytes: usize,
}

impl Ahead {
    /// What the `rows` rows that begin at `next`, one after the other, have where these have `bytes` bytes at `at` of each.
    #[inline(always)]
    pub fn new(next: *const u8, rows: usize, at: usize, bytes: usize) -> Self {
        Self { start: next.wrapping_add(rows * at), bytes: rows * bytes }
    }

    /// One of `parts` equal parts of it.
    #[inline(always)]
    pub fn part(self, part: usize, parts: usize) -> Self {
        let (first, end) = (self.bytes * part / parts, self.bytes * (part + 1) / parts);
        Self { start: self.start.wrapping_add(first), bytes: end - first }
    }

    /// Asks for the share of one of `steps` steps, each at most two lines.
    #[inline(always)]
    pub fn ask(self, step: usize, steps: usize) {
        let lines = self.bytes.div_ceil(64);
        let (first, end) = (lines * step / steps, lines * (step + 1) / steps);
        // No loop over the share: all this is known when it is compiled.
        if first < end {
            self.line(first);
        }
        if first + 1 < end {
            self.line(first + 1);
        }
    }

    #[inline(always)]
    fn line(self, index: usize) {
        // SAFETY: all processors of this architecture can be asked, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(self.start.wrapping_add(64 * index).cast()) };
    }
}
