//! `CREATE TABLE` as a definition. What we do not keep is refused, never dropped silently.

use std::collections::BTreeMap;

use arrow_schema::Field;
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable as CreateTableAst, CreateTableOptions, Ident, ObjectName, Query, SqlOption,
    TableConstraint,
};
use hypr_common::{Error, Result};
use hypr_storage::{CONSTRAINTS_OPTION, Constraints};

use super::clustering::{Clauses, RESERVED_OPTIONS};
use super::{constraints, types};
use crate::{CATALOG, TableRef};

/// What `CREATE TABLE` asks for.
#[derive(Clone, Debug)]
pub(crate) struct CreateTable {
    pub table: TableRef,
    pub if_not_exists: bool,
    pub columns: Vec<Field>,
    pub primary_key: Vec<String>,
    pub constraints: Constraints,
    pub options: BTreeMap<String, String>,
    /// Where rows lie.
    pub clauses: Clauses,
    /// `AS SELECT ..`
    pub query: Option<Box<Query>>,
}

impl CreateTable {
    pub(crate) fn from_ast(ast: CreateTableAst) -> Result<Self> {
        refuse_unsupported(&ast)?;
        let mut columns: Vec<Field> = Vec::with_capacity(ast.columns.len());
        let (mut primary_key, mut constraints) = (Vec::new(), Constraints::default());
        let name = table_ref(&ast.name)?.name;
        for definition in &ast.columns {
            let (field, is_key) = column(&name, definition, &mut constraints)?;
            if columns.iter().any(|other| other.name() == field.name()) {
                return Err(Error::invalid(format!("column \"{}\" is declared twice", field.name())));
            }
            if is_key {
                primary_key.push(field.name().clone());
            }
            columns.push(field);
        }
        if primary_key.len() > 1 {
            return Err(Error::invalid("several columns say PRIMARY KEY; write PRIMARY KEY (a, b) after the columns"));
        }
        let mut clauses = Clauses::default();
        for constraint in &ast.constraints {
            if !clauses.read(constraint)? {
                table_constraint(&name, constraint, &mut primary_key, &mut constraints)?;
            }
        }
        clauses.read_after_columns(&ast)?;
        if ast.query.is_none() {
            if columns.is_empty() {
                return Err(Error::invalid("a table needs at least one column"));
            }
            apply_primary_key(&mut columns, &primary_key)?;
        } else if !columns.is_empty() {
            return Err(Error::unsupported("CREATE TABLE .. AS takes its columns from the query; leave the list out"));
        }
        Ok(Self {
            table: table_ref(&ast.name)?,
            if_not_exists: ast.if_not_exists,
            columns,
            primary_key,
            constraints,
            options: options(&ast.table_options)?,
            clauses,
            query: ast.query,
        })
    }
}

/// A column, and whether it is the key. Its constraints join those of the table.
pub(crate) fn column(table: &str, definition: &ColumnDef, constraints: &mut Constraints) -> Result<(Field, bool)> {
    let name = normalize(&definition.name);
    let (mut nullable, mut is_key) = (true, false);
    for option in &definition.options {
        match &option.option {
            ColumnOption::Null => nullable = true,
            ColumnOption::NotNull => nullable = false,
            ColumnOption::PrimaryKey(_) => (nullable, is_key) = (false, true),
            ColumnOption::Comment(_) => {}
            ColumnOption::Default(expr) => {
                constraints.defaults.insert(name.clone(), expr.to_string());
            }
            ColumnOption::Unique(_) => {
                let named = option.name.as_ref().map(normalize);
                constraints::unique(constraints, table, named, vec![name.clone()])?;
            }
            ColumnOption::Check(check) => {
                let named = check.name.as_ref().or(option.name.as_ref()).map(normalize);
                constraints::check(constraints, table, named, Some(&name), &check.expr)?;
            }
            ColumnOption::ForeignKey(_) => return Err(constraints::no_foreign_keys()),
            other => return Err(Error::unsupported(format!("column \"{name}\": {other} is not available yet"))),
        }
    }
    let field = types::field(&name, &definition.data_type, nullable)
        .map_err(|error| Error::new(error.kind(), format!("column \"{name}\": {}", error.message())))?;
    Ok((field, is_key))
}

/// A constraint beside the columns.
fn table_constraint(
    table: &str,
    constraint: &TableConstraint,
    primary_key: &mut Vec<String>,
    constraints: &mut Constraints,
) -> Result<()> {
    let TableConstraint::PrimaryKey(key) = constraint else {
        return constraints::of_table(constraints, table, constraint);
    };
    if !primary_key.is_empty() {
        return Err(Error::invalid("the table has two primary keys"));
    }
    primary_key.extend(constraints::key_columns("PRIMARY KEY", &key.columns)?);
    Ok(())
}

/// Checks that the key's columns exist and makes them NOT NULL.
pub(crate) fn apply_primary_key(columns: &mut [Field], primary_key: &[String]) -> Result<()> {
    for key in primary_key {
        match columns.iter_mut().find(|field| field.name() == key) {
            Some(field) => *field = field.clone().with_nullable(false),
            None => {
                return Err(Error::invalid(format!("PRIMARY KEY names \"{key}\", which is no column of the table")));
            }
        }
    }
    Ok(())
}

fn refuse_unsupported(ast: &CreateTableAst) -> Result<()> {
    let clauses = [
        (ast.or_replace, "OR REPLACE"),
        (ast.temporary, "TEMPORARY"),
        (ast.external, "EXTERNAL"),
        (ast.like.is_some(), "LIKE"),
        (ast.clone.is_some(), "CLONE"),
        (ast.partition_of.is_some(), "PARTITION OF"),
        (ast.clustered_by.is_some(), "CLUSTERED BY"),
        (ast.order_by.is_some(), "ORDER BY"),
        (ast.inherits.is_some(), "INHERITS"),
        (ast.on_commit.is_some(), "ON COMMIT"),
        (ast.primary_key.is_some(), "PRIMARY KEY after the column list"),
    ];
    match clauses.iter().find(|(present, _)| *present) {
        Some((_, clause)) => Err(Error::unsupported(format!("CREATE TABLE with {clause} is not available yet"))),
        None => Ok(()),
    }
}

fn options(options: &CreateTableOptions) -> Result<BTreeMap<String, String>> {
    let list = match options {
        CreateTableOptions::None => return Ok(BTreeMap::new()),
        CreateTableOptions::With(list) | CreateTableOptions::Options(list) => list,
        _ => return Err(Error::invalid("write table options as WITH (name = value, ..)")),
    };
    let mut map = BTreeMap::new();
    for option in list {
        match option {
            SqlOption::KeyValue { key, value } => {
                let text = value.to_string();
                if normalize(key) == CONSTRAINTS_OPTION {
                    return Err(Error::invalid("the option \"constraints\" is kept for UNIQUE, CHECK and DEFAULT"));
                }
                if RESERVED_OPTIONS.contains(&normalize(key).as_str()) {
                    return Err(Error::invalid(format!(
                        "table option {key} is reserved; write the clause it stands for"
                    )));
                }
                map.insert(normalize(key), text.trim_matches('\'').to_owned());
            }
            other => return Err(Error::invalid(format!("table option {other} is not of the form name = value"))),
        }
    }
    Ok(map)
}

/// Unquoted names are lower case.
pub(crate) fn normalize(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// `table`, `schema.table` or `hyprstream.schema.table`.
pub(crate) fn table_ref(name: &ObjectName) -> Result<TableRef> {
    let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(normalize).collect();
    match parts.as_slice() {
        _ if parts.len() != name.0.len() => Err(Error::invalid(format!("{name} is no table name"))),
        [table] => Ok(TableRef::bare(table)),
        [schema, table] => Ok(TableRef { schema: Some(schema.clone()), name: table.clone() }),
        [catalog, schema, table] if catalog == CATALOG => {
            Ok(TableRef { schema: Some(schema.clone()), name: table.clone() })
        }
        [catalog, _, _] => Err(Error::not_found(format!("catalog \"{catalog}\" does not exist; it is \"{CATALOG}\""))),
        _ => Err(Error::invalid(format!("{name} is no table name"))),
    }
}
