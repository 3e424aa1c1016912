//! `ai_filter`, `ai_classify`, `ai_agg`, the options that all AI calls have, and errors as values.

use std::sync::atomic::Ordering;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use hypr_common::ErrorKind;
use hypr_inference::api::{GenerateRequest, Inference, Prompt};
use hypr_query::AiOptions;

use crate::ai::{Fixture, uncached};
use crate::harness::collect;

#[tokio::test]
async fn a_filter_keeps_the_rows_that_the_model_says_yes_to() {
    let fixture = Fixture::new().await;
    let sql = "SELECT id, ai_filter('w5 w6', body) AS f FROM notes ORDER BY id";
    let (rows, prompts) = fixture.run(sql).await;
    assert_eq!((rows.len(), prompts.len()), (6, 5));
    assert_eq!(rows[5], "6|NULL", "no passage leaves it open, and asks nothing");
    let requests = fixture.book.generations.lock().clone();
    assert!(requests.iter().all(|request| request.choices == ["yes", "no"] && request.context.len() == 1));
    let batch = collect(fixture.session.execute(sql).await.unwrap()).await.unwrap();
    assert_eq!(batch.schema().field(1).data_type(), &DataType::Boolean);
    let said_yes: Vec<&String> = rows.iter().filter(|row| row.ends_with("|true")).collect();
    let kept = fixture.run("SELECT id, true FROM notes WHERE ai_filter('w5 w6', body) ORDER BY id").await.0;
    assert_eq!(kept.iter().collect::<Vec<_>>(), said_yes);
    let dropped = fixture.run("SELECT id FROM notes WHERE NOT ai_filter('w5 w6', body)").await.0;
    assert_eq!(kept.len() + dropped.len(), 5);
    assert_eq!(fixture.asked("SELECT id FROM notes WHERE id < 3 AND ai_filter('w1', body, kind)").await.len(), 2);
    assert_eq!(fixture.book.generations.lock()[0].context.len(), 2);
    // What is chosen is what the network finds likelier of the two.
    let asked = fixture.book.generations.lock()[0].clone();
    let others = (0..64).filter(|token| ![60, 61].contains(token)).map(|token| (token, f32::NEG_INFINITY)).collect();
    let free = GenerateRequest { choices: Vec::new(), logit_bias: others, max_tokens: 1, ..asked.clone() };
    let likelier = fixture.engine.generate(free).await.unwrap().text;
    assert_eq!(fixture.engine.generate(asked).await.unwrap().text, likelier);
}

#[tokio::test]
async fn a_label_is_always_one_of_those_given() {
    let fixture = Fixture::new().await;
    let labels = ["w7", "w8 w9", "w8", "w10 w11 w12"];
    let sql = "SELECT id, ai_classify(body, ['w7', 'w8 w9', 'w8', 'w10 w11 w12']) AS label FROM notes ORDER BY id";
    let (rows, prompts) = fixture.run(sql).await;
    assert_eq!(prompts.len(), 5);
    for row in &rows[..5] {
        assert!(labels.contains(&row.split_once('|').unwrap().1), "{row}");
    }
    assert_eq!(rows[5], "6|NULL");
    assert_eq!(fixture.run(sql).await.0, rows, "the same again");
    assert_eq!(fixture.run("SELECT ai_classify('w1', ['only'])").await.0, ["only"]);
    let per_row = "SELECT ai_classify(body, [kind, NULL]) FROM notes WHERE id < 3 ORDER BY id";
    assert_eq!(fixture.run(per_row).await.0, ["a", "b"]);
    assert_eq!(fixture.run("SELECT ai_classify('w1', NULL)").await.0, ["NULL"]);
    for (sql, part) in [
        ("SELECT ai_classify('w1')", "a list of labels"),
        ("SELECT ai_classify('w1', 'w2')", "a list of labels"),
        ("SELECT ai_classify('w1', [NULL])", "needs a label"),
        ("SELECT ai_classify('w1', ['a'], temperature => 1)", "has no option"),
        ("SELECT ai_filter(5, body) FROM notes", "cast it to TEXT"),
        ("SELECT ai_agg(body) FROM notes", "an instruction"),
    ] {
        let error = fixture.error(sql).await;
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{sql}: {error}");
        assert!(error.message().contains(part), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_group_that_fits_the_context_is_one_request_in_a_fixed_order() {
    let fixture = Fixture::new().await;
    let contexts = |fixture: &Fixture| {
        let mut contexts: Vec<_> =
            fixture.book.generations.lock().iter().map(|request| request.context.clone()).collect();
        contexts.sort();
        contexts
    };
    let (rows, prompts) = fixture
        .run("SELECT kind, ai_agg(body, 'w9', max_tokens => 3) AS s FROM notes GROUP BY kind ORDER BY kind")
        .await;
    assert_eq!(prompts, ["w9", "w9"]);
    assert_eq!(contexts(&fixture), [vec!["w1", "w3", "w5"], vec!["w2", "w4"]]);
    assert_eq!(rows[0], format!("a|{}", fixture.answer("w9", &["w1", "w3", "w5"], 3).await));
    fixture.run("SELECT ai_agg(body, 'w9' ORDER BY score) FROM notes").await;
    assert_eq!(contexts(&fixture), [vec!["w5", "w4", "w3", "w2", "w1"]]);
    fixture.run("SELECT ai_agg(DISTINCT kind, 'w9', max_tokens => 1) FILTER (WHERE id > 1) FROM notes").await;
    assert_eq!(contexts(&fixture), [vec!["a", "b"]]);
    fixture.run("SELECT id, ai_agg(body, 'w9', max_tokens => 1) OVER (ORDER BY id ROWS 1 PRECEDING) FROM notes WHERE id < 3").await;
    assert_eq!(contexts(&fixture), [vec!["w1"], vec!["w1", "w2"]]);
    assert_eq!(
        fixture.run("SELECT ai_agg(body, 'w9') FROM notes WHERE id > 5").await,
        (vec!["NULL".to_owned()], vec![])
    );
    let batch = collect(fixture.session.execute("SELECT ai_agg(body, 'w9') FROM notes").await.unwrap()).await.unwrap();
    assert_eq!(batch.schema().field(0).name(), "ai_agg");
}

#[tokio::test]
async fn a_group_longer_than_the_context_is_read_in_parts_and_no_text_is_lost() {
    let fixture = Fixture::new().await;
    // 400 words for a context of 256 tokens.
    fixture.run("CREATE TABLE words AS SELECT value AS id, 'w' || (value % 50) || ' w' || (value / 50) AS body FROM range(200)").await;
    let sql = "SELECT ai_agg(body, 'w9', max_tokens => 8 ORDER BY id) FROM words";
    let (rows, prompts) = fixture.run(sql).await;
    assert_eq!(rows.len(), 1);
    assert!(prompts.len() >= 3, "two parts at least, and what joins them");
    let requests = fixture.book.generations.lock().clone();
    let parts: Vec<String> =
        requests[..requests.len() - 1].iter().flat_map(|request| request.context.clone()).collect();
    let expected: Vec<String> = (0..200).map(|n| format!("w{} w{}", n % 50, n / 50)).collect();
    assert_eq!(parts, expected);
    for request in &requests {
        let texts: usize = request.context.iter().map(|text| text.split_whitespace().count()).sum();
        let read = fixture.engine.generate(request.clone()).await.unwrap();
        assert!(read.prompt_tokens > texts, "{texts} words in a prompt of {}: something was cut", read.prompt_tokens);
    }
    let last = requests.last().unwrap();
    assert!(matches!(&last.prompt, Prompt::Instruction(text) if text.ends_with("w9") && text.len() > 2));
    assert_eq!(fixture.run(sql).await.0, rows, "the same again");
    let one = "SELECT ai_agg(repeat('w3 ', 700), 'w9', max_tokens => 4)";
    assert!(fixture.run(one).await.1.len() >= 4, "one text may be longer than the context");
    let words: usize = fixture
        .book
        .generations
        .lock()
        .iter()
        .filter(|request| request.prompt == Prompt::Instruction("w9".into()))
        .flat_map(|request| request.context.iter())
        .map(|text| text.split_whitespace().count())
        .sum();
    assert_eq!(words, 700);
    let error = fixture.error("SELECT ai_agg(body, repeat('w1 ', 300)) FROM words").await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(error.message().contains("shorten the instruction"), "{error}");
}

#[tokio::test]
async fn parts_that_have_not_changed_are_not_asked_again() {
    let fixture = Fixture::with(AiOptions::default()).await;
    fixture.run("CREATE TABLE words AS SELECT value AS id, 'w' || (value % 50) || ' w' || (value / 50) AS body FROM range(200)").await;
    let sql = "SELECT ai_agg(body, 'w9', max_tokens => 8 ORDER BY id) FROM words";
    let first = fixture.run(sql).await.1.len();
    assert_eq!(fixture.run(sql).await.1.len(), 0);
    fixture.run("INSERT INTO words VALUES (1000, 'w1 w2')").await;
    let again = fixture.run(sql).await.1.len();
    assert!(again < first && again <= 2, "{again} of {first} requests again for a row at the end");
}

#[tokio::test]
async fn errors_are_values_on_request() {
    let fixture = Fixture::new().await;
    *fixture.book.failing.lock() = Some("w3".to_owned());
    let sql = "SELECT id, r['value'] AS value, r['error'] AS error FROM (SELECT id, generate_response(body, max_tokens => 1, on_error => 'struct') AS r FROM notes) ORDER BY id";
    let rows = fixture.run(sql).await.0;
    assert_eq!(rows[2], "3|NULL|the engine is shutting down");
    assert_eq!(rows[0], format!("1|{}|NULL", fixture.answer("w1", &[], 1).await));
    assert_eq!(rows[5], "6|NULL|NULL");
    let sql = "SELECT generate_response(body, on_error => 'struct') AS r FROM notes WHERE id IN (3, 6) ORDER BY id";
    let batch = collect(fixture.session.execute(sql).await.unwrap()).await.unwrap();
    let column = batch.column(0).as_struct();
    assert_eq!(column.column_names(), ["value", "error"]);
    assert!(column.is_valid(0) && column.is_null(1), "where nothing is asked there is no error either");
    for (sql, expected) in [
        ("SELECT embed(body, on_error => 'struct')['error'] IS NULL FROM notes WHERE id = 1", "true"),
        ("SELECT ai_filter('w1', body, on_error => 'struct')['value'] IS NOT NULL FROM notes WHERE id = 1", "true"),
        ("SELECT ai_classify('w1', ['a'], on_error => 'struct')['value']", "a"),
    ] {
        assert_eq!(fixture.run(sql).await.0, [expected], "{sql}");
    }
    let error = fixture
        .error("SELECT generate_response(body, on_error => CASE WHEN id > 1 THEN 'struct' END) FROM notes")
        .await;
    assert!(error.message().contains("must be a literal"), "{error}");
    let node = fixture.run(&format!("EXPLAIN ANALYZE {sql}")).await.0.join("\n");
    assert!(node.contains("failed=1"), "{node}");
}

#[tokio::test]
async fn system_priority_and_timeout_reach_the_engine() {
    let fixture = Fixture::new().await;
    let sql = "SELECT generate_response('w1', system => 'w2', priority => -3, max_tokens => 2)";
    assert_eq!(fixture.asked(sql).await, ["w1"]);
    let request = fixture.book.generations.lock()[0].clone();
    assert_eq!(request.priority, -3);
    match &request.prompt {
        Prompt::Chat(messages) => {
            let turns: Vec<(&str, &str)> =
                messages.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect();
            assert_eq!(turns, [("system", "w2"), ("user", "w1")]);
        }
        other => panic!("a conversation was expected, not {other:?}"),
    }
    // A queue that stays full: the answer would take for ever.
    fixture.book.busy.store(usize::MAX, Ordering::SeqCst);
    let error = fixture.error("SELECT generate_response('w1', timeout_s => 0.01)").await;
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.message().contains("timeout_s"), "{error}");
    let row = fixture.run("SELECT generate_response('w1', timeout_s => 0.01, on_error => 'null') IS NULL").await.0;
    assert_eq!(row, ["true"]);
}

#[tokio::test]
async fn rows_behind_a_long_answer_are_made_meanwhile() {
    let fixture = Fixture::with(AiOptions { max_in_flight: 2, ..uncached() }).await;
    let sql = "SELECT value, generate_response('w' || value, max_tokens => CASE WHEN value = 0 THEN 200 ELSE 1 END) FROM range(6)";
    let (rows, prompts) = fixture.run(sql).await;
    let numbers: Vec<&str> = rows.iter().map(|row| row.split_once('|').unwrap().0).collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4", "5"], "in order all the same");
    assert_eq!(prompts.len(), 6);
    let order = fixture.book.order.lock().clone();
    assert!(order.iter().position(|prompt| prompt == "w0").unwrap() >= 3, "the long one ends behind others: {order:?}");
    assert!(fixture.book.most_running.load(Ordering::SeqCst) <= 2);
}
