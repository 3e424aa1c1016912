//! The engine: one per open database, shared by all sessions.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::prelude::SessionConfig;
use hypr_common::Result;
use hypr_common::model::ModelSource;
use hypr_common::principal::Principal;
use hypr_inference::api::Inference;
use hypr_storage::{Database, PrefixStore};

use crate::catalog::Catalog;
use crate::copy::CopyAccess;
use crate::dialect::operators::JsonOperators;
use crate::dialect::types::HyprTypePlanner;
use crate::extensions::HyprQueryPlanner;
use crate::limits::{Enforced, Limits};
use crate::{
    AiMetrics, AiOptions, CATALOG, DEFAULT_SCHEMA, Session, TableInfo, ai, error, functions, models, search, series,
    sql_functions, statement_state, vector_search, versions,
};

/// How many of the largest memory consumers an out-of-memory error names.
const NAMED_CONSUMERS: usize = 3;

/// Bounds of query execution.
#[derive(Clone, Debug)]
pub struct QueryOptions {
    /// The most bytes that all running statements together hold for sorting, joining and grouping before
    /// they spill to disk.
    pub memory_limit_bytes: usize,
    /// Where they spill; the system's temporary directory if none.
    pub temp_dir: Option<PathBuf>,
    /// The most bytes of spilled data.
    pub temp_limit_bytes: u64,
    /// Threads a statement may keep busy.
    pub target_partitions: usize,
    /// Rows in a batch.
    pub batch_rows: usize,
    /// Bounds of AI calls.
    pub ai: AiOptions,
    /// Files and buckets that `COPY` may use.
    pub copy: CopyAccess,
    /// Bounds of one statement.
    pub limits: Limits,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            memory_limit_bytes: 1 << 30,
            temp_dir: None,
            temp_limit_bytes: 64 << 30,
            target_partitions: std::thread::available_parallelism().map_or(1, usize::from),
            batch_rows: 8192,
            ai: AiOptions::default(),
            copy: CopyAccess::default(),
            limits: Limits::default(),
        }
    }
}

/// Plans and runs SQL over one database.
pub struct QueryEngine {
    database: Database,
    inference: Arc<dyn Inference>,
    catalog: Catalog,
    /// Lean; see [`statement_state`].
    state: Arc<SessionState>,
    answers: Arc<ai::AnswerCache>,
    copy: CopyAccess,
    statement_bytes: usize,
}

impl fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryEngine").field("inference", &self.inference).finish_non_exhaustive()
    }
}

impl QueryEngine {
    /// An engine over `database` that generates and embeds with `inference`.
    ///
    /// # Errors
    /// When the temporary directory cannot be used.
    pub fn new(database: Database, inference: Arc<dyn Inference>, options: QueryOptions) -> Result<Arc<Self>> {
        let catalog = Catalog::new(database.clone(), Arc::clone(&inference));
        let answers = Arc::new(ai::AnswerCache::new(options.ai.cache_bytes));
        let state = Arc::new(statement_state::lean(session_state(&catalog, &inference, &answers, &options)?));
        let copy = CopyAccess { protected: Some(database.dir().to_owned()), ..options.copy };
        Ok(Arc::new(Self {
            database,
            inference,
            catalog,
            state,
            answers,
            copy,
            statement_bytes: options.limits.statement_bytes,
        }))
    }

    /// A session that acts as `principal`.
    pub fn session(self: &Arc<Self>, principal: Principal) -> Session {
        Session::new(Arc::clone(self), principal, &self.state)
    }

    /// The database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// What generates and embeds.
    pub fn inference(&self) -> &Arc<dyn Inference> {
        &self.inference
    }

    /// Saved beginnings of prompts.
    pub(crate) fn prefixes(&self) -> &Arc<PrefixStore> {
        self.catalog.prefixes()
    }

    /// What AI calls of all statements have cost.
    pub fn ai_metrics(&self) -> AiMetrics {
        self.answers.metrics()
    }

    /// Every table, stored and built in, by schema and name, as of now.
    pub fn tables(&self) -> Vec<TableInfo> {
        self.catalog.tables()
    }

    /// The names of all schemas, as of now.
    pub fn schemas(&self) -> Vec<String> {
        self.catalog.schemas()
    }

    /// The names of all functions, sorted.
    pub fn function_names(&self) -> Vec<String> {
        let state = statement_state::full(&self.state);
        let mut names: Vec<String> = state.scalar_functions().keys().cloned().collect();
        names.extend(state.aggregate_functions().keys().cloned());
        names.extend(state.window_functions().keys().cloned());
        names.extend(sql_functions::names(&self.database));
        names.retain(|name| !name.starts_with('_'));
        names.sort();
        names.dedup();
        names
    }

    /// The longest text of a statement, in bytes.
    pub(crate) fn statement_bytes(&self) -> usize {
        self.statement_bytes
    }

    pub(crate) fn copy_access(&self) -> &CopyAccess {
        &self.copy
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }
}

fn session_state(
    catalog: &Catalog,
    inference: &Arc<dyn Inference>,
    answers: &Arc<ai::AnswerCache>,
    options: &QueryOptions,
) -> Result<SessionState> {
    let mut builder = SessionStateBuilder::new()
        .with_config(config(options))
        .with_runtime_env(runtime(options)?)
        .with_default_features()
        .with_catalog_list(Arc::new(catalog.clone()))
        .with_type_planner(Arc::new(HyprTypePlanner));
    // Before the planner of the JSON crate, whose `->` gives a union that clients cannot read.
    let operators = builder.expr_planners().get_or_insert_default();
    operators.splice(0..0, [Arc::new(JsonOperators) as Arc<dyn ExprPlanner>, Arc::new(functions::VectorOperators)]);
    let planner = HyprQueryPlanner::new(vec![
        ai::extension_planner(Arc::clone(inference), options.ai.clone(), Arc::clone(answers)),
        series::extension_planner(),
        search::extension_planner(Arc::clone(inference), options.ai.busy_timeout),
    ]);
    let builder = series::install(builder).with_query_planner(Arc::new(planner));
    let builder = ai::install(builder, Arc::clone(inference), options.ai.clone());
    let mut state = search::install(vector_search::install(builder), catalog).build();
    datafusion_functions_json::register_all(&mut state).map_err(error::from_datafusion)?;
    let table_versions = Arc::new(versions::TableVersions::new(catalog.clone()));
    state.register_udtf(versions::TableVersions::NAME, table_versions);
    let source: Arc<dyn ModelSource> = catalog.database().models();
    for function in functions::all().into_iter().chain(models::functions(&source)) {
        state.register_udf(function).map_err(error::from_datafusion)?;
    }
    series::register(&mut state).map_err(error::from_datafusion)?;
    state.register_udaf(models::selected_weights()).map_err(error::from_datafusion)?;
    Ok(state)
}

fn config(options: &QueryOptions) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(options.target_partitions.max(1))
        .with_batch_size(options.batch_rows.max(1))
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_extension(Arc::new(Enforced::new(options.limits.clone())));
    let settings = config.options_mut();
    settings.sql_parser.map_string_types_to_utf8view = false;
    settings.sql_parser.collect_spans = true;
    settings.explain.show_statistics = false;
    config
}

fn runtime(options: &QueryOptions) -> Result<Arc<RuntimeEnv>> {
    let pool = TrackConsumersPool::new(
        FairSpillPool::new(options.memory_limit_bytes),
        std::num::NonZeroUsize::new(NAMED_CONSUMERS).unwrap_or(std::num::NonZeroUsize::MIN),
    );
    let mut builder = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_max_temp_directory_size(options.temp_limit_bytes);
    if let Some(dir) = &options.temp_dir {
        builder = builder.with_temp_file_path(dir);
    }
    builder.build_arc().map_err(error::from_datafusion)
}
