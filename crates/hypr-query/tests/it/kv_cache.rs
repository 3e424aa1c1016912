//! `model_kv_cache`, and prefixes that outlive the process.

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use futures::StreamExt;
use hypr_common::ErrorKind;
use hypr_inference::api::{GenerateRequest, Inference, Prompt};
use hypr_inference::kv_table::KvPart;

use crate::ai::{Fixture, uncached};
use crate::harness::collect;
use crate::tiny::tiny;

/// Forty words, a token each.
fn words() -> String {
    (0..40).map(|n| format!("w{}", (n * 7) % 59)).collect::<Vec<_>>().join(" ")
}

fn request(prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Instruction(prompt.to_owned()), max_tokens, ..GenerateRequest::default() }
}

#[tokio::test]
async fn what_the_engine_has_computed_is_a_table() {
    let fixture = Fixture::with(uncached()).await;
    let none = fixture.run("SELECT * FROM model_kv_cache").await.0;
    assert_eq!(none, Vec::<String>::new());
    fixture.run(&format!("SELECT generate_response('{}', max_tokens => 8)", words())).await;
    // 47 tokens have been computed; blocks of 16 stay.
    let sql = "SELECT state, layer_id, tokens, model_id, model_version, adapter_version FROM model_kv_cache ORDER BY layer_id";
    assert_eq!(fixture.run(sql).await.0, ["cached|0|32|smollm2|0|0", "cached|1|32|smollm2|0|0"]);
    let batch = fixture
        .session
        .execute("SELECT key_states, value_states FROM model_kv_cache WHERE layer_id = 1")
        .await
        .unwrap();
    let batch = collect(batch).await.unwrap();
    // The bits are those of the engine's own blocks.
    let mut sequences = fixture.engine.sequences().await.unwrap();
    let reading = sequences.remove(0).open().unwrap();
    for (column, part) in [(0, KvPart::Keys), (1, KvPart::Values)] {
        let shown = batch.column(column).as_list::<i32>().value(0);
        assert_eq!(shown.as_primitive::<Float32Type>().values().as_ref(), reading.states(1, part));
        assert!(shown.as_primitive::<Float32Type>().values().iter().any(|value| *value != 0.0));
    }
    drop(reading);
    // Nothing stays held: all the memory is to be had again.
    assert_eq!(fixture.engine.metrics().kv.used_blocks, 0);
    assert_eq!(
        fixture.run("SELECT count(*) FROM model_kv_cache WHERE model_id = 'other' OR layer_id > 1").await.0,
        ["0"]
    );
    let error = fixture.error("INSERT INTO model_kv_cache (sequence_id) VALUES ('x')").await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn sequences_that_run_are_shown_and_go_on_undisturbed() {
    let fixture = Fixture::with(uncached()).await;
    let expected = fixture.engine.generate(request(&words(), 200)).await.unwrap().text;
    let sql = "SELECT tokens, vector_dims(key_states), vector_dims(value_states) FROM model_kv_cache WHERE state = 'running' AND layer_id = 0";
    let mut seen = Vec::new();
    // Answers may be written before the statement gets to look; one of so many is caught.
    while seen.is_empty() {
        let streams = (0..16).map(|_| fixture.engine.generate_stream(request(&words(), 200)));
        let mut streams: Vec<_> = streams.collect();
        let mut texts = vec![String::new(); streams.len()];
        texts[0].push_str(&streams[0].next().await.unwrap().unwrap().text);
        seen.extend(fixture.run(sql).await.0);
        for (stream, text) in streams.iter_mut().zip(&mut texts) {
            while let Some(token) = stream.next().await {
                text.push_str(&token.unwrap().text);
            }
            assert_eq!(*text, expected);
        }
    }
    for row in seen {
        let numbers: Vec<usize> = row.split('|').map(|number| number.parse().unwrap()).collect();
        assert!(numbers[0] > 0 && numbers[1].is_multiple_of(numbers[0]) && numbers[1] == numbers[2], "{numbers:?}");
    }
}

#[tokio::test]
async fn a_restored_prefix_gives_the_tokens_that_computing_it_gives() {
    let fixture = Fixture::with(uncached()).await;
    let ask = request(&format!("{} w3", words()), 12);
    let expected = fixture.engine.generate(ask.clone()).await.unwrap().text;
    let prefix = fixture.engine.prefix(request(&words(), 1)).await.unwrap();
    assert_eq!(prefix.tokens.len(), 32);

    let fresh = Fixture::with(uncached()).await;
    assert_eq!(fresh.engine.restore_prefix(prefix.clone()).await.unwrap(), 32);
    assert_eq!(fresh.engine.restore_prefix(prefix.clone()).await.unwrap(), 32, "again, over the same");
    let before = fresh.engine.metrics();
    assert_eq!((before.kv.cached_blocks, before.computed_tokens), (2, 0));
    assert_eq!(fresh.engine.generate(ask).await.unwrap().text, expected);
    assert_eq!(fresh.engine.metrics().prefix_hit_tokens, 32, "it was not computed again");
    assert_eq!(fresh.engine.prefix(request(&words(), 1)).await.unwrap(), prefix, "to the bit");

    let mut other = prefix.clone();
    other.origin.kernels = "of another machine".to_owned();
    let error = fresh.engine.restore_prefix(other).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.message().contains("of another machine"), "{error}");
    let mut short = prefix;
    short.tokens.truncate(16);
    assert_eq!(fresh.engine.restore_prefix(short).await.unwrap_err().kind(), ErrorKind::Corrupted);
    let error = fresh.engine.prefix(request("w1", 1)).await.unwrap_err();
    assert!(error.message().contains("give a longer one"), "{error}");
}

#[tokio::test]
async fn a_prefix_is_saved_restored_and_dropped_by_sql() {
    let fixture = Fixture::with(uncached()).await;
    let (save, words) = ("CALL save_prefix('story', (SELECT 'w9'), ", words());
    assert_eq!(fixture.run(&format!("{save} '{words}', model => 'smollm2')")).await.0, ["32"]);
    let sql = "SELECT sequence_id, layer_id, tokens, model_version, vector_dims(key_states) > 0 FROM model_kv_cache WHERE state = 'saved' ORDER BY layer_id";
    assert_eq!(fixture.run(sql).await.0, ["story|0|32|0|true", "story|1|32|0|true"]);
    // The engine may have a block more: it goes on until it sees that nobody reads.
    let both = "SELECT count(*), count(DISTINCT array_slice(key_states, 1, 32 * vector_dims(key_states) / tokens)) FROM model_kv_cache WHERE layer_id = 1";
    assert_eq!(fixture.run(both).await.0, ["2|1"], "what is saved is what is there");
    assert_eq!(fixture.run("CALL restore_prefix('story')").await.0, ["32"]);
    let context =
        "CALL save_prefix('other', 'w1', context => (SELECT array_agg('w2 w3 w4 w5 w6 w7 w8 w9') FROM range(4)))";
    assert_eq!(fixture.run(context).await.0, ["32"]);
    fixture.run("CALL drop_prefix('other')").await;
    let error = fixture.error("CALL restore_prefix('other')").await;
    assert_eq!((error.kind(), error.message()), (ErrorKind::NotFound, "no saved prefix 'other'; there are: story"));
    for (sql, part) in [
        ("CALL save_prefix('a')", "write CALL save_prefix"),
        ("CALL restore_prefix('a', 'b')", "write CALL restore_prefix"),
        ("CALL restore_prefix('../a')", "no name of a prefix"),
        ("CALL save_prefix('a', NULL)", "is NULL"),
        ("CALL save_prefix('a', 'w1', colour => 1)", "has no option"),
        ("CALL other('a')", "CALL is not available"),
    ] {
        let error = fixture.error(sql).await;
        assert!(error.message().contains(part), "{sql}: {error}");
    }
}

#[tokio::test]
async fn new_weights_drop_what_the_old_computed() {
    let fixture = Fixture::with(uncached()).await;
    fixture.run(&format!("CALL save_prefix('story', '{}')", words())).await;
    let mut tables = tiny("tiny-llama", "smollm2");
    tables.version = 7;
    fixture.models.replace(tables);
    // Whoever looks first finds the new weights; the file is gone, and the engine forgets its blocks when it opens them.
    let error = fixture.error("CALL restore_prefix('story')").await;
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.message().contains("by version 0 of smollm2") && error.message().contains("now at 7"), "{error}");
    assert_eq!(fixture.run("SELECT * FROM model_kv_cache").await.0, Vec::<String>::new());
    assert_eq!(fixture.error("CALL restore_prefix('story')").await.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_damaged_prefix_is_refused_by_name() {
    let fixture = Fixture::with(uncached()).await;
    fixture.run(&format!("CALL save_prefix('story', '{}')", words())).await;
    let path = fixture.dir().join("prefixes/story.kv");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = fixture.error("CALL restore_prefix('story')").await;
    assert_eq!(error.kind(), ErrorKind::Corrupted);
    assert!(error.message().contains("story.kv"), "{error}");
    let error = fixture.error("SELECT key_states FROM model_kv_cache WHERE state = 'saved'").await;
    assert_eq!(error.kind(), ErrorKind::Corrupted, "{error}");
}
