//! The pages under `docs/sql` are scripts: what they show is what happens.
//!
//! A page has a database of its own with two tiny models, `tiny_llama` and `tiny_bert`. The statements of each
//! fenced `sql` block run one after another, split as the command line splits a script. When a `text` block
//! follows, it is what the last statement answers: a table, `n rows affected`, or `error: ` and a part of the
//! message. A block that shows what cannot run here is fenced as `sql no-run`. A block fenced as `sql values` has
//! a line an expression: `abs(-3) -- 3` says what `SELECT abs(-3)` gives.

use std::path::PathBuf;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use hypr_query::{Outcome, split_statements};

use crate::harness::{Fixture, collect, crate_dir};
use crate::tiny::tiny;

/// A `sql` block and the `text` block that follows it.
struct Example {
    line: usize,
    sql: String,
    expected: Option<String>,
}

fn examples(page: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut lines = page.lines().enumerate();
    let mut follows = false;
    while let Some((index, line)) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else {
            follows &= line.trim().is_empty();
            continue;
        };
        let block = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
        let block = block.collect::<Vec<_>>().join("\n");
        match fence {
            "sql values" => found.extend(values(index + 1, &block)),
            "sql" => found.push(Example { line: index + 1, sql: block, expected: None }),
            "text" if follows => found.last_mut().unwrap().expected = Some(block),
            _ => {}
        }
        follows = fence == "sql";
    }
    found
}

/// The examples of a `sql values` block, each a statement with one value.
fn values(line: usize, block: &str) -> Vec<Example> {
    let lines = block.lines().zip(line + 1..).filter(|(text, _)| !text.trim().is_empty());
    let examples = lines.map(|(text, line)| {
        let (expression, value) =
            text.rsplit_once(" -- ").unwrap_or_else(|| panic!("line {line} has no value: {text}"));
        // The form that tables have, without their frames.
        Example { line, sql: format!("SELECT {expression}"), expected: Some(format!("value: {}", value.trim())) }
    });
    examples.collect()
}

/// The value of an answer with one.
fn only_value(batch: &RecordBatch) -> String {
    let options = FormatOptions::default().with_null("NULL");
    let values: Vec<String> = batch
        .columns()
        .iter()
        .flat_map(|column| {
            let formatter = ArrayFormatter::try_new(column, &options).unwrap();
            (0..column.len()).map(|row| formatter.value(row).to_string()).collect::<Vec<_>>()
        })
        .collect();
    format!("value: {}", values.join(" | "))
}

async fn answer(fixture: &Fixture, sql: &str, show: fn(&RecordBatch) -> String) -> Result<String, String> {
    match fixture.run(sql).await.map_err(|error| error.to_string())? {
        Outcome::Affected(1) => Ok("1 row affected".to_owned()),
        Outcome::Affected(rows) => Ok(format!("{rows} rows affected")),
        rows => {
            let batch = collect(rows).await.map_err(|error| error.to_string())?;
            Ok(show(&batch))
        }
    }
}

fn table(batch: &RecordBatch) -> String {
    pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string()
}

/// What is wrong with an example, if anything.
async fn check(fixture: &Fixture, example: &Example) -> Option<String> {
    let mut before = split_statements(&example.sql);
    let last = before.pop()?.sql;
    for statement in before {
        if let Err(error) = answer(fixture, &statement.sql, table).await {
            return Some(format!("{}\nfails: {error}", statement.sql));
        }
    }
    let is_value = example.expected.as_deref().is_some_and(|expected| expected.starts_with("value: "));
    match (answer(fixture, &last, if is_value { only_value } else { table }).await, example.expected.as_deref()) {
        (Err(error), Some(expected)) => {
            let part = expected.strip_prefix("error: ").map(str::trim_end);
            (!part.is_some_and(|part| error.contains(part))).then(|| format!("{last}\nfails: {error}"))
        }
        (Err(error), None) => Some(format!("{last}\nfails: {error}")),
        (Ok(actual), Some(expected)) if actual != expected.trim_end() => Some(format!("{last}\nanswers\n{actual}")),
        (Ok(_), _) => None,
    }
}

fn pages() -> Vec<PathBuf> {
    let dir = crate_dir().join("../../docs/sql");
    let mut pages: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_gives_what_its_page_says() {
    let only = std::env::var("DOCS_PAGE").ok();
    let mut failures = Vec::new();
    let mut shown = 0;
    for path in pages() {
        if only.as_ref().is_some_and(|only| path.file_stem().is_none_or(|stem| stem != only.as_str())) {
            continue;
        }
        let fixture = Fixture::new().await;
        for (network, id) in [("tiny-llama", "tiny_llama"), ("tiny-bert", "tiny_bert")] {
            fixture.database.models().publish(&tiny(network, id)).unwrap();
        }
        for example in examples(&std::fs::read_to_string(&path).unwrap()) {
            shown += usize::from(example.expected.is_some());
            if let Some(failure) = check(&fixture, &example).await {
                failures.push(format!("{}:{}\n{failure}", path.display(), example.line));
            }
        }
        fixture.database.close().await.unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(shown > 0, "no example says what it answers");
}

/// The words that an opening parenthesis follows, and those that need none.
fn calls(sql: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut calls = Vec::new();
    let mut rest = sql;
    while let Some(start) = rest.find(is_word) {
        let (word, after) = rest[start..].split_at(rest[start..].find(|c| !is_word(c)).unwrap_or(rest.len() - start));
        if after.trim_start().starts_with('(') || word.starts_with("current_") {
            calls.push(word.to_owned());
        }
        rest = after;
    }
    calls
}

/// Table functions, which are not among the engine's names of functions.
const TABLE_FUNCTIONS: &[&str] = &["table_versions", "text_search", "vector_search", "rrf", "rerank"];

#[tokio::test(flavor = "multi_thread")]
async fn every_function_has_an_example() {
    let mut called = std::collections::BTreeSet::new();
    for path in pages() {
        for example in examples(&std::fs::read_to_string(&path).unwrap()) {
            called.extend(calls(&example.sql.to_lowercase()));
        }
    }
    let fixture = Fixture::new().await;
    let mut names = fixture.session.engine().function_names();
    names.extend(TABLE_FUNCTIONS.iter().map(|name| (*name).to_owned()));
    assert!(names.len() > 300, "the engine has {} functions", names.len());
    names.retain(|name| !called.contains(name));
    assert!(names.is_empty(), "no page of docs/sql has an example of: {}", names.join(", "));
    fixture.database.close().await.unwrap();
}
