//! `model_metadata`, `model_weights`, `models`, `model_kv_cache` and `loaded_models`: models as tables.
//!
//! `model_weights` has a row a piece of a tensor (see `hypr_common::model`). A scan decides on the small
//! columns which pieces are wanted, then hands out one batch a piece whose `weight_data` is the mapped
//! buffer itself: nothing is copied, and a query that does not read `weight_data` does not touch its pages.
//! `models` has a row a layer, with what one would ask first; see [`layers`].

mod kv_cache;
mod layers;
mod loaded;
mod tokens;
mod weights_scan;

use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as DfResult;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use hypr_common::model::{ModelMetadata, ModelSource, layer_schema};
use hypr_common::{Error, Result, types};
use hypr_inference::api::Inference;
use hypr_storage::PrefixStore;

use crate::dialect::ddl::CreateTable;
use crate::error;

pub(crate) use tokens::{PROMPT_OF, SELECTED_WEIGHTS, WHOLE_MODEL, functions, selected_weights};

/// One of the built-in tables.
#[derive(Clone, Debug)]
pub(crate) struct ModelTable {
    kind: Kind,
    source: Arc<dyn ModelSource>,
    inference: Arc<dyn Inference>,
    prefixes: Arc<PrefixStore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Metadata,
    Weights,
    Layers,
    KvCache,
    Loaded,
}

impl ModelTable {
    /// Their names.
    pub(crate) const NAMES: [&'static str; 5] =
        ["loaded_models", "model_kv_cache", "model_metadata", "model_weights", "models"];

    /// The built-in table called `name`.
    pub(crate) fn find(
        name: &str,
        source: Arc<dyn ModelSource>,
        inference: &Arc<dyn Inference>,
        prefixes: &Arc<PrefixStore>,
    ) -> Option<Self> {
        let kind = match name {
            "model_metadata" => Kind::Metadata,
            "model_weights" => Kind::Weights,
            "models" => Kind::Layers,
            "model_kv_cache" => Kind::KvCache,
            "loaded_models" => Kind::Loaded,
            _ => return None,
        };
        Some(Self { kind, source, inference: Arc::clone(inference), prefixes: Arc::clone(prefixes) })
    }

    /// The key columns.
    pub(crate) fn primary_key(&self) -> Vec<String> {
        let names: &[&str] = match self.kind {
            Kind::Metadata => &["model_id"],
            Kind::Weights => &["model_id", "layer_id", "parameter_type", "parameter_name", "weight_shard_id"],
            Kind::Layers => &["model_name", "layer_id"],
            Kind::KvCache => &["sequence_id", "layer_id"],
            // A model may have a copy that drains beside the one that is loaded.
            Kind::Loaded => &[],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Where its rows come from, and so why a statement cannot change them.
    pub(crate) fn filled_by(&self) -> &'static str {
        match self.kind {
            Kind::Metadata | Kind::Weights | Kind::Layers => "filled by importing models; SQL cannot change it yet",
            Kind::KvCache | Kind::Loaded => "which shows what the engine holds; SQL cannot change it",
        }
    }

    /// Accepts the documents' `CREATE TABLE` of a built-in table, which has nothing to do.
    ///
    /// # Errors
    /// `InvalidInput` when it declares a column that the table does not have.
    pub(crate) fn check_declaration(&self, create: &CreateTable) -> Result<()> {
        let name = &create.table.name;
        if create.query.is_some() {
            return Err(Error::invalid(format!("\"{name}\" is a built-in table; create yours under another name")));
        }
        let schema = self.schema();
        for declared in &create.columns {
            let fits = schema.field_with_name(declared.name()).is_ok_and(|field| {
                // The documents declare the weights as VECTOR(DYNAMIC); blocks of any encoding are bytes.
                field.data_type() == declared.data_type() || field.name() == "weight_data" && types::is_vector(declared)
            });
            if !fits {
                return Err(Error::invalid(format!(
                    "\"{name}\" is a built-in table and has no column \"{}\" of type {}; create yours under another name",
                    declared.name(),
                    types::sql_type_name(declared)
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl TableProvider for ModelTable {
    fn schema(&self) -> SchemaRef {
        match self.kind {
            Kind::Metadata => metadata_schema(),
            Kind::Weights => weights_schema(),
            Kind::Layers => layers::schema(),
            Kind::KvCache => kv_cache::schema(),
            Kind::Loaded => loaded::schema(),
        }
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        match self.kind {
            Kind::Metadata => {
                let models = self.source.models().map_err(error::to_datafusion)?;
                let batch = metadata_batch(&models).map_err(error::to_datafusion)?;
                let scan = MemorySourceConfig::try_new_exec(&[vec![batch]], metadata_schema(), projection.cloned())?;
                Ok(scan)
            }
            Kind::Weights => weights_scan::plan(state, &self.source, projection, filters, limit),
            Kind::Layers => layers::plan(&self.source, projection, filters, limit),
            Kind::KvCache => kv_cache::plan(state, &self.inference, &self.prefixes, projection, filters, limit).await,
            Kind::Loaded => loaded::plan(&self.inference, projection).await,
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match self.kind {
                Kind::Weights if weights_scan::is_on_small_columns(filter) => TableProviderFilterPushDown::Exact,
                Kind::Layers => TableProviderFilterPushDown::Inexact,
                Kind::KvCache if kv_cache::is_on_small_columns(filter) => TableProviderFilterPushDown::Exact,
                Kind::Weights | Kind::KvCache | Kind::Metadata | Kind::Loaded => {
                    TableProviderFilterPushDown::Unsupported
                }
            })
            .collect())
    }
}

/// Columns of `model_metadata`.
fn metadata_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("model_id", DataType::Utf8, false),
        Field::new("model_type", DataType::Utf8, false),
        Field::new("total_parameters", DataType::Int64, false),
        types::json_field("architecture_config", false),
        Field::new("vocab_size", DataType::Int32, false),
        Field::new("hidden_size", DataType::Int32, false),
        Field::new("num_attention_heads", DataType::Int32, false),
        Field::new("num_hidden_layers", DataType::Int32, false),
    ]))
}

/// Columns of `model_weights`: the layer files' columns after `model_id`.
fn weights_schema() -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new("model_id", DataType::Utf8, false))];
    fields.extend(layer_schema().fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

fn metadata_batch(models: &[ModelMetadata]) -> Result<RecordBatch> {
    let text = |of: fn(&ModelMetadata) -> String| -> ArrayRef {
        Arc::new(models.iter().map(|model| Some(of(model))).collect::<StringArray>())
    };
    let int = |of: fn(&ModelMetadata) -> i32| -> ArrayRef { Arc::new(models.iter().map(of).collect::<Int32Array>()) };
    let columns = vec![
        text(|model| model.model_id.clone()),
        text(|model| model.model_type.clone()),
        Arc::new(models.iter().map(|model| model.total_parameters).collect::<Int64Array>()),
        text(|model| architecture_config(model).to_string()),
        int(|model| model.vocab_size),
        int(|model| model.hidden_size),
        int(|model| model.num_attention_heads),
        int(|model| model.num_hidden_layers),
    ];
    Ok(RecordBatch::try_new(metadata_schema(), columns)?)
}

/// The configuration as SQL shows it: `tokenizer` says whose it is, since all models' files have one name.
fn architecture_config(model: &ModelMetadata) -> serde_json::Value {
    let mut config = model.architecture_config.clone();
    if let Some(tokenizer) = config.get_mut("tokenizer")
        && let Some(file) = tokenizer.as_str()
    {
        *tokenizer = format!("{}/{file}", model.model_id).into();
    }
    config
}
