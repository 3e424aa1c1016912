//! Transactions: what they see, what they leave, and who loses when two of them meet.

use std::sync::Arc;

use hypr_common::ErrorKind;
use hypr_storage::{Database, SavepointRef, StorageOptions, Table, Transaction};

use crate::support::{columns, contents, crash, definition, delete, expected, keyed, manual, replace, rows};

fn inside(transaction: &Transaction, name: &str) -> Arc<Table> {
    transaction.table("public", name).unwrap()
}

async fn two_tables(dir: &std::path::Path) -> (Database, Arc<Table>, Arc<Table>) {
    let (db, t) = keyed(dir).await;
    db.create_table(definition("u", columns(), &[]), false).await.unwrap();
    let u = db.table("public", "u").unwrap();
    (db, t, u)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_sees_its_snapshot_and_its_own_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t, u) = two_tables(dir.path()).await;
    t.insert(vec![rows(0..4, "a")]).await.unwrap();
    let transaction = db.begin(false);
    let (mine, mine_u) = (inside(&transaction, "t"), inside(&transaction, "u"));

    u.insert(vec![rows([9], "later")]).await.unwrap();
    delete(&t, &[3]).await;
    db.flush().await.unwrap();
    assert_eq!(contents(&mine).await, expected(0..4, "a"));
    assert_eq!(contents(&mine_u).await, []);

    mine.insert(vec![rows([4, 5], "a")]).await.unwrap();
    assert_eq!(delete(&mine, &[0, 5]).await, 2);
    assert_eq!(replace(&mine, &[1, 4], "b").await, 2);
    let seen = [expected([1], "b"), expected([2, 3], "a"), expected([4], "b")].concat();
    assert_eq!(contents(&mine).await, seen);
    assert_eq!(contents(&t).await, expected(0..3, "a"), "nothing shows before the commit");

    transaction.commit().await.unwrap();
    let left = [expected([1], "b"), expected([2], "a"), expected([4], "b")].concat();
    assert_eq!(contents(&t).await, left);
    let (_copy, reopened) = crash(dir.path()).await;
    assert_eq!(contents(&reopened.table("public", "t").unwrap()).await, left);
    assert_eq!(t.insert(vec![rows([4], "x")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    t.insert(vec![rows([0, 5], "free again")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_over_several_tables_is_whole_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t, _) = two_tables(dir.path()).await;
    t.insert(vec![rows([1], "a")]).await.unwrap();
    let transaction = db.begin(false);
    replace(&inside(&transaction, "t"), &[1], "b").await;
    inside(&transaction, "u").insert(vec![rows([1, 2], "u")]).await.unwrap();
    let (_before, open) = crash(dir.path()).await;
    assert_eq!(contents(&open.table("public", "t").unwrap()).await, expected([1], "a"));
    assert_eq!(contents(&open.table("public", "u").unwrap()).await, []);
    transaction.commit().await.unwrap();
    let (_after, open) = crash(dir.path()).await;
    assert_eq!(contents(&open.table("public", "t").unwrap()).await, expected([1], "b"));
    assert_eq!(contents(&open.table("public", "u").unwrap()).await, expected([1, 2], "u"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_two_changes_of_a_row_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = keyed(dir.path()).await;
    t.insert(vec![rows(0..3, "a")]).await.unwrap();
    for flushed in [false, true] {
        let (one, two, three) = (db.begin(false), db.begin(false), db.begin(false));
        replace(&inside(&one, "t"), &[0], "one").await;
        delete(&inside(&two, "t"), &[0]).await;
        replace(&inside(&three, "t"), &[2], "three").await;
        one.commit().await.unwrap();
        if flushed {
            db.flush().await.unwrap();
        }
        let lost = two.commit().await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::Conflict);
        assert!(lost.message().contains("40001"), "{lost}");
        three.commit().await.unwrap();
        let left = [expected([0], "one"), expected([1], "a"), expected([2], "three")].concat();
        assert_eq!(contents(&t).await, left);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_outside_wins_against_a_transaction_that_began_before() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = keyed(dir.path()).await;
    t.insert(vec![rows(0..3, "a")]).await.unwrap();
    let transaction = db.begin(false);
    replace(&inside(&transaction, "t"), &[1], "mine").await;
    replace(&t, &[1], "theirs").await;
    assert_eq!(transaction.commit().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(contents(&t).await[1], (1, "theirs1".to_owned()));
    // What the loser had taken is free again.
    replace(&t, &[1], "last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_checked_at_the_statement_and_again_at_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = keyed(dir.path()).await;
    t.insert(vec![rows([1], "a")]).await.unwrap();
    let (one, two) = (db.begin(false), db.begin(false));
    let mine = inside(&one, "t");
    for taken in [vec![1], vec![7, 7]] {
        let refused = mine.insert(vec![rows(taken, "b")]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    }
    mine.insert(vec![rows([7], "b")]).await.unwrap();
    assert_eq!(mine.insert(vec![rows([7], "c")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    inside(&two, "t").insert(vec![rows([7], "d"), rows([8], "d")]).await.unwrap();
    one.commit().await.unwrap();
    let lost = two.commit().await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
    assert_eq!(contents(&t).await, [expected([1], "a"), expected([7], "b")].concat());
    t.insert(vec![rows([8], "e")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_take_back_rows_keys_and_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = keyed(dir.path()).await;
    t.insert(vec![rows([1], "a")]).await.unwrap();
    let transaction = db.begin(false);
    let mine = inside(&transaction, "t");
    mine.insert(vec![rows([2], "b")]).await.unwrap();
    transaction.savepoint("outer").unwrap();
    delete(&mine, &[1, 2]).await;
    let inner = transaction.savepoint("inner").unwrap();
    mine.insert(vec![rows([1, 2, 3], "c")]).await.unwrap();
    transaction.create_table(&definition("v", columns(), &[]), false).unwrap();
    inside(&transaction, "v").insert(vec![rows([1], "v")]).await.unwrap();
    assert!(transaction.drop_table("public", "t", false).unwrap());
    assert!(transaction.table("public", "t").is_none());

    transaction.rollback_to(SavepointRef::Id(inner)).unwrap();
    assert_eq!(contents(&mine).await, []);
    assert!(transaction.table("public", "v").is_none());
    mine.insert(vec![rows([2], "d")]).await.unwrap();
    transaction.rollback_to(SavepointRef::Name("outer")).unwrap();
    assert_eq!(contents(&mine).await, [expected([1], "a"), expected([2], "b")].concat());
    assert_eq!(mine.insert(vec![rows([2], "e")]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(transaction.rollback_to(SavepointRef::Id(inner)).unwrap_err().kind(), ErrorKind::NotFound);
    mine.insert(vec![rows([3], "f")]).await.unwrap();
    transaction.release(SavepointRef::Name("outer")).unwrap();
    assert_eq!(transaction.release(SavepointRef::Name("outer")).unwrap_err().kind(), ErrorKind::NotFound);
    transaction.commit().await.unwrap();
    assert_eq!(contents(&t).await, [expected([1], "a"), expected([2], "b"), expected([3], "f")].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_and_dropped_by_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t, _) = two_tables(dir.path()).await;
    t.insert(vec![rows([1], "old")]).await.unwrap();
    let transaction = db.begin(false);
    assert!(transaction.drop_table("public", "t", false).unwrap());
    assert!(transaction.create_table(&definition("t", columns(), &["id"]), false).unwrap());
    assert!(!transaction.create_table(&definition("t", columns(), &["id"]), true).unwrap());
    inside(&transaction, "t").insert(vec![rows([1, 2], "new")]).await.unwrap();
    transaction.create_table(&definition("w", columns(), &[]), false).unwrap();
    inside(&transaction, "w").insert(vec![rows([5], "w")]).await.unwrap();
    transaction.create_table(&definition("gone", columns(), &[]), false).unwrap();
    inside(&transaction, "gone").insert(vec![rows([5], "w")]).await.unwrap();
    transaction.drop_table("public", "gone", false).unwrap();
    let names: Vec<_> = transaction.tables().iter().map(|table| table.definition().name.clone()).collect();
    assert_eq!(names, ["t", "u", "w"]);
    assert!(db.table("public", "w").is_none());
    assert_eq!(contents(&t).await, expected([1], "old"));
    transaction.commit().await.unwrap();
    let (_copy, reopened) = crash(dir.path()).await;
    for db in [&db, &reopened] {
        assert_eq!(contents(&db.table("public", "t").unwrap()).await, expected([1, 2], "new"));
        assert_eq!(contents(&db.table("public", "w").unwrap()).await, expected([5], "w"));
        assert!(db.table("public", "gone").is_none());
    }
    db.table("public", "t").unwrap().insert(vec![rows([3], "new")]).await.unwrap();
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_catalog_conflict_too() {
    let dir = tempfile::tempdir().unwrap();
    let (db, _t, _u) = two_tables(dir.path()).await;
    let (create, drops, insert) = (db.begin(false), db.begin(false), db.begin(false));
    create.create_table(&definition("x", columns(), &[]), false).unwrap();
    drops.drop_table("public", "t", false).unwrap();
    inside(&insert, "t").insert(vec![rows([1], "a")]).await.unwrap();
    db.create_table(definition("x", columns(), &[]), false).await.unwrap();
    db.drop_table("public", "t", false).await.unwrap();
    for transaction in [create, drops, insert] {
        assert_eq!(transaction.commit().await.unwrap_err().kind(), ErrorKind::Conflict);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ended_or_only_reads_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = keyed(dir.path()).await;
    let ended = db.begin(false);
    let mine = inside(&ended, "t");
    mine.insert(vec![rows([1], "a")]).await.unwrap();
    ended.rollback();
    ended.rollback();
    assert_eq!(ended.commit().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mine.insert(vec![rows([2], "a")]).await.unwrap_err().kind(), ErrorKind::NotFound);
    let reads = db.begin(true);
    let refused = inside(&reads, "t").insert(vec![rows([3], "a")]).await.unwrap_err();
    assert!(refused.message().contains("READ ONLY"), "{refused}");
    assert!(reads.create_table(&definition("x", columns(), &[]), false).is_err());
    reads.commit().await.unwrap();
    assert_eq!(contents(&t).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_rows_are_bounded_over_all_transactions_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = StorageOptions { transaction_limit_bytes: 64 << 10, ..manual() };
    let db = Database::open(dir.path(), options).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let (one, two) = (db.begin(false), db.begin(false));
    inside(&one, "t").insert(vec![rows(0..1500, "a")]).await.unwrap();
    let refused = inside(&two, "t").insert(vec![rows(5000..7000, "b")]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.message().contains("storage.transaction_mb"), "{refused}");
    one.rollback();
    drop(one);
    inside(&two, "t").insert(vec![rows(5000..6500, "b")]).await.unwrap();
    two.commit().await.unwrap();
    inside(&db.begin(false), "t").insert(vec![rows(0..1500, "c")]).await.unwrap();
}

/// Transfers between the rows of two tables: whoever reads sees a constant sum.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_one_state_of_all_tables() {
    let dir = tempfile::tempdir().unwrap();
    let options = StorageOptions { flush_rows: 16, ..StorageOptions::default() };
    let db = Database::open(dir.path(), options).await.unwrap();
    for name in ["t", "u"] {
        db.create_table(definition(name, columns(), &[]), false).await.unwrap();
    }
    let writer = tokio::spawn({
        let db = db.clone();
        async move {
            for round in 0..150 {
                let transaction = db.begin(false);
                inside(&transaction, "t").insert(vec![rows([round], "a")]).await.unwrap();
                inside(&transaction, "u").insert(vec![rows([round], "a")]).await.unwrap();
                transaction.commit().await.unwrap();
            }
        }
    });
    let mut seen = 0;
    while !writer.is_finished() {
        let reader = db.begin(true);
        let t = contents(&inside(&reader, "t")).await;
        tokio::task::yield_now().await;
        assert_eq!(t, contents(&inside(&reader, "u")).await);
        seen = seen.max(t.len());
    }
    writer.await.unwrap();
    assert!(seen > 0);
    db.close().await.unwrap();
}
