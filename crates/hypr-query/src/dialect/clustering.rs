//! `TIMESERIES KEY`, `CLUSTER BY` and `PARTITION BY RANGE` as the cluster key of a table.
//!
//! The three say the same of where rows lie: those of a partition, then of a cluster, then near in time lie
//! together, so that a scan reads few of them. What they do to a file is in `hypr_storage`.

use std::collections::BTreeMap;

use arrow_cast::parse::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config};
use arrow_schema::{DataType, Field};
use datafusion::sql::sqlparser::ast::{
    CreateTable, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, IndexColumn, TableConstraint,
    Value, WrappedCollection,
};
use hypr_common::{Error, Result};
use hypr_storage::{CLUSTERING_OPTION, ClusterKey};

use super::ddl::normalize;
use super::table_clauses;

const DAY_NS: i64 = 86_400_000_000_000;
/// How wide a partition by time is.
const PARTITION_NS: i64 = DAY_NS;
/// Names in the options of a table that clauses write and `WITH (..)` must not.
pub(super) const RESERVED_OPTIONS: [&str; 4] = ["timeseries_key", "cluster_by", "partition_by", CLUSTERING_OPTION];

/// The clauses as they were written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clauses {
    pub timeseries_key: Option<String>,
    pub cluster_by: Vec<Expr>,
    pub partition_by: Vec<Expr>,
}

impl Clauses {
    /// Takes a constraint that stands for a clause, see [`table_clauses`]; false if it is a constraint.
    ///
    /// # Errors
    /// `InvalidInput` for a clause that comes twice or takes something else.
    pub(super) fn read(&mut self, constraint: &TableConstraint) -> Result<bool> {
        match constraint {
            TableConstraint::Unique(key) if is_named(key.name.as_ref(), table_clauses::TIMESERIES_KEY) => {
                let [IndexColumn { column, .. }] = key.columns.as_slice() else {
                    return Err(Error::invalid("TIMESERIES KEY takes one column"));
                };
                let Expr::Identifier(ident) = &column.expr else {
                    return Err(Error::invalid(format!("TIMESERIES KEY takes a column, not {}", column.expr)));
                };
                match self.timeseries_key.replace(normalize(ident)) {
                    Some(_) => Err(Error::invalid("the table has two TIMESERIES KEY clauses")),
                    None => Ok(true),
                }
            }
            TableConstraint::Check(check) if is_named(check.name.as_ref(), table_clauses::CLUSTER_BY) => {
                self.cluster(cluster_exprs(&check.expr)).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Takes `PARTITION BY` and `CLUSTER BY` after the columns.
    ///
    /// # Errors
    /// As for [`Self::read`]; `Unsupported` for partitions that are not by range.
    pub(super) fn read_after_columns(&mut self, ast: &CreateTable) -> Result<()> {
        if let Some(partition_by) = &ast.partition_by {
            self.partition_by = range_columns(partition_by)?;
        }
        match &ast.cluster_by {
            Some(WrappedCollection::NoWrapping(exprs) | WrappedCollection::Parentheses(exprs)) => {
                self.cluster(exprs.iter().flat_map(cluster_exprs).collect())
            }
            None => Ok(()),
        }
    }

    fn cluster(&mut self, exprs: Vec<Expr>) -> Result<()> {
        if !self.cluster_by.is_empty() {
            return Err(Error::invalid("the table has two CLUSTER BY clauses"));
        }
        self.cluster_by = exprs;
        Ok(())
    }

    /// The table options that keep the clauses.
    ///
    /// # Errors
    /// `InvalidInput` for a column that the table lacks or whose type has no order, `Unsupported` for an
    /// expression that is neither a column nor a time bucket.
    pub(crate) fn options(&self, columns: &[Field]) -> Result<BTreeMap<String, String>> {
        let mut options = BTreeMap::new();
        let mut keys = Vec::new();
        let mut add = |key: ClusterKey| {
            if !keys.contains(&key) {
                keys.push(key);
            }
        };
        for expr in &self.partition_by {
            let mut key = cluster_key("PARTITION BY RANGE", expr, columns)?;
            if key.bucket_ns.is_none() && is_time(column(columns, &key.column)) {
                key.bucket_ns = Some(PARTITION_NS);
            }
            add(key);
        }
        for expr in &self.cluster_by {
            add(cluster_key("CLUSTER BY", expr, columns)?);
        }
        if let Some(name) = &self.timeseries_key {
            let field = known_column("TIMESERIES KEY", name, columns)?;
            if !is_time(Some(field)) && !field.data_type().is_integer() {
                return Err(Error::invalid(format!(
                    "TIMESERIES KEY (\"{name}\"): the column must be a TIMESTAMP, a DATE or an integer"
                )));
            }
            add(ClusterKey { column: name.clone(), bucket_ns: None });
            options.insert("timeseries_key".to_owned(), name.clone());
        }
        for (name, exprs) in [("cluster_by", &self.cluster_by), ("partition_by", &self.partition_by)] {
            if !exprs.is_empty() {
                let text: Vec<String> = exprs.iter().map(ToString::to_string).collect();
                options.insert(name.to_owned(), text.join(", "));
            }
        }
        if !keys.is_empty() {
            let keys = serde_json::to_string(&keys)
                .map_err(|e| Error::internal("encoding a cluster key failed").with_source(e))?;
            options.insert(CLUSTERING_OPTION.to_owned(), keys);
        }
        Ok(options)
    }
}

/// The expressions of `PARTITION BY RANGE (a, b)`.
///
/// # Errors
/// `Unsupported` for partitions of another kind.
fn range_columns(partition_by: &Expr) -> Result<Vec<Expr>> {
    let Expr::Function(function) = partition_by else {
        return Err(other_partitions(partition_by));
    };
    if !function.name.to_string().eq_ignore_ascii_case("range") {
        return Err(other_partitions(partition_by));
    }
    let exprs = arguments(function).into_iter().cloned().collect::<Vec<_>>();
    if exprs.is_empty() { Err(other_partitions(partition_by)) } else { Ok(exprs) }
}

fn other_partitions(expr: &Expr) -> Error {
    Error::unsupported(format!("PARTITION BY {expr}: partitions are by RANGE (column)"))
}

/// The expressions of `CLUSTER BY (a, b)`, or the one without parentheses.
fn cluster_exprs(expr: &Expr) -> Vec<Expr> {
    match expr {
        Expr::Tuple(exprs) => exprs.clone(),
        Expr::Nested(inner) => vec![inner.as_ref().clone()],
        other => vec![other.clone()],
    }
}

fn is_named(name: Option<&Ident>, mark: &str) -> bool {
    name.is_some_and(|name| name.value == mark)
}

fn cluster_key(clause: &str, expr: &Expr, columns: &[Field]) -> Result<ClusterKey> {
    match expr {
        Expr::Identifier(ident) => {
            let field = known_column(clause, &normalize(ident), columns)?;
            if field.data_type().is_nested() || field.data_type().is_binary() {
                return Err(Error::invalid(format!("{clause}: column \"{}\" has no order", field.name())));
            }
            Ok(ClusterKey { column: field.name().clone(), bucket_ns: None })
        }
        Expr::Nested(inner) => cluster_key(clause, inner, columns),
        Expr::Function(function) => {
            let name = function.name.to_string().to_lowercase();
            let (width, column) = match (name.as_str(), arguments(function).as_slice()) {
                ("time_bucket", [width, column, ..]) => (interval_ns(width)?, *column),
                ("date_trunc", [unit, column]) => (interval_ns_of_unit(unit)?, *column),
                _ => return Err(other_key(clause, expr)),
            };
            let mut key = match column {
                Expr::Identifier(_) | Expr::Nested(_) => cluster_key(clause, column, columns)?,
                _ => return Err(other_key(clause, expr)),
            };
            if !is_time(columns.iter().find(|field| *field.name() == key.column)) {
                return Err(Error::invalid(format!("{clause}: column \"{}\" is no TIMESTAMP or DATE", key.column)));
            }
            key.bucket_ns = Some(width);
            Ok(key)
        }
        _ => Err(other_key(clause, expr)),
    }
}

fn other_key(clause: &str, expr: &Expr) -> Error {
    Error::unsupported(format!(
        "{clause} {expr}: use columns, time_bucket('1 hour', column) or date_trunc('hour', column)"
    ))
}

fn arguments(function: &Function) -> Vec<&Expr> {
    let FunctionArguments::List(list) = &function.args else {
        return Vec::new();
    };
    let exprs = list.args.iter().map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    });
    exprs.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// The width of a bucket; a month counts as 30 days, which is near enough to say which rows are neighbours.
fn interval_ns(expr: &Expr) -> Result<i64> {
    let text = match expr {
        Expr::Interval(interval) => {
            let unit = interval.leading_field.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
            text_of(&interval.value).map(|value| format!("{value}{unit}"))
        }
        other => text_of(other),
    };
    let refuse = || Error::invalid(format!("{expr} is no width of a time bucket; write it as '1 hour'"));
    parse_ns(&text.ok_or_else(refuse)?).ok_or_else(refuse)
}

fn interval_ns_of_unit(expr: &Expr) -> Result<i64> {
    let refuse = || Error::invalid(format!("{expr} is no unit of time; write 'hour', 'day' or 'month'"));
    let unit = text_of(expr).ok_or_else(refuse)?;
    let text = if unit.eq_ignore_ascii_case("quarter") { "3 months".to_owned() } else { format!("1 {unit}") };
    parse_ns(&text).ok_or_else(refuse)
}

fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn parse_ns(text: &str) -> Option<i64> {
    let seconds = IntervalParseConfig::new(IntervalUnit::Second);
    let parsed = parse_interval_month_day_nano_config(text, seconds).ok()?;
    let days = i64::from(parsed.months).checked_mul(30)?.checked_add(i64::from(parsed.days))?;
    days.checked_mul(DAY_NS)?.checked_add(parsed.nanoseconds).filter(|width| *width > 0)
}

fn known_column<'a>(clause: &str, name: &str, columns: &'a [Field]) -> Result<&'a Field> {
    column(columns, name)
        .ok_or_else(|| Error::invalid(format!("{clause} names \"{name}\", which is no column of the table")))
}

fn column<'a>(columns: &'a [Field], name: &str) -> Option<&'a Field> {
    columns.iter().find(|field| field.name() == name)
}

fn is_time(field: Option<&Field>) -> bool {
    field
        .is_some_and(|field| matches!(field.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64))
}
