//! Random operations against a map in memory.

use std::collections::BTreeMap;

use hypr_common::ErrorKind;
use hypr_storage::{Database, StorageOptions};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::support::{columns, contents, copy_of, definition, delete, manual, replace, rows};

#[derive(Clone, Debug)]
enum Op {
    Insert { from: i64, count: i64 },
    Delete { from: i64, count: i64 },
    Replace { from: i64, count: i64 },
    Flush,
    Crash,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..60_i64, 1..12_i64);
    prop_oneof![
        5 => range.clone().prop_map(|(from, count)| Op::Insert { from, count }),
        2 => range.clone().prop_map(|(from, count)| Op::Delete { from, count }),
        2 => range.prop_map(|(from, count)| Op::Replace { from, count }),
        2 => Just(Op::Flush),
        1 => Just(Op::Crash),
        1 => Just(Op::Reopen),
    ]
}

fn options(column_cache_bytes: usize) -> StorageOptions {
    StorageOptions {
        column_cache_bytes,
        segment_bytes: 2048,
        compaction_fan_in: 3,
        version_retention: std::time::Duration::ZERO,
        ..manual()
    }
}

async fn check(ops: Vec<Op>, column_cache_bytes: usize) {
    let options = || options(column_cache_bytes);
    let mut dir = tempdir().unwrap();
    let mut db = Database::open(dir.path(), options()).await.unwrap();
    db.create_table(definition("t", columns(), &["id"]), false).await.unwrap();
    let mut model: BTreeMap<i64, String> = BTreeMap::new();
    for (step, op) in ops.into_iter().enumerate() {
        let table = db.table("public", "t").unwrap();
        let prefix = format!("s{step}-");
        match op {
            Op::Insert { from, count } => {
                let ids = from..from + count;
                let taken = ids.clone().any(|id| model.contains_key(&id));
                match table.insert(vec![rows(ids.clone(), &prefix)]).await {
                    Ok(_) => {
                        assert!(!taken, "a duplicate was accepted");
                        model.extend(ids.map(|id| (id, format!("{prefix}{id}"))));
                    }
                    Err(error) => assert!(taken && error.kind() == ErrorKind::AlreadyExists, "{error}"),
                }
            }
            Op::Delete { from, count } => {
                let ids: Vec<i64> = (from..from + count).collect();
                let before = model.len();
                model.retain(|id, _| !ids.contains(id));
                assert_eq!(delete(&table, &ids).await as usize, before - model.len());
            }
            Op::Replace { from, count } => {
                let ids: Vec<i64> = model.range(from..from + count).map(|(id, _)| *id).collect();
                replace(&table, &ids, &prefix).await;
                model.extend(ids.iter().map(|id| (*id, format!("{prefix}{id}"))));
            }
            Op::Flush => db.flush().await.unwrap(),
            Op::Crash => {
                let copy = copy_of(dir.path());
                drop((table, db));
                db = Database::open(copy.path(), options()).await.unwrap();
                dir = copy;
            }
            Op::Reopen => {
                db.close().await.unwrap();
                drop((table, db));
                db = Database::open(dir.path(), options()).await.unwrap();
            }
        }
        let table = db.table("public", "t").unwrap();
        let wanted: Vec<_> = model.iter().map(|(id, body)| (*id, body.clone())).collect();
        assert_eq!(contents(&table).await, wanted);
        assert!(table.approximate_rows().is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_table_is_a_map(
        ops in prop::collection::vec(op(), 1..30),
        // Nothing is kept, some columns are too large and others go again, everything is.
        column_cache_bytes in prop::sample::select(vec![0, 4096, 1 << 30]),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check(ops, column_cache_bytes));
    }
}
