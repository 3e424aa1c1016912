//! Searches that need models, parameters, or a look at the plan.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use crate::harness::{Fixture, collect, lines};
use crate::tiny::tiny;

/// Notes `w1` to `w6` and their embeddings.
async fn notes() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.database.models().publish(&tiny("tiny-bert", "minilm")).unwrap();
    let width = fixture.query("SELECT vector_dims(embed('w1'))").await;
    let width = width.column(0).as_primitive::<arrow::datatypes::Int32Type>().value(0);
    fixture.affected(&format!("CREATE TABLE notes (id INT PRIMARY KEY, body TEXT, embedding VECTOR({width}))")).await;
    fixture.affected("CREATE TABLE texts (id INT, body TEXT)").await;
    fixture.affected("INSERT INTO texts VALUES (1, 'w1 w9'), (2, 'w2 w9'), (3, 'w3 w9 w9'), (4, 'w4')").await;
    fixture.affected("INSERT INTO notes SELECT id, body, embed(body) FROM texts").await;
    fixture.affected("INSERT INTO notes VALUES (5, NULL, NULL)").await;
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_embedded_by_the_model_and_the_nearest_rows_come_first() {
    let fixture = notes().await;
    let expected = fixture
        .lines("SELECT id, round(cosine_distance(embedding, embed('w3 w9')), 5) AS d FROM notes WHERE id < 5 ORDER BY d, id")
        .await;
    for call in [
        "vector_search(notes, 'w3 w9')",
        "vector_search(notes, 'w3 w9', embedding, 10)",
        "vector_search(notes, 'w3 w9', embedding, model => 'minilm')",
        "vector_search(notes, embed('w3 w9'))",
        "vector_search(notes, embed('w3 w9', model => 'minilm'), 10)",
    ] {
        let found = fixture.lines(&format!("SELECT id, round(distance, 5) FROM {call} ORDER BY distance, id")).await;
        assert_eq!(found, expected, "{call}");
    }
    let error = fixture.error("SELECT * FROM vector_search(notes, 'w3', model => 'nobody')").await;
    assert!(error.message().contains("nobody"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rerank_orders_the_rows_of_a_search_by_the_model() {
    let fixture = notes().await;
    let expected = fixture
        .lines("SELECT id, round(cosine_similarity(embed(body), embed('w2')), 5) AS s FROM notes WHERE id < 4 ORDER BY s DESC")
        .await;
    assert_eq!(expected.len(), 3);
    for call in [
        "rerank(text_search(notes, 'w9', body), 'w2', document => body)",
        "rerank(text_search(notes, 'w9', body), query => 'w2', document => 'body', model => 'minilm')",
        "rerank((SELECT id, body FROM notes WHERE body LIKE '%w9%'), 'w2', document => body)",
        "rerank(rrf(text_search(notes, 'w9', body), text_search(notes, '+w9 w2', body)), 'w2', document => body, limit => 3)",
    ] {
        let sql = format!("SELECT id, round(rerank_score, 5) FROM {call} ORDER BY rerank_score DESC");
        assert_eq!(fixture.lines(&sql).await, expected, "{call}");
    }
    let inherited = "SELECT id FROM rerank(text_search(notes, 'w2', body), document => body)";
    assert_eq!(fixture.lines(inherited).await, ["2"]);
    let first = "SELECT id FROM rerank(notes, 'w4', document => body) ORDER BY rerank_score DESC LIMIT 1";
    assert_eq!(fixture.lines(first).await, ["4"]);
    let last = "SELECT id, rerank_score FROM rerank(notes, 'w4', document => body) ORDER BY rerank_score LIMIT 1";
    assert_eq!(fixture.lines(last).await, ["5|-1.0"]);
    for (call, message) in [
        ("rerank(notes, 'w4')", "\"document\" is missing"),
        ("rerank(notes, document => body)", "no search to take the query from"),
        ("rerank(notes, 'w4', document => title)", "no column \"title\""),
        ("rerank(notes, 'w4', document => id)", "not TEXT"),
        ("rerank(notes, 'w4', document => body, model => 'nobody')", "nobody"),
        ("rerank(7, 'w4', document => body)", "is no search"),
    ] {
        let error = fixture.error(&format!("SELECT * FROM {call}")).await;
        assert!(error.message().contains(message), "{call}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_and_limits_are_parameters() {
    let fixture = notes().await;
    let sql = "SELECT id FROM text_search(notes, ?, body, ?) WHERE id <> ? ORDER BY id";
    let prepared = fixture.session.prepare(sql).await.unwrap();
    assert_eq!(prepared.parameter_schema.fields().len(), 3);
    assert_eq!(prepared.parameter_schema.field(0).data_type(), &DataType::Utf8);
    let schema = Schema::new(vec![
        Field::new("a", DataType::Utf8, true),
        Field::new("b", DataType::Int64, true),
        Field::new("c", DataType::Int64, true),
    ]);
    let run = |words: &'static str, limit: i64| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![words])),
            Arc::new(Int64Array::from(vec![limit])),
            Arc::new(Int64Array::from(vec![1])),
        ];
        let row = RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap();
        let (session, prepared) = (&fixture.session, &prepared);
        async move { collect(session.execute_prepared(prepared, &row).await?).await.map(|batch| lines(&batch)) }
    };
    assert_eq!(run("w9 w4", 10).await.unwrap(), ["2", "3", "4"]);
    assert_eq!(run("w9 w4", 1).await.unwrap(), ["4"]);
    assert!(run("w9", -1).await.unwrap_err().message().contains("not negative"));
    let text = fixture.session.prepare("SELECT id FROM vector_search(notes, ?, embedding, 1)").await.unwrap();
    let column: ArrayRef = Arc::new(StringArray::from(vec!["w4"]));
    let row = RecordBatch::try_from_iter([("a", column)]).unwrap();
    let found = collect(fixture.session.execute_prepared(&text, &row).await.unwrap()).await.unwrap();
    assert_eq!(lines(&found), ["4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_pushes_conditions_and_limits_into_the_search_and_reads_no_other_columns() {
    let fixture = notes().await;
    let plan = |sql: &'static str| {
        let fixture = &fixture;
        async move { fixture.lines(&format!("EXPLAIN {sql}")).await.join("\n") }
    };
    let shown =
        plan("SELECT id FROM text_search(notes, 'w9', body) WHERE id > 1 AND score > 0.1 ORDER BY score DESC LIMIT 2")
            .await;
    let physical = &shown[shown.find("physical_plan").unwrap()..];
    assert!(physical.contains("SearchExec: text_search, table=public.notes, column=body"), "{shown}");
    assert!(!physical.contains("SortExec") && !physical.contains("embedding"), "{shown}");
    let (above, below) = physical.split_once("SearchExec").unwrap();
    assert!(above.contains("score@") && below.contains("id@0 > 1") && !below.contains("score"), "{shown}");
    let limited = plan("SELECT id FROM text_search(notes, 'w9', body) ORDER BY score DESC LIMIT 2").await;
    assert!(limited.contains("fetch=2"), "{limited}");
    let fused =
        plan("SELECT id FROM rrf(text_search(notes, 'w9', body), vector_search(notes, 'w1')) WHERE id > 1").await;
    assert_eq!(fused.matches("SearchExec <- ").count(), 2, "{fused}");
    let random = fixture.error("SELECT id FROM text_search(notes, 'w9', body) WHERE random() < 2").await;
    assert!(random.message().contains("LIMIT"), "{random}");
    let after = "SELECT count(*) FROM (SELECT id FROM text_search(notes, 'w9', body) LIMIT 10) WHERE random() < 2";
    assert_eq!(fixture.lines(after).await, ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_keeps_its_options_when_the_database_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let fixture = Fixture::at(dir.path()).await;
        if round == 0 {
            fixture.affected("CREATE TABLE t (id INT, body TEXT)").await;
            fixture.affected("CREATE INDEX t_body ON t USING FTS (body) WITH (stemming = true)").await;
            fixture.affected("INSERT INTO t VALUES (1, 'they were running')").await;
        }
        assert_eq!(fixture.lines("SELECT id FROM text_search(t, 'runs')").await, ["1"], "round {round}");
        fixture.database.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_plan_searches_for_what_is_bound_in_the_rows_of_now() {
    let fixture = notes().await;
    let bind = |words: &str| {
        let word: ArrayRef = Arc::new(StringArray::from(vec![words]));
        RecordBatch::try_from_iter([("words", word)]).unwrap()
    };
    let words = "SELECT id FROM text_search(notes, ?, body, 10) ORDER BY score DESC, id LIMIT 3";
    let chosen = "SELECT id FROM text_search(notes, ?, body) WHERE id > 1 ORDER BY score DESC, id LIMIT 3";
    let fused = "SELECT id FROM rrf(text_search(notes, ?, body), text_search(notes, 'w4', body)) ORDER BY id";
    let near = "SELECT id FROM notes WHERE embedding IS NOT NULL ORDER BY cosine_distance(embedding, embed(?)) LIMIT 1";
    let length = "SELECT length(body) FROM notes WHERE cosine_similarity(embedding, embed(?)) > 0.9999";
    let expected = [
        (words, [("w9", vec!["3", "1", "2"]), ("w4", vec!["4"]), ("w2", vec!["2"])]),
        (chosen, [("w9", vec!["3", "2"]), ("w4", vec!["4"]), ("w1", vec![])]),
        (fused, [("w1", vec!["1", "4"]), ("w2", vec!["2", "4"]), ("w4", vec!["4"])]),
        (near, [("w1 w9", vec!["1"]), ("w4", vec!["4"]), ("w2 w9", vec!["2"])]),
        (length, [("w1 w9", vec!["5"]), ("w4", vec!["2"]), ("w3 w9 w9", vec!["8"])]),
    ];
    for (sql, searches) in expected {
        let prepared = fixture.session.prepare(sql).await.unwrap();
        let run = async |words: &str| {
            let found = fixture.session.execute_prepared(&prepared, &bind(words)).await.unwrap();
            lines(&collect(found).await.unwrap())
        };
        for (words, rows) in searches {
            assert_eq!(run(words).await, rows, "{sql}: {words}");
        }
    }
    let prepared = fixture.session.prepare(words).await.unwrap();
    for id in 7..9 {
        fixture.affected(&format!("INSERT INTO notes VALUES ({id}, 'w5', NULL)")).await;
        let found = fixture.session.execute_prepared(&prepared, &bind("w5")).await.unwrap();
        assert_eq!(lines(&collect(found).await.unwrap()).len(), id - 6, "a row is found as soon as it is inserted");
    }
}
