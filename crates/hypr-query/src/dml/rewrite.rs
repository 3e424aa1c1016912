//! Changes as queries: the pieces that the verbs build their `SELECT` from.
//!
//! The expressions of the statement keep their syntax trees, and with them the positions that errors point to;
//! only the frame around them is new. The table to change stands in the query under a name of its own, so that a
//! sub-query over the same table sees it without row ids.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::TableSource;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Assignment, AssignmentTarget, CastKind, Expr, Ident, ObjectName, Query, Select, SelectItem, SetExpr,
    Statement as Sql, TableFactor, TableWithJoins, Value, VisitMut, VisitorMut,
};
use hypr_common::{Error, Result};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::ChangeQuery;
use crate::catalog::StoredTable;
use crate::dialect::ddl::normalize;
use crate::planner::{Overlay, column_type_name};
use crate::rules;
use crate::{DEFAULT_SCHEMA, TableRef, dialect, error};

/// The table to change.
pub(super) const TARGET: &str = "__hypr_target";
/// The parameters of many executions, a row each.
const PARAMETERS: &str = "__hypr_parameters";

/// The relation `name` of a query's overlay.
pub(super) fn internal(name: &str) -> TableRef {
    TableRef { schema: Some(DEFAULT_SCHEMA.to_owned()), name: name.to_owned() }
}

/// Batches as the source of a relation.
pub(super) fn in_memory(schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<Arc<dyn TableSource>> {
    let table = MemTable::try_new(schema, vec![batches]).map_err(error::from_datafusion)?;
    Ok(provider_as_source(Arc::new(table)))
}

/// The overlay of a query over `target` with its row ids.
pub(super) fn target_overlay(target: &Arc<Table>) -> Overlay {
    let source = provider_as_source(Arc::new(StoredTable::with_row_id(Arc::clone(target))));
    Overlay {
        sources: HashMap::from([(internal(TARGET), source)]),
        columns: target.schema().fields().iter().cloned().collect(),
    }
}

/// A name as the user would have to write it to mean exactly `name`.
pub(super) fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// `relation.column`.
pub(super) fn column(relation: &str, name: &str) -> Expr {
    Expr::CompoundIdentifier(vec![quoted(relation), quoted(name)])
}

/// `expr AS name`.
pub(super) fn named(expr: Expr, name: &str) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: quoted(name) }
}

/// `expr` as the type of column `at` of the table to change.
pub(super) fn as_column(expr: Expr, at: usize) -> Expr {
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(expr),
        data_type: column_type_name(at),
        array: false,
        format: None,
    }
}

/// Parses a query of ours to fill in.
pub(super) fn template(sql: &str) -> Result<Query> {
    match dialect::parse_plain(sql)? {
        Statement::Statement(sql) => match *sql {
            Sql::Query(query) => Ok(*query),
            _ => Err(Error::internal("a template is no query")),
        },
        _ => Err(Error::internal("a template is no query")),
    }
}

/// The one `SELECT` of a template.
pub(super) fn select(query: &mut Query) -> Result<&mut Select> {
    match query.body.as_mut() {
        SetExpr::Select(select) => Ok(select),
        _ => Err(Error::internal("a template has no SELECT")),
    }
}

/// A query as a statement.
pub(super) fn statement(query: Query) -> Statement {
    Statement::Statement(Box::new(Sql::Query(Box::new(query))))
}

/// The name that the statement's expressions know the table by, which is its alias or its own name.
pub(super) fn alias_of(factor: &TableFactor, table: &TableRef) -> Result<String> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } if !alias.columns.is_empty() => {
            Err(Error::unsupported("the table to change takes an alias without a list of columns"))
        }
        TableFactor::Table { alias: Some(alias), .. } => Ok(normalize(&alias.name)),
        _ => Ok(table.name.clone()),
    }
}

/// `schema.table.column` becomes `alias.column`.
pub(super) fn shorten_names<T: VisitMut>(tree: &mut T, table: &TableRef, alias: &str) {
    struct Names<'a>(&'a TableRef, &'a str);
    impl VisitorMut for Names<'_> {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && let [.., schema, table, _] = parts.as_slice()
                && parts.len() >= 3
                && normalize(schema) == self.0.schema_name()
                && normalize(table) == self.0.name
            {
                let from = parts.len() - 2;
                parts.drain(..from);
                parts[0] = quoted(self.1);
            }
            ControlFlow::Continue(())
        }
    }
    let _ = tree.visit(&mut Names(table, alias));
}

/// The value that each assigned column gets, by the column's position; `DEFAULT` is spelled out.
///
/// # Errors
/// For unknown columns and columns that are assigned twice.
pub(super) fn assignments(assignments: &[Assignment], target: &Table) -> Result<HashMap<usize, Expr>> {
    let mut values = HashMap::new();
    for assignment in assignments {
        let (columns, exprs) = match (&assignment.target, &assignment.value) {
            (AssignmentTarget::ColumnName(name), value) => (vec![name], vec![value.clone()]),
            (AssignmentTarget::Tuple(names), Expr::Tuple(values)) if names.len() == values.len() => {
                (names.iter().collect(), values.clone())
            }
            (AssignmentTarget::Tuple(names), _) => {
                return Err(Error::invalid(format!(
                    "SET ({}) takes a list of as many values",
                    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                )));
            }
        };
        for (name, value) in columns.into_iter().zip(exprs) {
            let at = column_position(name, target)?;
            if values.insert(at, or_default(value, target, at)?).is_some() {
                let column = target.schema().field(at).name().clone();
                return Err(Error::invalid(format!("column \"{column}\" is assigned twice")));
            }
        }
    }
    Ok(values)
}

/// The position of a column that a statement names, with or without the table before it.
pub(super) fn column_position(name: &ObjectName, target: &Table) -> Result<usize> {
    let ident = name.0.last().and_then(|part| part.as_ident());
    let ident = ident.ok_or_else(|| Error::invalid(format!("{name} is no column")))?;
    let column = normalize(ident);
    if column == ROW_ID_COLUMN {
        return Err(Error::invalid(format!("column \"{ROW_ID_COLUMN}\" cannot be changed")));
    }
    let schema = target.schema();
    schema.index_of(&column).map_err(|_| unknown_column(&column, target))
}

/// The error for a column that the table to change does not have.
pub(super) fn unknown_column(column: &str, target: &Table) -> Error {
    let schema = target.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let hint = error::hint(column, names);
    Error::invalid(format!("table \"{}\" has no column \"{column}\"{hint}", target.definition().name))
}

/// `value`, or what the column gets when a statement gives it nothing.
pub(super) fn or_default(value: Expr, target: &Table, at: usize) -> Result<Expr> {
    let is_default = match &value {
        Expr::Identifier(ident) => ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"),
        _ => false,
    };
    if is_default { rules::default_of(target, target.schema().field(at).name()) } else { Ok(value) }
}

/// `expr` in which unqualified names of `columns` belong to `relation`. Sub-queries are left as they are.
pub(super) fn qualify<T: VisitMut>(tree: &mut T, columns: &Schema, relation: &str) {
    struct Names<'a> {
        columns: &'a Schema,
        relation: &'a str,
        depth: usize,
    }
    impl VisitorMut for Names<'_> {
        type Break = ();

        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if self.depth == 0
                && let Expr::Identifier(ident) = expr
                && self.columns.index_of(&normalize(ident)).is_ok()
            {
                *expr = Expr::CompoundIdentifier(vec![quoted(self.relation), ident.clone()]);
            }
            ControlFlow::Continue(())
        }
    }
    let _ = tree.visit(&mut Names { columns, relation, depth: 0 });
}

/// True when there is a parameter in the tree.
pub(super) fn has_parameters<T: VisitMut + Clone>(tree: &T) -> bool {
    struct Found(bool);
    impl VisitorMut for Found {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            self.0 |= matches!(expr, Expr::Value(value) if matches!(value.value, Value::Placeholder(_)));
            ControlFlow::Continue(())
        }
    }
    let mut found = Found(false);
    let _ = tree.clone().visit(&mut found);
    found.0
}

/// What an expression reads: columns by their last name, and whether it has a sub-query.
pub(super) fn reads<T: VisitMut + Clone>(tree: &T) -> (Vec<String>, bool) {
    #[derive(Default)]
    struct Read {
        columns: Vec<String>,
        query: bool,
    }
    impl VisitorMut for Read {
        type Break = ();

        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.query = true;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            match expr {
                Expr::Identifier(ident) => self.columns.push(normalize(ident)),
                Expr::CompoundIdentifier(parts) => self.columns.extend(parts.last().map(normalize)),
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut read = Read::default();
    let _ = tree.clone().visit(&mut read);
    (read.columns, read.query)
}

/// The query for all rows of `params` at once: its parameters become columns of one more relation.
pub(super) fn over_parameters(query: ChangeQuery, params: &RecordBatch) -> Result<ChangeQuery> {
    struct Parameters;
    impl VisitorMut for Parameters {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Value(value) = expr
                && let Value::Placeholder(name) = &value.value
            {
                *expr = column(PARAMETERS, name);
            }
            ControlFlow::Continue(())
        }
    }
    let ChangeQuery { mut statement, mut overlay } = query;
    let Statement::Statement(sql) = &mut statement else {
        return Err(Error::internal("a change is no query"));
    };
    let Sql::Query(query) = sql.as_mut() else {
        return Err(Error::internal("a change is no query"));
    };
    let _ = query.visit(&mut Parameters);
    let mut frame = template(&format!("SELECT 1 FROM \"{PARAMETERS}\""))?;
    select(query)?.from.append(&mut select(&mut frame)?.from);
    let schema = params.schema();
    let fields = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| Field::new(format!("${}", at + 1), field.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let rows = RecordBatch::try_new(Arc::clone(&schema), params.columns().to_vec())?;
    overlay.sources.insert(internal(PARAMETERS), in_memory(schema, vec![rows])?);
    Ok(ChangeQuery { statement, overlay })
}

/// The only table of a list, without joins.
pub(super) fn only_table(tables: &[TableWithJoins]) -> Option<&TableFactor> {
    match tables {
        [only] if only.joins.is_empty() => Some(&only.relation),
        _ => None,
    }
}
