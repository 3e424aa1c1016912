//! `DEFAULT` and `CHECK`: what the store keeps as SQL text, evaluated here.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{DataType, Field, Schema};
use datafusion::common::DFSchema;
use datafusion::execution::SessionState;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::sql::sqlparser::ast::Expr as SqlExpr;
use hypr_common::{Error, Result};
use hypr_storage::{Constraints, Table};

use crate::{Session, convert, dialect, error};

/// The rules of one table, ready to run.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    table: String,
    defaults: HashMap<String, Arc<dyn PhysicalExpr>>,
    checks: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    name: String,
    text: String,
    condition: Arc<dyn PhysicalExpr>,
}

impl Rules {
    /// The rules of `table` for one statement.
    ///
    /// # Errors
    /// When an expression of the catalog is not understood.
    pub(crate) fn of(session: &Session, state: &SessionState, table: &Table) -> Result<Self> {
        let constraints = table.constraints();
        if Self::are_none(table) {
            return Ok(Self::default());
        }
        Self::new(session, state, &table.definition().name, &table.schema(), constraints)
    }

    /// True for a table without rules.
    pub(crate) fn are_none(table: &Table) -> bool {
        *table.constraints() == Constraints::default()
    }

    /// The rules of a table of `columns`.
    ///
    /// # Errors
    /// `InvalidInput` for an expression that is no default or no condition.
    pub(crate) fn new(
        session: &Session,
        state: &SessionState,
        table: &str,
        columns: &Schema,
        constraints: &Constraints,
    ) -> Result<Self> {
        let planner = session.planner(state);
        let bare = Schema::new(columns.fields().clone());
        let schema = DFSchema::try_from_qualified_schema(table, &bare).map_err(error::from_datafusion)?;
        let mut rules = Self { table: table.to_owned(), ..Self::default() };
        for (column, text) in &constraints.defaults {
            let expr = planner.expression(dialect::parse_expression(text)?, &DFSchema::empty())?;
            rules.defaults.insert(column.clone(), expr);
        }
        for check in &constraints.checks {
            let condition = planner.expression(dialect::parse_expression(&check.expression)?, &schema)?;
            let data_type = condition.data_type(schema.as_arrow()).map_err(error::from_datafusion)?;
            if !matches!(data_type, DataType::Boolean | DataType::Null) {
                return Err(Error::invalid(format!("CHECK ({}) is no condition", check.expression)));
            }
            rules.checks.push(Rule { name: check.name.clone(), text: check.expression.clone(), condition });
        }
        Ok(rules)
    }

    /// True when a column has a default.
    pub(crate) fn has_defaults(&self) -> bool {
        !self.defaults.is_empty()
    }

    /// What `rows` rows that leave out the column get.
    pub(crate) fn value(&self, field: &Field, rows: usize) -> Result<ArrayRef> {
        let Some(default) = self.defaults.get(field.name()) else {
            return Ok(new_null_array(field.data_type(), rows));
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
        let value = default.evaluate(&none).and_then(|value| value.into_array(rows)).map_err(error::from_datafusion)?;
        convert::column(&value, field)
    }

    /// Refuses rows for which a check is false.
    ///
    /// # Errors
    /// `InvalidInput` names the constraint and the row.
    pub(crate) fn check(&self, batches: &[RecordBatch]) -> Result<()> {
        for rule in &self.checks {
            let mut before = 0;
            for batch in batches {
                let held = rule.condition.evaluate(batch).and_then(|held| held.into_array(batch.num_rows()));
                let held = held.map_err(error::from_datafusion)?;
                if let Some(held) = held.as_boolean_opt()
                    && let Some(row) = (0..held.len()).find(|row| held.is_valid(*row) && !held.value(*row))
                {
                    return Err(Error::invalid(format!(
                        "row {} violates CHECK ({}), constraint {} of table \"{}\"",
                        before + row + 1,
                        rule.text,
                        rule.name,
                        self.table
                    )));
                }
                before += batch.num_rows();
            }
        }
        Ok(())
    }
}

/// The expression of a column's default, `NULL` if it has none.
pub(crate) fn default_of(table: &Table, column: &str) -> Result<SqlExpr> {
    let text = table.constraints().defaults.get(column).map_or("NULL", String::as_str);
    dialect::parse_expression(text)
}
