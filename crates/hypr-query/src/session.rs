//! A client's view of the engine: prepare, execute, ingest.

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::parser::Statement;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use hypr_common::principal::Principal;
use hypr_common::{Error, Result, types};
use hypr_inference::api::Task;

use crate::catalog::Catalog;
use crate::partitions;
use crate::planner::{Overlay, Planner};
use crate::prepared::{self, Action, PreparedPlan};
use crate::statement_state::RunsAs;
use crate::transaction::{OpenStatement, Scope, check_inside};
use crate::vector_search::settings::SearchSettings;
use crate::{
    DEFAULT_SCHEMA, Outcome, Prepared, QueryEngine, copy, dialect, error, ingest, limits, shape, sql_functions,
    versions,
};

/// What one client runs statements with. Cheap to clone; clones share an open transaction, and statements of one
/// session may run at once.
#[derive(Clone)]
pub struct Session {
    engine: Arc<QueryEngine>,
    principal: Principal,
    pub(crate) state: Arc<SessionState>,
    pub(crate) catalog: Catalog,
    pub(crate) scope: Scope,
    /// Where bare names of tables are looked for first.
    pub(crate) schema: Arc<str>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("principal", &self.principal).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(engine: Arc<QueryEngine>, principal: Principal, state: &SessionState) -> Self {
        let mut state = state.clone();
        state.config_mut().set_extension(Arc::new(RunsAs(principal.clone())));
        state.config_mut().set_extension(Arc::new(SearchSettings::default()));
        let catalog = engine.catalog().clone();
        let state = Arc::new(state);
        Self { engine, principal, state, catalog, scope: Scope::Session(Arc::default()), schema: DEFAULT_SCHEMA.into() }
    }

    /// Who the session acts as.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &Arc<QueryEngine> {
        &self.engine
    }

    /// Parses and plans one statement without running it.
    ///
    /// # Errors
    /// `InvalidInput` with a position for bad SQL, `NotFound` for an unknown table, `Unsupported` for a
    /// statement that is not served.
    pub fn prepare<'a>(&'a self, sql: &'a str) -> BoxFuture<'a, Result<Prepared>> {
        // Boxed here and where statements run: callers need not prove the whole planner `Send` again.
        self.plan_statement(sql).boxed()
    }

    async fn plan_statement(&self, sql: &str) -> Result<Prepared> {
        let session = &self.now().unwrap_or_else(|_| self.clone());
        let statement = session.parse(sql)?;
        let mut plan = PreparedPlan::of(statement)?;
        let mut result_schema: SchemaRef = Arc::new(Schema::empty());
        let mut scanned_bytes = None;
        match &plan.action {
            Action::Query => {
                let planned = session.planned(&session.state, &plan, Vec::new()).await?;
                plan.parameters = prepared::parameters_of(&planned.logical)?;
                scanned_bytes = partitions::scanned_bytes(&planned.logical);
                result_schema = session.announced(&plan, &planned.schema).await;
            }
            Action::Change(change) => {
                let (plans, returned) = change.plans(session).await?;
                plan.parameters = prepared::parameters_of_all(&plans)?;
                result_schema = returned.unwrap_or(result_schema);
            }
            Action::CreateTable(_)
            | Action::AlterTable(_)
            | Action::CreateView(_)
            | Action::Drop { .. }
            | Action::CreateFunction(_)
            | Action::DropFunction { .. }
            | Action::Series(_)
            | Action::Version(_)
            | Action::Copy(_)
            | Action::Control(_)
            | Action::Prefix(_)
            | Action::Model(_)
            | Action::Set(_) => {}
            Action::CreateIndex(_) | Action::CreateTextIndex(_) | Action::DropIndex { .. } => {}
        }
        Ok(Prepared {
            sql: sql.to_owned(),
            kind: plan.action.kind(),
            changes_data: !matches!(plan.action, Action::Query),
            result_schema,
            parameter_schema: prepared::parameter_schema(&plan.parameters),
            scanned_bytes,
            plan,
        })
    }

    /// `schema`, with text where a column's type is that of a parameter of which no type is known: clients are told to bind
    /// text there.
    async fn announced(&self, plan: &PreparedPlan, schema: &SchemaRef) -> SchemaRef {
        let is_open = schema.fields().iter().any(|field| field.data_type().is_null());
        if is_open && plan.parameters.iter().any(Option::is_none) {
            let types = prepared::parameter_schema(&plan.parameters).fields().to_vec();
            // Text may not do where nothing is known: then it stays so until values are bound.
            if let Ok(planned) = self.planned(&self.statement_state(), plan, types).await {
                return Arc::clone(&planned.schema);
            }
        }
        Arc::clone(schema)
    }

    fn parse(&self, sql: &str) -> Result<Arc<Statement>> {
        let mut statement = dialect::parse(sql, self)?;
        self.qualify(&mut statement);
        Ok(Arc::new(statement))
    }

    /// Runs one statement that takes no parameters. A closing semicolon is fine.
    ///
    /// # Errors
    /// As [`Session::prepare`], and whatever running it meets.
    pub async fn execute(&self, sql: &str) -> Result<Outcome> {
        let statement = self.now().unwrap_or_else(|_| self.clone()).parse(sql)?;
        let plan = PreparedPlan::of(statement)?;
        self.run(&plan, &no_parameters()).await
    }

    /// Runs a prepared statement once for each row of `params`, which has a column for each parameter. With
    /// no parameters `params` has no columns and its rows do not count.
    ///
    /// An `INSERT` of many rows is one commit; the rows of a query follow one another.
    ///
    /// # Errors
    /// `InvalidInput` for a wrong number of parameters or a value that does not fit.
    pub async fn execute_prepared(&self, prepared: &Prepared, params: &RecordBatch) -> Result<Outcome> {
        prepared::check_count(prepared.plan.parameters.len(), params)?;
        if prepared.plan.parameters.is_empty() {
            return self.run(&prepared.plan, &no_parameters()).await;
        }
        self.run(&prepared.plan, params).await
    }

    /// The columns of the result of `prepared` with `params` bound: values of other types than planning inferred may
    /// give it other types than [`Prepared::result_schema`] says.
    ///
    /// # Errors
    /// Those of planning with such values.
    pub async fn result_schema(&self, prepared: &Prepared, params: &RecordBatch) -> Result<SchemaRef> {
        let plan = &prepared.plan;
        if !matches!(plan.action, Action::Query) || prepared::are_as_inferred(&plan.parameters, params) {
            return Ok(Arc::clone(&prepared.result_schema));
        }
        prepared::check_count(plan.parameters.len(), params)?;
        let types = prepared::bound_types(&plan.parameters, params);
        if let Some(schema) = plan.cache.schema(&types) {
            return Ok(schema);
        }
        let session = self.now()?;
        let planned = session.planned(&session.statement_state(), plan, types).boxed().await?;
        Ok(Arc::clone(&planned.schema))
    }

    /// Writes a stream of batches into `table` by the rules of `mode`, in commits of at most 64 MiB, and
    /// returns the number of rows. A commit is atomic, the whole stream is not.
    ///
    /// # Errors
    /// `AlreadyExists` or `NotFound` as `mode` says, `InvalidInput` for columns that do not fit.
    pub async fn ingest(
        &self,
        table: crate::TableRef,
        mode: crate::IngestMode,
        batches: SendableRecordBatchStream,
    ) -> Result<u64> {
        let session = self.now()?;
        let open = session.begin_statement().await?;
        let rows = ingest::run(&session, &table, mode, batches).boxed().await?;
        open.into_iter().for_each(OpenStatement::done);
        Ok(rows)
    }

    async fn run(&self, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        if let Action::Control(control) = &plan.action {
            return self.control(control).boxed().await;
        }
        if let Action::Set(set) = &plan.action {
            return set.run(self);
        }
        // A statement that finds all it needs in memory waits for nothing: others must have their turn.
        tokio::task::coop::consume_budget().await;
        let session = self.now()?;
        if session.catalog.transaction().is_some() {
            check_inside(&plan.action, &plan.statement)?;
        }
        let open = match plan.action {
            Action::Query => None,
            _ => session.begin_statement().await?,
        };
        let outcome = session.run_action(plan, params).boxed().await?;
        open.into_iter().for_each(OpenStatement::done);
        Ok(outcome)
    }

    async fn run_action(&self, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        match &plan.action {
            Action::Query => self.run_query(plan, params).await.map(Outcome::Rows),
            Action::Change(change) => change.run(self, plan, params).await,
            Action::CreateTable(create) => crate::ddl::create_table(self, create).await,
            Action::CreateIndex(create) => crate::vector_search::ddl::create_index(self, create).await,
            Action::CreateTextIndex(create) => crate::index_ddl::create(self, create).await,
            Action::DropIndex { indexes, if_exists } => crate::index_ddl::drop(self, indexes, *if_exists).await,
            Action::CreateFunction(create) => sql_functions::create(self, create).await,
            Action::DropFunction { names, if_exists } => sql_functions::drop_functions(self, names, *if_exists).await,
            Action::AlterTable(alter) => alter.run(self).await,
            Action::CreateView(create) => create.run(self).await,
            Action::Drop { names, views: true, if_exists, cascade } => {
                crate::views::drop_views(self, names, *if_exists, *cascade).await
            }
            Action::Drop { names, views: false, if_exists, cascade } => {
                crate::ddl::drop_tables(self, names, *if_exists, *cascade).await
            }
            Action::Series(statement) => statement.run(self).await,
            Action::Control(control) => self.control(control).await,
            Action::Set(set) => set.run(self),
            Action::Prefix(statement) => statement.run(self).await,
            Action::Model(statement) => statement.run(self).await,
            Action::Version(statement) => Box::pin(versions::run(self, statement)).await,
            Action::Copy(statement) => Box::pin(copy::run(self, statement)).await,
        }
    }

    async fn run_query(&self, plan: &PreparedPlan, params: &RecordBatch) -> Result<SendableRecordBatchStream> {
        let mut streams = Vec::with_capacity(params.num_rows());
        for row in 0..params.num_rows() {
            let state = self.statement_state();
            let planned = self.planned(&state, plan, prepared::bound_types(&plan.parameters, params)).await?;
            if planned.types.is_empty() {
                prepared::check_count(prepared::parameters_of(&planned.logical)?.len(), params)?;
            }
            let schema = Arc::clone(&planned.schema);
            if let LogicalPlan::DescribeTable(describe) = &planned.logical {
                streams.push(described(&describe.schema, &schema)?);
                continue;
            }
            let physical = planned.physical(&state, params, row).await?;
            streams.push(limits::result(&state, shape::conform(limits::start(&state, physical)?, schema)));
        }
        let Some(first) = streams.first() else {
            return Err(Error::invalid("the statement has parameters and no row of them was bound"));
        };
        let schema = first.schema();
        if streams.len() == 1 {
            return Ok(streams.remove(0));
        }
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(streams).flatten())))
    }

    /// The plan of a prepared query with row `row` of the parameters in it.
    pub(crate) async fn bound_plan(
        &self,
        state: &SessionState,
        plan: &PreparedPlan,
        overlay: Option<&Overlay>,
        params: &RecordBatch,
        row: usize,
    ) -> Result<LogicalPlan> {
        self.bound(state, (*plan.statement).clone(), plan, overlay, params, row).await
    }

    /// The plan of `statement`, which is a part of what `plan` prepared, with row `row` of the parameters in it.
    pub(crate) async fn bound(
        &self,
        state: &SessionState,
        statement: Statement,
        plan: &PreparedPlan,
        overlay: Option<&Overlay>,
        params: &RecordBatch,
        row: usize,
    ) -> Result<LogicalPlan> {
        let types = prepared::bound_types(&plan.parameters, params);
        let logical = self.planner(state).plan(statement, overlay, &types).await?;
        if types.is_empty() {
            prepared::check_count(prepared::parameters_of(&logical)?.len(), params)?;
        }
        prepared::bind(logical, &types, params, row)
    }

    /// Runs a plan to its end.
    pub(crate) async fn collect(&self, state: &SessionState, plan: &LogicalPlan) -> Result<Vec<RecordBatch>> {
        let physical = state.create_physical_plan(plan).boxed().await.map_err(error::from_datafusion)?;
        limits::collect(state, physical).boxed().await
    }

    /// The state of one statement: it fixes what `now()` is.
    pub(crate) fn statement_state(&self) -> SessionState {
        let mut state = (*self.state).clone();
        state.mark_start_execution();
        state
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) fn planner<'a>(&'a self, state: &'a SessionState) -> Planner<'a> {
        Planner { state, catalog: self.catalog(), names: self }
    }
}

impl dialect::Names for Session {
    fn statement_bytes(&self) -> usize {
        self.engine.statement_bytes()
    }

    fn is_table(&self, name: &str) -> bool {
        self.catalog().stored(&crate::TableRef::bare(name)).is_ok()
            || self.catalog().model_table(crate::DEFAULT_SCHEMA, name).is_some()
            || crate::views::is_view(self, &crate::TableRef::bare(name))
    }

    fn is_model(&self, name: &str) -> bool {
        self.engine.inference().resolve(Task::Generate, Some(name)).is_ok()
    }
}

/// One execution without parameters.
fn no_parameters() -> RecordBatch {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(Schema::empty())))
}

pub(crate) async fn start(state: &SessionState, plan: &LogicalPlan) -> Result<SendableRecordBatchStream> {
    let physical = state.create_physical_plan(plan).boxed().await.map_err(error::from_datafusion)?;
    limits::start(state, physical)
}

/// The rows of `DESCRIBE`, with the names that our DDL has for types.
fn described(table: &Schema, schema: &SchemaRef) -> Result<SendableRecordBatchStream> {
    let mut columns = [StringBuilder::new(), StringBuilder::new(), StringBuilder::new()];
    for field in table.fields() {
        columns[0].append_value(field.name());
        columns[1].append_value(types::sql_type_name(field));
        columns[2].append_value(if field.is_nullable() { "YES" } else { "NO" });
    }
    let columns = columns.map(|mut column| Arc::new(column.finish()) as _).to_vec();
    let batch = RecordBatch::try_new(Arc::clone(schema), columns)?;
    Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), stream::iter([Ok(batch)]))))
}
