//! A database in a temporary directory and a session on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use hypr_common::principal::Principal;
use hypr_common::{Error, Result};
use hypr_inference::{EngineOptions, engine};
use hypr_query::{Outcome, QueryEngine, QueryOptions, Session};
use hypr_storage::{Database, StorageOptions};
use tempfile::TempDir;

/// The directory of this crate. Read when the test runs: a target directory that several checkouts share may hold a
/// test built in another one.
pub fn crate_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

/// What scripts and pages call the directory that `COPY` may use.
const FILES: &str = "/srv/files";

/// An open database; its directory goes when it is dropped.
pub struct Fixture {
    _dir: Option<TempDir>,
    files: TempDir,
    pub database: Database,
    pub session: Session,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with_options(QueryOptions::default()).await
    }

    pub async fn with_options(options: QueryOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Self::open(dir.path(), options).await;
        fixture._dir = Some(dir);
        fixture
    }

    /// On a directory that stays.
    pub async fn at(dir: &Path) -> Self {
        Self::open(dir, QueryOptions::default()).await
    }

    async fn open(dir: &Path, mut options: QueryOptions) -> Self {
        let files = tempfile::tempdir().unwrap();
        options.copy.allowed.push(files.path().to_str().unwrap().to_owned());
        let database = Database::open(dir, StorageOptions::default()).await.unwrap();
        let (inference, service) = engine(database.models(), EngineOptions { threads: 1, ..EngineOptions::default() });
        std::thread::spawn(move || service.run());
        let engine = QueryEngine::new(database.clone(), Arc::new(inference), options).unwrap();
        let session = engine.session(Principal::anonymous_local());
        Self { _dir: None, files, database, session }
    }

    pub async fn run(&self, sql: &str) -> Result<Outcome> {
        let files = self.files.path().to_str().unwrap();
        let done = self.session.execute(&sql.replace(FILES, files)).await;
        done.map_err(|error| Error::new(error.kind(), error.message().replace(files, FILES)))
    }

    pub async fn affected(&self, sql: &str) -> u64 {
        match self.run(sql).await.unwrap() {
            Outcome::Affected(rows) => rows,
            Outcome::Rows(_) => panic!("{sql} gave rows"),
        }
    }

    /// The rows of a query in one batch.
    pub async fn query(&self, sql: &str) -> RecordBatch {
        collect(self.run(sql).await.unwrap()).await.unwrap()
    }

    /// The rows of a query as text, cells parted by `|`.
    pub async fn lines(&self, sql: &str) -> Vec<String> {
        lines(&self.query(sql).await)
    }

    pub async fn error(&self, sql: &str) -> Error {
        match self.run(sql).await {
            Err(error) => error,
            Ok(outcome) => match collect(outcome).await {
                Err(error) => error,
                Ok(_) => panic!("{sql} succeeded"),
            },
        }
    }
}

pub async fn collect(outcome: Outcome) -> Result<RecordBatch> {
    let Outcome::Rows(stream) = outcome else {
        panic!("no rows: {outcome:?}");
    };
    let schema = stream.schema();
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(hypr_query::from_datafusion)?;
    Ok(concat_batches(&schema, &batches)?)
}

pub fn lines(batch: &RecordBatch) -> Vec<String> {
    cells(batch).into_iter().map(|row| row.join("|")).collect()
}

/// The cells of a batch as text.
pub fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<ArrayFormatter> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()).collect()
}
