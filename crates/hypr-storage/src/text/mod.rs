//! Full-text search over a column: words, a query language, BM25.
//!
//! [`analyzer`] makes words of text, [`index`] keeps for each word the [`postings`] of the rows that hold it,
//! [`query`] parses what a user searches for, [`score`] finds the best rows, and [`cache`] keeps the index in step
//! with the table. The index lives in memory and is a cache: it is built from the rows when it is first needed.
//!
//! Invariant: a search sees exactly one snapshot of the table, the newest when it began.
//! Deliberately absent: an index on disk (see `docs/decisions`), and any SQL.

mod analyzer;
mod cache;
mod index;
mod postings;
mod query;
mod score;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::DataType;
use hypr_common::{Error, Result, types};
use parking_lot::Mutex;

pub use analyzer::TextOptions;

use crate::ann::PinnedTable;
use crate::table::TableShared;
use crate::tail::Snapshot;
use cache::TextCache;

/// A search in one column.
#[derive(Clone, Debug)]
pub struct TextSearch {
    /// The column.
    pub column: String,
    /// How its words are made; another value than the last time builds the index anew.
    pub options: TextOptions,
    /// What to search for.
    pub query: String,
    /// The most rows to find.
    pub limit: usize,
    /// The row ids to search among; `None` for all.
    pub allowed: Option<Vec<u64>>,
}

/// The rows that a search found, best first.
#[derive(Clone, Debug)]
pub struct TextMatches {
    /// Row ids.
    pub row_ids: Vec<u64>,
    /// The BM25 score of each, positive.
    pub scores: Vec<f32>,
    /// The state of the table in which they were found.
    pub pinned: PinnedTable,
}

/// [`TextMatches`] before the table is pinned.
#[derive(Debug)]
pub(crate) struct Matches {
    pub(crate) row_ids: Vec<u64>,
    pub(crate) scores: Vec<f32>,
    pub(crate) snapshot: Arc<Snapshot>,
}

/// The indexes of one table, by column.
#[derive(Debug, Default)]
pub(crate) struct TextCaches(Mutex<BTreeMap<String, Arc<TextCache>>>);

impl TextCaches {
    fn get(&self, table: &Arc<TableShared>, column: &str, options: &TextOptions) -> Result<Arc<TextCache>> {
        let mut caches = self.0.lock();
        if let Some(cache) = caches.get(column)
            && cache.options() == options
        {
            return Ok(Arc::clone(cache));
        }
        let cache = TextCache::start(table, column, options)?;
        caches.insert(column.to_owned(), Arc::clone(&cache));
        Ok(cache)
    }
}

/// What is in memory of a text index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextIndexSize {
    /// Rows that have words.
    pub rows: usize,
    /// Bytes, about.
    pub bytes: usize,
}

pub(crate) async fn search(table: &Arc<TableShared>, request: TextSearch) -> Result<Matches> {
    check_column(table, &request.column)?;
    let cache = table.text.get(table, &request.column, &request.options)?;
    cache.search(table, &request.query, request.limit, request.allowed).await
}

pub(crate) async fn build(table: &Arc<TableShared>, column: &str, options: &TextOptions) -> Result<TextIndexSize> {
    check_column(table, column)?;
    let cache = table.text.get(table, column, options)?;
    cache.build(table).await?;
    let (rows, bytes) = cache.size();
    Ok(TextIndexSize { rows, bytes })
}

pub(crate) fn forget(table: &TableShared, column: &str) {
    table.text.0.lock().remove(column);
}

fn check_column(table: &TableShared, column: &str) -> Result<()> {
    let name = table.definition.qualified_name();
    let field = table.definition.columns.field_with_name(column);
    let field = field.map_err(|_| Error::not_found(format!("table {name} has no column {column}")))?;
    match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(()),
        _ => Err(Error::invalid(format!(
            "column {column} of table {name} is {}; text search takes a column of TEXT",
            types::sql_type_name(field)
        ))),
    }
}
