//! Bulk ingest.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, FixedSizeListArray, Float32Array, Int32Array, ListArray,
    RecordBatch, StringArray, StringViewArray,
};
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Schema};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;
use hypr_common::{ErrorKind, types};
use hypr_query::{IngestMode, TableRef};

use crate::harness::Fixture;

fn stream_of(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let schema = batches[0].schema();
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok))))
}

fn passages() -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let fixed =
        FixedSizeListArray::new(Arc::clone(&item), 2, Arc::new(Float32Array::from(vec![1.0, 0.0, 0.0, 1.0])), None);
    let lists = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0)]), None]);
    let words: DictionaryArray<Int32Type> = ["x", "y"].into_iter().collect();
    let json = HashMap::from([(types::EXTENSION_NAME_KEY.to_owned(), types::JSON_EXTENSION.to_owned())]);
    let columns: Vec<(Field, ArrayRef)> = vec![
        (Field::new("Id", DataType::Int32, false), Arc::new(Int32Array::from(vec![1, 2]))),
        (Field::new("fixed", fixed.data_type().clone(), true), Arc::new(fixed)),
        (Field::new("lists", lists.data_type().clone(), true), Arc::new(lists)),
        (Field::new("word", words.data_type().clone(), true), Arc::new(words)),
        (Field::new("view", DataType::Utf8View, true), Arc::new(StringViewArray::from(vec!["v", "w"]))),
        (Field::new("raw", DataType::Binary, true), Arc::new(BinaryArray::from_vec(vec![b"a", b"b"]))),
        (Field::new("meta", DataType::Utf8, true).with_metadata(json), Arc::new(StringArray::from(vec!["{}", "[1]"]))),
    ];
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_has_the_sql_types_of_the_arrow_columns() {
    let fixture = Fixture::new().await;
    let rows = fixture.session.ingest(TableRef::bare("p"), IngestMode::Create, stream_of(vec![passages()])).await;
    assert_eq!(rows.unwrap(), 2);
    let columns = fixture.lines("DESCRIBE p").await;
    let columns: Vec<&str> = columns.iter().map(|line| line.trim_end_matches("|YES")).collect();
    assert_eq!(
        columns,
        ["Id|INT", "fixed|VECTOR(2)", "lists|VECTOR(DYNAMIC)", "word|TEXT", "view|TEXT", "raw|BLOB", "meta|JSONB"]
    );
    assert_eq!(
        fixture.lines("SELECT \"Id\", fixed, lists, word, \"view\", meta FROM p WHERE \"Id\" = 1").await,
        ["1|[1.0, 0.0]|[1.0]|x|v|{}"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_do_what_they_say() {
    let fixture = Fixture::new().await;
    let ingest = |mode| fixture.session.ingest(TableRef::bare("p"), mode, stream_of(vec![passages()]));
    assert_eq!(ingest(IngestMode::Append).await.unwrap_err().kind(), ErrorKind::NotFound);
    ingest(IngestMode::CreateAppend).await.unwrap();
    ingest(IngestMode::CreateAppend).await.unwrap();
    ingest(IngestMode::Append).await.unwrap();
    assert_eq!(fixture.lines("SELECT count(*) FROM p").await, ["6"]);
    assert_eq!(ingest(IngestMode::Create).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    ingest(IngestMode::Replace).await.unwrap();
    assert_eq!(fixture.lines("SELECT count(*) FROM p").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn append_goes_by_name_and_casts() {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, v VECTOR(2))").await;
    let v = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0), Some(2.0)])]);
    let batch = RecordBatch::try_from_iter([
        ("v", Arc::new(v) as ArrayRef),
        ("id", Arc::new(Int32Array::from(vec![7])) as ArrayRef),
    ]);
    let rows = fixture.session.ingest(TableRef::bare("t"), IngestMode::Append, stream_of(vec![batch.unwrap()])).await;
    assert_eq!(rows.unwrap(), 1);
    assert_eq!(fixture.lines("SELECT * FROM t").await, ["7|NULL|[1.0, 2.0]"]);

    let stray = RecordBatch::try_from_iter([("nam", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]).unwrap();
    let error = fixture.session.ingest(TableRef::bare("t"), IngestMode::Append, stream_of(vec![stray])).await;
    assert_eq!(error.unwrap_err().message(), "table \"t\" has no column \"nam\"; did you mean \"name\"?");
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_tables_take_no_rows() {
    let fixture = Fixture::new().await;
    for mode in [IngestMode::Append, IngestMode::Replace, IngestMode::Create] {
        let table = TableRef::bare("model_weights");
        let error = fixture.session.ingest(table, mode, stream_of(vec![passages()])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
