//! Text search over rows that come, change, go, and move from memory to disk.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use hypr_common::ErrorKind;
use hypr_storage::{Database, Table, TextOptions, TextSearch};
use tempfile::tempdir;

use crate::support::{columns, crash, delete, keyed, manual, replace, row_ids, rows};

fn passages(texts: &[(i64, Option<&str>)]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(texts.iter().map(|(id, _)| *id)));
    let bodies: ArrayRef = Arc::new(StringArray::from_iter(texts.iter().map(|(_, text)| *text)));
    RecordBatch::try_new(columns(), vec![ids, bodies]).unwrap()
}

fn request(query: &str) -> TextSearch {
    TextSearch {
        column: "body".to_owned(),
        options: TextOptions::default(),
        query: query.to_owned(),
        limit: 1000,
        allowed: None,
    }
}

/// The `id`s that `query` finds, ascending.
async fn found(table: &Table, query: &str) -> Vec<i64> {
    let matches = table.text_search(request(query)).await.unwrap();
    assert!(matches.scores.is_sorted_by(|a, b| a >= b) && matches.scores.iter().all(|score| *score > 0.0));
    let mut ids = Vec::new();
    for id in 0..1200 {
        let rows = row_ids(table, &[id]).await;
        ids.extend(rows.iter().filter(|row| matches.row_ids.contains(row)).map(|_| id));
        if ids.len() == matches.row_ids.len() {
            break;
        }
    }
    assert_eq!(ids.len(), matches.row_ids.len(), "{query} found rows that are not there");
    ids
}

#[tokio::test]
async fn a_row_is_found_as_soon_as_it_is_inserted_and_never_after_it_is_gone() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    assert_eq!(found(&table, "bohemia").await, Vec::<i64>::new());
    let first = [(1, Some("A Scandal in Bohemia")), (2, None), (3, Some("The Red-Headed League"))];
    table.insert(vec![passages(&first)]).await.unwrap();
    assert_eq!(found(&table, "bohemia league").await, [1, 3]);
    table.insert(vec![passages(&[(4, Some("The King of Bohemia"))])]).await.unwrap();
    assert_eq!(found(&table, "bohemia").await, [1, 4]);
    delete(&table, &[1]).await;
    assert_eq!(found(&table, "bohemia").await, [4]);
    db.flush().await.unwrap();
    assert_eq!(found(&table, "bohemia").await, [4]);
    replace(&table, &[4], "A Case of Identity ").await;
    assert_eq!(found(&table, "bohemia").await, Vec::<i64>::new());
    assert_eq!(found(&table, "identity").await, [4]);
    delete(&table, &[3, 4]).await;
    db.flush().await.unwrap();
    assert_eq!(found(&table, "identity league").await, Vec::<i64>::new());
}

#[tokio::test]
async fn the_index_is_made_from_flushed_and_unflushed_rows_alike() {
    let dir = tempdir().unwrap();
    let (db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..400, "flushed holmes ")]).await.unwrap();
    db.flush().await.unwrap();
    table.insert(vec![rows(400..800, "fresh holmes ")]).await.unwrap();
    delete(&table, &[5, 405]).await;
    let (_copy, recovered) = crash(dir.path()).await;
    for table in [table, recovered.table("public", "t").unwrap()] {
        let matches = table.text_search(request("holmes")).await.unwrap();
        assert_eq!(matches.row_ids.len(), 798);
        assert_eq!(found(&table, "+flushed 7").await.len(), 399);
        assert_eq!(found(&table, "\"fresh holmes 500\"").await, [500]);
        assert_eq!(found(&table, "\"holmes 5\" \"holmes 405\"").await, Vec::<i64>::new());
    }
}

#[tokio::test]
async fn a_table_is_formatted_without_what_it_holds() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..400, "holmes ")]).await.unwrap();
    let matches = table.text_search(request("holmes")).await.unwrap();
    let formatted = format!("{table:?} {:?}", matches.pinned);
    assert!(formatted.len() < 1000 && !formatted.contains("holmes"), "every plan is formatted: {formatted}");
}

#[tokio::test]
async fn only_allowed_rows_are_found_and_no_more_than_asked_for() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    table.insert(vec![rows(0..100, "holmes ")]).await.unwrap();
    let allowed = row_ids(&table, &[3, 50, 51, 99]).await;
    let some = TextSearch { allowed: Some(allowed.clone()), limit: 3, ..request("holmes") };
    let matches = table.text_search(some).await.unwrap();
    assert_eq!(matches.row_ids.len(), 3);
    assert!(matches.row_ids.iter().all(|row| allowed.contains(row)));
    let none = TextSearch { allowed: Some(Vec::new()), ..request("holmes") };
    assert!(table.text_search(none).await.unwrap().row_ids.is_empty());
    let zero = TextSearch { limit: 0, ..request("holmes") };
    assert!(table.text_search(zero).await.unwrap().row_ids.is_empty());
}

#[tokio::test]
async fn other_options_make_another_index() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    table.insert(vec![passages(&[(1, Some("He was running")), (2, Some("the run"))])]).await.unwrap();
    assert_eq!(found(&table, "runs").await, Vec::<i64>::new());
    let stemming = TextOptions { stemming: true, ..TextOptions::default() };
    let stemmed = TextSearch { options: stemming.clone(), ..request("runs") };
    assert_eq!(table.text_search(stemmed).await.unwrap().row_ids.len(), 2);
    let size = table.build_text_index("body", &stemming).await.unwrap();
    assert!(size.rows == 2 && size.bytes > 0, "{size:?}");
    table.forget_text_index("body");
    assert_eq!(found(&table, "running").await, [1]);
}

#[tokio::test]
async fn what_cannot_be_searched_is_refused_by_name() {
    let dir = tempdir().unwrap();
    let (_db, table) = keyed(dir.path()).await;
    let error = |column: &str, query: &str| {
        let request = TextSearch { column: column.to_owned(), ..request(query) };
        let table = Arc::clone(&table);
        async move { table.text_search(request).await.unwrap_err() }
    };
    let unknown = error("title", "x").await;
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.message().contains("title"), "{unknown}");
    let number = error("id", "x").await;
    assert!(number.message().contains("id") && number.message().contains("TEXT"), "{number}");
    assert!(error("body", "  ").await.message().contains("no word"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_and_searches_at_once_agree() {
    let dir = tempdir().unwrap();
    let db = Database::open(dir.path(), manual()).await.unwrap();
    db.create_table(crate::support::definition("t", columns(), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    let writers = (0..4).map(|writer| {
        let table = Arc::clone(&table);
        tokio::spawn(async move {
            for id in 0..40 {
                let word = format!("writer{writer}row ");
                table.insert(vec![rows([id], &word)]).await.unwrap();
                // What this task has been told is durable, it finds.
                let matches = table.text_search(request(&word)).await.unwrap();
                assert_eq!(matches.row_ids.len() as i64, id + 1);
            }
        })
    });
    let flusher = {
        let db = db.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                db.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    flusher.await.unwrap();
    assert_eq!(table.text_search(request("writer*")).await.unwrap().row_ids.len(), 160);
}
