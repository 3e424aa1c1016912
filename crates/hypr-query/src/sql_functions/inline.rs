//! Arguments in place of parameters, and calls replaced by what they mean.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_schema::{DataType, FieldRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema, Result, TableReference, plan_err};
use datafusion::logical_expr::expr::{Exists, InSubquery, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Subquery,
    Volatility,
};

use super::{Template, aggregate};

/// Stands for a call from planning to [`inline_calls`].
#[derive(Debug)]
pub(super) struct SqlCall {
    template: Arc<Template>,
    signature: Signature,
}

impl SqlCall {
    pub(super) fn new(template: Arc<Template>) -> Self {
        // What it computes is not known here, so nothing may be assumed of it.
        Self { template, signature: Signature::user_defined(Volatility::Volatile) }
    }
}

impl PartialEq for SqlCall {
    fn eq(&self, other: &Self) -> bool {
        self.template.function() == other.template.function()
    }
}

impl Eq for SqlCall {}

impl Hash for SqlCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.template.function().name.hash(state);
    }
}

impl ScalarUDFImpl for SqlCall {
    fn name(&self) -> &str {
        &self.template.function().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.template.result().data_type().clone())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::clone(self.template.result()))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let takes = self.template.parameters().len();
        if arg_types.len() != takes {
            return plan_err!("{} takes {takes} arguments, not {}", self.name(), arg_types.len());
        }
        Ok(arg_types.to_vec())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        plan_err!("{} cannot be called here", self.name())
    }
}

/// Replaces every call in `plan`, subqueries included. Columns keep their names.
pub(crate) fn inline_calls(plan: LogicalPlan) -> Result<LogicalPlan> {
    let inlined = plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let around = merge_schema(&node.inputs());
        let rewritten = node.map_expressions(|expr| {
            let saved = names.save(&expr);
            let expr = expr.transform_up(|expr| match expr {
                Expr::ScalarFunction(ScalarFunction { func, args }) => match func.inner().downcast_ref::<SqlCall>() {
                    Some(call) => {
                        check_volatile(&call.template, &args)?;
                        call.template.value(&args, &around).map(Transformed::yes)
                    }
                    None => Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args }))),
                },
                other => Ok(Transformed::no(other)),
            })?;
            Ok(if expr.transformed { expr.update_data(|expr| saved.restore(expr)) } else { expr })
        })?;
        recomputed(rewritten)?.transform_data(aggregate::expand)
    });
    inlined.data()
}

fn recomputed(node: Transformed<LogicalPlan>) -> Result<Transformed<LogicalPlan>> {
    if node.transformed { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
}

/// An argument stands wherever its parameter does; one that differs from call to call would differ within one.
pub(super) fn check_volatile(template: &Template, args: &[Expr]) -> Result<()> {
    match args.iter().find(|arg| arg.is_volatile()) {
        Some(arg) => plan_err!(
            "{}: the argument {arg} differs each time it is computed; compute it in a subquery and pass the column",
            template.function().name
        ),
        None => Ok(()),
    }
}

/// What stands for the parameters of a call: the relation that the body knows them by, and the arguments.
pub(super) struct Arguments<'a> {
    relation: TableReference,
    parameters: &'a [FieldRef],
    /// Beside the call.
    values: Vec<Expr>,
    /// In a query inside it: columns are references outwards.
    outer: Vec<Expr>,
}

impl<'a> Arguments<'a> {
    /// `around` has the columns that `values` are over.
    pub(super) fn new(
        function: &str,
        parameters: &'a [FieldRef],
        values: Vec<Expr>,
        around: &DFSchema,
    ) -> Result<Self> {
        let outward = |expr: Expr| match expr {
            Expr::Column(column) => {
                let field = Arc::clone(around.qualified_field_from_column(&column)?.1);
                Ok(Transformed::yes(Expr::OuterReferenceColumn(field, column)))
            }
            other => Ok(Transformed::no(other)),
        };
        let outer = values.iter().map(|value| value.clone().transform_up(outward).data()).collect::<Result<_>>()?;
        Ok(Self { relation: TableReference::bare(function), parameters, values, outer })
    }

    fn of<'b>(&self, column: &Column, values: &'b [Expr]) -> Option<&'b Expr> {
        (column.relation.as_ref()? == &self.relation).then_some(())?;
        values.get(self.parameters.iter().position(|parameter| *parameter.name() == column.name)?)
    }

    /// `expr`, whose columns are parameters.
    pub(super) fn in_expr(&self, expr: Expr) -> Result<Expr> {
        let replaced = expr.transform_up(|expr| match &expr {
            Expr::Column(column) => match self.of(column, &self.values) {
                Some(value) => Ok(Transformed::yes(value.clone())),
                None => Ok(Transformed::no(expr)),
            },
            _ => with_subquery(expr, &|plan| self.in_plan(plan)),
        });
        replaced.data()
    }

    /// `expr`, whose parameters stand outside of its aggregates; other columns stay.
    pub(super) fn in_constants(&self, expr: Expr) -> Result<Expr> {
        let replaced = expr.transform_up(|expr| match &expr {
            Expr::Column(column) => match self.of(column, &self.values) {
                Some(value) if value.column_refs().is_empty() => Ok(Transformed::yes(value.clone())),
                Some(_) => plan_err!(
                    "{}: \"{}\" stands outside of the aggregates in its body, so it must be a constant",
                    self.relation,
                    column.name
                ),
                None => Ok(Transformed::no(expr)),
            },
            _ => Ok(Transformed::no(expr)),
        });
        replaced.data()
    }

    /// `plan`, a query whose outer references are parameters.
    pub(super) fn in_plan(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let replaced = plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            let rewritten = node.map_expressions(|expr| {
                let saved = names.save(&expr);
                let expr = expr.transform_up(|expr| match &expr {
                    Expr::OuterReferenceColumn(_, column) => match self.of(column, &self.outer) {
                        Some(value) => Ok(Transformed::yes(value.clone())),
                        None => Ok(Transformed::no(expr)),
                    },
                    // Its plan was visited already; what it lists of the queries around it has changed.
                    _ => with_subquery(expr, &Ok),
                })?;
                Ok(if expr.transformed { expr.update_data(|expr| saved.restore(expr)) } else { expr })
            })?;
            recomputed(rewritten.update_data(|node| match node {
                LogicalPlan::Subquery(subquery) => LogicalPlan::Subquery(relisted(subquery)),
                other => other,
            }))
        });
        replaced.data()
    }
}

/// `expr` with `change` made to its query, if it has one, and the list of what that uses from around it anew.
fn with_subquery(expr: Expr, change: &dyn Fn(LogicalPlan) -> Result<LogicalPlan>) -> Result<Transformed<Expr>> {
    let changed = |subquery: Subquery| {
        let plan = change(Arc::unwrap_or_clone(Arc::clone(&subquery.subquery)))?;
        Ok::<_, datafusion::common::DataFusionError>(relisted(Subquery { subquery: Arc::new(plan), ..subquery }))
    };
    Ok(match expr {
        Expr::ScalarSubquery(subquery) => Transformed::yes(Expr::ScalarSubquery(changed(subquery)?)),
        Expr::Exists(Exists { subquery, negated }) => {
            Transformed::yes(Expr::Exists(Exists { subquery: changed(subquery)?, negated }))
        }
        Expr::InSubquery(within) => Transformed::yes(Expr::InSubquery(InSubquery {
            subquery: changed(within.subquery)?,
            expr: within.expr,
            negated: within.negated,
        })),
        other => Transformed::no(other),
    })
}

fn relisted(subquery: Subquery) -> Subquery {
    let outer_ref_columns = subquery.subquery.all_out_ref_exprs();
    Subquery { outer_ref_columns, ..subquery }
}
