//! Every storable type and every legal name, from the log and from Lance.

use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Date64Array, Decimal128Array, Decimal256Array,
    DurationMicrosecondArray, FixedSizeBinaryArray, Float16Array, Float64Array, Int8Array, Int64Array,
    LargeBinaryArray, LargeStringArray, RecordBatch, StringArray, StructArray, Time32SecondArray,
    Time64NanosecondArray, TimestampMicrosecondArray, UInt64Array, new_null_array,
};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use datafusion::prelude::{ident, lit};
use half::f16;
use hypr_common::ErrorKind;
use hypr_common::types::{dynamic_vector_field, json_field, vector_field};
use hypr_storage::{Database, ScanRequest};
use tempfile::tempdir;

use crate::support::{crash, definition, open, read, uncached};

/// Three rows a column: a value, a NULL, and an empty or extreme value.
fn one_of_each() -> Vec<(Field, ArrayRef)> {
    [one_of_each_flat_type(), one_of_each_nested_type()].concat()
}

fn plain(name: &str, array: ArrayRef) -> (Field, ArrayRef) {
    (Field::new(name, array.data_type().clone(), true), array)
}

fn text() -> ArrayRef {
    Arc::new(StringArray::from(vec![Some("x"), None, Some("")]))
}

fn one_of_each_flat_type() -> Vec<(Field, ArrayRef)> {
    let bytes: [Option<&[u8]>; 3] = [Some(b"\x00\xff"), None, Some(b"")];
    vec![
        plain("boolean", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        plain("int8", Arc::new(Int8Array::from(vec![Some(-1), None, Some(i8::MIN)]))),
        plain("uint64", Arc::new(UInt64Array::from(vec![Some(1), None, Some(u64::MAX)]))),
        plain("float16", Arc::new(Float16Array::from(vec![Some(f16::ONE), None, Some(f16::MAX)]))),
        plain("float64", Arc::new(Float64Array::from(vec![Some(1.0), None, Some(f64::MIN)]))),
        plain(
            "d128",
            Arc::new(Decimal128Array::from(vec![Some(1), None, Some(-99)]).with_precision_and_scale(9, 2).unwrap()),
        ),
        plain(
            "d256",
            Arc::new(
                Decimal256Array::from_iter(
                    [Some(7_i32), None, Some(-7)].map(|v| v.map(|v| arrow_buffer::i256::from(i64::from(v)))),
                )
                .with_precision_and_scale(50, 3)
                .unwrap(),
            ),
        ),
        plain("text", text()),
        plain("large_text", Arc::new(LargeStringArray::from(vec![Some("x"), None, Some("")]))),
        plain("binary", Arc::new(BinaryArray::from_iter(bytes))),
        plain("blob", Arc::new(LargeBinaryArray::from_iter(bytes))),
        plain(
            "fixed",
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(
                    [Some([1_u8, 2]), None, Some([0, 0])].into_iter(),
                    2,
                )
                .unwrap(),
            ),
        ),
        plain("date", Arc::new(Date32Array::from(vec![Some(1), None, Some(-1)]))),
        plain("date64", Arc::new(Date64Array::from(vec![Some(86_400_000), None, Some(0)]))),
        plain("time32", Arc::new(Time32SecondArray::from(vec![Some(1), None, Some(0)]))),
        plain("time64", Arc::new(Time64NanosecondArray::from(vec![Some(1), None, Some(0)]))),
        plain("ts", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None, Some(-1)]))),
        plain(
            "tz",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None, Some(-1)]).with_timezone("Europe/Berlin")),
        ),
        plain("duration", Arc::new(DurationMicrosecondArray::from(vec![Some(1), None, Some(-1)]))),
    ]
}

fn one_of_each_nested_type() -> Vec<(Field, ArrayRef)> {
    let mut lists = ListBuilder::new(Float32Builder::new());
    lists.append_value([Some(1.5), Some(-2.0)]);
    lists.append_null();
    lists.append_value([]);
    let lists: ArrayRef = Arc::new(lists.finish());
    let ints: ArrayRef =
        Arc::new(arrow_array::ListArray::from_iter_primitive::<arrow_array::types::Int32Type, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]));
    let nested = StructArray::try_new(
        vec![Field::new("t", DataType::Utf8, true), Field::new("l", ints.data_type().clone(), true)].into(),
        vec![text(), Arc::clone(&ints)],
        None,
    );
    let vector = vector_field("vector", 2, true);
    let vectors = {
        let mut builder = arrow_array::builder::FixedSizeListBuilder::new(Float32Builder::new(), 2);
        builder.values().append_slice(&[1.0, 2.0]);
        builder.append(true);
        builder.values().append_slice(&[0.0, 0.0]);
        builder.append(false);
        builder.values().append_slice(&[f32::NAN, f32::INFINITY]);
        builder.append(true);
        cast(&builder.finish(), vector.data_type()).unwrap()
    };
    vec![
        plain("ints", ints),
        plain("nested", Arc::new(nested.unwrap())),
        (json_field("json", true), Arc::new(StringArray::from(vec![Some("{}"), None, Some("[1]")]))),
        (vector, vectors),
        (dynamic_vector_field("dynamic", true), lists),
    ]
}

#[tokio::test]
async fn every_storable_type_survives_log_and_flush() {
    let dir = tempdir().unwrap();
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = one_of_each().into_iter().unzip();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let all_null = RecordBatch::try_new(
        Arc::clone(&schema),
        schema.fields().iter().map(|field| new_null_array(field.data_type(), 2)).collect(),
    )
    .unwrap();
    let db = open(dir.path()).await;
    db.create_table(definition("t", Arc::clone(&schema), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    // A slice of a larger batch must not bring its neighbours.
    table.insert(vec![batch.slice(0, 2), batch.slice(2, 1), all_null.clone()]).await.unwrap();
    let wanted = arrow_select::concat::concat_batches(&schema, [&batch, &all_null]).unwrap();
    let same = |found: Vec<RecordBatch>| {
        let found = arrow_select::concat::concat_batches(&schema, &found).unwrap();
        for (field, (found, wanted)) in schema.fields().iter().zip(found.columns().iter().zip(wanted.columns())) {
            assert_eq!(format!("{found:?}"), format!("{wanted:?}"), "column {}", field.name());
        }
    };
    same(read(&table, ScanRequest::default()).await);
    let (_copy, replayed) = crash(dir.path()).await;
    same(read(&replayed.table("public", "t").unwrap(), ScanRequest::default()).await);
    db.flush().await.unwrap();
    same(read(&table, ScanRequest::default()).await);
    drop((db, table));
    let db = open(dir.path()).await;
    same(read(&db.table("public", "t").unwrap(), ScanRequest::default()).await);
}

#[tokio::test]
async fn column_names_are_any_text_but_the_reserved() {
    let dir = tempdir().unwrap();
    let names = ["userId", "my col", "a-b", "select", "日本", "a\"b", "quote's", "_id", "order by"];
    let schema = Arc::new(Schema::new(names.map(|name| Field::new(name, DataType::Int64, false)).to_vec()));
    let columns = (0..names.len() as i64).map(|at| Arc::new(Int64Array::from(vec![at, at + 100])) as ArrayRef);
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
    let db = Database::open(dir.path(), uncached()).await.unwrap();
    db.create_table(definition("t", Arc::clone(&schema), &["my col", "a\"b"]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    table.insert(vec![batch.clone()]).await.unwrap();
    db.flush().await.unwrap();
    assert_eq!(read(&table, ScanRequest::default()).await, std::slice::from_ref(&batch));
    for (at, name) in names.iter().enumerate() {
        let filters = vec![ident(*name).gt(lit(99_i64))];
        let found = read(&table, ScanRequest { projection: Some(vec![at]), filters, ..Default::default() }).await;
        assert_eq!(found, [batch.slice(1, 1).project(&[at]).unwrap()], "filter on {name}");
    }
    let error = table.insert(vec![batch]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "the key index reads its columns from Lance");

    for reserved in ["_hypr_row_id", "_rowid", "_rowaddr", "a.b", "x`y", ""] {
        let schema = Arc::new(Schema::new(vec![Field::new(reserved, DataType::Int64, true)]));
        let error = db.create_table(definition("r", schema, &[]), false).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported), "{reserved}: {error}");
    }
}

#[tokio::test]
async fn a_statement_larger_than_a_frame_is_one_commit_and_is_read_in_pieces() {
    const ROW_BYTES: usize = 1 << 20;
    let dir = tempdir().unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("image", DataType::LargeBinary, false)]));
    let images: Vec<Vec<u8>> = (0..40_u8).map(|row| vec![row; ROW_BYTES]).collect();
    let images: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(&images));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![images]).unwrap();
    let db = open(dir.path()).await;
    db.create_table(definition("t", Arc::clone(&schema), &[]), false).await.unwrap();
    let table = db.table("public", "t").unwrap();
    assert_eq!(table.insert(vec![batch.clone()]).await.unwrap(), 40);
    drop((db, table));
    let db = open(dir.path()).await;
    let table = db.table("public", "t").unwrap();
    for state in ["replayed", "flushed"] {
        let found = read(&table, ScanRequest::default()).await;
        assert!(found.iter().all(|piece| piece.num_rows() * ROW_BYTES <= 16 << 20), "{state} batches fit a message");
        assert_eq!(arrow_select::concat::concat_batches(&schema, &found).unwrap(), batch, "{state}");
        db.flush().await.unwrap();
    }
}
