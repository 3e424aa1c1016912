//! Every file under `tests/slt` is a script against a database of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use hypr_common::Error;
use hypr_query::Outcome;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::harness::{Fixture, cells, collect, crate_dir};
use crate::tiny::tiny;

struct SltDatabase(Arc<Fixture>);

impl SltDatabase {
    /// Runs a statement. One that begins with `-- bind: values` is prepared and gets the values as its parameters.
    async fn outcome(&self, sql: &str) -> Result<Outcome, Error> {
        let Some((values, statement)) = sql.strip_prefix("-- bind:").and_then(|rest| rest.split_once('\n')) else {
            return self.0.run(sql).await;
        };
        let parameters = collect(self.0.run(&format!("VALUES ({values})")).await?).await?;
        let prepared = self.0.session.prepare(statement).await?;
        self.0.session.execute_prepared(&prepared, &parameters).await
    }
}

#[async_trait]
impl AsyncDB for SltDatabase {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Error> {
        match self.outcome(sql).await? {
            Outcome::Affected(rows) => Ok(DBOutput::StatementComplete(rows)),
            outcome => {
                let batch = collect(outcome).await?;
                let types = vec![DefaultColumnType::Any; batch.num_columns()];
                let rows = cells(&batch).into_iter().map(|row| row.into_iter().map(shown).collect()).collect();
                Ok(DBOutput::Rows { types, rows })
            }
        }
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "hyprstream"
    }
}

fn shown(cell: String) -> String {
    if cell.is_empty() { "(empty)".to_owned() } else { cell }
}

fn scripts(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scripts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "slt") {
            found.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_script_gives_what_it_says() {
    let mut paths = Vec::new();
    scripts(&crate_dir().join("tests/slt"), &mut paths);
    paths.sort();
    assert!(paths.len() > 10, "the scripts are missing");
    let only = std::env::var("SLT").ok();
    let mut failures = Vec::new();
    for path in paths {
        if only.as_ref().is_some_and(|only| !path.to_string_lossy().contains(only.as_str())) {
            continue;
        }
        let fixture = Arc::new(Fixture::new().await);
        if path.parent().is_some_and(|dir| dir.ends_with("documents")) {
            // The documents' model, small enough for a test.
            let mut model = tiny("tiny-llama", "llama_7b");
            model.metadata.model_type = "llama_7b".to_owned();
            fixture.database.models().publish(&model).unwrap();
            fixture.database.models().publish(&tiny("tiny-bert", "tiny_bert")).unwrap();
        }
        let mut runner = Runner::new(|| async { Ok(SltDatabase(Arc::clone(&fixture))) });
        if let Err(error) = runner.run_file_async(&path).await {
            failures.push(format!("{}\n{}", path.display(), error.display(false)));
        }
        fixture.database.close().await.unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
