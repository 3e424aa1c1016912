//! Runs `CREATE TABLE` and `DROP TABLE`.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Constraints, TableDefinition};

use crate::dialect::ddl::{CreateTable, apply_primary_key};
use crate::rules::Rules;
use crate::series::{continuous, retention};
use crate::{Outcome, Session, TableRef, convert, ingest, views};

/// Schemas that hold no tables of users.
const RESERVED_SCHEMAS: [&str; 2] = ["information_schema", "pg_catalog"];

/// Creates a table, empty or from a query.
pub(crate) async fn create_table(session: &Session, create: &CreateTable) -> Result<Outcome> {
    let table = &create.table;
    if let Some(built_in) = session.catalog().model_table(table.schema_name(), &table.name) {
        return built_in.check_declaration(create).map(|()| Outcome::Affected(0));
    }
    continuous::refuse_name(session.catalog(), table)?;
    views::refuse_name(session, table)?;
    let Some(query) = &create.query else {
        let definition = definition(session, create, create.columns.clone())?;
        session.catalog().create_table(definition, create.if_not_exists).await?;
        return Ok(Outcome::Affected(0));
    };
    let state = session.statement_state();
    let statement = Statement::Statement(Box::new(Sql::Query(query.clone())));
    let plan = session.planner(&state).plan(statement, None, &[]).await?;
    let schema = crate::shape::result_schema(&state, &plan)?;
    let mut columns = ingest::table_columns(&schema)?;
    apply_primary_key(&mut columns, &create.primary_key)?;
    let definition = definition(session, create, columns)?;
    let batches = session.collect(&state, &plan).await?;
    if !session.catalog().create_table(definition, create.if_not_exists).await? {
        return Ok(Outcome::Affected(0));
    }
    let stored = session.catalog().stored(table)?;
    let schema = stored.schema();
    let batches = batches.iter().map(|batch| convert::batch(batch, &schema)).collect::<Result<Vec<_>>>();
    let inserted = match batches {
        Ok(batches) => stored.insert(batches).await,
        Err(error) => Err(error),
    };
    match inserted {
        Ok(rows) => Ok(Outcome::Affected(rows)),
        Err(error) => {
            session.catalog().drop_table(table, true).await?;
            Err(error)
        }
    }
}

fn definition(session: &Session, create: &CreateTable, columns: Vec<arrow_schema::Field>) -> Result<TableDefinition> {
    let schema_name = create.table.schema_name().to_owned();
    if RESERVED_SCHEMAS.contains(&schema_name.as_str()) || continuous::is_reserved(&schema_name) {
        return Err(Error::invalid(format!("schema \"{schema_name}\" is reserved; use another")));
    }
    let mut options = create.options.clone();
    options.extend(create.clauses.options(&columns)?);
    let columns = Arc::new(Schema::new(columns));
    check_rules(session, &create.table.name, &columns, &create.constraints)?;
    create.constraints.store(&mut options)?;
    let definition = TableDefinition {
        schema_name,
        name: create.table.name.clone(),
        columns,
        primary_key: create.primary_key.clone(),
        options,
    };
    retention::check_options(&definition)?;
    Ok(definition)
}

/// Refuses defaults that do not fit their columns and checks that are no conditions.
pub(crate) fn check_rules(session: &Session, table: &str, columns: &SchemaRef, rules: &Constraints) -> Result<()> {
    let state = session.statement_state();
    let ready = Rules::new(session, &state, table, columns, rules)?;
    for column in rules.defaults.keys() {
        let field = columns.field_with_name(column)?;
        let value = ready.value(field, 1)?;
        if !field.is_nullable() && value.is_null(0) {
            return Err(Error::invalid(format!("column \"{column}\" is NOT NULL and its default is NULL")));
        }
    }
    ready.check(&[RecordBatch::new_empty(Arc::clone(columns))])
}

/// Refuses a name that a table, a view or the server has.
pub(crate) fn check_new_name(session: &Session, name: &TableRef) -> Result<()> {
    if RESERVED_SCHEMAS.contains(&name.schema_name()) {
        return Err(Error::invalid(format!("schema \"{}\" is reserved; use another", name.schema_name())));
    }
    let database = session.engine().database();
    let taken = database.table(name.schema_name(), &name.name).is_some()
        || session.catalog().model_table(name.schema_name(), &name.name).is_some();
    if taken {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("a table \"{name}\" exists already; drop it first")));
    }
    continuous::refuse_name(session.catalog(), name)?;
    views::refuse_name(session, name)
}

/// Drops tables, in order.
pub(crate) async fn drop_tables(
    session: &Session,
    tables: &[TableRef],
    if_exists: bool,
    cascade: bool,
) -> Result<Outcome> {
    for table in tables {
        match session.catalog().stored(table) {
            Ok(_) => {
                views::drop_dependents(session, table, cascade, "dropped").await?;
                session.catalog().drop_table(table, if_exists).await?;
                if session.catalog().transaction().is_none() {
                    let database = session.engine().database();
                    database.drop_vector_indexes_of(table.schema_name(), &table.name).await?;
                    crate::index_ddl::forget_table(database, table).await?;
                }
            }
            Err(error) if if_exists && error.kind() == hypr_common::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Affected(0))
}
