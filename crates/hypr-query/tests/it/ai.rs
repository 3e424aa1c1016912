//! AI calls in SQL on the real engine with tiny networks, counted on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Float32Type};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hypr_common::model::{ModelMetadata, ModelSource, ModelTables};
use hypr_common::prefix::Prefix;
use hypr_common::principal::Principal;
use hypr_common::{Error, ErrorKind, Result};
use hypr_inference::api::{
    CacheIdentity, EmbedRequest, GenerateRequest, Generation, Inference, LoadedModel, Prompt, Task, Token,
};
use hypr_inference::kv_table::KvSequence;
use hypr_inference::window::Window;
use hypr_inference::{EngineHandle, EngineOptions, EngineService, engine};
use hypr_query::{AiOptions, Outcome, QueryEngine, QueryOptions, Session};
use hypr_storage::{Database, StorageOptions};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::harness::{collect, lines};
use crate::tiny::tiny;

#[derive(Debug)]
pub(crate) struct Models(Mutex<Vec<Arc<ModelTables>>>);

impl Models {
    /// Puts `tables` in the place of the model that has its name.
    pub(crate) fn replace(&self, tables: ModelTables) {
        let mut models = self.0.lock();
        models.retain(|model| model.metadata.model_id != tables.metadata.model_id);
        models.push(Arc::new(tables));
    }
}

impl ModelSource for Models {
    fn models(&self) -> Result<Vec<ModelMetadata>> {
        Ok(self.0.lock().iter().map(|tables| tables.metadata.clone()).collect())
    }

    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>> {
        let models = self.0.lock();
        let found = models.iter().find(|tables| tables.metadata.model_id == model_id);
        found.cloned().ok_or_else(|| Error::not_found(format!("no model {model_id}")))
    }
}

/// The real engine with a book of what it was asked.
#[derive(Debug)]
struct Counting {
    engine: EngineHandle,
    book: Arc<Book>,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) generations: Mutex<Vec<GenerateRequest>>,
    pub(crate) embeddings: Mutex<Vec<EmbedRequest>>,
    pub(crate) finished: AtomicUsize,
    /// Prompts, as they got their answers.
    pub(crate) order: Mutex<Vec<String>>,
    pub(crate) running: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
    pub(crate) busy: AtomicUsize,
    pub(crate) failing: Mutex<Option<String>>,
}

/// Counts a request as running for as long as its future lives.
struct Running(Arc<Book>);

impl Running {
    fn new(book: &Arc<Book>) -> Self {
        let running = book.running.fetch_add(1, Ordering::SeqCst) + 1;
        book.most_running.fetch_max(running, Ordering::SeqCst);
        Self(Arc::clone(book))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn instruction(request: &GenerateRequest) -> String {
    match &request.prompt {
        Prompt::Instruction(text) => text.clone(),
        Prompt::Chat(messages) => messages.last().unwrap().content.clone(),
        other => panic!("an instruction was expected, not {other:?}"),
    }
}

impl Inference for Counting {
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Generation>> {
        let book = Arc::clone(&self.book);
        if book.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return futures::future::err(Error::new(ErrorKind::Busy, "the queue is full")).boxed();
        }
        book.generations.lock().push(request.clone());
        if book.failing.lock().as_deref() == Some(instruction(&request).as_str()) {
            return futures::future::err(Error::new(ErrorKind::Unavailable, "the engine is shutting down")).boxed();
        }
        let running = Running::new(&book);
        let prompt = instruction(&request);
        let answer = self.engine.generate(request);
        async move {
            let _running = running;
            let answer = answer.await;
            book.order.lock().push(prompt);
            book.finished.fetch_add(1, Ordering::SeqCst);
            answer
        }
        .boxed()
    }

    fn generate_stream(&self, request: GenerateRequest) -> BoxStream<'static, Result<Token>> {
        self.engine.generate_stream(request)
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'static, Result<Vec<Vec<f32>>>> {
        self.book.embeddings.lock().push(request.clone());
        self.engine.embed(request)
    }

    fn resolve(&self, task: Task, name: Option<&str>) -> Result<ModelMetadata> {
        self.engine.resolve(task, name)
    }

    fn identity(&self, task: Task, name: Option<&str>) -> Result<Option<CacheIdentity>> {
        self.engine.identity(task, name)
    }

    fn sequences(&self) -> BoxFuture<'static, Result<Vec<KvSequence>>> {
        self.engine.sequences()
    }

    fn prefix(&self, request: GenerateRequest) -> BoxFuture<'static, Result<Prefix>> {
        self.engine.prefix(request)
    }

    fn restore_prefix(&self, prefix: Prefix) -> BoxFuture<'static, Result<usize>> {
        self.engine.restore_prefix(prefix)
    }

    fn load_model(&self, model_id: &str, pin: bool) -> BoxFuture<'static, Result<bool>> {
        self.engine.load_model(model_id, pin)
    }

    fn unpin_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        self.engine.unpin_model(model_id)
    }

    fn unload_model(&self, model_id: &str) -> BoxFuture<'static, Result<bool>> {
        self.engine.unload_model(model_id)
    }

    fn loaded_models(&self) -> BoxFuture<'static, Result<Vec<LoadedModel>>> {
        self.engine.loaded_models()
    }

    fn window(&self, name: Option<&str>) -> Result<Arc<Window>> {
        self.engine.window(name)
    }
}

pub(crate) struct Fixture {
    _dir: TempDir,
    pub(crate) models: Arc<Models>,
    pub(crate) session: Session,
    pub(crate) engine: EngineHandle,
    pub(crate) book: Arc<Book>,
}

/// Every statement asks for itself, so that its requests can be counted.
pub(crate) fn uncached() -> AiOptions {
    AiOptions { cache_bytes: 0, ..AiOptions::default() }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with_notes(uncached()).await
    }

    /// Six notes: `id` 1 to 6, `kind` alternating, `body` `w1` to `w6`, `score` falling, and a NULL body.
    pub(crate) async fn with_notes(ai: AiOptions) -> Self {
        let fixture = Self::with(ai).await;
        fixture.session.execute("CREATE TABLE notes (id INT, kind TEXT, body TEXT, score DOUBLE)").await.unwrap();
        let rows = "INSERT INTO notes VALUES (1,'a','w1',6),(2,'b','w2',5),(3,'a','w3',4),(4,'b','w4',3),(5,'a','w5',2),(6,'b',NULL,1)";
        fixture.session.execute(rows).await.unwrap();
        fixture
    }

    pub(crate) async fn with(ai: AiOptions) -> Self {
        let models = vec![Arc::new(tiny("tiny-llama", "smollm2")), Arc::new(tiny("tiny-bert", "minilm"))];
        let models = Arc::new(Models(Mutex::new(models)));
        let options = EngineOptions { threads: 1, ..EngineOptions::default() };
        let (handle, service) = engine(models.clone(), options);
        std::thread::spawn(|| EngineService::run(service));
        let book = Arc::new(Book::default());
        let counting = Counting { engine: handle.clone(), book: Arc::clone(&book) };
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), StorageOptions::default()).await.unwrap();
        let options = QueryOptions { ai, ..QueryOptions::default() };
        let engine = QueryEngine::new(database, Arc::new(counting), options).unwrap();
        let session = engine.session(Principal::anonymous_local());
        Self { _dir: dir, models, session, engine: handle, book }
    }

    /// The rows of a statement as text, and the prompts it asked in order.
    pub(crate) async fn run(&self, sql: &str) -> (Vec<String>, Vec<String>) {
        self.book.generations.lock().clear();
        let outcome = self.session.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let rows = match outcome {
            Outcome::Affected(rows) => vec![rows.to_string()],
            rows => lines(&collect(rows).await.unwrap_or_else(|error| panic!("{sql}: {error}"))),
        };
        (rows, self.prompts())
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self._dir.path()
    }

    pub(crate) fn prompts(&self) -> Vec<String> {
        self.book.generations.lock().iter().map(instruction).collect()
    }

    /// The prompts of a statement, sorted.
    pub(crate) async fn asked(&self, sql: &str) -> Vec<String> {
        let mut prompts = self.run(sql).await.1;
        prompts.sort();
        prompts
    }

    pub(crate) async fn error(&self, sql: &str) -> Error {
        match self.session.execute(sql).await {
            Err(error) => error,
            Ok(outcome) => collect(outcome).await.expect_err(sql),
        }
    }

    /// What the engine itself answers to `prompt` with `max_tokens` tokens.
    pub(crate) async fn answer(&self, prompt: &str, context: &[&str], max_tokens: usize) -> String {
        let request = GenerateRequest {
            prompt: Prompt::Instruction(prompt.to_owned()),
            context: context.iter().map(|passage| (*passage).to_owned()).collect(),
            max_tokens,
            ..GenerateRequest::default()
        };
        self.engine.generate(request).await.unwrap().text
    }
}

#[tokio::test]
async fn a_projection_asks_once_a_row_and_null_asks_nothing() {
    let fixture = Fixture::new().await;
    let sql = "SELECT id, generate_response(body, max_tokens => 3) AS r FROM notes ORDER BY id";
    let (rows, prompts) = fixture.run(sql).await;
    let mut expected = Vec::new();
    for id in 1..=5 {
        expected.push(format!("{id}|{}", fixture.answer(&format!("w{id}"), &[], 3).await));
    }
    expected.push("6|NULL".to_owned());
    assert_eq!(rows, expected);
    assert_eq!(prompts, ["w1", "w2", "w3", "w4", "w5"]);
}

#[tokio::test]
async fn lazy_forms_ask_only_for_the_rows_that_need_it() {
    let fixture = Fixture::new().await;
    for (expression, expected) in [
        ("CASE WHEN kind = 'a' THEN generate_response(body, max_tokens => 1) END", &["w1", "w3", "w5"][..]),
        (
            "CASE WHEN id = 1 THEN 'x' WHEN id < 4 THEN generate_response(body, max_tokens => 1) ELSE 'y' END",
            &["w2", "w3"],
        ),
        ("CASE kind WHEN 'a' THEN 'x' ELSE generate_response(body, max_tokens => 1) END", &["w2", "w4"]),
        (
            "CASE WHEN id = 1 THEN NULL WHEN 4 / (id - 1) > 1 THEN generate_response(body, max_tokens => 1) END",
            &["w2", "w3"],
        ),
        // Drawn twice, the condition might say otherwise the second time.
        ("CASE WHEN random() > 2 THEN generate_response(body, max_tokens => 1) END", &["w1", "w2", "w3", "w4", "w5"]),
        ("id > 3 AND generate_response(body, max_tokens => 1) <> ''", &["w4", "w5"]),
        ("generate_response(body, max_tokens => 1) <> '' AND id > 3", &["w4", "w5"]),
        ("id > 3 OR generate_response(body, max_tokens => 1) <> ''", &["w1", "w2", "w3"]),
        ("coalesce(CASE WHEN id > 2 THEN 'x' END, generate_response(body, max_tokens => 1))", &["w1", "w2"]),
        ("nvl(CASE WHEN id > 2 THEN 'x' END, generate_response(body, max_tokens => 1))", &["w1", "w2"]),
        (
            "generate_response(body, max_tokens => 1) || generate_response(body, max_tokens => 1)",
            &["w1", "w2", "w3", "w4", "w5"],
        ),
    ] {
        assert_eq!(fixture.asked(&format!("SELECT id, {expression} AS r FROM notes")).await, expected, "{expression}");
    }
}

#[tokio::test]
async fn every_clause_takes_calls() {
    let fixture = Fixture::new().await;
    let call = "generate_response(body, max_tokens => 2)";
    let all = ["w1", "w2", "w3", "w4", "w5"];
    for (sql, expected) in [
        (format!("SELECT id FROM notes ORDER BY {call}"), &all[..]),
        (format!("SELECT id, {call} FROM notes ORDER BY {call}, id"), &all),
        (format!("SELECT {call} AS r, count(*) FROM notes GROUP BY {call}"), &all),
        (format!("SELECT r, count(*) FROM (SELECT {call} AS r FROM notes) AS t GROUP BY r ORDER BY r"), &all),
        (format!("SELECT kind, max({call}) FROM notes GROUP BY kind"), &all),
        (format!("SELECT max({call}) FILTER (WHERE kind = 'a') FROM notes"), &["w1", "w3", "w5"]),
        (format!("SELECT kind, count(*) FROM notes GROUP BY ROLLUP(kind, {call})"), &all),
        ("SELECT kind FROM notes GROUP BY kind HAVING generate_response(kind, max_tokens => 2) <> ''".into(), &["a", "b"]),
        (format!("SELECT id, row_number() OVER (PARTITION BY kind ORDER BY {call}) FROM notes"), &all),
        (format!("SELECT id, max({call}) OVER (PARTITION BY kind) FROM notes"), &all),
        (format!("SELECT id FROM notes WHERE {call} <> '' AND id < 3"), &["w1", "w2"]),
        (format!("SELECT id FROM notes WHERE id < 3 AND ({call} = '' OR kind = 'b')"), &["w1"]),
        ("SELECT * FROM (VALUES (1, generate_response('w7', max_tokens => 2)), (2, 'x')) AS v(a, b)".into(), &["w7"]),
        (format!("SELECT id FROM notes WHERE {call} = 'x' OR now() < '2000-01-01'"), &all),
        (format!("SELECT DISTINCT {call} FROM notes"), &all),
        (format!("SELECT DISTINCT ON ({call}) id FROM notes ORDER BY {call}, id"), &all),
        ("SELECT a.id FROM notes a JOIN notes b ON a.id = b.id AND b.id < 3 AND generate_response(a.body, max_tokens => 2) <> ''".into(), &["w1", "w2"]),
        ("SELECT a.id FROM notes a LEFT JOIN notes b ON a.id = b.id AND b.id < 3 AND generate_response(b.body, max_tokens => 2) <> ''".into(), &["w1", "w2"]),
        ("SELECT a.id FROM notes a JOIN notes b ON generate_response(a.body, max_tokens => 2) = generate_response(b.body, max_tokens => 2)".into(),
         &["w1", "w1", "w2", "w2", "w3", "w3", "w4", "w4", "w5", "w5"]),
        (format!("SELECT id FROM notes WHERE id IN (SELECT id FROM notes WHERE id < 3 AND {call} <> '')"), &["w1", "w2"]),
        ("SELECT generate_response((SELECT max(body) FROM notes), max_tokens => 2)".into(), &["w5"]),
        (format!("SELECT (SELECT max({call}) FROM notes WHERE id < 3)"), &["w1", "w2"]),
        (format!("SELECT {call} FROM notes WHERE id = 1 UNION ALL SELECT {call} FROM notes WHERE id = 2"), &["w1", "w2"]),
        (format!("WITH t AS (SELECT id, {call} AS r FROM notes) SELECT id FROM t WHERE id = 4 AND r IS NOT NULL"), &["w4"]),
        ("SELECT unnest(string_to_array(generate_response('w9', max_tokens => 2), ' '))".into(), &["w9"]),
        (format!("SELECT id FROM (SELECT id, {call} AS r FROM notes) AS t"), &[]),
        (format!("SELECT count(*) FROM (SELECT id, {call} AS r FROM notes) AS t"), &[]),
    ] {
        assert_eq!(fixture.asked(&sql).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn changes_of_rows_take_calls() {
    let fixture = Fixture::new().await;
    fixture.run("CREATE TABLE answers (id INT, r TEXT)").await;
    let insert = "INSERT INTO answers SELECT id, generate_response(body, max_tokens => 2) FROM notes WHERE id < 3";
    assert_eq!(fixture.run(insert).await, (vec!["2".to_owned()], vec!["w1".to_owned(), "w2".to_owned()]));
    let values = "INSERT INTO answers VALUES (9, generate_response('w9', max_tokens => 2)), (10, 'x')";
    assert_eq!(fixture.run(values).await, (vec!["2".to_owned()], vec!["w9".to_owned()]));
    let update = "UPDATE answers SET r = generate_response('w8', max_tokens => 1) WHERE id = 10";
    assert_eq!(fixture.run(update).await, (vec!["1".to_owned()], vec!["w8".to_owned()]));
    let expected = [
        format!("1|{}", fixture.answer("w1", &[], 2).await),
        format!("2|{}", fixture.answer("w2", &[], 2).await),
        format!("9|{}", fixture.answer("w9", &[], 2).await),
        format!("10|{}", fixture.answer("w8", &[], 1).await),
    ];
    assert_eq!(fixture.run("SELECT * FROM answers ORDER BY id").await.0, expected);
    let delete = "DELETE FROM answers WHERE id > 9 AND generate_response(r, max_tokens => 1) IS NOT NULL";
    let asked = fixture.run(delete).await;
    assert_eq!((asked.0, asked.1.len()), (vec!["1".to_owned()], 1));
}

#[tokio::test]
async fn limits_stop_early() {
    let fixture = Fixture::with(AiOptions { max_in_flight: 2, ..uncached() }).await;
    fixture.run("CREATE TABLE many AS SELECT value AS id, 'w' || (value % 60) || ' w' || (value / 60) AS body FROM range(1000)").await;
    let top = "SELECT id, generate_response(body, max_tokens => 1) FROM many ORDER BY id DESC LIMIT 3";
    assert_eq!(fixture.run(top).await.1.len(), 3);
    let filtered = "SELECT id FROM many WHERE generate_response(body, max_tokens => 1) IS NOT NULL LIMIT 5";
    let (rows, prompts) = fixture.run(filtered).await;
    assert_eq!(rows.len(), 5);
    assert!(prompts.len() <= 8, "5 rows with 2 requests at a time took {}", prompts.len());
    let ordered = "SELECT id FROM many WHERE generate_response(body, max_tokens => 1) IS NOT NULL ORDER BY id LIMIT 2";
    let (rows, prompts) = fixture.run(ordered).await;
    assert_eq!(rows, ["0", "1"]);
    assert!(prompts.len() <= 5, "2 rows with 2 requests at a time took {}", prompts.len());
    assert!(fixture.book.most_running.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn equal_prompts_are_asked_once_unless_sampled() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.asked("SELECT id, generate_response(kind, max_tokens => 2) FROM notes").await, ["a", "b"]);
    assert_eq!(fixture.asked("SELECT id, generate_response('w1', max_tokens => 2) FROM notes").await, ["w1"]);
    let sampled = "SELECT id, generate_response('w1', temperature => 1.5, max_tokens => 2) FROM notes";
    fixture.run(sampled).await;
    let seeds: std::collections::BTreeSet<u64> =
        fixture.book.generations.lock().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds.len(), 6);
    assert_eq!(
        fixture.asked("SELECT id, generate_response('w1', temperature => 1.5, seed => 7) FROM notes").await,
        ["w1"]
    );
}

#[tokio::test]
async fn embeddings_are_typed_batched_and_nested() {
    let fixture = Fixture::new().await;
    let width = fixture.engine.resolve(Task::Embed, None).unwrap().hidden_size;
    let outcome = fixture.session.execute("SELECT id, embed(body) AS v FROM notes ORDER BY id").await.unwrap();
    let batch = collect(outcome).await.unwrap();
    assert!(matches!(batch.schema().field(1).data_type(), DataType::FixedSizeList(_, n) if *n == width));
    assert!(batch.column(1).is_null(5));
    let expected =
        fixture.engine.embed(EmbedRequest { inputs: vec!["w2".into()], ..EmbedRequest::default() }).await.unwrap();
    let second = batch.column(1).as_fixed_size_list().value(1);
    let apart = |(a, b): (&f32, &f32)| (a - b).abs();
    let distance =
        second.as_primitive::<Float32Type>().values().iter().zip(&expected[0]).map(apart).fold(0.0, f32::max);
    assert!(distance < 1e-4, "{distance}");
    let texts: Vec<usize> = fixture.book.embeddings.lock().iter().map(|request| request.inputs.len()).collect();
    assert_eq!(texts, [5]);
    let nested = "SELECT id FROM notes ORDER BY cosine_distance(embed(generate_response(body, max_tokens => 2)), embed('w1')) LIMIT 1";
    assert_eq!(fixture.run(nested).await.1.len(), 5);
}

#[tokio::test]
async fn options_reach_the_engine_and_wrong_ones_are_explained() {
    let fixture = Fixture::new().await;
    let sql = "SELECT Generate_Response('w1', body, id, model => 'smollm2', max_tokens => 2 + 1, temperature := 0.5, top_k => 4, \
               top_p => 0.9, repetition_penalty => 1.1, seed => 5, stop => ['w63', 'w62']) FROM notes WHERE id IN (1, 6)";
    let (rows, _) = fixture.run(sql).await;
    assert_eq!(rows.len(), 2);
    let requests = fixture.book.generations.lock().clone();
    let request = &requests[0];
    assert_eq!(
        (request.model.as_deref(), request.max_tokens, request.context.clone()),
        (Some("smollm2"), 3, vec!["w1".to_owned(), "1".to_owned()])
    );
    assert_eq!((request.sampling.temperature, request.sampling.top_k, request.sampling.seed), (0.5, 4, 5));
    assert_eq!(request.stop, ["w63", "w62"]);
    assert_eq!(requests[1].context, ["6"], "a NULL passage is skipped");
    for (sql, kind, part) in [
        ("SELECT generate_response('w1', colour => 1)", ErrorKind::InvalidInput, "max_tokens"),
        ("SELECT generate_response('w1', seed => 1, seed => 2)", ErrorKind::InvalidInput, "twice"),
        ("SELECT generate_response('w1', temperature => -1)", ErrorKind::InvalidInput, "0 or more"),
        ("SELECT generate_response('w1', max_tokens => 0)", ErrorKind::InvalidInput, "from 1 to"),
        ("SELECT generate_response('w1', max_tokens => id - 1) FROM notes", ErrorKind::InvalidInput, "from 1 to"),
        ("SELECT generate_response(5)", ErrorKind::InvalidInput, "cast it to TEXT"),
        ("SELECT generate_response('w1', model => 'gpt')", ErrorKind::NotFound, "smollm2"),
        ("SELECT embed('w1', 'w2')", ErrorKind::InvalidInput, "model =>"),
        ("SELECT generate_response('w1') FROM gpt USING CONTEXT (SELECT 1)", ErrorKind::NotFound, "smollm2"),
        ("SELECT generate_response('w1') FROM smollm2 USING CONTEXT 5", ErrorKind::InvalidInput, "line 1, column 45"),
        ("SELECT id FROM notes LIMIT generate_response('w1')", ErrorKind::InvalidInput, "LIMIT"),
    ] {
        let error = fixture.error(sql).await;
        assert_eq!(error.kind(), kind, "{sql}: {error}");
        assert!(error.message().contains(part), "{sql}: {error}");
    }
}

#[tokio::test]
async fn context_is_passed_in_the_order_of_its_query() {
    let fixture = Fixture::new().await;
    let sql = "SELECT GENERATE_RESPONSE('w9', max_tokens => 4) FROM smollm2 USING CONTEXT (SELECT body FROM notes ORDER BY score);";
    let (rows, _) = fixture.run(sql).await;
    let passages = ["w5", "w4", "w3", "w2", "w1"];
    assert_eq!(fixture.book.generations.lock()[0].context, passages);
    assert_eq!(rows, [fixture.answer("w9", &passages, 4).await]);
    let context = |fixture: &Fixture| fixture.book.generations.lock()[0].context.clone();
    for (sql, expected) in [
        (
            "SELECT generate_response('w9') AS r FROM \"smollm2\" USING CONTEXT (SELECT id, body FROM notes WHERE id > 4 ORDER BY id)",
            &["id: 5\nbody: w5", "id: 6"][..],
        ),
        (
            "WITH c AS (SELECT body FROM notes WHERE id = 2), a AS (SELECT generate_response('w9') AS r FROM smollm2 USING CONTEXT (SELECT * FROM c)) SELECT r FROM a",
            &["w2"],
        ),
        (
            "SELECT upper(r) FROM (SELECT generate_response('w9') AS r FROM SmolLM2 USING CONTEXT (SELECT ')' FROM (VALUES (1)) AS v)) AS t",
            &[")"],
        ),
        (
            "SELECT generate_response('w9', 'w8') FROM smollm2 USING CONTEXT (SELECT body FROM notes WHERE id = 1)",
            &["w8", "w1"],
        ),
        ("SELECT generate_response('w9') FROM smollm2 USING CONTEXT (SELECT body FROM notes WHERE id > 90)", &[]),
        ("SELECT generate_response('w9') FROM smollm2", &[]),
    ] {
        assert_eq!(fixture.run(sql).await.0.len(), 1, "{sql}");
        assert_eq!(context(&fixture), expected, "{sql}");
        assert_eq!(fixture.book.generations.lock()[0].model.as_deref(), Some("smollm2"), "{sql}");
    }
    let two = "SELECT generate_response('w1', max_tokens => 1), generate_response('w2', max_tokens => 1) FROM smollm2 USING CONTEXT (SELECT body FROM notes WHERE id = 1)";
    assert_eq!(fixture.asked(two).await, ["w1", "w2"]);
    fixture.run("CREATE TABLE smollm2 (a INT)").await;
    fixture.run("INSERT INTO smollm2 VALUES (1), (2)").await;
    assert_eq!(
        fixture.run("SELECT generate_response('w9') FROM smollm2").await.0.len(),
        2,
        "a table wins over a model"
    );
}

#[tokio::test]
async fn prepared_statements_take_parameters_in_prompt_options_and_context() {
    let fixture = Fixture::new().await;
    let sql = "SELECT generate_response(?, max_tokens => ?) AS r FROM smollm2 USING CONTEXT (SELECT body FROM notes WHERE id < ? ORDER BY id)";
    let prepared = fixture.session.prepare(sql).await.unwrap();
    assert_eq!(prepared.result_schema.field(0).name(), "r");
    let types: Vec<&DataType> = prepared.parameter_schema.fields().iter().map(|field| field.data_type()).collect();
    assert_eq!(types[0], &DataType::Utf8);
    let whole = |value: i64, index: usize| arrow::compute::cast(&Int64Array::from(vec![value]), types[index]).unwrap();
    let columns = vec![Arc::new(StringArray::from(vec!["w7"])) as _, whole(2, 1), whole(3, 2)];
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let params = RecordBatch::try_new_with_options(prepared.parameter_schema.clone(), columns, &options).unwrap();
    let rows = lines(&collect(fixture.session.execute_prepared(&prepared, &params).await.unwrap()).await.unwrap());
    assert_eq!(rows, [fixture.answer("w7", &["w1", "w2"], 2).await]);
    assert_eq!(fixture.prompts(), ["w7"]);
}

#[tokio::test]
async fn long_contexts_are_cut_and_not_refused() {
    let fixture = Fixture::new().await;
    let sql = "SELECT generate_response('w1', max_tokens => 3) FROM smollm2 USING CONTEXT (SELECT repeat('w5 ', 100) FROM range(50))";
    let (rows, _) = fixture.run(sql).await;
    assert_eq!(rows[0].split(' ').count(), 3);
}

#[tokio::test]
async fn a_dropped_stream_stops_the_engine() {
    let fixture = Fixture::with(AiOptions { max_in_flight: 4, ..uncached() }).await;
    let sql = "SELECT generate_response('w' || value, max_tokens => 200) FROM range(1000)";
    let Outcome::Rows(mut rows) = fixture.session.execute(sql).await.unwrap() else {
        panic!("no rows");
    };
    assert!(rows.next().await.unwrap().unwrap().num_rows() <= 4, "rows come as they finish");
    drop(rows);
    while fixture.book.running.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    let asked = fixture.book.generations.lock().len();
    assert!(asked <= 16, "{asked} of 1000 rows were asked");
    // The engine is free for the next request, and finishes none of the dropped ones.
    let finished = fixture.book.finished.load(Ordering::SeqCst);
    fixture.answer("w1", &[], 1).await;
    assert_eq!(fixture.book.finished.load(Ordering::SeqCst), finished);
}

#[tokio::test]
async fn a_full_queue_makes_the_query_wait() {
    let fixture = Fixture::new().await;
    fixture.book.busy.store(3, Ordering::SeqCst);
    let (rows, prompts) = fixture.run("SELECT generate_response('w1', max_tokens => 1)").await;
    assert_eq!((rows.len(), prompts.len()), (1, 1));
    assert_eq!(fixture.book.busy.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_error_names_the_row_unless_it_may_be_null() {
    let fixture = Fixture::new().await;
    *fixture.book.failing.lock() = Some("w3".to_owned());
    let error = fixture.error("SELECT generate_response(body, max_tokens => 1) FROM notes ORDER BY id").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.message(), "generate_response failed on row 3: the engine is shutting down");
    let sql =
        "SELECT id FROM notes WHERE generate_response(body, max_tokens => 1, on_error => 'null') IS NULL ORDER BY id";
    assert_eq!(fixture.run(sql).await.0, ["3", "6"]);
}

#[tokio::test]
async fn explain_shows_the_calls_and_what_they_cost() {
    let fixture = Fixture::new().await;
    let sql =
        "EXPLAIN ANALYZE SELECT id, CASE WHEN id < 3 THEN generate_response(kind, max_tokens => 2) END FROM notes";
    let plan = fixture.run(sql).await.0.join("\n");
    let node = plan.lines().find(|line| line.contains("GenerateExec")).unwrap();
    for part in [
        "max_tokens => 2",
        "when",
        "calls=2",
        "deduplicated=0",
        "cache_hits=0",
        "failed=0",
        "completion_tokens=4",
        "prompt_tokens=",
    ] {
        assert!(node.contains(part), "{part} in {node}");
    }
}

#[tokio::test]
async fn answers_are_named_after_the_function() {
    let fixture = Fixture::new().await;
    let sql = "SELECT generate_response('w1'), generate_response('w2', seed => 1), embed('w1') FROM notes LIMIT 1";
    let batch = collect(fixture.session.execute(sql).await.unwrap()).await.unwrap();
    let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["generate_response", "generate_response_2", "embed"]);
}

/// Rows with the embeddings of their texts, more than are compared without an index.
async fn embedded() -> Fixture {
    let fixture = Fixture::with(uncached()).await;
    let width = fixture.engine.resolve(Task::Embed, None).unwrap().hidden_size;
    fixture.session.execute("CREATE TABLE words (body TEXT)").await.unwrap();
    fixture.session.execute("INSERT INTO words VALUES ('w1'), ('w2'), ('w3'), ('w4')").await.unwrap();
    let create = format!("CREATE TABLE texts (id INT, body TEXT, v VECTOR({width}))");
    fixture.session.execute(&create).await.unwrap();
    let fill = "INSERT INTO texts SELECT row_number() OVER (ORDER BY body), body, embed(body) FROM words";
    fixture.session.execute(fill).await.unwrap();
    fixture.book.embeddings.lock().clear();
    fixture
}

impl Fixture {
    /// The rows of a statement, and how many texts were embedded for it.
    async fn embedding(&self, sql: &str) -> (Vec<String>, usize) {
        self.book.embeddings.lock().clear();
        let batch = collect(self.session.execute(sql).await.unwrap()).await.unwrap();
        let texts = self.book.embeddings.lock().iter().map(|request| request.inputs.len()).sum();
        (lines(&batch), texts)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedding_of_a_constant_is_made_once_and_searched_for_in_the_index() {
    let fixture = embedded().await;
    let nearest = [
        "SELECT id FROM texts ORDER BY cosine_distance(v, embed('w3')) LIMIT 1",
        "SELECT id FROM texts ORDER BY cosine_distance(embed('w3', model => 'minilm'), v) LIMIT 1",
        "SELECT id FROM texts ORDER BY cosine_similarity(v, embed('w' || '3')) DESC NULLS LAST LIMIT 1",
        "SELECT id FROM texts WHERE body <> 'w4' ORDER BY l2_distance(v, embed('w3')) LIMIT 1",
        "SELECT id FROM (SELECT id, cosine_distance(v, embed('w3')) AS d FROM texts) ORDER BY d LIMIT 1",
        "SELECT id FROM texts WHERE cosine_distance(v, embed('w3')) < 0.5 ORDER BY cosine_distance(v, embed('w3')) LIMIT 1",
        "SELECT id FROM vector_search(texts, embed('w3'), v, 1)",
    ];
    for sql in nearest {
        let plan = fixture.embedding(&format!("EXPLAIN {sql}")).await;
        assert_eq!(plan.1, 0, "a plan asks no engine: {sql}");
        let plan = plan.0.join("\n");
        assert!(plan.contains("NearestExec") && plan.contains("index: ") || plan.contains("SearchExec"), "{plan}");
        assert_eq!(fixture.embedding(sql).await, (vec!["3".to_owned()], 1), "{sql}");
    }
    let twice = "SELECT id, round(cosine_distance(v, embed('w2')), 3) AS d, inner_product(v, embed('w2')) > 0 AS p
        FROM texts ORDER BY cosine_distance(v, embed('w2')) LIMIT 1";
    assert_eq!(fixture.embedding(twice).await, (vec!["2|0.0|true".to_owned()], 1));
    let two = "SELECT id FROM texts ORDER BY cosine_distance(v, embed('w1')), l2_distance(v, embed('w2')) LIMIT 1";
    assert_eq!(fixture.embedding(two).await, (vec!["1".to_owned()], 2));
    let all = "SELECT id FROM texts ORDER BY cosine_distance(v, embed('w4')), id";
    assert_eq!(fixture.embedding(all).await.1, 1, "without a limit too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_text_is_embedded_once_and_a_null_has_no_neighbours() {
    let fixture = embedded().await;
    let sql = "SELECT id FROM texts ORDER BY cosine_distance(v, embed($1)), id LIMIT 2";
    let prepared = fixture.session.prepare(sql).await.unwrap();
    let text = |text: Option<&str>| {
        let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
        RecordBatch::try_from_iter_with_nullable([("$1", column, true)]).unwrap()
    };
    let found = fixture.session.execute_prepared(&prepared, &text(Some("w2"))).await.unwrap();
    let found = lines(&collect(found).await.unwrap());
    assert_eq!((found[0].as_str(), fixture.book.embeddings.lock().len()), ("2", 1));
    let none = fixture.session.execute_prepared(&prepared, &text(None)).await.unwrap();
    assert_eq!(lines(&collect(none).await.unwrap()), ["1", "2"]);
    // Any subquery of one row that reads none of the table's is such a constant.
    let alike =
        "SELECT id FROM texts WHERE id <> 4 ORDER BY cosine_distance(v, (SELECT v FROM texts WHERE id = 4)) LIMIT 3";
    let plan = fixture.embedding(&format!("EXPLAIN {alike}")).await.0.join("\n");
    assert!(plan.contains("NearestExec") && plan.contains("filter="), "{plan}");
    assert_eq!(fixture.embedding(alike).await.0.len(), 3);
    let missing = "SELECT id FROM texts ORDER BY cosine_distance(v, (SELECT v FROM texts WHERE id = 9)), id LIMIT 1";
    assert_eq!(fixture.embedding(missing).await.0, ["1"]);
    // A call that only some rows may need is made for those.
    let guarded = "SELECT id FROM texts ORDER BY CASE WHEN id > 9 THEN cosine_distance(v, embed('w2')) END, id LIMIT 1";
    assert_eq!(fixture.embedding(guarded).await, (vec!["1".to_owned()], 0));
}
