//! `embed` of pictures and sound.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use hypr_common::model::ModelTables;
use hypr_inference::import;

use crate::harness::{Fixture, collect, crate_dir, lines};
use crate::tiny::tiny;

fn fixtures() -> PathBuf {
    crate_dir().join("../hypr-inference/tests/fixtures")
}

/// The files of a fixture of the engine.
fn files(name: &str) -> BTreeMap<String, Buffer> {
    let entries = std::fs::read_dir(fixtures().join(name)).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), Buffer::from_vec(std::fs::read(&path).unwrap()))
    };
    entries.map(read).collect()
}

/// Takes two samples at a time and gives their sum and their difference.
fn sound() -> ModelTables {
    import::onnx(&files("tiny-sound"), "ears").unwrap()
}

fn hex(name: &str) -> String {
    std::fs::read(fixtures().join(name)).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A table with a picture, no picture, and bytes that are none.
async fn pictures() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.database.models().publish(&tiny("tiny-bert", "minilm")).unwrap();
    fixture.database.models().publish(&import::safetensors(&files("tiny-vit"), "eyes").unwrap()).unwrap();
    fixture.affected("CREATE TABLE pictures (id INT PRIMARY KEY, file BLOB, body TEXT, seen VECTOR(32))").await;
    let picture = hex("picture.png");
    let rows = format!(
        "(1, X'{picture}', 'w1', NULL), (2, NULL, 'w2', NULL), (3, X'{picture}', 'w3', NULL), (4, X'00ff', 'w4', NULL)"
    );
    fixture.affected(&format!("INSERT INTO pictures VALUES {rows}")).await;
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_embedded_by_the_only_model_that_sees() {
    let fixture = pictures().await;
    fixture.affected("UPDATE pictures SET seen = embed(file, model => 'eyes') WHERE id < 4").await;
    let sql =
        "SELECT id, vector_dims(seen), round(l2_distance(seen, embed(file)), 6) FROM pictures WHERE id < 4 ORDER BY id";
    assert_eq!(fixture.lines(sql).await, ["1|32|0.0", "2|NULL|NULL", "3|32|0.0"]);
    // Text and pictures each have one model, so neither call needs a name.
    let sql =
        "SELECT vector_dims(embed(body)), vector_dims(embed(file, normalize => false)) FROM pictures WHERE id = 1";
    assert_eq!(fixture.lines(sql).await, ["32|32"]);
    let nearest = "SELECT id FROM pictures ORDER BY cosine_distance(seen, embed((SELECT file FROM pictures WHERE id = 3))), id LIMIT 2";
    assert_eq!(fixture.lines(nearest).await, ["1", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_does_not_take_is_refused_when_the_statement_is_planned() {
    let fixture = pictures().await;
    for (sql, wanted) in [
        ("SELECT embed(file, model => 'minilm') FROM pictures", "of those that can embed pictures there are: eyes"),
        ("SELECT embed(body, model => 'eyes') FROM pictures", "of those that can embed text there are: minilm"),
        ("SELECT embed(seen) FROM pictures", "no imported model can embed sound"),
        ("SELECT embed(seen, model => 'eyes') FROM pictures", "cannot embed sound"),
        ("SELECT embed(id) FROM pictures", "embed takes"),
        ("SELECT embed(file, model => 'nobody') FROM pictures", "nobody"),
    ] {
        let error = fixture.error(&format!("EXPLAIN {sql}")).await;
        assert!(error.message().contains(wanted), "{sql}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_picture_is_an_error_of_its_row_alone() {
    let fixture = pictures().await;
    let error = fixture.error("SELECT id, embed(file) FROM pictures ORDER BY id").await;
    assert!(error.message().contains("row 4") && error.message().contains("the picture cannot be read"), "{error}");
    let sql = "SELECT id, embed(file, on_error => 'null') IS NULL FROM pictures ORDER BY id";
    assert_eq!(fixture.lines(sql).await, ["1|false", "2|true", "3|false", "4|true"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_can_be_bound_where_its_vector_is_searched_by() {
    let fixture = pictures().await;
    fixture.affected("UPDATE pictures SET seen = embed(file, model => 'eyes') WHERE id < 4").await;
    let picture = std::fs::read(fixtures().join("picture.png")).unwrap();
    let nearest = "SELECT id FROM pictures WHERE seen IS NOT NULL ORDER BY cosine_distance(seen, embed(?, model => 'eyes')), id LIMIT 1";
    let bound: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&picture]));
    assert_eq!(run(&fixture, nearest, bound).await, ["1"]);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["w1"]));
    assert_eq!(run(&fixture, "SELECT vector_dims(embed(?))", text).await, ["32"]);
}

/// The rows of a statement with one parameter.
async fn run(fixture: &Fixture, sql: &str, value: ArrayRef) -> Vec<String> {
    let prepared = fixture.session.prepare(sql).await.unwrap();
    let row = RecordBatch::try_from_iter([("a", value)]).unwrap();
    lines(&collect(fixture.session.execute_prepared(&prepared, &row).await.unwrap()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_model_compares_words_with_pictures() {
    let fixture = pictures().await;
    fixture.database.models().publish(&import::safetensors(&files("tiny-clip"), "clip").unwrap()).unwrap();
    let sql = "SELECT vector_dims(embed('w1', model => 'clip')),
                      abs(cosine_similarity(embed(file, model => 'clip'), embed(body, model => 'clip'))) <= 1
               FROM pictures WHERE id = 1";
    assert_eq!(fixture.lines(sql).await, ["24|true"]);
    let error = fixture.error("SELECT embed(file) FROM pictures").await;
    assert!(error.message().contains("several models can embed pictures"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_comes_as_samples_or_as_a_wav_file() {
    let fixture = Fixture::new().await;
    fixture.database.models().publish(&sound()).unwrap();
    let raw = |samples: &str| format!("SELECT embed({samples}, normalize => false)");
    assert_eq!(fixture.lines(&raw("[1.0, 0.5, 0.0, 0.5]")).await, ["[1.0, 0.0]"]);
    assert_eq!(fixture.lines(&raw("[0.25]")).await, ["[0.25, 0.25]"]);
    assert_eq!(fixture.lines(&raw("CAST(NULL AS FLOAT[])")).await, ["NULL"]);
    assert_eq!(fixture.lines(&raw("[1.0, NULL]")).await, ["NULL"]);
    let wave = hex("tone.wav");
    let sql = format!("SELECT vector_dims(embed(X'{wave}', model => 'ears'))");
    assert_eq!(fixture.lines(&sql).await, ["2"]);
    let error = fixture.error(&format!("SELECT embed(X'{}')", hex("picture.png"))).await;
    assert!(error.message().contains("no WAV file"), "{error}");
}
