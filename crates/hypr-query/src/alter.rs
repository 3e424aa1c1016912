//! `ALTER TABLE`: reads the statement, keeps defaults and constraints in step with the columns, and hands the changes
//! to the store in one commit.
//!
//! Columns that a view, a continuous aggregate or an option of the table's DDL names are not dropped, renamed or
//! widened under them: the statement is refused and says who uses the column.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{
    AlterColumnOperation, AlterTable as AlterTableAst, AlterTableOperation, ColumnDef, ColumnOption, Expr, Ident,
    RenameTableNameKind, TableConstraint, VisitMut, VisitorMut,
};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Alteration, CONSTRAINTS_OPTION, Constraints, Table, TableChange};

use crate::dialect::{self, constraints, ddl, types};
use crate::rules::Rules;
use crate::series::retention;
use crate::{Outcome, Session, TableRef, ddl as run_ddl, index_ddl, prepared, views};

/// An `ALTER TABLE` statement.
#[derive(Clone, Debug)]
pub(crate) struct AlterTable {
    table: TableRef,
    if_exists: bool,
    operations: Vec<AlterTableOperation>,
}

impl AlterTable {
    pub(crate) fn new(ast: &AlterTableAst) -> Result<Self> {
        if ast.only || ast.location.is_some() || ast.on_cluster.is_some() || ast.table_type.is_some() {
            return Err(Error::unsupported("ALTER TABLE takes no ONLY, SET LOCATION or ON CLUSTER"));
        }
        Ok(Self {
            table: prepared::qualified(&ast.name)?,
            if_exists: ast.if_exists,
            operations: ast.operations.clone(),
        })
    }

    /// Runs it.
    pub(crate) async fn run(&self, session: &Session) -> Result<Outcome> {
        match session.catalog().stored(&self.table) {
            Err(error) if self.if_exists && error.kind() == ErrorKind::NotFound => return Ok(Outcome::Affected(0)),
            found => found?,
        };
        let database = session.engine().database();
        let alteration = database.begin_alteration(self.table.schema_name(), &self.table.name).await?;
        let mut steps = Steps::new(session, &self.table, &alteration)?;
        for operation in &self.operations {
            steps.add(operation).await?;
        }
        let changes = steps.finish()?;
        if !changes.is_empty() {
            alteration.commit(&changes).await?;
        }
        Ok(Outcome::Affected(0))
    }
}

/// The table as the operations so far make it.
struct Steps<'a> {
    session: &'a Session,
    table: &'a TableRef,
    target: &'a Table,
    columns: SchemaRef,
    constraints: Constraints,
    options: BTreeMap<String, String>,
    changes: Vec<TableChange>,
}

impl<'a> Steps<'a> {
    fn new(session: &'a Session, table: &'a TableRef, alteration: &'a Alteration) -> Result<Self> {
        let target = alteration.table();
        Ok(Self {
            session,
            table,
            target,
            columns: target.schema(),
            constraints: target.constraints().clone(),
            options: target.definition().options.clone(),
            changes: Vec::new(),
        })
    }

    async fn add(&mut self, operation: &AlterTableOperation) -> Result<()> {
        match operation {
            AlterTableOperation::AddColumn { if_not_exists, column_def, column_position: None, .. } => {
                self.add_column(column_def, *if_not_exists).await
            }
            AlterTableOperation::DropColumn { column_names, if_exists, drop_behavior: _, .. } => {
                column_names.iter().try_for_each(|name| self.drop_column(&ddl::normalize(name), *if_exists))
            }
            AlterTableOperation::RenameColumn { old_column_name, new_column_name } => {
                self.rename_column(&ddl::normalize(old_column_name), &ddl::normalize(new_column_name))
            }
            AlterTableOperation::RenameTable {
                table_name: RenameTableNameKind::To(name) | RenameTableNameKind::As(name),
            } => {
                let mut to = ddl::table_ref(name)?;
                to.schema.get_or_insert_with(|| self.table.schema_name().to_owned());
                self.rename_table(&to)
            }
            AlterTableOperation::AlterColumn { column_name, op } => self.alter_column(&ddl::normalize(column_name), op),
            AlterTableOperation::AddConstraint { constraint, not_valid: false } => {
                self.add_constraint(constraint).await
            }
            AlterTableOperation::DropConstraint { if_exists, name, .. } => {
                self.drop_constraint(&ddl::normalize(name), *if_exists)
            }
            other => Err(Error::unsupported(format!("ALTER TABLE {other} is not available"))),
        }
    }

    /// The changes, with the options as they are in the end.
    fn finish(mut self) -> Result<Vec<TableChange>> {
        self.constraints.store(&mut self.options)?;
        if self.options != self.target.definition().options {
            run_ddl::check_rules(self.session, &self.table.name, &self.columns, &self.constraints)?;
            self.changes.push(TableChange::SetOptions(self.options));
        }
        Ok(self.changes)
    }

    fn position(&self, column: &str) -> Result<usize> {
        self.columns.index_of(column).map_err(|_| {
            let names = self.columns.fields().iter().map(|field| field.name().as_str());
            let hint = crate::error::hint(column, names);
            Error::invalid(format!("table \"{}\" has no column \"{column}\"{hint}", self.table))
        })
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Vec<Field>)) {
        let mut fields = self.columns.fields().iter().map(|field| field.as_ref().clone()).collect();
        edit(&mut fields);
        self.columns = std::sync::Arc::new(Schema::new(fields));
    }

    async fn add_column(&mut self, definition: &ColumnDef, if_not_exists: bool) -> Result<()> {
        let mut own = self.constraints.clone();
        let (field, is_key) = ddl::column(&self.table.name, definition, &mut own)?;
        if self.columns.index_of(field.name()).is_ok() {
            return match if_not_exists {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("table \"{}\" has a column \"{}\" already", self.table, field.name()),
                )),
            };
        }
        if is_key {
            return Err(Error::unsupported("a column that is added cannot be the PRIMARY KEY; create another table"));
        }
        self.constraints = own;
        let state = self.session.statement_state();
        let only = Constraints {
            defaults: self.constraints.defaults.clone().into_iter().filter(|(name, _)| name == field.name()).collect(),
            ..Constraints::default()
        };
        let rules = Rules::new(self.session, &state, &self.table.name, &Schema::empty(), &only)?;
        let fill = if rules.has_defaults() { Some(rules.value(&field, 1)?) } else { None };
        self.changes.push(TableChange::AddColumn { field: field.clone(), fill });
        self.edit(|fields| fields.push(field));
        for option in &definition.options {
            if let ColumnOption::Check(check) = &option.option {
                self.check_rows(&check.expr).await?;
            }
        }
        Ok(())
    }

    fn drop_column(&mut self, column: &str, if_exists: bool) -> Result<()> {
        if if_exists && self.columns.index_of(column).is_err() {
            return Ok(());
        }
        let at = self.position(column)?;
        self.refuse_used(column, "dropped")?;
        self.constraints.defaults.remove(column);
        self.constraints.unique.retain(|unique| !unique.columns.iter().any(|name| name == column));
        let mut kept = Vec::new();
        for check in std::mem::take(&mut self.constraints.checks) {
            let mut expr = dialect::parse_expression(&check.expression)?;
            if !renames(&mut expr, column, column) {
                kept.push(check);
            }
        }
        self.constraints.checks = kept;
        self.changes.push(TableChange::DropColumn(column.to_owned()));
        self.edit(|fields| drop(fields.remove(at)));
        Ok(())
    }

    fn rename_column(&mut self, from: &str, to: &str) -> Result<()> {
        let at = self.position(from)?;
        self.refuse_used(from, "renamed")?;
        if let Some(default) = self.constraints.defaults.remove(from) {
            self.constraints.defaults.insert(to.to_owned(), default);
        }
        for unique in &mut self.constraints.unique {
            unique.columns.iter_mut().filter(|name| *name == from).for_each(|name| to.clone_into(name));
        }
        for check in &mut self.constraints.checks {
            let mut expr = dialect::parse_expression(&check.expression)?;
            if renames(&mut expr, from, to) {
                check.expression = expr.to_string();
            }
        }
        self.changes.push(TableChange::RenameColumn { from: from.to_owned(), to: to.to_owned() });
        self.edit(|fields| fields[at] = fields[at].clone().with_name(to));
        Ok(())
    }

    fn rename_table(&mut self, to: &TableRef) -> Result<()> {
        views::refuse_dependents(self.session, self.table, None, "renamed")?;
        self.refuse_indexed(None, "renamed")?;
        run_ddl::check_new_name(self.session, to)?;
        self.changes.push(TableChange::Rename { schema_name: to.schema_name().to_owned(), name: to.name.clone() });
        Ok(())
    }

    fn alter_column(&mut self, column: &str, operation: &AlterColumnOperation) -> Result<()> {
        let at = self.position(column)?;
        match operation {
            AlterColumnOperation::SetNotNull | AlterColumnOperation::DropNotNull => {
                let nullable = *operation == AlterColumnOperation::DropNotNull;
                self.changes.push(TableChange::SetNullable { name: column.to_owned(), nullable });
                self.edit(|fields| fields[at] = fields[at].clone().with_nullable(nullable));
            }
            AlterColumnOperation::SetDefault { value } => {
                self.constraints.defaults.insert(column.to_owned(), value.to_string());
            }
            AlterColumnOperation::DropDefault => drop(self.constraints.defaults.remove(column)),
            AlterColumnOperation::SetDataType { data_type, using: None, .. } => {
                self.refuse_used(column, "widened")?;
                let field = types::field(column, data_type, self.columns.field(at).is_nullable())?;
                self.changes.push(TableChange::WidenColumn { name: column.to_owned(), field: field.clone() });
                self.edit(|fields| fields[at] = field);
            }
            other => return Err(Error::unsupported(format!("ALTER COLUMN {other} is not available"))),
        }
        Ok(())
    }

    async fn add_constraint(&mut self, constraint: &TableConstraint) -> Result<()> {
        if matches!(constraint, TableConstraint::PrimaryKey(_)) {
            return Err(Error::unsupported("a PRIMARY KEY is declared by CREATE TABLE; add a UNIQUE constraint"));
        }
        constraints::of_table(&mut self.constraints, &self.table.name, constraint)?;
        match constraint {
            TableConstraint::Check(check) => self.check_rows(&check.expr).await,
            _ => Ok(()),
        }
    }

    fn drop_constraint(&mut self, name: &str, if_exists: bool) -> Result<()> {
        if !self.constraints.has(name) && !if_exists {
            return Err(Error::not_found(format!("table \"{}\" has no constraint \"{name}\"", self.table)));
        }
        self.constraints.unique.retain(|unique| unique.name != name);
        self.constraints.checks.retain(|check| check.name != name);
        Ok(())
    }

    /// Refuses a check that is false for a row that is there.
    async fn check_rows(&self, condition: &Expr) -> Result<()> {
        let mut added = String::new();
        for change in &self.changes {
            match change {
                TableChange::AddColumn { field, .. } => {
                    let default = self.constraints.defaults.get(field.name()).map_or("NULL", String::as_str);
                    added.push_str(&format!(", {default} AS {}", quoted(field.name())));
                }
                TableChange::RenameColumn { .. } | TableChange::WidenColumn { .. } => {
                    return Err(Error::unsupported("add the CHECK in a statement of its own"));
                }
                _ => {}
            }
        }
        let (schema, name) = (quoted(self.table.schema_name()), quoted(&self.table.name));
        let sql =
            format!("SELECT count(*) FROM (SELECT *{added} FROM {schema}.{name}) AS {name} WHERE NOT ({condition})");
        let state = self.session.statement_state();
        let plan = self.session.planner(&state).plan(dialect::parse_plain(&sql)?, None, &[]).await?;
        let batches = self.session.collect(&state, &plan).await?;
        let violations = batches.iter().map(|batch| {
            let counts = batch.column(0);
            arrow_array::cast::AsArray::as_primitive::<arrow_array::types::Int64Type>(counts).value(0)
        });
        match violations.sum::<i64>() {
            0 => Ok(()),
            count => Err(Error::invalid(format!(
                "{count} rows of table \"{}\" violate CHECK ({condition}); UPDATE them first",
                self.table
            ))),
        }
    }

    /// Refuses a change of a column that something else names.
    fn refuse_used(&self, column: &str, what: &str) -> Result<()> {
        let names = |(option, text): &(&String, &String)| {
            option.as_str() != CONSTRAINTS_OPTION
                && text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == column)
        };
        if let Some((option, _)) = self.options.iter().find(names) {
            return Err(Error::invalid(format!(
                "column \"{column}\" cannot be {what}: {} of table \"{}\" names it",
                option.to_uppercase().replace('_', " "),
                self.table
            )));
        }
        self.refuse_indexed(Some(column), what)?;
        views::refuse_dependents(self.session, self.table, Some(column), what)
    }

    /// Refuses a change of what an index or the retention policy goes by: the table, or one of its columns.
    fn refuse_indexed(&self, column: Option<&str>, what: &str) -> Result<()> {
        let database = self.session.engine().database();
        let named = |other: &str| column.is_none_or(|column| column == other);
        let (schema, table) = (self.table.schema_name(), &self.table.name);
        let vectors = database.vector_indexes()?.into_iter();
        let vectors = vectors.filter(|index| index.schema_name == schema && index.table == *table);
        let texts = index_ddl::indexes(database, self.target).into_iter();
        let indexes = vectors.map(|index| (index.name, index.column));
        let mut indexes = indexes.chain(texts.map(|index| (index.name, index.column)));
        let refused = |why: &str| Err(views::in_use(self.table, column, what, why));
        if let Some((index, _)) = indexes.find(|(_, column)| named(column)) {
            return refused(&format!("index \"{index}\" is on it; drop the index first"));
        }
        match retention::column(self.session, self.target)? {
            Some(time) if named(&time) => refused(&format!(
                "the retention policy goes by it; ALTER TABLE {} SET (retention = NULL) first",
                self.table
            )),
            _ => Ok(()),
        }
    }
}

fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// Renames a column in an expression; true when it was there.
fn renames(expr: &mut Expr, from: &str, to: &str) -> bool {
    struct Names<'a> {
        from: &'a str,
        to: &'a str,
        found: bool,
    }
    impl VisitorMut for Names<'_> {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            let ident = match expr {
                Expr::Identifier(ident) => Some(ident),
                Expr::CompoundIdentifier(parts) => parts.last_mut(),
                _ => None,
            };
            if let Some(ident) = ident
                && ddl::normalize(ident) == self.from
            {
                self.found = true;
                *ident = quoted(self.to);
            }
            ControlFlow::Continue(())
        }
    }
    let mut names = Names { from, to, found: false };
    let _ = expr.visit(&mut names);
    names.found
}
