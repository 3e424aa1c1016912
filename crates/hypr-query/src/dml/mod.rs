//! Runs `INSERT`, `INSERT .. ON CONFLICT`, `UPDATE`, `DELETE`, `MERGE` and `TRUNCATE`, a file a verb.
//!
//! A change is a query: [`rewrite`] turns the statement into a `SELECT` that gives the row ids to take out and
//! the rows to put in, DataFusion runs it, and the store makes the change in one commit. `UPDATE`, `DELETE` and
//! `MERGE` hold the table's mutation lock from before the scan to the commit; `ON CONFLICT` takes the keys of its
//! rows instead, see `hypr_storage::Upsert`.
//!
//! Order of a statement, the same for every verb: find the rows and compute the new ones, check `NOT NULL` and
//! `CHECK`, compute `RETURNING`, commit. So an error anywhere leaves the table as it was.

mod delete;
mod insert;
mod merge;
mod returning;
mod rewrite;
mod truncate;
mod update;
mod upsert;
mod vector_casts;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{FieldRef, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use futures::FutureExt;
use hypr_common::{Error, Result};
use hypr_storage::{Mutation, ROW_ID_COLUMN, Table};

use crate::planner::Overlay;
use crate::prepared::{self, PreparedPlan};
use crate::rules::Rules;
use crate::{Outcome, Session, StatementKind, TableRef, error, limits};
use returning::Returning;

pub(crate) use insert::Insert;

/// A statement that changes rows.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it a statement")]
pub(crate) enum Change {
    Insert(Insert),
    Update(update::Update),
    Delete(delete::Delete),
    Merge(merge::Merge),
    Truncate(truncate::Truncate),
}

impl Change {
    /// The change that `sql` is, if it is one.
    ///
    /// # Errors
    /// For clauses that are not served.
    pub(crate) fn of(sql: &Sql) -> Result<Option<Self>> {
        Ok(Some(match sql {
            Sql::Insert(insert) => Self::Insert(Insert::new(insert)?),
            Sql::Update(update) => Self::Update(update::Update::new(update)?),
            Sql::Delete(delete) => Self::Delete(delete::Delete::new(delete)?),
            Sql::Merge(merge) => Self::Merge(merge::Merge::new(merge)?),
            Sql::Truncate(truncate) => Self::Truncate(truncate::Truncate::new(truncate)?),
            _ => return Ok(None),
        }))
    }

    fn returning(&self) -> Option<&Returning> {
        match self {
            Self::Insert(insert) => insert.returning.as_ref(),
            Self::Update(update) => update.returning.as_ref(),
            Self::Delete(delete) => delete.returning.as_ref(),
            Self::Merge(merge) => merge.returning.as_ref(),
            Self::Truncate(_) => None,
        }
    }

    /// With `RETURNING` a change gives rows.
    pub(crate) fn kind(&self) -> StatementKind {
        if self.returning().is_some() { StatementKind::Query } else { StatementKind::Update }
    }

    /// The plans that take the statement's parameters, and the columns of `RETURNING`.
    pub(crate) async fn plans(&self, session: &Session) -> Result<(Vec<LogicalPlan>, Option<SchemaRef>)> {
        let mut plans = match self {
            Self::Insert(insert) => insert.plans(session).await?,
            Self::Update(update) => {
                vec![plan(session, &update.query(&session.catalog().stored(&update.table)?)?).await?]
            }
            Self::Delete(delete) => {
                vec![plan(session, &delete.query(&session.catalog().stored(&delete.table)?)?).await?]
            }
            Self::Merge(merge) => vec![plan(session, &merge.query(&session.catalog().stored(&merge.table)?)?).await?],
            Self::Truncate(_) => Vec::new(),
        };
        let Some(returning) = self.returning() else {
            return Ok((plans, None));
        };
        let returned = returning.plan(session).await?;
        let schema = crate::shape::result_schema(&session.statement_state(), &returned)?;
        plans.push(returned);
        Ok((plans, Some(schema)))
    }

    /// Runs it once for each row of `params`.
    pub(crate) async fn run(&self, session: &Session, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        match self {
            Self::Insert(insert) => insert.run(session, plan, params).await,
            Self::Update(update) => update.run(session, plan, params).await,
            Self::Delete(delete) => delete.run(session, plan, params).await,
            Self::Merge(merge) => merge.run(session, plan, params).await,
            Self::Truncate(truncate) => truncate.run(session).await,
        }
    }
}

/// A query that finds the rows to change, and what its names mean beside the catalog's.
pub(crate) struct ChangeQuery {
    statement: Statement,
    overlay: Overlay,
}

async fn plan(session: &Session, query: &ChangeQuery) -> Result<LogicalPlan> {
    let state = session.statement_state();
    session.planner(&state).plan(query.statement.clone(), Some(&query.overlay), &[]).await
}

/// What one execution does to a table.
#[derive(Debug, Default)]
struct Changed {
    /// Ids of the rows that go.
    removed: Vec<u64>,
    /// The rows that come.
    added: Vec<RecordBatch>,
    /// The rows that `RETURNING` is about, with the columns it knows.
    shown: Vec<RecordBatch>,
    /// What the client is told.
    affected: u64,
}

/// What the executions of a statement gave so far.
#[derive(Default)]
struct Done {
    affected: u64,
    returned: Vec<RecordBatch>,
}

impl Done {
    fn outcome(self, returning: Option<&Returning>, schema: Option<SchemaRef>) -> Result<Outcome> {
        match (returning, schema) {
            (Some(_), Some(schema)) => crate::shape::rows(self.returned, schema).map(Outcome::Rows),
            _ => Ok(Outcome::Affected(self.affected)),
        }
    }
}

/// A statement that finds its rows by a query over the table: `UPDATE`, `DELETE`, `MERGE`.
struct Scanned<'a> {
    session: &'a Session,
    table: &'a TableRef,
    plan: &'a PreparedPlan,
    returning: Option<&'a Returning>,
}

impl Scanned<'_> {
    /// Runs the statement for each row of `params`: `query` builds the query, `decode` reads its rows. With
    /// `together`, all rows of `params` are one query when no row is changed by two of them.
    async fn run(
        &self,
        params: &RecordBatch,
        together: bool,
        query: impl Fn(&Arc<Table>) -> Result<ChangeQuery>,
        decode: impl Fn(&[RecordBatch], &SchemaRef) -> Result<Changed>,
    ) -> Result<Outcome> {
        let schema = match self.returning {
            Some(returning) => Some(returning.schema(self.session).await?),
            None => None,
        };
        let mut done = Done::default();
        if together
            && params.num_rows() > 1
            && self.returning.is_none()
            && self.run_together(params, &query, &decode, &mut done).await?
        {
            return done.outcome(self.returning, schema);
        }
        for row in 0..params.num_rows() {
            let target = self.session.catalog().stored(self.table)?;
            let mutation = target.begin_mutation().await;
            let state = self.session.statement_state();
            let types = prepared::bound_types(&self.plan.parameters, params);
            let logical = self.logical(&state, || query(&target), &target, &types);
            let planned = self.session.planned_by(&state, &self.plan.cache, types.clone(), logical).await?;
            if types.is_empty() {
                prepared::check_count(prepared::parameters_of(&planned.logical)?.len(), params)?;
            }
            let physical = planned.physical(&state, params, row).await?;
            let changed = decode(&limits::collect(&state, physical).boxed().await?, &target.schema())?;
            self.apply(&state, &target, mutation, changed, params, row, &mut done).await?;
        }
        done.outcome(self.returning, schema)
    }

    /// All executions as one query over the parameters. False when they must run one after another.
    async fn run_together(
        &self,
        params: &RecordBatch,
        query: &impl Fn(&Arc<Table>) -> Result<ChangeQuery>,
        decode: &impl Fn(&[RecordBatch], &SchemaRef) -> Result<Changed>,
        done: &mut Done,
    ) -> Result<bool> {
        let target = self.session.catalog().stored(self.table)?;
        let mutation = target.begin_mutation().await;
        let state = self.session.statement_state();
        let query = || rewrite::over_parameters(query(&target)?, params);
        let logical = self.logical(&state, query, &target, &[]).await?;
        let batches = self.session.collect(&state, &logical).await?;
        let mut ids = batches.iter().map(row_ids).collect::<Result<Vec<_>>>()?.concat();
        let found = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() < found {
            return Ok(false);
        }
        let changed = decode(&batches, &target.schema())?;
        self.apply(&state, &target, mutation, changed, params, 0, done).await?;
        Ok(true)
    }

    async fn logical(
        &self,
        state: &SessionState,
        query: impl FnOnce() -> Result<ChangeQuery>,
        target: &Table,
        types: &[FieldRef],
    ) -> Result<LogicalPlan> {
        let query = query()?;
        let plan = self.session.planner(state).plan(query.statement, Some(&query.overlay), types).await?;
        vector_casts::name_columns(plan, &target.schema()).map_err(error::from_datafusion)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one execution")]
    async fn apply(
        &self,
        state: &SessionState,
        target: &Arc<Table>,
        mutation: Mutation,
        changed: Changed,
        params: &RecordBatch,
        row: usize,
        done: &mut Done,
    ) -> Result<()> {
        Rules::of(self.session, state, target)?.check(&changed.added)?;
        if let Some(returning) = self.returning {
            done.returned.extend(returning.rows(self.session, state, self.plan, changed.shown, params, row).await?);
        }
        done.affected += changed.affected;
        if !changed.removed.is_empty() || !changed.added.is_empty() {
            mutation.replace(changed.removed, changed.added).await?;
        }
        Ok(())
    }
}

/// The row ids of a batch that has them.
fn row_ids(batch: &RecordBatch) -> Result<Vec<u64>> {
    let column = batch.column_by_name(ROW_ID_COLUMN).and_then(|column| column.as_primitive_opt::<UInt64Type>());
    match column {
        Some(ids) if ids.null_count() == 0 => Ok(ids.values().to_vec()),
        _ => Err(Error::internal("a scan for a change gave no row ids")),
    }
}
