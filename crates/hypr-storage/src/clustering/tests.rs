use super::*;
use arrow_array::{Int32Array, TimestampMillisecondArray, UInt64Array};
use std::collections::BTreeMap;

fn clustering(keys: &str, columns: &RecordBatch) -> Clustering {
    let definition = TableDefinition {
        schema_name: "public".to_owned(),
        name: "t".to_owned(),
        columns: columns.schema(),
        primary_key: Vec::new(),
        options: BTreeMap::from([(CLUSTERING_OPTION.to_owned(), keys.to_owned())]),
    };
    Clustering::of(&definition, Path::new("nowhere")).unwrap()
}

fn rows(times_ms: &[Option<i64>], sensors: &[i32]) -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("ts", Arc::new(TimestampMillisecondArray::from(times_ms.to_vec()))),
        ("sensor", Arc::new(Int32Array::from(sensors.to_vec()))),
        ("id", Arc::new(UInt64Array::from_iter_values(0..sensors.len() as u64))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
}

fn ids(batch: &RecordBatch) -> Vec<u64> {
    batch.column(2).as_primitive::<arrow_array::types::UInt64Type>().values().to_vec()
}

const HOUR_MS: i64 = 3_600_000;
const HOURS_THEN_SENSOR: &str = r#"[{"column": "ts", "bucket_ns": 3600000000000}, {"column": "sensor"}]"#;

#[test]
fn rows_are_sorted_by_bucket_and_cut_where_the_bucket_changes() {
    let times = [2, 0, 1, 0, 2, -1].map(|hour| Some(hour * HOUR_MS + 5));
    let batch = rows(&times, &[1, 2, 1, 1, 0, 9]);
    let groups = clustering(HOURS_THEN_SENSOR, &batch).arrange(&[batch], 2).unwrap();
    // Hours -1 and 0 with three rows, then hour 1 and hour 2; sensors ascend within an hour.
    assert_eq!(groups.iter().map(ids).collect::<Vec<_>>(), [vec![5, 3, 1], vec![2, 4, 0]]);
}

#[test]
fn a_long_run_of_one_key_is_cut_too_and_nulls_come_first() {
    let mut times = vec![Some(1); 10];
    times.push(None);
    let batch = rows(&times, &[0; 11]);
    let groups = clustering(r#"[{"column": "ts"}]"#, &batch).arrange(&[batch], 3).unwrap();
    let sizes: Vec<usize> = groups.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 11);
    assert!(sizes.iter().all(|size| (2..=5).contains(size)), "{sizes:?}");
    assert_eq!(ids(&groups[0])[0], 10, "the row without a time is first");
}

#[test]
fn few_rows_are_one_group_and_none_are_none() {
    let batch = rows(&[Some(1), Some(2)], &[1, 2]);
    let clustering = clustering(r#"[{"column": "ts"}]"#, &batch);
    assert_eq!(clustering.arrange(std::slice::from_ref(&batch), 1000).unwrap().len(), 1);
    assert!(clustering.arrange(&[], 1000).unwrap().is_empty());
    let empty = clustering.arrange(&[batch.slice(0, 0)], 1000).unwrap();
    assert_eq!(empty.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
}

#[test]
fn columns_that_are_gone_or_have_no_order_are_no_key() {
    let batch = rows(&[Some(1)], &[1]);
    let definition = TableDefinition {
        schema_name: "public".to_owned(),
        name: "t".to_owned(),
        columns: batch.schema(),
        primary_key: Vec::new(),
        options: BTreeMap::from([(CLUSTERING_OPTION.to_owned(), r#"[{"column": "gone"}]"#.to_owned())]),
    };
    assert!(Clustering::of(&definition, Path::new("nowhere")).is_none());
}
