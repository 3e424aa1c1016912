//! `ON CONFLICT [..] DO NOTHING | DO UPDATE SET [..] WHERE [..]`.
//!
//! The store takes the keys of all proposed rows at once and says which of them meet a stored row. Those pairs
//! become two relations, `excluded` and the table's own name, and one query over them gives the changed rows. What
//! is inserted and what is changed is one commit.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use arrow_select::filter::filter_record_batch;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{
    Assignment, ConflictTarget as TargetAst, DoUpdate, Expr, OnConflictAction, OnInsert,
};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Conflict, ConflictTarget, ROW_ID_COLUMN, Table, Upsert};

use super::returning::Returning;
use super::{ChangeQuery, Done, rewrite, vector_casts};
use crate::dialect::ddl::normalize;
use crate::planner::Overlay;
use crate::prepared::PreparedPlan;
use crate::rules::Rules;
use crate::{Session, TableRef, convert, error};

/// The proposed rows, as the statement calls them.
const EXCLUDED: &str = "excluded";
/// The stored rows that proposed rows meet.
const EXISTING: &str = "__hypr_existing";
/// The proposed rows that meet a stored row.
const PROPOSED: &str = "__hypr_proposed";
/// Numbers the pairs.
const PAIR: &str = "__hypr_pair";

/// An `ON CONFLICT` clause.
#[derive(Clone, Debug)]
pub(super) struct OnConflict {
    target: ConflictTarget,
    /// What `DO UPDATE` does; nothing for `DO NOTHING`.
    update: Option<DoUpdate>,
    alias: String,
}

impl OnConflict {
    /// `alias` is what the clause calls the table.
    pub(super) fn new(on: OnInsert, table: &TableRef, alias: &str) -> Result<Self> {
        let OnInsert::OnConflict(on) = on else {
            return Err(Error::unsupported(
                "ON DUPLICATE KEY UPDATE is not available; use ON CONFLICT (key) DO UPDATE SET",
            ));
        };
        if alias.eq_ignore_ascii_case(EXCLUDED) {
            return Err(Error::invalid("a table called \"excluded\" needs an alias in INSERT .. ON CONFLICT"));
        }
        let target = match &on.conflict_target {
            None => ConflictTarget::Any,
            Some(TargetAst::Columns(columns)) => ConflictTarget::Columns(columns.iter().map(normalize).collect()),
            Some(TargetAst::OnConstraint(name)) => {
                let name = name.0.last().and_then(|part| part.as_ident()).map(normalize);
                ConflictTarget::Constraint(
                    name.ok_or_else(|| Error::invalid("ON CONSTRAINT takes a constraint's name"))?,
                )
            }
        };
        let update = match on.action {
            OnConflictAction::DoNothing => None,
            OnConflictAction::DoUpdate(mut update) => {
                rewrite::shorten_names(&mut update, table, alias);
                Some(update)
            }
        };
        Ok(Self { target, update, alias: alias.to_owned() })
    }

    /// True when a parameter stands in the clause.
    pub(super) fn has_parameters(&self) -> bool {
        self.update.as_ref().is_some_and(rewrite::has_parameters)
    }

    /// The plan of the change of stored rows, without any.
    pub(super) async fn plan(&self, session: &Session, table: &Table) -> Result<Option<LogicalPlan>> {
        self.target(table)?;
        let Some(update) = &self.update else {
            return Ok(None);
        };
        let none = RecordBatch::new_empty(table.schema());
        let mut fields = table.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(ROW_ID_COLUMN, DataType::UInt64, false)));
        let existing = RecordBatch::new_empty(Arc::new(Schema::new(fields)));
        let query = self.query(update, table, &existing, &none)?;
        let state = session.statement_state();
        session.planner(&state).plan(query.statement, Some(&query.overlay), &[]).await.map(Some)
    }

    /// The key that conflicts are about. `DO UPDATE` needs to know one.
    fn target(&self, table: &Table) -> Result<ConflictTarget> {
        if self.update.is_none() || self.target != ConflictTarget::Any {
            return Ok(self.target.clone());
        }
        let primary = &table.definition().primary_key;
        match (primary.is_empty(), table.constraints().unique.as_slice()) {
            (false, []) => Ok(ConflictTarget::Columns(primary.clone())),
            (true, [only]) => Ok(ConflictTarget::Columns(only.columns.clone())),
            (true, []) => Ok(ConflictTarget::Any),
            _ => {
                Err(Error::invalid("the table has several keys; say which one: ON CONFLICT (column, ..) DO UPDATE SET"))
            }
        }
    }

    /// True when the changed row is the proposed one as it is.
    fn replaces(&self, update: &DoUpdate, table: &Table, key: &ConflictTarget) -> Result<bool> {
        let ConflictTarget::Columns(key) = key else {
            return Ok(false);
        };
        let values = rewrite::assignments(&update.assignments, table)?;
        let is_excluded = |expr: &Expr, column: &str| match expr {
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [relation, name] => normalize(relation) == EXCLUDED && normalize(name) == column,
                _ => false,
            },
            _ => false,
        };
        let taken = |(at, field): (usize, &Arc<Field>)| match values.get(&at) {
            Some(value) => is_excluded(value, field.name()),
            None => key.contains(field.name()),
        };
        Ok(update.selection.is_none() && table.schema().fields().iter().enumerate().all(taken))
    }

    /// `SELECT <values>, <row id> FROM <existing> AS t JOIN <proposed> AS excluded ON <pair> WHERE ..`
    fn query(
        &self,
        update: &DoUpdate,
        table: &Table,
        existing: &RecordBatch,
        proposed: &RecordBatch,
    ) -> Result<ChangeQuery> {
        let alias = rewrite::quoted(&self.alias);
        let mut query = rewrite::template(&format!(
            "SELECT 1 FROM \"{EXISTING}\" AS {alias} JOIN \"{PROPOSED}\" AS {EXCLUDED} ON {alias}.\"{PAIR}\" = {EXCLUDED}.\"{PAIR}\""
        ))?;
        let select = rewrite::select(&mut query)?;
        let schema = table.schema();
        let own = |mut tree: Vec<Assignment>| {
            for assignment in &mut tree {
                rewrite::qualify(&mut assignment.value, &schema, &self.alias);
            }
            tree
        };
        let mut values = rewrite::assignments(&own(update.assignments.clone()), table)?;
        let columns = schema.fields().iter().enumerate().map(|(at, field)| {
            let value = match values.remove(&at) {
                Some(value) => rewrite::as_column(value, at),
                None => rewrite::column(&self.alias, field.name()),
            };
            rewrite::named(value, field.name())
        });
        select.projection = columns.collect();
        let row_id = rewrite::column(&self.alias, ROW_ID_COLUMN);
        select.projection.push(rewrite::named(row_id, ROW_ID_COLUMN));
        let mut selection = update.selection.clone();
        rewrite::qualify(&mut selection, &schema, &self.alias);
        select.selection = selection;
        let mut overlay = Overlay { columns: schema.fields().iter().cloned().collect(), ..Overlay::default() };
        for (name, rows) in [(EXISTING, existing), (PROPOSED, proposed)] {
            let rows = numbered(rows)?;
            overlay.sources.insert(rewrite::internal(name), rewrite::in_memory(rows.schema(), vec![rows])?);
        }
        Ok(ChangeQuery { statement: rewrite::statement(query), overlay })
    }
}

/// How often a statement tries again when it meets others that change the same rows.
const MEETINGS: usize = 100;

/// `rows` with their numbers.
fn numbered(rows: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(PAIR, DataType::UInt64, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from_iter_values(0..rows.num_rows() as u64)) as ArrayRef);
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// One execution of an upsert, or with `many` one for each proposed row.
pub(super) struct Execution<'a> {
    pub(super) session: &'a Session,
    pub(super) state: &'a SessionState,
    pub(super) plan: &'a PreparedPlan,
    pub(super) target: &'a Arc<Table>,
    pub(super) rules: &'a Rules,
    pub(super) on_conflict: &'a OnConflict,
    pub(super) returning: Option<&'a Returning>,
    pub(super) params: &'a RecordBatch,
    pub(super) many: bool,
}

impl Execution<'_> {
    /// Inserts or changes `proposed`. Executions that meet an earlier one's row come after it.
    pub(super) async fn run(&self, proposed: Vec<RecordBatch>, done: &mut Done) -> Result<()> {
        let key = self.on_conflict.target(self.target)?;
        let (mut left, mut met) = (proposed, 0);
        while left.iter().any(|batch| batch.num_rows() > 0) {
            let upsert = self.target.begin_upsert(left.clone(), &key).await?;
            let again = self.again(&upsert)?;
            match self.apply(upsert, &key, done).await {
                Ok(()) => left = again,
                // Another upsert found a row by another key: one of the two is done the next time.
                Err(error) if error.kind() == ErrorKind::Conflict && met < MEETINGS => met += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The rows whose key an earlier row of the statement has.
    fn again(&self, upsert: &Upsert) -> Result<Vec<RecordBatch>> {
        let again = chosen(upsert, |conflict| conflict == Conflict::Earlier)?;
        if again.num_rows() == 0 || self.on_conflict.update.is_none() {
            return Ok(Vec::new());
        }
        if !self.many {
            return Err(Error::invalid(
                "ON CONFLICT DO UPDATE would change one row twice; make the keys of the statement's rows distinct",
            ));
        }
        Ok(vec![again])
    }

    async fn apply(&self, upsert: Upsert, key: &ConflictTarget, done: &mut Done) -> Result<()> {
        let fresh = chosen(&upsert, |conflict| conflict == Conflict::None)?;
        let mut rows = if fresh.num_rows() > 0 { vec![fresh] } else { Vec::new() };
        let mut replaced = Vec::new();
        if let Some(update) = &self.on_conflict.update {
            let met = chosen(&upsert, |conflict| matches!(conflict, Conflict::Row(_)))?;
            if met.num_rows() > 0 {
                let (ids, changed) = self.changed(&upsert, update, key, met).await?;
                self.rules.check(&changed)?;
                replaced = ids;
                rows.extend(changed);
            }
        }
        let returned = match self.returning {
            Some(returning) => {
                returning.rows(self.session, self.state, self.plan, rows.clone(), self.params, 0).await?
            }
            None => Vec::new(),
        };
        let affected = rows.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        upsert.commit(replaced, rows).await?;
        done.returned.extend(returned);
        done.affected += affected;
        Ok(())
    }

    /// The stored rows that go and what they become.
    async fn changed(
        &self,
        upsert: &Upsert,
        update: &DoUpdate,
        key: &ConflictTarget,
        met: RecordBatch,
    ) -> Result<(Vec<u64>, Vec<RecordBatch>)> {
        if self.on_conflict.replaces(update, self.target, key)? {
            let ids = upsert.conflicts().iter().filter_map(|conflict| match conflict {
                Conflict::Row(id) => Some(*id),
                _ => None,
            });
            return Ok((ids.collect(), vec![met]));
        }
        let schema: SchemaRef = self.target.schema();
        let existing = upsert.existing().await?;
        let query = self.on_conflict.query(update, self.target, &existing, &met)?;
        let logical =
            self.session.bound(self.state, query.statement, self.plan, Some(&query.overlay), self.params, 0).await?;
        let logical = vector_casts::name_columns(logical, &schema).map_err(error::from_datafusion)?;
        let batches = self.session.collect(self.state, &logical).await?;
        let (mut ids, mut changed) = (Vec::new(), Vec::new());
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            let id = batch.column(batch.num_columns() - 1).as_primitive::<UInt64Type>();
            ids.extend_from_slice(id.values());
            let columns: Vec<usize> = (0..schema.fields().len()).collect();
            changed.push(convert::batch(&batch.project(&columns)?, &schema)?);
        }
        Ok((ids, vec![concat_batches(&schema, &changed)?]))
    }
}

/// The proposed rows that meet what `wanted` says.
fn chosen(upsert: &Upsert, wanted: impl Fn(Conflict) -> bool) -> Result<RecordBatch> {
    let keep: BooleanArray = upsert.conflicts().iter().map(|conflict| Some(wanted(*conflict))).collect();
    Ok(filter_record_batch(upsert.rows(), &keep)?)
}
