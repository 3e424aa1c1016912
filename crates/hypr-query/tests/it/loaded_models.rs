//! `loaded_models`, and the statements that load, pin and unload models.

use futures::StreamExt;
use hypr_common::ErrorKind;
use hypr_inference::api::{GenerateRequest, Inference, Prompt};

use crate::ai::{Fixture, uncached};

#[tokio::test]
async fn models_are_loaded_pinned_and_unloaded_by_statements() {
    let fixture = Fixture::with(uncached()).await;
    let shown = "SELECT model_id, version, state, pinned, requests FROM loaded_models ORDER BY model_id";
    assert_eq!(fixture.run(shown).await.0, Vec::<String>::new());
    let load = "CALL load_model((SELECT 'smoll' || 'm2'))";
    assert_eq!(fixture.run(load).await.0, ["1"]);
    assert_eq!(fixture.run(load).await.0, ["0"]);
    assert_eq!(fixture.run("CALL pin_model('minilm')").await.0, ["1"]);
    assert_eq!(fixture.run("call LOAD_MODEL('minilm', PIN => 1 = 1)").await.0, ["0"]);
    assert_eq!(fixture.run(shown).await.0, ["minilm|0|loaded|true|0", "smollm2|0|loaded|false|0"]);
    assert_eq!(fixture.run("CALL unpin_model('minilm')").await.0, ["1"]);
    assert_eq!(fixture.run("CALL unpin_model('minilm')").await.0, ["0"]);
    assert_eq!(fixture.run("CALL unload_model('minilm', timeout_s => 60)").await.0, ["1"]);
    assert_eq!(fixture.run("CALL unload_model('minilm')").await.0, ["0"]);
    assert_eq!(fixture.run("SELECT model_id FROM loaded_models WHERE bytes > 0").await.0, ["smollm2"]);
    // What a statement needs is loaded again.
    assert_eq!(fixture.run("SELECT vector_dims(embed('w1')) > 0").await.0, ["true"]);
    assert_eq!(fixture.run("SELECT count(*) FROM loaded_models").await.0, ["2"]);
}

#[tokio::test]
async fn an_unload_waits_as_long_as_it_is_told_and_the_answer_is_finished() {
    let fixture = Fixture::with(uncached()).await;
    let request = GenerateRequest {
        model: Some("smollm2".to_owned()),
        prompt: Prompt::Instruction("w1 w2".to_owned()),
        max_tokens: 4000,
        ..GenerateRequest::default()
    };
    let alone: Vec<_> = fixture.engine.generate_stream(request.clone()).collect().await;
    let mut stream = fixture.engine.generate_stream(request);
    let mut tokens = vec![stream.next().await.unwrap()];
    // It may have ended by now, and then was unloaded in time; where it had not, the statement says so.
    let error = fixture.session.execute("CALL unload_model('smollm2', timeout_s => 0)").await.err();
    assert!(error.as_ref().is_none_or(|error| error.kind() == ErrorKind::Busy), "{error:?}");
    assert!(error.is_none_or(|error| error.message().contains("still answers requests after 0 s")));
    while let Some(token) = stream.next().await {
        tokens.push(token);
    }
    assert_eq!(tokens.len(), alone.len());
    assert!(tokens.iter().zip(&alone).all(|(a, b)| a.as_ref().unwrap() == b.as_ref().unwrap()));
    fixture.run("CALL unload_model('smollm2')").await;
    assert_eq!(fixture.run("SELECT count(*) FROM loaded_models").await.0, ["0"]);
}

#[tokio::test]
async fn statements_without_sense_are_refused() {
    let fixture = Fixture::with(uncached()).await;
    for (sql, part) in [
        ("CALL load_model()", "write CALL load_model"),
        ("CALL load_model('smollm2', 'minilm')", "write CALL load_model"),
        ("CALL load_model('smollm2', timeout_s => 1)", "write CALL load_model"),
        ("CALL load_model('smollm2', pin => 3)", "pin is 3"),
        ("CALL load_model(NULL)", "is NULL"),
        ("CALL pin_model('smollm2', pin => true)", "write CALL pin_model"),
        ("CALL unpin_model('gpt')", "there is no model 'gpt'"),
        ("CALL unload_model('smollm2', timeout_s => -1)", "timeout_s is -1"),
        ("CALL unload_model('smollm2', timeout_s => 'soon')", "timeout_s is soon"),
        ("CALL unload_model('gpt')", "there are: "),
    ] {
        let error = fixture.error(sql).await;
        assert!(error.message().contains(part), "{sql}: {error}");
    }
    let error = fixture.error("INSERT INTO loaded_models (model_id) VALUES ('x')").await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}
