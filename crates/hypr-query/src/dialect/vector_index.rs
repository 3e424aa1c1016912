//! `CREATE INDEX [name] ON table USING method (column) WITH (metric = 'cosine', ..)`, where the method is `HNSW`, a
//! graph in memory, or one of Lance's indexes on disk.

use datafusion::sql::sqlparser::ast::{BinaryOperator, CreateIndex, Expr, IndexType, Value};
use hypr_common::{Error, Result};
use hypr_storage::ann::{FileKind, FileParams, IndexMethod, Metric, Params};

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
    pub method: IndexMethod,
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
            method: method(ast)?,
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
        if name == "metric" {
            self.metric = Metric::parse(right.to_string().trim_matches('\''))?;
            return Ok(());
        }
        match &mut self.method {
            IndexMethod::Hnsw(params) => match name.as_str() {
                "m" => params.m = number()?,
                "ef_construction" => params.ef_construction = number()?,
                "ef_search" => params.ef_search = number()?,
                _ => return Err(unknown(&name, "metric, m, ef_construction, ef_search")),
            },
            IndexMethod::Files(params) => *file_option(params, &name)? = Some(number()?),
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
    Ok(())
}

fn method(ast: &CreateIndex) -> Result<IndexMethod> {
    let named = match &ast.using {
        None => return Ok(IndexMethod::Hnsw(Params::default())),
        Some(IndexType::Custom(named)) => named.value.as_str(),
        Some(_) => "",
    };
    if named.eq_ignore_ascii_case("hnsw") {
        return Ok(IndexMethod::Hnsw(Params::default()));
    }
    let other = |using: &IndexType| {
        let there = "HNSW, IVF_PQ, IVF_RQ, IVF_HNSW_SQ and FTS";
        Error::unsupported(format!("an index by {using} is not available; there are {there}"))
    };
    match (FileKind::parse(named), &ast.using) {
        (Some(kind), _) => Ok(IndexMethod::Files(FileParams { kind: Some(kind), ..FileParams::default() })),
        (None, Some(using)) => Err(other(using)),
        (None, None) => Ok(IndexMethod::Hnsw(Params::default())),
    }
}

/// The parameter of an index on disk that is called `name`, if its kind has one.
fn file_option<'a>(params: &'a mut FileParams, name: &str) -> Result<&'a mut Option<usize>> {
    let kind = params.kind.unwrap_or(FileKind::IvfPq);
    let own = match kind {
        FileKind::IvfPq => "num_sub_vectors, num_bits",
        FileKind::IvfRq => "num_bits",
        FileKind::IvfHnswSq => "m, ef_construction, ef_search",
    };
    let common = ["num_partitions", "nprobes", "refine_factor"];
    if !common.contains(&name) && !own.split(", ").any(|known| known == name) {
        return Err(unknown(name, &format!("metric, {}, {own}", common.join(", "))));
    }
    Ok(match name {
        "num_partitions" => &mut params.num_partitions,
        "num_sub_vectors" => &mut params.num_sub_vectors,
        "num_bits" => &mut params.num_bits,
        "m" => &mut params.m,
        "ef_construction" => &mut params.ef_construction,
        "ef_search" => &mut params.ef_search,
        "nprobes" => &mut params.nprobes,
        _ => &mut params.refine_factor,
    })
}

fn unknown(name: &str, known: &str) -> Error {
    Error::invalid(format!("index option {name} is not known; there are {known}"))
}
