use arrow_array::builder::{Float32Builder, ListBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{DictionaryArray, Int64Array, LargeBinaryArray, StringArray, StringViewArray};

use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::Stream;
use tonic::Code;
use uuid::Uuid;

use super::super::cancel::RunningQueries;
use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn rows(chunks: &[RecordBatch]) -> Vec<usize> {
    chunks.iter().map(RecordBatch::num_rows).collect()
}

#[test]
fn one_large_row_does_not_make_its_neighbours_small_messages() {
    let large = vec![0_u8; 1000];
    let values: Vec<&[u8]> = (0..64).map(|row| if row == 10 { &large[..] } else { b"x" }).collect();
    let whole = batch(vec![("b", Arc::new(LargeBinaryArray::from(values)) as ArrayRef)]);
    let chunks = chunks(whole.clone(), 700);
    assert!(chunks.iter().all(|chunk| chunk.num_rows() == 1 || sent_bytes(chunk.column(0)) <= 700));
    assert!(chunks.len() < 16, "{:?}", rows(&chunks));
    assert_eq!(arrow_select::concat::concat_batches(&whole.schema(), &chunks).unwrap(), whole);
}

#[test]
fn a_slice_of_a_list_counts_only_what_it_shows() {
    let mut lists = ListBuilder::new(Float32Builder::new());
    for _ in 0..1000 {
        lists.values().append_slice(&[1.0; 100]);
        lists.append(true);
    }
    let lists = lists.finish();
    assert!(sent_bytes(&lists) >= 400_000);
    assert!(sent_bytes(&lists.slice(500, 1)) < 500);
    let whole = batch(vec![("v", Arc::new(lists) as ArrayRef)]);
    let chunks = chunks(whole, 40_000);
    assert!(chunks.len() <= 16, "{:?}", rows(&chunks));
}

#[test]
fn an_empty_batch_stays_one_message() {
    assert_eq!(rows(&chunks(batch(vec![("a", Arc::new(Int64Array::from(Vec::<i64>::new())) as ArrayRef)]), 1)), [0]);
}

#[test]
fn views_and_dictionaries_are_sent_as_what_they_stand_for() {
    let views: ArrayRef = Arc::new(StringViewArray::from(vec!["a string longer than twelve bytes", "b"]));
    let dictionary: DictionaryArray<Int32Type> = vec!["x", "x"].into_iter().collect();
    let given = batch(vec![("v", views), ("d", Arc::new(dictionary) as ArrayRef)]);
    let schema = wire_schema(&given.schema());
    assert!(schema.fields().iter().all(|field| *field.data_type() == DataType::Utf8));
    let sent = to_messages(&given, &schema).unwrap();
    assert_eq!(sent[0].column(1).as_string::<i32>(), &StringArray::from(vec!["x", "x"]));
    assert_eq!(sent[0].column(0).as_string::<i32>().value(0), "a string longer than twelve bytes");
}

#[test]
fn extension_types_keep_their_names() {
    let schema = Schema::new(vec![hypr_common::types::json_field("j", true)]);
    assert_eq!(*wire_schema(&schema), schema);
}

type Batches = datafusion::error::Result<RecordBatch>;

fn flight(rows: impl Stream<Item = Batches> + Send + 'static, queries: &RunningQueries, id: Uuid) -> FlightStream {
    let schema = numbers().schema();
    stream_rows(wire_schema(&schema), Box::pin(RecordBatchStreamAdapter::new(schema, rows)), queries.enter(id))
}

fn numbers() -> RecordBatch {
    batch(vec![("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef)])
}

#[tokio::test]
async fn a_panic_while_streaming_ends_the_stream_with_an_error() {
    let rows = stream::iter(0..2).map(|round| if round == 0 { Ok(numbers()) } else { panic!("of a test") });
    let mut messages = flight(rows, &RunningQueries::default(), Uuid::now_v7());
    assert!(messages.next().await.unwrap().is_ok(), "the schema");
    assert!(messages.next().await.unwrap().is_ok(), "the first batch");
    assert_eq!(messages.next().await.unwrap().unwrap_err().code(), Code::Internal);
    assert!(messages.next().await.is_none());
}

#[tokio::test]
async fn a_client_that_goes_away_drops_what_computes_its_rows() {
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let rows = stream::repeat_with(move || {
        let _computing = &held;
        Ok(numbers())
    });
    let queries = RunningQueries::default();
    let id = Uuid::now_v7();
    let mut messages = flight(rows, &queries, id);
    messages.next().await.unwrap().unwrap();
    assert_eq!(Arc::strong_count(&alive), 2);
    drop(messages);
    assert_eq!(Arc::strong_count(&alive), 1);
    assert!(!queries.cancel(id), "a query that is gone still counts as running");
}

#[tokio::test]
async fn a_cancelled_query_never_looks_complete() {
    let queries = RunningQueries::default();
    let id = Uuid::now_v7();
    let mut messages = flight(stream::repeat_with(|| Ok(numbers())), &queries, id);
    messages.next().await.unwrap().unwrap();
    assert!(queries.cancel(id));
    let rest: Vec<_> = messages.collect().await;
    assert_eq!(rest.last().unwrap().as_ref().unwrap_err().code(), Code::Cancelled);
}
