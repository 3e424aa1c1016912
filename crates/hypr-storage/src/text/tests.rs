//! The index against brute force, and against scores of an independent implementation.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::analyzer::{Analyzer, TextOptions};
use super::index::{Bitmap, TextIndex};
use super::query::{Query, parse};
use super::score::search;

/// Rows and their words, searched by reading all of them.
#[derive(Default)]
struct Naive {
    rows: BTreeMap<u64, Vec<String>>,
}

impl Naive {
    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// How often `query`, which is no group, is in `words`.
    fn frequency(query: &Query, words: &[String]) -> usize {
        match query {
            Query::Word(word) => words.iter().filter(|other| *other == word).count(),
            Query::Prefix(prefix) => words.iter().filter(|other| other.starts_with(prefix.as_str())).count(),
            Query::Phrase(phrase) => words
                .windows(phrase.len())
                .filter(|window| window.iter().zip(phrase).all(|(word, (wanted, _))| word == wanted))
                .count(),
            Query::Group { .. } => unreachable!("a group has no frequency"),
        }
    }

    fn idf(&self, query: &Query) -> f64 {
        if let Query::Phrase(words) = query {
            return words.iter().map(|(word, _)| self.idf(&Query::Word(word.clone()))).sum();
        }
        let n = self.rows.values().filter(|words| Self::frequency(query, words) > 0).count() as f64;
        (1.0 + (self.rows.len() as f64 - n + 0.5) / (n + 0.5)).ln()
    }

    /// `None` when `words` do not match.
    fn score(&self, query: &Query, words: &[String]) -> Option<f64> {
        let Query::Group { must, should, must_not } = query else {
            let frequency = Self::frequency(query, words) as f64;
            let average = self.rows.values().map(Vec::len).sum::<usize>() as f64 / self.rows.len() as f64;
            let norm = 1.2 * (1.0 - 0.75 + 0.75 * words.len() as f64 / average);
            return (frequency > 0.0).then(|| self.idf(query) * frequency * 2.2 / (frequency + norm));
        };
        if must_not.iter().any(|part| self.score(part, words).is_some()) {
            return None;
        }
        let must = must.iter().map(|part| self.score(part, words)).collect::<Option<Vec<f64>>>()?;
        let should: Vec<f64> = should.iter().filter_map(|part| self.score(part, words)).collect();
        (!must.is_empty() || !should.is_empty()).then(|| must.iter().chain(&should).sum())
    }

    /// All matches, best first.
    fn search(&self, query: &Query, allowed: Option<&[u64]>) -> Vec<(u64, f64)> {
        let considered = self.rows.iter().filter(|(row, _)| allowed.is_none_or(|allowed| allowed.contains(row)));
        let mut found: Vec<(u64, f64)> =
            considered.filter_map(|(row, words)| Some((*row, self.score(query, words)?))).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(String),
    /// Deletes the row at this place of those that are left.
    Remove(usize),
    Compact,
}

/// Few words, some of them frequent, so that lists of several blocks and rare words both come up.
fn text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => (0..3_u32).prop_map(|n| format!("common{n}")),
        2 => (0..12_u32).prop_map(|n| format!("word{n}")),
        1 => (0..200_u32).prop_map(|n| format!("rare{n}")),
    ];
    prop::collection::vec(word, 1..14).prop_map(|words| words.join(" "))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => text().prop_map(Step::Add),
        4 => any::<usize>().prop_map(Step::Remove),
        1 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 1..400)
}

const QUERIES: &[&str] = &[
    "common0",
    "common0 common1 word3",
    "rare1 rare2 rare3 rare4 word1 word2 common2",
    "common1 common1 rare7",
    "\"common0 common1\"",
    "\"common0 common0 word1\" rare5",
    "+common0 word1 -word2",
    "common0 AND (word1 OR word2) AND NOT common2",
    "word*",
    "rare1* +common1 \"common1 common2\"",
    "(common0 AND common1) OR (word4 AND -rare9 AND word5)",
    "unheard",
    "unheard common2",
    "+unheard common2",
];

fn check(index: &TextIndex, naive: &Naive, analyzer: &mut Analyzer, allowed: Option<&[u64]>) {
    let set = allowed.map(|rows| {
        let mut set = Bitmap::default();
        rows.iter().filter_map(|row| index.document(*row)).for_each(|document| set.insert(document));
        set
    });
    for text in QUERIES {
        let query = parse(text, analyzer).unwrap();
        let expected = naive.search(&query, allowed);
        let scores: BTreeMap<u64, f64> = expected.iter().copied().collect();
        for limit in [1, 3, 10, 10_000] {
            let found = search(index, &query, limit, set.as_ref());
            assert_eq!(found.len(), expected.len().min(limit), "{text}, limit {limit}");
            for (scored, (_, best)) in found.iter().zip(&expected) {
                let row = index.row(scored.document);
                // Rows with equal scores come in any order, so it is the scores that must be the best ones.
                let own = scores.get(&row).copied().unwrap_or(f64::NAN);
                assert!((scored.score - own).abs() < 1e-9, "{text}: row {row} has {}, not {own}", scored.score);
                assert!((scored.score - best).abs() < 1e-9, "{text}, limit {limit}: {} is not {best}", scored.score);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_reading_everything_finds(steps in steps(), few in 1..8_usize) {
        let mut analyzer = Analyzer::new(&TextOptions::default()).unwrap();
        let (mut index, mut naive) = (TextIndex::default(), Naive::default());
        for (row, step) in (0..).zip(&steps) {
            match step {
                Step::Add(text) => {
                    index.add(&mut analyzer, row, text);
                    naive.rows.insert(row, Naive::words(text));
                }
                Step::Remove(at) => {
                    if let Some(row) = naive.rows.keys().nth(at % naive.rows.len().max(1)).copied() {
                        index.remove(row);
                        naive.rows.remove(&row);
                    }
                }
                Step::Compact => index.compact(),
            }
        }
        prop_assert_eq!(index.live_documents(), naive.rows.len());
        check(&index, &naive, &mut analyzer, None);
        let every: Vec<u64> = naive.rows.keys().copied().step_by(2).collect();
        check(&index, &naive, &mut analyzer, Some(&every));
        let some: Vec<u64> = naive.rows.keys().copied().take(few).chain([999_999]).collect();
        check(&index, &naive, &mut analyzer, Some(&some));
    }
}

#[test]
fn adding_twice_and_removing_strangers_change_nothing() {
    let mut analyzer = Analyzer::new(&TextOptions::default()).unwrap();
    let mut index = TextIndex::default();
    index.add(&mut analyzer, 7, "the red-headed league");
    index.add(&mut analyzer, 7, "something else");
    index.add(&mut analyzer, 8, " ... ");
    index.remove(1);
    let found = |index: &TextIndex, text: &str| {
        let query = parse(text, &mut Analyzer::new(&TextOptions::default()).unwrap()).unwrap();
        search(index, &query, 10, None).iter().map(|scored| index.row(scored.document)).collect::<Vec<_>>()
    };
    assert_eq!((found(&index, "league"), found(&index, "else"), index.live_documents()), (vec![7], vec![], 1));
    index.remove(7);
    assert_eq!(found(&index, "league"), Vec::<u64>::new());
    index.add(&mut analyzer, 7, "back again");
    assert_eq!(found(&index, "back"), [7]);
}

/// What `scripts/make_bm25_fixture.py` wrote.
#[derive(Deserialize)]
struct Fixture {
    passages: Vec<String>,
    queries: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    query: String,
    /// Passage and score, best first.
    scores: Vec<(u64, f64)>,
}

#[test]
fn scores_are_those_of_an_independent_implementation() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../tests/fixtures/bm25.json")).unwrap();
    let mut analyzer = Analyzer::new(&TextOptions::default()).unwrap();
    let mut index = TextIndex::default();
    for (row, passage) in (0..).zip(&fixture.passages) {
        index.add(&mut analyzer, row, passage);
    }
    assert!(fixture.queries.len() >= 8);
    for Expected { query, scores } in &fixture.queries {
        let parsed = parse(query, &mut analyzer).unwrap();
        let found = search(&index, &parsed, fixture.passages.len(), None);
        assert_eq!(found.len(), scores.len(), "{query}");
        for (scored, (row, score)) in found.iter().zip(scores) {
            assert!((scored.score - score).abs() < 1e-9, "{query}: {} is not {score}", scored.score);
            assert_eq!(index.row(scored.document), *row, "{query}");
        }
    }
}
