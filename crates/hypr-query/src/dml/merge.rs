//! `MERGE INTO [..] USING [..] ON [..] WHEN [NOT] MATCHED [..] RETURNING [..]`.
//!
//! One outer join of source and table gives each pair, and each row without a partner, the number of the first
//! clause that takes it and the values that the row has then.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Join, JoinConstraint, JoinOperator, Merge as MergeAst, MergeAction, MergeClause,
    MergeClauseKind, MergeInsertExpr, MergeInsertKind, OutputClause, TableFactor, Value,
};
use hypr_common::{Error, Result};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::returning::{ACTION, Returning};
use super::rewrite::{self, TARGET};
use super::{ChangeQuery, Changed, Scanned};
use crate::dialect::ddl::normalize;
use crate::prepared::{self, PreparedPlan};
use crate::{Outcome, Session, TableRef, convert, rules};

/// True for rows of the source, NULL where a row of the table has no partner.
const SOURCE: &str = "__hypr_source";
/// The number of the clause, from 1; 0 when no clause takes the row.
const CLAUSE: &str = "__hypr_clause";

/// A `MERGE` statement.
#[derive(Clone, Debug)]
pub(crate) struct Merge {
    pub(super) table: TableRef,
    alias: String,
    source_alias: String,
    ast: MergeAst,
    actions: Vec<Action>,
    pub(super) returning: Option<Returning>,
}

/// What a clause does to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Insert,
    Update,
    Delete,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

impl Merge {
    pub(super) fn new(ast: &MergeAst) -> Result<Self> {
        let TableFactor::Table { name, .. } = &ast.table else {
            return Err(Error::invalid("MERGE INTO takes a table's name"));
        };
        let table = prepared::qualified(name)?;
        let alias = rewrite::alias_of(&ast.table, &table)?;
        let mut ast = ast.clone();
        rewrite::shorten_names(&mut ast, &table, &alias);
        let source_alias = source_alias(&ast.source)?;
        if source_alias == alias {
            return Err(Error::invalid(format!("source and target are both called \"{alias}\"; give one an alias")));
        }
        let actions = ast.clauses.iter().map(action).collect::<Result<Vec<_>>>()?;
        let returning = match ast.output.take() {
            None => None,
            Some(OutputClause::Returning { select_items, .. }) => {
                Some(Returning::of_merge(select_items, &table, &alias))
            }
            Some(OutputClause::Output { .. }) => return Err(Error::unsupported("write OUTPUT as RETURNING")),
        };
        Ok(Self { table, alias, source_alias, ast, actions, returning })
    }

    /// `SELECT <values>, <row id>, <clause> FROM (<source>) AS s <outer join> <table> AS t ON ..`
    pub(super) fn query(&self, target: &Arc<Table>) -> Result<ChangeQuery> {
        let by_source = self.ast.clauses.iter().any(|clause| clause.clause_kind == MergeClauseKind::NotMatchedBySource);
        let mut query = rewrite::template(&format!(
            "SELECT 1 FROM (SELECT *, TRUE AS \"{SOURCE}\" FROM \"source\") AS {} LEFT JOIN \"{TARGET}\" AS {} ON TRUE",
            rewrite::quoted(&self.source_alias),
            rewrite::quoted(&self.alias)
        ))?;
        let select = rewrite::select(&mut query)?;
        let [from] = select.from.as_mut_slice() else { return Err(Error::internal("a template has one relation")) };
        if let TableFactor::Derived { subquery, .. } = &mut from.relation {
            rewrite::select(subquery)?.from[0].relation = self.ast.source.clone();
        }
        let on = JoinConstraint::On((*self.ast.on).clone());
        let join = if by_source { JoinOperator::FullOuter(on) } else { JoinOperator::LeftOuter(on) };
        from.joins[0] = Join { join_operator: join, ..from.joins[0].clone() };
        let conditions: Vec<Expr> = self.ast.clauses.iter().map(|clause| self.condition(clause)).collect();
        select.projection = self.values(target, &conditions)?;
        let row_id = rewrite::column(&self.alias, ROW_ID_COLUMN);
        select.projection.push(rewrite::named(row_id, ROW_ID_COLUMN));
        let numbers = (1..=conditions.len()).map(|at| number(&at.to_string())).collect();
        select.projection.push(rewrite::named(case(&conditions, numbers, number("0"))?, CLAUSE));
        Ok(ChangeQuery { statement: rewrite::statement(query), overlay: rewrite::target_overlay(target) })
    }

    /// When the clause takes a row, those before it having declined.
    fn condition(&self, clause: &MergeClause) -> Expr {
        let in_table = Expr::IsNotNull(Box::new(rewrite::column(&self.alias, ROW_ID_COLUMN)));
        let in_source = Expr::IsNotNull(Box::new(rewrite::column(&self.source_alias, SOURCE)));
        let not = |expr| match expr {
            Expr::IsNotNull(inner) => Expr::IsNull(inner),
            other => other,
        };
        let kind = match clause.clause_kind {
            MergeClauseKind::Matched => and(in_table, in_source),
            MergeClauseKind::NotMatched | MergeClauseKind::NotMatchedByTarget => and(not(in_table), in_source),
            MergeClauseKind::NotMatchedBySource => and(in_table, not(in_source)),
        };
        match &clause.predicate {
            Some(predicate) => and(kind, Expr::Nested(Box::new(predicate.clone()))),
            None => kind,
        }
    }

    /// The columns of the table as each clause makes them.
    fn values(
        &self,
        target: &Arc<Table>,
        conditions: &[Expr],
    ) -> Result<Vec<datafusion::sql::sqlparser::ast::SelectItem>> {
        let schema = target.schema();
        let mut by_clause = Vec::with_capacity(self.ast.clauses.len());
        for clause in &self.ast.clauses {
            by_clause.push(match &clause.action {
                MergeAction::Update(update) => rewrite::assignments(&update.assignments, target)?,
                MergeAction::Insert(insert) => self.inserted(insert, target)?,
                MergeAction::Delete { .. } => Default::default(),
            });
        }
        let mut items = Vec::with_capacity(schema.fields().len() + 2);
        for (at, field) in schema.fields().iter().enumerate() {
            let stored = rewrite::column(&self.alias, field.name());
            let mut when = Vec::with_capacity(conditions.len());
            for values in &by_clause {
                when.push(match values.get(&at) {
                    Some(value) => rewrite::as_column(value.clone(), at),
                    None => stored.clone(),
                });
            }
            items.push(rewrite::named(case(conditions, when, stored)?, field.name()));
        }
        Ok(items)
    }

    /// The value of every column of an inserted row.
    fn inserted(
        &self,
        insert: &MergeInsertExpr,
        target: &Arc<Table>,
    ) -> Result<std::collections::HashMap<usize, Expr>> {
        let MergeInsertKind::Values(values) = &insert.kind else {
            return Err(Error::unsupported("MERGE takes INSERT (columns) VALUES (values)"));
        };
        let [row] = values.rows.as_slice() else {
            return Err(Error::invalid("WHEN NOT MATCHED inserts one row of VALUES"));
        };
        let schema = target.schema();
        let columns = match insert.columns.is_empty() {
            true => (0..schema.fields().len()).collect::<Vec<_>>(),
            false => {
                insert.columns.iter().map(|name| rewrite::column_position(name, target)).collect::<Result<Vec<_>>>()?
            }
        };
        if columns.len() != row.content.len() {
            return Err(Error::invalid(format!(
                "the statement names {} columns and VALUES has {}",
                columns.len(),
                row.content.len()
            )));
        }
        let mut inserted = std::collections::HashMap::new();
        for (at, value) in columns.into_iter().zip(&row.content) {
            if inserted.insert(at, rewrite::or_default(value.clone(), target, at)?).is_some() {
                return Err(Error::invalid(format!("column \"{}\" is assigned twice", schema.field(at).name())));
            }
        }
        for (at, field) in schema.fields().iter().enumerate() {
            if let std::collections::hash_map::Entry::Vacant(left_out) = inserted.entry(at) {
                left_out.insert(rules::default_of(target, field.name())?);
            }
        }
        Ok(inserted)
    }

    pub(super) async fn run(&self, session: &Session, plan: &PreparedPlan, params: &RecordBatch) -> Result<Outcome> {
        let scanned = Scanned { session, table: &self.table, plan, returning: self.returning.as_ref() };
        scanned.run(params, false, |target| self.query(target), |batches, schema| self.decode(batches, schema)).await
    }

    /// # Errors
    /// `InvalidInput` when several rows of the source change one row of the table.
    fn decode(&self, batches: &[RecordBatch], schema: &SchemaRef) -> Result<Changed> {
        let (mut seen, mut changed) = (HashSet::new(), Changed::default());
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        for batch in batches {
            let column = |name: &str| {
                batch.column_by_name(name).ok_or_else(|| Error::internal("a MERGE was planned without its clauses"))
            };
            let ids = column(ROW_ID_COLUMN)?.as_primitive::<UInt64Type>();
            let clauses = column(CLAUSE)?.as_primitive::<Int64Type>();
            let action = |row: usize| {
                let clause = usize::try_from(clauses.value(row)).ok().and_then(|clause| clause.checked_sub(1))?;
                self.actions.get(clause).copied()
            };
            let actions: Vec<Option<Action>> = (0..batch.num_rows()).map(action).collect();
            for (row, action) in actions.iter().enumerate() {
                if matches!(action, Some(Action::Update | Action::Delete)) {
                    if !seen.insert(ids.value(row)) {
                        return Err(Error::invalid(
                            "several rows of the source match one row of the table; make the source's keys distinct",
                        ));
                    }
                    changed.removed.push(ids.value(row));
                }
            }
            changed.affected += actions.iter().flatten().count() as u64;
            for (wanted, added) in [(Action::Delete, false), (Action::Update, true), (Action::Insert, true)] {
                let keep: BooleanArray = actions.iter().map(|action| Some(*action == Some(wanted))).collect();
                if keep.true_count() == 0 {
                    continue;
                }
                let rows = convert::batch(&filter_record_batch(&batch.project(&columns)?, &keep)?, schema)?;
                if self.returning.is_some() {
                    changed.shown.push(with_action(&rows, wanted)?);
                }
                if added {
                    changed.added.push(rows);
                }
            }
        }
        Ok(changed)
    }
}

fn with_action(rows: &RecordBatch, action: Action) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(ACTION, DataType::Utf8, false)));
    let mut columns = rows.columns().to_vec();
    columns
        .push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(action.name(), rows.num_rows()))) as ArrayRef);
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn action(clause: &MergeClause) -> Result<Action> {
    match &clause.action {
        MergeAction::Insert(insert) if insert.insert_predicate.is_none() => Ok(Action::Insert),
        MergeAction::Update(update) if update.update_predicate.is_none() && update.delete_predicate.is_none() => {
            Ok(Action::Update)
        }
        MergeAction::Delete { .. } => Ok(Action::Delete),
        _ => Err(Error::unsupported("write the condition of a MERGE clause as WHEN .. AND condition THEN ..")),
    }
}

/// What the statement calls its source.
fn source_alias(source: &TableFactor) -> Result<String> {
    match source {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Ok(normalize(&alias.name))
        }
        TableFactor::Table { name, .. } => Ok(prepared::qualified(name)?.name),
        _ => Err(Error::invalid("the source of a MERGE needs an alias: USING (SELECT ..) AS s")),
    }
}

fn and(left: Expr, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) }
}

fn number(digits: &str) -> Expr {
    Expr::Value(Value::Number(digits.to_owned(), false).into())
}

/// `CASE WHEN .. THEN .. ELSE otherwise END`.
fn case(conditions: &[Expr], results: Vec<Expr>, otherwise: Expr) -> Result<Expr> {
    let mut query = rewrite::template("SELECT CASE WHEN TRUE THEN 1 ELSE 0 END")?;
    let select = rewrite::select(&mut query)?;
    let Some(datafusion::sql::sqlparser::ast::SelectItem::UnnamedExpr(Expr::Case {
        conditions: when,
        else_result,
        ..
    })) = select.projection.first_mut()
    else {
        return Err(Error::internal("a template has no CASE"));
    };
    let Some(first) = when.first().cloned() else { return Err(Error::internal("a template has no WHEN")) };
    *when = conditions
        .iter()
        .zip(results)
        .map(|(condition, result)| {
            let mut when = first.clone();
            when.condition = condition.clone();
            when.result = result;
            when
        })
        .collect();
    *else_result = Some(Box::new(otherwise));
    match select.projection.pop() {
        Some(datafusion::sql::sqlparser::ast::SelectItem::UnnamedExpr(expr)) => Ok(expr),
        _ => Err(Error::internal("a template has no CASE")),
    }
}
