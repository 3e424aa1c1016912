//! `CREATE INDEX [name] ON table USING HNSW (column) WITH (metric = 'cosine', ..)`.

use datafusion::sql::sqlparser::ast::{BinaryOperator, CreateIndex, Expr, IndexType, Value};
use hypr_common::{Error, Result};
use hypr_storage::ann::{Metric, Params};

use super::ddl::{normalize, table_ref};
use crate::TableRef;

/// What `CREATE INDEX` asks for.
#[derive(Clone, Debug)]
pub(crate) struct CreateVectorIndex {
    /// Made of table, column and metric when none is given.
    pub name: Option<String>,
    pub table: TableRef,
    pub column: String,
    pub metric: Metric,
    pub params: Params,
    pub if_not_exists: bool,
}

impl CreateVectorIndex {
    pub(crate) fn from_ast(ast: &CreateIndex) -> Result<Self> {
        refuse_unsupported(ast)?;
        let [column] = ast.columns.as_slice() else {
            return Err(Error::invalid("a vector index is on one column"));
        };
        let Expr::Identifier(column) = &column.column.expr else {
            return Err(Error::invalid(format!("an index is on a column, not on {}", column.column.expr)));
        };
        let name = match &ast.name {
            None => None,
            Some(name) => Some(table_ref(name)?.name),
        };
        let mut index = Self {
            name,
            table: table_ref(&ast.table_name)?,
            column: normalize(column),
            metric: Metric::Cosine,
            params: Params::default(),
            if_not_exists: ast.if_not_exists,
        };
        for option in &ast.with {
            index.option(option)?;
        }
        Ok(index)
    }

    fn option(&mut self, option: &Expr) -> Result<()> {
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = option else {
            return Err(Error::invalid(format!("index option {option} is not of the form name = value")));
        };
        let name = left.to_string().to_lowercase();
        let number = || match right.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) => digits.parse::<usize>().ok(),
                _ => None,
            },
            _ => None,
        };
        let number = || number().ok_or_else(|| Error::invalid(format!("index option {name} takes a number")));
        match name.as_str() {
            "metric" => self.metric = Metric::parse(right.to_string().trim_matches('\''))?,
            "m" => self.params.m = number()?,
            "ef_construction" => self.params.ef_construction = number()?,
            "ef_search" => self.params.ef_search = number()?,
            other => {
                let known = "metric, m, ef_construction, ef_search";
                return Err(Error::invalid(format!("index option {other} is not known; there are {known}")));
            }
        }
        Ok(())
    }

    /// Its name, given or made.
    pub(crate) fn full_name(&self) -> String {
        let made = || format!("{}_{}_{}_idx", self.table.name, self.column, self.metric.name());
        self.name.clone().unwrap_or_else(made)
    }
}

fn refuse_unsupported(ast: &CreateIndex) -> Result<()> {
    let clauses = [
        (ast.unique, "UNIQUE"),
        (ast.concurrently, "CONCURRENTLY, which it always is,"),
        (!ast.include.is_empty(), "INCLUDE"),
        (ast.nulls_distinct.is_some(), "NULLS DISTINCT"),
        (ast.predicate.is_some(), "WHERE"),
    ];
    if let Some((_, clause)) = clauses.iter().find(|(present, _)| *present) {
        return Err(Error::unsupported(format!("CREATE INDEX with {clause} is not available")));
    }
    match &ast.using {
        None => Ok(()),
        Some(IndexType::Custom(method)) if method.value.eq_ignore_ascii_case("hnsw") => Ok(()),
        Some(other) => Err(Error::unsupported(format!("an index by {other} is not available; there are HNSW and FTS"))),
    }
}
