//! The rows in which one word occurs: a compressed list in ascending document order.
//!
//! ```text
//! docs:       per posting  varint(delta << 1 | (frequency == 1)), then varint(frequency) unless it is 1
//!             delta is from the document before, of the block before too; the first one is from 0
//! positions:  per posting  frequency x varint(delta from the position before; the first one is from 0)
//! ```
//! Every [`BLOCK`] postings a [`Block`] says where the next one begins and bounds the scores within it, so that a
//! search skips blocks that cannot hold a result without decoding them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Postings of a block.
pub(crate) const BLOCK: usize = 128;

/// The document number after the last.
pub(crate) const END: u32 = u32::MAX;

/// What a search knows about some postings without decoding them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    /// Where its first posting begins in the two streams, and the document before it.
    docs_at: u32,
    positions_at: u32,
    before: u32,
    last: u32,
    len: u32,
    /// The highest frequency and the shortest document in it, not necessarily of the same posting.
    pub(crate) max_frequency: u32,
    pub(crate) min_length: u32,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct PostingList {
    docs: Vec<u8>,
    positions: Vec<u8>,
    full: Vec<Block>,
    /// The block that grows.
    open: Block,
    len: u32,
    max_frequency: u32,
    min_length: u32,
    /// `deletions << 32 | live postings`, see [`PostingList::live`].
    live: AtomicU64,
}

impl PostingList {
    /// Postings, those of deleted documents too.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.docs.capacity() + self.positions.capacity() + self.full.capacity() * size_of::<Block>()
    }

    /// Appends `document`, which is `length` words long and has the word at `positions` (ascending, not empty).
    pub(crate) fn push(&mut self, document: u32, length: u32, positions: &[u32]) {
        if self.open.len as usize == BLOCK {
            self.full.push(self.open);
            self.open = Block {
                docs_at: self.docs.len() as u32,
                positions_at: self.positions.len() as u32,
                before: self.open.last,
                ..Block::default()
            };
        }
        let frequency = positions.len() as u32;
        let delta = u64::from(document - self.open_last());
        write_varint(&mut self.docs, delta << 1 | u64::from(frequency == 1));
        if frequency != 1 {
            write_varint(&mut self.docs, u64::from(frequency));
        }
        let mut before = 0;
        for &position in positions {
            write_varint(&mut self.positions, u64::from(position - before));
            before = position;
        }
        let first = self.open.len == 0;
        self.open.last = document;
        self.open.len += 1;
        self.open.max_frequency = self.open.max_frequency.max(frequency);
        self.open.min_length = if first { length } else { self.open.min_length.min(length) };
        self.max_frequency = self.max_frequency.max(frequency);
        self.min_length = if self.len == 0 { length } else { self.min_length.min(length) };
        self.len += 1;
        // A new document is live: a count that is known stays known.
        let live = self.live.get_mut();
        *live += u64::from(*live != 0);
    }

    fn open_last(&self) -> u32 {
        if self.open.len == 0 { self.open.before } else { self.open.last }
    }

    /// The highest frequency and the shortest document of all postings.
    pub(crate) fn bounds(&self) -> (u32, u32) {
        (self.max_frequency, self.min_length)
    }

    fn blocks(&self) -> usize {
        self.full.len() + usize::from(self.open.len > 0)
    }

    fn block(&self, at: usize) -> Option<&Block> {
        match self.full.get(at) {
            None if at == self.full.len() && self.open.len > 0 => Some(&self.open),
            block => block,
        }
    }

    /// The first block from `from` on whose last document is `target` or later.
    fn block_of(&self, from: usize, target: u32) -> usize {
        // Near jumps are by far the most frequent.
        for at in from..self.blocks().min(from + 4) {
            if self.block(at).is_some_and(|block| block.last >= target) {
                return at;
            }
        }
        let from = (from + 4).min(self.full.len());
        let found = from + self.full[from..].partition_point(|block| block.last < target);
        let behind_all = found == self.full.len() && (self.open.len == 0 || self.open.last < target);
        found + usize::from(behind_all)
    }

    fn decode(&self, block: &Block, documents: &mut [u32; BLOCK], frequencies: &mut [u32; BLOCK]) {
        let (mut at, mut document) = (block.docs_at as usize, block.before);
        for (slot, frequency) in documents.iter_mut().zip(frequencies.iter_mut()).take(block.len as usize) {
            let head = read_varint(&self.docs, &mut at);
            document += (head >> 1) as u32;
            *slot = document;
            *frequency = if head & 1 == 1 { 1 } else { read_varint(&self.docs, &mut at) as u32 };
        }
    }

    /// Postings of documents that `is_live`; remembered until `deletions`, the number of deleted documents,
    /// changes.
    pub(crate) fn live(&self, deletions: u32, is_live: impl Fn(u32) -> bool) -> u32 {
        if deletions == 0 {
            return self.len;
        }
        let known = self.live.load(Ordering::Relaxed);
        if (known >> 32) as u32 == deletions {
            return known as u32;
        }
        let (mut documents, mut frequencies) = ([0; BLOCK], [0; BLOCK]);
        let mut count = 0;
        for block in self.full.iter().chain([&self.open]) {
            self.decode(block, &mut documents, &mut frequencies);
            count += documents[..block.len as usize].iter().filter(|document| is_live(**document)).count() as u32;
        }
        self.live.store(u64::from(deletions) << 32 | u64::from(count), Ordering::Relaxed);
        count
    }
}

/// Walks a [`PostingList`] forwards.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    list: &'a PostingList,
    block: usize,
    at: usize,
    len: usize,
    documents: [u32; BLOCK],
    frequencies: [u32; BLOCK],
    /// The block that bounds were last asked of.
    shallow: usize,
}

impl<'a> Cursor<'a> {
    /// At the first posting.
    pub(crate) fn new(list: &'a PostingList) -> Self {
        let mut cursor =
            Self { list, block: 0, at: 0, len: 0, documents: [0; BLOCK], frequencies: [0; BLOCK], shallow: 0 };
        cursor.load(0);
        cursor
    }

    fn load(&mut self, block: usize) {
        (self.block, self.at) = (block, 0);
        match self.list.block(block) {
            Some(found) => {
                self.list.decode(found, &mut self.documents, &mut self.frequencies);
                self.len = found.len as usize;
            }
            None => self.len = 0,
        }
    }

    /// The current document, or [`END`].
    pub(crate) fn document(&self) -> u32 {
        if self.at < self.len { self.documents[self.at] } else { END }
    }

    /// How often the word is in it.
    pub(crate) fn frequency(&self) -> u32 {
        self.frequencies[self.at]
    }

    /// Moves on by one.
    pub(crate) fn next(&mut self) -> u32 {
        self.at += 1;
        if self.at >= self.len && self.len > 0 {
            self.load(self.block + 1);
        }
        self.document()
    }

    /// Moves to the first document that is `target` or later.
    pub(crate) fn seek(&mut self, target: u32) -> u32 {
        if self.document() >= target {
            return self.document();
        }
        if self.len > 0 && self.documents[self.len - 1] < target {
            let block = self.list.block_of(self.block + 1, target);
            self.load(block);
        }
        while self.at < self.len && self.documents[self.at] < target {
            self.at += 1;
        }
        self.document()
    }

    /// The block that would hold `target`, and its last document; `None` behind the end.
    pub(crate) fn bounds_at(&mut self, target: u32) -> Option<(&'a Block, u32)> {
        self.shallow = self.list.block_of(self.shallow.max(self.block), target);
        self.list.block(self.shallow).map(|block| (block, block.last))
    }

    /// The positions of the word in the current document.
    pub(crate) fn positions(&self, positions: &mut Vec<u32>) {
        positions.clear();
        let Some(block) = self.list.block(self.block) else { return };
        let mut at = block.positions_at as usize;
        let skipped: u64 = self.frequencies[..self.at].iter().map(|frequency| u64::from(*frequency)).sum();
        for _ in 0..skipped {
            skip_varint(&self.list.positions, &mut at);
        }
        let mut position = 0;
        for _ in 0..self.frequency() {
            position += read_varint(&self.list.positions, &mut at) as u32;
            positions.push(position);
        }
    }
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

fn skip_varint(bytes: &[u8], at: &mut usize) {
    while bytes[*at] >= 0x80 {
        *at += 1;
    }
    *at += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Document, length and positions of some postings, several blocks of them.
    fn sample() -> Vec<(u32, u32, Vec<u32>)> {
        let posting = |i: u32| {
            let positions = (0..1 + i % 3).map(|p| p * 700 + i % 5).collect();
            (i * (1 + i % 7) * 50 + i, 5 + i % 90, positions)
        };
        let mut postings: Vec<_> = (0..1000).map(posting).collect();
        postings.sort_by_key(|(document, ..)| *document);
        postings.dedup_by_key(|(document, ..)| *document);
        postings
    }

    fn list(postings: &[(u32, u32, Vec<u32>)]) -> PostingList {
        let mut list = PostingList::default();
        for (document, length, positions) in postings {
            list.push(*document, *length, positions);
        }
        list
    }

    #[test]
    fn what_was_pushed_is_read_back() {
        let postings = sample();
        let list = list(&postings);
        let (mut cursor, mut positions) = (Cursor::new(&list), Vec::new());
        for (document, _, expected) in &postings {
            assert_eq!(cursor.document(), *document);
            assert_eq!(cursor.frequency() as usize, expected.len());
            cursor.positions(&mut positions);
            assert_eq!(&positions, expected);
            cursor.next();
        }
        assert_eq!(cursor.document(), END);
        assert_eq!(cursor.next(), END);
    }

    #[test]
    fn seek_finds_the_first_document_at_or_after_the_target() {
        let postings = sample();
        let list = list(&postings);
        for step in [37, 900, 40_000] {
            let mut cursor = Cursor::new(&list);
            let last = postings[postings.len() - 1].0;
            for target in (0..last + 2 * step).step_by(step as usize) {
                let expected = postings.iter().map(|posting| posting.0).find(|document| *document >= target);
                assert_eq!(cursor.seek(target), expected.unwrap_or(END), "step {step}, target {target}");
            }
        }
    }

    #[test]
    fn blocks_bound_their_postings() {
        let postings = sample();
        let list = list(&postings);
        let mut cursor = Cursor::new(&list);
        for (document, length, positions) in &postings {
            let (block, last) = cursor.bounds_at(*document).unwrap();
            assert!(
                block.max_frequency as usize >= positions.len() && block.min_length <= *length && last >= *document
            );
        }
        assert!(cursor.bounds_at(END).is_none());
    }

    #[test]
    fn deleted_documents_are_not_counted() {
        let postings = sample();
        let mut list = list(&postings);
        let odd = |document: u32| document % 2 == 1;
        let expected = postings.iter().filter(|posting| odd(posting.0)).count() as u32;
        assert_eq!(list.live(1, odd), expected);
        assert_eq!(list.live(1, |_| false), expected, "it is remembered");
        list.push(u32::MAX - 1, 1, &[0]);
        assert_eq!(list.live(1, |_| false), expected + 1, "a new document is live");
        assert_eq!(list.live(2, |_| false), 0);
    }
}
