//! Casts to `VECTOR` columns whose errors name the column.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{FieldRef, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result as DfResult};
use datafusion::logical_expr::{Expr, LogicalPlan, Values};
use hypr_common::types;

use crate::functions::VectorCast;

/// Replaces the casts to vector columns at the top of a plan by ours, whose errors name the column.
pub(super) fn name_columns(plan: LogicalPlan, schema: &SchemaRef) -> DfResult<LogicalPlan> {
    let LogicalPlan::Projection(top) = &plan else {
        return Ok(plan);
    };
    // `VALUES` casts below the top, in columns called column1, column2, ..
    let mut sources: HashMap<String, FieldRef> = HashMap::new();
    for expr in &top.expr {
        let (name, inner) = name_and_inner(expr);
        if let (Some(field), Some(source)) = (vector_field(schema, &name), source_column(inner)) {
            sources.insert(source.name.clone(), field);
        }
    }
    let rewrite = |expr: Expr, field: Option<FieldRef>| -> DfResult<Expr> {
        let Some(field) = field else {
            return Ok(expr);
        };
        let transformed = expr.transform_down(|expr| match expr {
            Expr::Cast(cast) if cast.field.data_type() == field.data_type() => {
                Ok(Transformed::yes(VectorCast::call(*cast.expr, Arc::clone(&field))))
            }
            expr => Ok(Transformed::no(expr)),
        })?;
        Ok(transformed.data)
    };
    let plan = plan.transform_down(|node| match node {
        LogicalPlan::Projection(projection) => {
            let schema_of = Arc::clone(&projection.schema);
            let exprs = projection.expr.into_iter().zip(schema_of.fields()).map(|(expr, output)| {
                let field = vector_field(schema, output.name()).or_else(|| sources.get(output.name()).cloned());
                rewrite(expr, field)
            });
            let exprs = exprs.collect::<DfResult<Vec<_>>>()?;
            let projection = datafusion::logical_expr::Projection::try_new(exprs, projection.input)?;
            Ok(Transformed::yes(LogicalPlan::Projection(projection)))
        }
        LogicalPlan::Values(Values { schema: output, values }) => {
            let values = values.into_iter().map(|row| {
                let row = row.into_iter().zip(output.fields());
                row.map(|(expr, field)| rewrite(expr, sources.get(field.name()).cloned())).collect::<DfResult<Vec<_>>>()
            });
            Ok(Transformed::yes(LogicalPlan::Values(Values {
                values: values.collect::<DfResult<_>>()?,
                schema: output,
            })))
        }
        node => Ok(Transformed::no(node)),
    })?;
    Ok(plan.data)
}

fn vector_field(schema: &SchemaRef, name: &str) -> Option<FieldRef> {
    let (_, field) = schema.fields().find(name)?;
    types::is_vector(field).then(|| Arc::clone(field))
}

/// The column that a cast and an alias wrap.
fn source_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Cast(cast) => source_column(&cast.expr),
        Expr::Alias(alias) => source_column(&alias.expr),
        _ => None,
    }
}

/// The name that a column of a projection gets, and what is computed for it.
fn name_and_inner(expr: &Expr) -> (String, &Expr) {
    match expr {
        Expr::Alias(alias) => (alias.name.clone(), alias.expr.as_ref()),
        Expr::Column(column) => (column.name.clone(), expr),
        other => (String::new(), other),
    }
}
