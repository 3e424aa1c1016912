//! What is asked once: equal calls of one statement, and answers that other statements have had.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use hypr_query::{AiOptions, Outcome};

use crate::ai::{Fixture, uncached};
use crate::tiny::tiny;

/// The metrics of the node that made the calls.
async fn metrics(fixture: &Fixture, sql: &str) -> String {
    let plan = fixture.run(&format!("EXPLAIN ANALYZE {sql}")).await.0.join("\n");
    plan.lines().find(|line| line.contains("GenerateExec")).unwrap().to_owned()
}

#[tokio::test]
async fn an_answer_is_kept_for_later_statements() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    let sql = "SELECT id, generate_response(body, max_tokens => 3) FROM notes ORDER BY id";
    let first = fixture.run(sql).await;
    assert_eq!(first.1.len(), 5);
    assert_eq!(fixture.run(sql).await, (first.0, vec![]));
    let again =
        "SELECT generate_response(body, model => 'smollm2', max_tokens => 3, priority => -1) FROM notes WHERE id < 3";
    assert_eq!(
        fixture.asked(again).await,
        Vec::<String>::new(),
        "the default model's name and a priority change nothing"
    );
    let node = metrics(&fixture, sql).await;
    for part in ["calls=0", "cache_hits=5", "deduplicated=0", "prompt_tokens=0"] {
        assert!(node.contains(part), "{part} in {node}");
    }
    assert_eq!(
        fixture.asked("SELECT generate_response('w1', max_tokens => 2)").await,
        ["w1"],
        "other options ask again"
    );
    assert_eq!(fixture.asked("SELECT generate_response('w1', 'w2', max_tokens => 3)").await, ["w1"], "so does context");
    let totals = fixture.session.engine().ai_metrics();
    assert_eq!((totals.calls, totals.cached_answers), (7, 7));
    assert!(totals.cache_hits >= 12 && totals.cached_bytes > 0 && totals.completion_tokens >= 15, "{totals:?}");
}

#[tokio::test]
async fn only_what_would_be_the_same_again_is_kept() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    for _ in 0..2 {
        assert_eq!(fixture.asked("SELECT generate_response('w1', temperature => 1, max_tokens => 2)").await, ["w1"]);
    }
    let seeded = "SELECT generate_response('w1', temperature => 1, seed => 7, max_tokens => 2)";
    assert_eq!(fixture.asked(seeded).await, ["w1"]);
    assert_eq!(fixture.asked(seeded).await, Vec::<String>::new());
    *fixture.book.failing.lock() = Some("w9".to_owned());
    for _ in 0..2 {
        assert_eq!(
            fixture.asked("SELECT generate_response('w9', on_error => 'null')").await,
            ["w9"],
            "no error is kept"
        );
    }
}

#[tokio::test]
async fn new_weights_find_nothing_of_the_old() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    let text = "SELECT generate_response('w1', max_tokens => 2)";
    let vector = "SELECT vector_dims(embed('w1'))";
    fixture.run(text).await;
    fixture.run(vector).await;
    for (network, id) in [("tiny-llama", "smollm2"), ("tiny-bert", "minilm")] {
        let mut tables = tiny(network, id);
        tables.version += 1;
        fixture.models.replace(tables);
    }
    fixture.book.embeddings.lock().clear();
    assert_eq!(fixture.asked(text).await, ["w1"]);
    assert_eq!(fixture.asked(text).await, Vec::<String>::new());
    for _ in 0..2 {
        fixture.run(vector).await;
        assert_eq!(fixture.book.embeddings.lock().len(), 1);
    }
}

#[tokio::test]
async fn a_session_may_leave_the_cache_alone() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    let sql = "SELECT generate_response('w1', max_tokens => 2)";
    fixture.run(sql).await;
    fixture.run("SET ai.cache = off").await;
    assert_eq!(fixture.asked(sql).await, ["w1"]);
    fixture.run("SET ai.cache = on").await;
    assert_eq!(fixture.asked(sql).await, Vec::<String>::new());
    fixture.run("RESET ai.cache").await;
    assert_eq!(fixture.asked(sql).await, Vec::<String>::new());
    let error = fixture.error("SET ai.cache = 'sometimes'").await;
    assert!(error.message().contains("ai.cache is on or off"), "{error}");
}

#[tokio::test]
async fn embeddings_are_kept_each_for_itself() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    let texts = |fixture: &Fixture| {
        fixture.book.embeddings.lock().drain(..).map(|request| request.inputs.len()).collect::<Vec<_>>()
    };
    let first = fixture.run("SELECT embed(body) FROM notes WHERE id < 4 ORDER BY id").await.0;
    assert_eq!(texts(&fixture), [3]);
    let second = fixture.run("SELECT embed(body) FROM notes ORDER BY id").await.0;
    assert_eq!(texts(&fixture), [2], "only what is new goes to the engine");
    assert_eq!(second[..3], first);
    fixture.run("SELECT embed('w1', normalize => false)").await;
    assert_eq!(texts(&fixture), [1]);
}

#[tokio::test]
async fn calls_of_one_statement_are_made_once_whatever_part_of_it_they_are_in() {
    let fixture = Fixture::with_notes(AiOptions::default()).await;
    let call = "generate_response(body, max_tokens => 2)";
    for sql in [
        "SELECT a.id FROM notes a JOIN notes b ON generate_response(a.body, max_tokens => 1) = generate_response(b.body, max_tokens => 1)".to_owned(),
        format!("SELECT {call} FROM notes UNION ALL SELECT {call} FROM notes"),
    ] {
        assert_eq!(fixture.asked(&sql).await, ["w1", "w2", "w3", "w4", "w5"], "{sql}");
    }
}

#[tokio::test]
async fn a_request_that_two_statements_wait_for_survives_the_first() {
    let fixture = Arc::new(Fixture::with(AiOptions::default()).await);
    let sql = "SELECT generate_response('w1', max_tokens => 200)";
    let rows = |outcome| match outcome {
        Outcome::Rows(rows) => rows,
        _ => panic!("no rows"),
    };
    let mut first = rows(fixture.session.execute(sql).await.unwrap());
    let mut second = rows(fixture.session.execute(sql).await.unwrap());
    // Polled until both wait for the one request, then the statement that made it goes away.
    assert!(futures::poll!(first.next()).is_pending());
    while fixture.book.running.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
        assert!(futures::poll!(first.next()).is_pending());
    }
    assert!(futures::poll!(second.next()).is_pending());
    drop(first);
    assert_eq!(second.next().await.unwrap().unwrap().num_rows(), 1);
    assert_eq!(fixture.prompts(), ["w1"]);
}

#[tokio::test]
async fn without_a_budget_every_statement_asks() {
    let fixture = Fixture::with_notes(uncached()).await;
    for _ in 0..2 {
        assert_eq!(fixture.asked("SELECT generate_response(kind, max_tokens => 1) FROM notes").await, ["a", "b"]);
    }
    assert_eq!(fixture.session.engine().ai_metrics().deduplicated, 8);
}
