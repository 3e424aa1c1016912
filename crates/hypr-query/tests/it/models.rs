//! `model_metadata` and `model_weights` over a published model.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, LargeBinaryArray, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use futures::TryStreamExt;
use hypr_common::ErrorKind;
use hypr_common::model::{LayerTable, ModelMetadata, ModelSource, ModelTables, layer_schema};
use hypr_query::Outcome;

use crate::harness::Fixture;

fn piece(layer: i32, kind: &str, name: &str, shard: i32, bytes: &[u8]) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Int32, false));
    let shape = ListArray::new(item, OffsetBuffer::from_lengths([2]), Arc::new(Int32Array::from(vec![4, 8])), None);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![layer])),
        Arc::new(StringArray::from(vec![kind])),
        Arc::new(StringArray::from(vec![name])),
        Arc::new(Int32Array::from(vec![shard])),
        Arc::new(StringArray::from(vec!["F32"])),
        Arc::new(shape),
        Arc::new(LargeBinaryArray::from_vec(vec![bytes])),
    ];
    RecordBatch::try_new(layer_schema(), columns).unwrap()
}

fn model(id: &str, layers: i32) -> ModelTables {
    let layer = |layer_id| LayerTable {
        layer_id,
        pieces: vec![
            piece(layer_id, "attention", "q_proj", 0, &[layer_id as u8; 128]),
            piece(layer_id, "attention", "q_proj", 1, &[7; 128]),
            piece(layer_id, "ffn", "up_proj", 0, &[9; 128]),
        ],
    };
    ModelTables {
        metadata: ModelMetadata {
            model_id: id.to_owned(),
            model_type: "llama_test".to_owned(),
            total_parameters: 96,
            architecture_config: serde_json::json!({"tokenizer": "tokenizer.json", "family": "llama"}),
            vocab_size: 10,
            hidden_size: 8,
            num_attention_heads: 2,
            num_hidden_layers: layers,
        },
        version: 0,
        layers: (0..layers).map(layer).collect(),
        files: BTreeMap::new(),
    }
}

async fn with_models() -> Fixture {
    let fixture = Fixture::new().await;
    let store = fixture.database.models();
    store.publish(&model("small", 2)).unwrap();
    store.publish(&model("large", 5)).unwrap();
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_a_table_with_json() {
    let fixture = with_models().await;
    let sql = "SELECT model_id, num_hidden_layers, architecture_config->>'tokenizer' FROM model_metadata ORDER BY 1";
    assert_eq!(fixture.lines(sql).await, ["large|5|large/tokenizer.json", "small|2|small/tokenizer.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_filtered_exactly() {
    let fixture = with_models().await;
    let sql = "SELECT layer_id, parameter_name, weight_shard_id, octet_length(weight_data) FROM model_weights \
               WHERE model_id = 'large' AND layer_id BETWEEN 1 AND 2 AND parameter_type = 'attention' ORDER BY 1, 3";
    assert_eq!(fixture.lines(sql).await, ["1|q_proj|0|128", "1|q_proj|1|128", "2|q_proj|0|128", "2|q_proj|1|128"]);
    assert_eq!(fixture.lines("SELECT count(*) FROM model_weights").await, ["21"]);
    assert_eq!(fixture.lines("SELECT count(*) FROM model_weights WHERE model_id IN ('small', 'none')").await, ["6"]);
    let plan = fixture.lines("EXPLAIN SELECT count(*) FROM model_weights WHERE layer_id > 3").await.join("\n");
    assert!(!plan.contains("FilterExec"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_with_metadata_names_models_by_type() {
    let fixture = with_models().await;
    let sql = "SELECT count(w.weight_data) FROM model_weights w JOIN model_metadata m ON w.model_id = m.model_id \
               WHERE m.model_type = 'llama_test' AND w.layer_id BETWEEN 0 AND 31";
    assert_eq!(fixture.lines(sql).await, ["21"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_model_streams_a_piece_at_a_time_from_the_mapped_pages() {
    let fixture = with_models().await;
    let mapped = fixture.database.models().open("large").unwrap();
    let addresses: Vec<*const u8> = mapped
        .layers
        .iter()
        .flat_map(|layer| &layer.pieces)
        .map(|piece| piece.column(6).as_binary::<i64>().value(0).as_ptr())
        .collect();
    let Outcome::Rows(stream) = fixture.run("SELECT * FROM model_weights WHERE model_id = 'large'").await.unwrap()
    else {
        panic!("no rows");
    };
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    assert_eq!(batches.len(), 15);
    // The store may map a file again for each reader; then bytes are compared, else places.
    for (batch, address) in batches.iter().zip(&addresses) {
        assert_eq!(batch.num_rows(), 1);
        let data = batch.column(7).as_binary::<i64>();
        assert_eq!(data.value(0).len(), 128);
        assert_eq!(data.value(0).as_ptr() as usize % 64, *address as usize % 64);
        assert_eq!(data.values().as_ptr() as usize % 64, 0, "the buffer is not the mapped one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_declarations_are_accepted_and_others_refused() {
    let fixture = with_models().await;
    fixture
        .affected(
            "CREATE TABLE model_weights (layer_id INT, parameter_type TEXT, parameter_name TEXT, weight_shard_id INT, \
             weight_data VECTOR(DYNAMIC), \
             PRIMARY KEY (layer_id, parameter_type, parameter_name, weight_shard_id))",
        )
        .await;
    assert_eq!(fixture.lines("SELECT count(*) FROM model_weights").await, ["21"]);
    let error = fixture.error("CREATE TABLE model_weights (id TEXT)").await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    for sql in [
        "DELETE FROM model_weights",
        "UPDATE model_weights SET layer_id = 1",
        "INSERT INTO model_metadata (model_id) VALUES ('x')",
        "DROP TABLE model_metadata",
        "TRUNCATE TABLE model_weights",
    ] {
        assert_eq!(fixture.error(sql).await.kind(), ErrorKind::Unsupported, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_has_a_row_a_layer() {
    let fixture = with_models().await;
    let sql = "SELECT model_name, layer_id, version, architecture, parameters, bytes, quantization, octet_length(weights), \
               metadata->'tensors'->0->>'name', imported_at BETWEEN TIMESTAMP '2020-01-01' AND now() + INTERVAL '1 day' \
               FROM models WHERE model_name = 'small' ORDER BY layer_id";
    assert_eq!(
        fixture.lines(sql).await,
        [
            "small|0|1|llama|64|384|F32|384|attention.q_proj|true",
            "small|1|1|llama|64|384|F32|384|attention.q_proj|true"
        ]
    );
    let per_model = "SELECT model_name, count(*), sum(bytes) FROM models GROUP BY 1 ORDER BY 1";
    assert_eq!(fixture.lines(per_model).await, ["large|5|1920", "small|2|768"]);
    let bytes = fixture.query("SELECT weights FROM models WHERE model_name = 'small' AND layer_id = 1").await;
    let expected = [[1_u8; 128], [7; 128], [9; 128]].concat();
    assert_eq!(bytes.column(0).as_binary::<i64>().value(0), expected);
    let error = fixture.error("INSERT INTO models SELECT * FROM models").await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}
