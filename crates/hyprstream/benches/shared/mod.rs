//! What the benches have in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use hypr_common::model::{ModelMetadata, ModelSource, ModelTables};
use hypr_common::{Error, Result};

/// A number from the environment.
pub fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The model that is measured, `bench`, and perhaps one beside it.
#[derive(Debug)]
pub struct One(BTreeMap<String, Arc<ModelTables>>);

impl One {
    pub fn new(tables: Arc<ModelTables>) -> Self {
        Self::with(tables, None)
    }

    /// The same beside a model that guesses for it, `draft`.
    pub fn with(tables: Arc<ModelTables>, draft: Option<Arc<ModelTables>>) -> Self {
        let models = [("bench".to_owned(), tables)].into_iter().chain(draft.map(|draft| ("draft".to_owned(), draft)));
        Self(models.collect())
    }
}

impl ModelSource for One {
    fn models(&self) -> Result<Vec<ModelMetadata>> {
        Ok(self.0.values().map(|tables| tables.metadata.clone()).collect())
    }

    fn open(&self, model_id: &str) -> Result<Arc<ModelTables>> {
        self.0.get(model_id).cloned().ok_or_else(|| Error::not_found(format!("the bench has no model {model_id}")))
    }
}
