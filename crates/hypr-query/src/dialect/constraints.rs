//! `UNIQUE`, `CHECK` and foreign keys in DDL, and the names that constraints get when the statement gives none.

use datafusion::sql::sqlparser::ast::{Expr, IndexColumn, TableConstraint};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Check, Constraints, Unique};

use super::ddl::normalize;

/// Adds a constraint that stands beside the columns.
pub(crate) fn of_table(constraints: &mut Constraints, table: &str, constraint: &TableConstraint) -> Result<()> {
    match constraint {
        TableConstraint::Unique(key) => {
            let columns = key_columns("UNIQUE", &key.columns)?;
            unique(constraints, table, key.name.as_ref().map(normalize), columns)
        }
        TableConstraint::Check(rule) => check(constraints, table, rule.name.as_ref().map(normalize), None, &rule.expr),
        TableConstraint::ForeignKey(_) => Err(no_foreign_keys()),
        other => Err(Error::unsupported(format!("{other} is not available"))),
    }
}

/// Adds a `UNIQUE` constraint; without a name it is called `<table>_<columns>_key`.
pub(crate) fn unique(
    constraints: &mut Constraints,
    table: &str,
    name: Option<String>,
    columns: Vec<String>,
) -> Result<()> {
    let name = new_name(constraints, name, &format!("{table}_{}_key", columns.join("_")))?;
    constraints.unique.push(Unique { name, columns });
    Ok(())
}

/// Adds a `CHECK` constraint; without a name it is called `<table>_<column>_check`.
pub(crate) fn check(
    constraints: &mut Constraints,
    table: &str,
    name: Option<String>,
    column: Option<&str>,
    condition: &Expr,
) -> Result<()> {
    let stem = column.map_or_else(|| format!("{table}_check"), |column| format!("{table}_{column}_check"));
    let name = new_name(constraints, name, &stem)?;
    constraints.checks.push(Check { name, expression: condition.to_string() });
    Ok(())
}

fn new_name(constraints: &Constraints, given: Option<String>, stem: &str) -> Result<String> {
    match given {
        Some(name) if constraints.has(&name) => {
            Err(Error::new(ErrorKind::AlreadyExists, format!("the table has a constraint called \"{name}\" already")))
        }
        Some(name) => Ok(name),
        None => Ok((0..)
            .map(|number| if number == 0 { stem.to_owned() } else { format!("{stem}{number}") })
            .find(|name| !constraints.has(name))
            .unwrap_or_else(|| stem.to_owned())),
    }
}

/// The columns of a key.
pub(crate) fn key_columns(what: &str, columns: &[IndexColumn]) -> Result<Vec<String>> {
    let name = |IndexColumn { column, .. }: &IndexColumn| match &column.expr {
        Expr::Identifier(ident) => Ok(normalize(ident)),
        other => Err(Error::invalid(format!("{what} takes column names, not {other}"))),
    };
    columns.iter().map(name).collect()
}

/// Why a foreign key is refused.
pub(crate) fn no_foreign_keys() -> Error {
    Error::unsupported(
        "FOREIGN KEY and REFERENCES are not enforced and therefore refused; leave the clause out and check with a join",
    )
}
