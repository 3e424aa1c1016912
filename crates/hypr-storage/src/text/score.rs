//! BM25 and the search for the best documents.
//!
//! ```text
//! score(document) = sum over the query's words of  idf * f * (k1 + 1) / (f + k1 * (1 - b + b * length / average length))
//! idf             = ln(1 + (documents - n + 0.5) / (n + 0.5))        n documents hold the word, f times in this one
//! ```
//! with k1 = 1.2 and b = 0.75 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009; the idf is
//! Lucene's, never negative). A phrase is scored like one word whose idf is the sum of its words'.
//!
//! Alternatives of words alone are searched with block-max WAND (Ding and Suel, SIGIR 2011): the bounds of blocks
//! leave out documents that cannot be among the best. Everything else walks its documents one by one.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::index::{Bitmap, TextIndex};
use super::postings::{Cursor, END, PostingList};
use super::query::Query;

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// Bounds are raised by this much, so that rounding never puts one below a score it bounds.
const SLACK: f64 = 1.0 + 1e-9;

/// A document and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) document: u32,
    pub(crate) score: f64,
}

impl Eq for Scored {}

impl Ord for Scored {
    /// The best is the least, so that the top of a heap is the worst: equal scores in document order.
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.document.cmp(&other.document))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The best `limit` documents, best first. `allowed` are the only ones to consider.
pub(crate) fn search(index: &TextIndex, query: &Query, limit: usize, allowed: Option<&Bitmap>) -> Vec<Scored> {
    let corpus = Corpus::of(index);
    let mut top = Top::new(limit);
    if limit == 0 {
        return Vec::new();
    }
    let accepts = |document: u32| index.is_live(document) && allowed.is_none_or(|set| set.contains(document));
    match (only_words(query), allowed) {
        (_, Some(allowed)) if allowed.len() * 8 < index.live_documents() => {
            if let Some(mut scorer) = corpus.scorer(query) {
                for document in allowed.iter().filter(|document| index.is_live(*document)) {
                    if scorer.seek(document) == document {
                        top.offer(document, scorer.score());
                    }
                }
            }
        }
        (Some(words), _) => {
            let lists = words.into_iter().filter_map(|word| corpus.word(word)).collect();
            block_max_wand(lists, &mut top, accepts);
        }
        (None, _) => {
            if let Some(mut scorer) = corpus.scorer(query) {
                while scorer.document() != END {
                    if accepts(scorer.document()) {
                        top.offer(scorer.document(), scorer.score());
                    }
                    scorer.next();
                }
            }
        }
    }
    top.into_sorted()
}

/// The words of a query that is nothing but alternatives of words.
fn only_words(query: &Query) -> Option<Vec<&str>> {
    match query {
        Query::Word(word) => Some(vec![word]),
        Query::Group { must, should, must_not } if must.is_empty() && must_not.is_empty() => should
            .iter()
            .map(|part| match part {
                Query::Word(word) => Some(word.as_str()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// The best documents so far.
struct Top {
    limit: usize,
    heap: BinaryHeap<Scored>,
}

impl Top {
    fn new(limit: usize) -> Self {
        Self { limit, heap: BinaryHeap::with_capacity(limit.min(4096) + 1) }
    }

    /// What a score must exceed to get in; documents are offered in ascending order, so an equal one comes too late.
    fn threshold(&self) -> f64 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() == self.limit => worst.score,
            _ => f64::NEG_INFINITY,
        }
    }

    fn offer(&mut self, document: u32, score: f64) {
        if score > self.threshold() {
            self.heap.push(Scored { document, score });
            if self.heap.len() > self.limit {
                self.heap.pop();
            }
        }
    }

    fn into_sorted(self) -> Vec<Scored> {
        self.heap.into_sorted_vec()
    }
}

/// The statistics of an index, for one search.
struct Corpus<'a> {
    index: &'a TextIndex,
    documents: f64,
    /// `f + self.base + self.slope * length` is the denominator of a score.
    base: f64,
    slope: f64,
}

impl<'a> Corpus<'a> {
    fn of(index: &'a TextIndex) -> Self {
        Self {
            index,
            documents: index.live_documents() as f64,
            base: K1 * (1.0 - B),
            slope: K1 * B / index.average_length().max(f64::MIN_POSITIVE),
        }
    }

    fn idf(&self, documents: u32) -> f64 {
        let n = f64::from(documents);
        (1.0 + (self.documents - n + 0.5) / (n + 0.5)).ln()
    }

    fn weigh(&self, idf: f64) -> Weight {
        Weight { factor: idf * (K1 + 1.0), base: self.base, slope: self.slope }
    }

    fn live_list(&self, word: &str) -> Option<(&'a PostingList, u32)> {
        let list = self.index.list(word)?;
        let documents = self.index.frequency(list);
        (documents > 0).then_some((list, documents))
    }

    fn word(&self, word: &str) -> Option<WordScorer<'a>> {
        let (list, documents) = self.live_list(word)?;
        let weight = self.weigh(self.idf(documents));
        let (frequency, length) = list.bounds();
        let best = weight.of(frequency, length) * SLACK;
        Some(WordScorer { index: self.index, cursor: Cursor::new(list), weight, best })
    }

    /// `None` when nothing can match.
    fn scorer(&self, query: &Query) -> Option<Box<dyn Scorer + 'a>> {
        match query {
            Query::Word(word) => Some(Box::new(self.word(word)?)),
            Query::Prefix(prefix) => self.prefix(prefix).map(|scorer| Box::new(scorer) as _),
            Query::Phrase(words) => self.phrase(words).map(|scorer| Box::new(scorer) as _),
            Query::Group { must, should, must_not } => {
                let must = must.iter().map(|part| self.scorer(part)).collect::<Option<Vec<_>>>()?;
                let should: Vec<_> = should.iter().filter_map(|part| self.scorer(part)).collect();
                if must.is_empty() && should.is_empty() {
                    return None;
                }
                let must_not = must_not.iter().filter_map(|part| self.scorer(part)).collect();
                Some(Box::new(GroupScorer::new(must, should, must_not)))
            }
        }
    }

    /// All words that begin so are one word: their frequencies in a document add up.
    fn prefix(&self, prefix: &str) -> Option<PrefixScorer<'a>> {
        let mut postings: Vec<(u32, u32)> = Vec::new();
        for list in self.index.lists_with_prefix(prefix) {
            let mut cursor = Cursor::new(list);
            while cursor.document() != END {
                if self.index.is_live(cursor.document()) {
                    postings.push((cursor.document(), cursor.frequency()));
                }
                cursor.next();
            }
        }
        postings.sort_unstable_by_key(|(document, _)| *document);
        postings.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0 };
            same
        });
        let weight = self.weigh(self.idf(postings.len() as u32));
        (!postings.is_empty()).then_some(PrefixScorer { index: self.index, postings, at: 0, weight })
    }

    fn phrase(&self, words: &[(String, u32)]) -> Option<PhraseScorer<'a>> {
        let mut idf = 0.0;
        let mut parts = Vec::with_capacity(words.len());
        for (word, offset) in words {
            let (list, documents) = self.live_list(word)?;
            idf += self.idf(documents);
            parts.push(PhrasePart { cursor: Cursor::new(list), offset: *offset, positions: Vec::new() });
        }
        let mut scorer = PhraseScorer { index: self.index, parts, weight: self.weigh(idf), frequency: 0 };
        scorer.settle(0);
        Some(scorer)
    }
}

/// What turns a frequency and a length into a score.
#[derive(Clone, Copy)]
struct Weight {
    factor: f64,
    base: f64,
    slope: f64,
}

impl Weight {
    fn of(&self, frequency: u32, length: u32) -> f64 {
        let frequency = f64::from(frequency);
        self.factor * frequency / (frequency + self.base + self.slope * f64::from(length))
    }
}

/// Documents that match, in ascending order.
trait Scorer {
    /// The current one, or [`END`].
    fn document(&self) -> u32;
    /// Moves to the next one.
    fn next(&mut self) -> u32;
    /// Moves to the first one that is `target` or later; never backwards.
    fn seek(&mut self, target: u32) -> u32;
    /// The score of the current one.
    fn score(&mut self) -> f64;
}

struct WordScorer<'a> {
    index: &'a TextIndex,
    cursor: Cursor<'a>,
    weight: Weight,
    /// No score is higher.
    best: f64,
}

impl WordScorer<'_> {
    /// The highest score in the block that would hold `target`, and the last document of that block.
    fn bound_at(&mut self, target: u32) -> (f64, u32) {
        match self.cursor.bounds_at(target) {
            Some((block, last)) => (self.weight.of(block.max_frequency, block.min_length) * SLACK, last),
            None => (0.0, END),
        }
    }
}

impl Scorer for WordScorer<'_> {
    fn document(&self) -> u32 {
        self.cursor.document()
    }

    fn next(&mut self) -> u32 {
        self.cursor.next()
    }

    fn seek(&mut self, target: u32) -> u32 {
        self.cursor.seek(target)
    }

    fn score(&mut self) -> f64 {
        self.weight.of(self.cursor.frequency(), self.index.length(self.cursor.document()))
    }
}

struct PrefixScorer<'a> {
    index: &'a TextIndex,
    postings: Vec<(u32, u32)>,
    at: usize,
    weight: Weight,
}

impl Scorer for PrefixScorer<'_> {
    fn document(&self) -> u32 {
        self.postings.get(self.at).map_or(END, |(document, _)| *document)
    }

    fn next(&mut self) -> u32 {
        self.at += 1;
        self.document()
    }

    fn seek(&mut self, target: u32) -> u32 {
        self.at +=
            self.postings[self.at.min(self.postings.len())..].partition_point(|(document, _)| *document < target);
        self.document()
    }

    fn score(&mut self) -> f64 {
        let (document, frequency) = self.postings[self.at];
        self.weight.of(frequency, self.index.length(document))
    }
}

struct PhrasePart<'a> {
    cursor: Cursor<'a>,
    offset: u32,
    positions: Vec<u32>,
}

struct PhraseScorer<'a> {
    index: &'a TextIndex,
    parts: Vec<PhrasePart<'a>>,
    weight: Weight,
    /// Occurrences in the current document.
    frequency: u32,
}

impl PhraseScorer<'_> {
    /// Moves to the first document from `target` on that holds the phrase.
    fn settle(&mut self, mut target: u32) -> u32 {
        loop {
            let Some(document) = meet(self.parts.iter_mut().map(|part| &mut part.cursor), target) else {
                return END;
            };
            self.frequency = self.occurrences();
            if self.frequency > 0 {
                return document;
            }
            target = document + 1;
        }
    }

    fn occurrences(&mut self) -> u32 {
        for part in &mut self.parts {
            part.cursor.positions(&mut part.positions);
        }
        let Some((first, others)) = self.parts.split_first() else { return 0 };
        let follows = |start: u32| {
            others.iter().all(|part| part.positions.binary_search(&(start + part.offset - first.offset)).is_ok())
        };
        first.positions.iter().filter(|start| follows(**start)).count() as u32
    }
}

/// The first document from `target` on at which all cursors are.
fn meet<'a, 'b: 'a>(cursors: impl Iterator<Item = &'a mut Cursor<'b>>, mut target: u32) -> Option<u32> {
    let mut cursors: Vec<_> = cursors.collect();
    loop {
        let mut agreed = true;
        for cursor in &mut cursors {
            let document = cursor.seek(target);
            if document == END {
                return None;
            }
            agreed &= document == target;
            target = document;
        }
        if agreed {
            return Some(target);
        }
    }
}

impl Scorer for PhraseScorer<'_> {
    fn document(&self) -> u32 {
        // The first part alone runs past the end when the parts no longer meet.
        if self.parts.iter().any(|part| part.cursor.document() == END) { END } else { self.parts[0].cursor.document() }
    }

    fn next(&mut self) -> u32 {
        match self.document() {
            END => END,
            document => self.settle(document + 1),
        }
    }

    fn seek(&mut self, target: u32) -> u32 {
        if self.document() >= target { self.document() } else { self.settle(target) }
    }

    fn score(&mut self) -> f64 {
        self.weight.of(self.frequency, self.index.length(self.document()))
    }
}

struct GroupScorer<'a> {
    must: Vec<Box<dyn Scorer + 'a>>,
    should: Vec<Box<dyn Scorer + 'a>>,
    must_not: Vec<Box<dyn Scorer + 'a>>,
    document: u32,
}

impl<'a> GroupScorer<'a> {
    fn new(
        must: Vec<Box<dyn Scorer + 'a>>,
        should: Vec<Box<dyn Scorer + 'a>>,
        must_not: Vec<Box<dyn Scorer + 'a>>,
    ) -> Self {
        let mut scorer = Self { must, should, must_not, document: 0 };
        scorer.settle(0);
        scorer
    }

    fn settle(&mut self, mut target: u32) -> u32 {
        loop {
            let candidate = if self.must.is_empty() { self.any(target) } else { self.all(target) };
            let excluded = candidate != END && self.must_not.iter_mut().any(|part| part.seek(candidate) == candidate);
            if !excluded {
                self.document = candidate;
                return candidate;
            }
            target = candidate + 1;
        }
    }

    fn any(&mut self, target: u32) -> u32 {
        self.should.iter_mut().map(|part| part.seek(target)).min().unwrap_or(END)
    }

    fn all(&mut self, mut target: u32) -> u32 {
        loop {
            let start = target;
            for part in &mut self.must {
                target = part.seek(target);
                if target == END {
                    return END;
                }
            }
            if target == start {
                return target;
            }
        }
    }
}

impl Scorer for GroupScorer<'_> {
    fn document(&self) -> u32 {
        self.document
    }

    fn next(&mut self) -> u32 {
        if self.document == END { END } else { self.settle(self.document + 1) }
    }

    fn seek(&mut self, target: u32) -> u32 {
        if self.document >= target { self.document } else { self.settle(target) }
    }

    fn score(&mut self) -> f64 {
        let document = self.document;
        let must: f64 = self.must.iter_mut().map(|part| part.score()).sum();
        let held = self.should.iter_mut().filter_map(|part| (part.seek(document) == document).then(|| part.score()));
        must + held.sum::<f64>()
    }
}

/// Scores the documents of any of `words` that can be among the best.
fn block_max_wand(mut words: Vec<WordScorer<'_>>, top: &mut Top, accepts: impl Fn(u32) -> bool) {
    let mut order: Vec<usize> = (0..words.len()).collect();
    loop {
        order.sort_unstable_by_key(|at| words[*at].document());
        let Some(pivot) = pivot(&words, &order, top.threshold()) else { return };
        let document = words[order[pivot]].document();
        let (mut bound, mut horizon) = (0.0, END);
        for at in &order[..=pivot] {
            let (best, last) = words[*at].bound_at(document);
            bound += best;
            horizon = horizon.min(last);
        }
        if bound <= top.threshold() {
            // No document up to the end of the nearest block can do, unless another word joins.
            let joins = order.get(pivot + 1).map_or(END, |at| words[*at].document());
            let target = joins.min(horizon.saturating_add(1)).max(document + 1);
            let furthest = order[..=pivot].iter().copied().max_by(|a, b| words[*a].best.total_cmp(&words[*b].best));
            if let Some(at) = furthest {
                words[at].seek(target);
            }
        } else if words[order[0]].document() == document {
            // In the order of the query, so that equal documents get equal sums.
            if accepts(document) {
                let held = words.iter_mut().filter(|word| word.document() == document);
                let score = held.map(|word| word.score()).sum();
                top.offer(document, score);
            }
            for word in words.iter_mut().filter(|word| word.document() == document) {
                word.next();
            }
        } else {
            for at in order[..pivot].iter().copied() {
                if words[at].document() < document {
                    words[at].seek(document);
                    break;
                }
            }
        }
    }
}

/// The place in `order` of the first word at whose document the bounds add up to more than `threshold`, moved to
/// the last word at that document.
fn pivot(words: &[WordScorer<'_>], order: &[usize], threshold: f64) -> Option<usize> {
    let mut bound = 0.0;
    let mut found = None;
    for (place, at) in order.iter().enumerate() {
        let document = words[*at].document();
        match found {
            None if document == END => return None,
            None => {
                bound += words[*at].best;
                found = (bound > threshold).then_some((place, document));
            }
            Some((_, pivot)) if document == pivot => found = Some((place, document)),
            Some(_) => break,
        }
    }
    found.map(|(place, _)| place)
}
