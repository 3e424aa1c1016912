//! The arguments of a search function: by position, then by name.

use std::collections::BTreeMap;

use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::{Expr, ExprSchemable, lit};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, UnaryOperator, Value,
};
use hypr_common::Error;

use arrow_schema::{DataType, Field};
use std::sync::Arc;

use super::DEFAULT_LIMIT;
use crate::dialect::ddl;
use crate::{TableRef, error};

/// A function and the names of its parameters; those after the first `positional` ones take a name.
#[derive(Debug)]
pub(super) struct Signature {
    pub name: &'static str,
    pub usage: &'static str,
    pub parameters: &'static [&'static str],
    pub positional: usize,
}

pub(super) const TEXT_SEARCH: Signature = Signature {
    name: "text_search",
    usage: "text_search(table, 'words' [, column] [, limit])",
    parameters: &["table", "query", "column", "limit", "rank_weight"],
    positional: 4,
};

pub(super) const VECTOR_SEARCH: Signature = Signature {
    name: "vector_search",
    usage: "vector_search(table, 'text' [, column] [, limit])",
    parameters: &[
        "table",
        "query",
        "column",
        "limit",
        "metric",
        "model",
        "rank_weight",
        "ef_search",
        "nprobes",
        "refine_factor",
    ],
    positional: 4,
};

pub(super) const RERANK: Signature = Signature {
    name: "rerank",
    usage: "rerank(search [, 'text'], document => column)",
    parameters: &["input", "query", "document", "model", "limit"],
    positional: 2,
};

pub(super) const RRF: Signature =
    Signature { name: "rrf", usage: "rrf(search, search, ..)", parameters: &["k", "join_key", "limit"], positional: 0 };

/// An argument that is missing, or is none of this function's.
pub(super) fn bad(signature: &Signature, what: &str) -> Error {
    Error::invalid(format!("{}: {what}; the call is {}", signature.name, signature.usage))
}

/// What a call was given.
#[derive(Debug)]
pub(super) struct Arguments {
    pub signature: &'static Signature,
    /// Arguments beyond the positional parameters, of a function that takes any number.
    pub inputs: Vec<SqlExpr>,
    given: BTreeMap<&'static str, SqlExpr>,
}

impl Arguments {
    pub fn new(signature: &'static Signature, args: Vec<FunctionArg>) -> Result<Self, Error> {
        let mut parsed = Self { signature, inputs: Vec::new(), given: BTreeMap::new() };
        let mut position = 0;
        for arg in args {
            let (name, value) = match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => (None, value),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                    (Some(ddl::normalize(&name)), value)
                }
                FunctionArg::ExprNamed {
                    name: SqlExpr::Identifier(name), arg: FunctionArgExpr::Expr(value), ..
                } => (Some(ddl::normalize(&name)), value),
                other => return Err(bad(signature, &format!("\"{other}\" is no argument"))),
            };
            match name {
                Some(name) => parsed.give(&name, value)?,
                None if signature.positional == 0 => parsed.inputs.push(value),
                None => {
                    // The column may be left out: vector_search(table, 'text', 10).
                    if signature.parameters.get(position) == Some(&"column") && is_number(&value) {
                        position += 1;
                    }
                    let Some(name) = signature.parameters[..signature.positional].get(position) else {
                        return Err(bad(signature, "there are too many arguments"));
                    };
                    parsed.give(name, value)?;
                    position += 1;
                }
            }
        }
        Ok(parsed)
    }

    fn give(&mut self, name: &str, value: SqlExpr) -> Result<(), Error> {
        let name = if name == "col" { "column" } else { name };
        let Some(known) = self.signature.parameters.iter().find(|known| **known == name) else {
            let known = self.signature.parameters.join(", ");
            return Err(bad(self.signature, &format!("there is no argument \"{name}\", there is: {known}")));
        };
        match self.given.insert(known, value) {
            None => Ok(()),
            Some(_) => Err(bad(self.signature, &format!("\"{name}\" is given twice"))),
        }
    }

    pub fn take(&mut self, name: &str) -> Option<SqlExpr> {
        self.given.remove(name)
    }

    pub fn required(&mut self, name: &str) -> Result<SqlExpr, Error> {
        self.take(name).ok_or_else(|| bad(self.signature, &format!("the argument \"{name}\" is missing")))
    }

    /// The name of a column, written as a name or as text.
    pub fn column(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(SqlExpr::Identifier(ident)) => Ok(Some(ddl::normalize(&ident))),
            Some(SqlExpr::Value(value)) if text(&value.value).is_some() => {
                Ok(text(&value.value).map(ToOwned::to_owned))
            }
            Some(other) => Err(bad(self.signature, &format!("\"{name}\" is the name of a column, not {other}"))),
        }
    }

    /// Text that is known when the statement is planned.
    pub fn literal(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(SqlExpr::Value(value)) if text(&value.value).is_some() => {
                Ok(text(&value.value).map(ToOwned::to_owned))
            }
            Some(other) => Err(bad(self.signature, &format!("\"{name}\" is text in quotation marks, not {other}"))),
        }
    }

    /// A number that is known when the statement is planned, not negative.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            SqlExpr::Value(value) => match &value.value {
                Value::Number(digits, _) => digits.parse::<f64>().ok().filter(|number| number.is_finite()),
                _ => None,
            },
            _ => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(bad(self.signature, &format!("\"{name}\" is a number that is not negative, not {value}"))),
        }
    }

    /// A whole number that is known when the statement is planned, at least 1.
    pub fn count(&mut self, name: &str) -> Result<Option<usize>, Error> {
        let Some(number) = self.number(name)? else { return Ok(None) };
        if number.fract() != 0.0 || !(1.0..=1e6).contains(&number) {
            return Err(bad(self.signature, &format!("\"{name}\" is a whole number from 1 to 1000000, not {number}")));
        }
        Ok(Some(number as usize))
    }

    /// The table that an argument names.
    pub fn table(&mut self) -> Result<TableRef, Error> {
        let name = match self.required("table")? {
            SqlExpr::Identifier(ident) => ObjectName::from(vec![ident]),
            SqlExpr::CompoundIdentifier(parts) => ObjectName::from(parts),
            SqlExpr::Value(value) => match text(&value.value) {
                Some(text) => return Ok(TableRef::bare(text)),
                None => return Err(bad(self.signature, &format!("its first argument is a table, not {value}"))),
            },
            other => return Err(bad(self.signature, &format!("its first argument is a table, not {other}"))),
        };
        ddl::table_ref(&name)
    }

    /// How many rows to find: a whole number or a parameter.
    pub fn limit(&mut self, context: &mut dyn RelationPlannerContext) -> Result<Expr> {
        let Some(value) = self.take("limit") else { return Ok(lit(DEFAULT_LIMIT)) };
        let shown = value.to_string();
        let expr = constant(value, Some(DataType::Int64), context)?;
        let whole = match &expr {
            Expr::Placeholder(_) => true,
            Expr::Literal(scalar, _) => {
                scalar.data_type().is_integer()
                    && scalar.cast_to(&DataType::Int64).is_ok_and(|number| number >= 0_i64.into())
            }
            other => other.get_type(&DFSchema::empty())?.is_integer(),
        };
        if !whole {
            let what = format!("the limit is a whole number that is not negative, not {shown}");
            return Err(error::to_datafusion(bad(self.signature, &what)));
        }
        Ok(expr)
    }
}

/// A value that does not depend on rows. A parameter gets `data_type`.
pub(super) fn constant(
    value: SqlExpr,
    data_type: Option<DataType>,
    context: &mut dyn RelationPlannerContext,
) -> Result<Expr> {
    let field = data_type.map(|data_type| Arc::new(Field::new("parameter", data_type, true)));
    Ok(match context.sql_to_expr(value, &DFSchema::empty())? {
        Expr::Placeholder(Placeholder { id, field: None }) => Expr::Placeholder(Placeholder::new_with_field(id, field)),
        expr => expr,
    })
}

/// `embed('text')`, or with its model, as the text and the model.
pub(super) fn embed_call(value: &SqlExpr) -> Option<(SqlExpr, Option<String>)> {
    let SqlExpr::Function(function) = value else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let args: Vec<&SqlExpr> = list
        .args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let literal = |value: &SqlExpr| match value {
        SqlExpr::Value(value) => text(&value.value).map(ToOwned::to_owned),
        _ => None,
    };
    match (function.name.to_string().to_lowercase().as_str(), args.as_slice()) {
        ("embed", [text]) => Some(((*text).clone(), None)),
        ("_embed", [names, model, text]) if literal(names).as_deref() == Some("model") => {
            Some(((*text).clone(), Some(literal(model)?)))
        }
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
        Value::DollarQuotedString(text) => Some(&text.value),
        _ => None,
    }
}

fn is_number(value: &SqlExpr) -> bool {
    match value {
        SqlExpr::Value(value) => matches!(value.value, Value::Number(..)),
        SqlExpr::UnaryOp { op: UnaryOperator::Minus, expr } => is_number(expr),
        _ => false,
    }
}
