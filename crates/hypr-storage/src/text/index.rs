//! The inverted index of one column: for each word the documents that hold it, in memory.
//!
//! A *document* is a row whose text has at least one word; documents are numbered in the order in which they came.
//! A deleted document stays in the lists, marked, until so many are deleted that the lists are written anew.
//!
//! Invariant: the statistics that scores come from (documents, their average length, in how many of them a word
//! is) count live documents only, whatever the lists still hold.

use std::collections::HashMap;

use super::analyzer::Analyzer;
use super::postings::{BLOCK, Cursor, END, PostingList};

/// Lists are not rewritten for fewer deleted documents than this.
const MIN_DELETED: usize = 1024;

/// Set of documents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bitmap {
    bits: Vec<u64>,
    count: usize,
}

impl Bitmap {
    pub(crate) fn contains(&self, document: u32) -> bool {
        self.bits.get(document as usize / 64).is_some_and(|bits| bits >> (document % 64) & 1 == 1)
    }

    pub(crate) fn insert(&mut self, document: u32) {
        let at = document as usize / 64;
        if at >= self.bits.len() {
            self.bits.resize(at + 1, 0);
        }
        let new = self.bits[at] >> (document % 64) & 1 == 0;
        self.bits[at] |= 1 << (document % 64);
        self.count += usize::from(new);
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Members in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits.iter().enumerate().flat_map(|(at, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(at as u32 * 64 + bit)
            })
        })
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct TextIndex {
    words: HashMap<Box<str>, u32>,
    lists: Vec<PostingList>,
    /// Row id and number of words of each document.
    rows: Vec<u64>,
    lengths: Vec<u32>,
    deleted: Bitmap,
    documents: HashMap<u64, u32>,
    /// Words in live documents.
    live_words: u64,
    scratch: Vec<(u32, u32)>,
}

impl TextIndex {
    /// Live documents.
    pub(crate) fn live_documents(&self) -> usize {
        self.documents.len()
    }

    /// Average number of words of live documents.
    pub(crate) fn average_length(&self) -> f64 {
        self.live_words as f64 / self.documents.len().max(1) as f64
    }

    /// Bytes of memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let word = |word: &str| word.len() + size_of::<(Box<str>, u32)>() + 16;
        self.words.keys().map(|text| word(text)).sum::<usize>()
            + self.lists.iter().map(PostingList::bytes).sum::<usize>()
            + self.rows.capacity() * (size_of::<u64>() + size_of::<u32>())
            + self.documents.capacity() * size_of::<(u64, u32)>()
    }

    pub(crate) fn is_live(&self, document: u32) -> bool {
        !self.deleted.contains(document)
    }

    /// The row of a document.
    pub(crate) fn row(&self, document: u32) -> u64 {
        self.rows[document as usize]
    }

    pub(crate) fn length(&self, document: u32) -> u32 {
        self.lengths[document as usize]
    }

    /// The live document of a row.
    pub(crate) fn document(&self, row_id: u64) -> Option<u32> {
        self.documents.get(&row_id).copied()
    }

    /// The list of a word.
    pub(crate) fn list(&self, word: &str) -> Option<&PostingList> {
        self.words.get(word).map(|at| &self.lists[*at as usize])
    }

    /// The lists of all words that begin with `prefix`.
    pub(crate) fn lists_with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a PostingList> {
        self.words.iter().filter(move |(word, _)| word.starts_with(prefix)).map(|(_, at)| &self.lists[*at as usize])
    }

    /// Live documents in `list`.
    pub(crate) fn frequency(&self, list: &PostingList) -> u32 {
        list.live(self.deleted.len() as u32, |document| self.is_live(document))
    }

    /// Enters the text of a row; a row that is there stays as it is.
    pub(crate) fn add(&mut self, analyzer: &mut Analyzer, row_id: u64, text: &str) {
        if self.documents.contains_key(&row_id) {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        analyzer.words(text, |word, position| scratch.push((self.word(word), position)));
        if !scratch.is_empty() {
            let (document, length) = (self.rows.len() as u32, scratch.len() as u32);
            self.rows.push(row_id);
            self.lengths.push(length);
            self.documents.insert(row_id, document);
            self.live_words += u64::from(length);
            scratch.sort_unstable();
            let mut positions = Vec::new();
            for same in scratch.chunk_by(|a, b| a.0 == b.0) {
                positions.clear();
                positions.extend(same.iter().map(|(_, position)| *position));
                self.lists[same[0].0 as usize].push(document, length, &positions);
            }
        }
        scratch.clear();
        self.scratch = scratch;
    }

    fn word(&mut self, word: &str) -> u32 {
        if let Some(at) = self.words.get(word) {
            return *at;
        }
        let at = self.lists.len() as u32;
        self.words.insert(word.into(), at);
        self.lists.push(PostingList::default());
        at
    }

    /// Takes a row out, if it is there.
    pub(crate) fn remove(&mut self, row_id: u64) {
        if let Some(document) = self.documents.remove(&row_id) {
            self.deleted.insert(document);
            self.live_words -= u64::from(self.length(document));
        }
    }

    /// Takes out every row for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.documents.keys().copied().filter(|row_id| !keep(*row_id)).collect();
        for row_id in gone {
            self.remove(row_id);
        }
    }

    /// True when a quarter of the documents is deleted.
    pub(crate) fn is_sparse(&self) -> bool {
        self.deleted.len() >= MIN_DELETED && self.deleted.len() * 4 >= self.rows.len()
    }

    /// Writes the lists anew, without deleted documents.
    pub(crate) fn compact(&mut self) {
        let mut fresh = Self::default();
        let mut renumbered = vec![END; self.rows.len()];
        for (document, slot) in renumbered.iter_mut().enumerate() {
            if self.is_live(document as u32) {
                *slot = fresh.rows.len() as u32;
                fresh.documents.insert(self.rows[document], *slot);
                fresh.rows.push(self.rows[document]);
                fresh.lengths.push(self.lengths[document]);
            }
        }
        fresh.live_words = self.live_words;
        let mut positions = Vec::with_capacity(BLOCK);
        for (word, at) in std::mem::take(&mut self.words) {
            let mut list = PostingList::default();
            let mut cursor = Cursor::new(&self.lists[at as usize]);
            while cursor.document() != END {
                let document = renumbered[cursor.document() as usize];
                if document != END {
                    cursor.positions(&mut positions);
                    list.push(document, fresh.lengths[document as usize], &positions);
                }
                cursor.next();
            }
            self.lists[at as usize] = PostingList::default();
            if list.len() > 0 {
                fresh.words.insert(word, fresh.lists.len() as u32);
                fresh.lists.push(list);
            }
        }
        *self = fresh;
    }
}
