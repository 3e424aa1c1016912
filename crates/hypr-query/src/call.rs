//! What a procedure is called with: expressions without a parameter.

use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_array::{Array, RecordBatch};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectNamePart, Statement,
};
use futures::TryStreamExt;
use hypr_common::{Error, Result};

use crate::{Outcome, Session, error};

/// What a procedure is called with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) args: Vec<Expr>,
    /// By name, lower case.
    pub(crate) options: Vec<(String, Expr)>,
}

impl Arguments {
    /// The name, in lower case, of the procedure that a statement calls, and the arguments; none where they are no
    /// expressions.
    pub(crate) fn of_call(statement: &Statement) -> Option<(String, Option<Self>)> {
        let Statement::Call(Function { name, args, .. }) = statement else { return None };
        let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else { return None };
        Some((ident.value.to_ascii_lowercase(), Self::of(args)))
    }

    /// The arguments of a call; none where they are no expressions.
    pub(crate) fn of(args: &FunctionArguments) -> Option<Self> {
        let FunctionArguments::List(list) = args else { return None };
        let mut arguments = Self::default();
        for arg in &list.args {
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => arguments.args.push(expr.clone()),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    arguments.options.push((name.value.to_ascii_lowercase(), expr.clone()));
                }
                FunctionArg::ExprNamed { name: Expr::Identifier(name), arg: FunctionArgExpr::Expr(expr), .. } => {
                    arguments.options.push((name.value.to_ascii_lowercase(), expr.clone()));
                }
                _ => return None,
            }
        }
        Some(arguments)
    }

    /// The values of the arguments and then of the options, a row of them.
    pub(crate) async fn values(&self, session: &Session) -> Result<RecordBatch> {
        let exprs = self.args.iter().chain(self.options.iter().map(|(_, expr)| expr));
        let columns: Vec<String> = exprs.enumerate().map(|(at, expr)| format!("{expr} AS \"{at}\"")).collect();
        let Outcome::Rows(rows) = session.execute(&format!("SELECT {}", columns.join(", "))).await? else {
            return Err(Error::internal("a query without rows"));
        };
        let batches: Vec<RecordBatch> = rows.try_collect().await.map_err(error::from_datafusion)?;
        let row = batches.into_iter().find(|batch| batch.num_rows() > 0);
        row.ok_or_else(|| Error::internal("a query of constants without a row"))
    }
}

/// The text of a value of [`Arguments::values`]; none for NULL.
pub(crate) fn text_of(values: &RecordBatch, at: usize) -> Result<Option<String>> {
    let column = values.column(at);
    if column.is_null(0) || column.data_type().is_null() {
        return Ok(None);
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    Ok(Some(formatter.value(0).to_string()))
}
