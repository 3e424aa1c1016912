//! Plans `(left ASOF JOIN right ..)` as a join whose filter is a marker.

use std::sync::{Arc, LazyLock};

use arrow_schema::DataType;
use datafusion::common::{Column, DFSchema, JoinType, Result, exec_err, plan_err};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr as Sql, Join, JoinConstraint, JoinOperator, TableFactor};

use super::rewrite::INNER;
use crate::series::times::{INTERVAL, unit_ns};

static MATCH: LazyLock<Arc<ScalarUDF>> =
    LazyLock::new(|| Arc::new(ScalarUDF::from(AsofMatch { signature: Signature::user_defined(Volatility::Stable) })));

/// The marker: left time, right time, the comparison, whether the tolerance is exclusive, and the tolerance.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct AsofMatch {
    signature: Signature,
}

impl AsofMatch {
    /// The arguments of the marker that `filter` is.
    pub fn of(filter: &Expr) -> Option<&[Expr]> {
        match filter {
            Expr::ScalarFunction(call) if call.func.inner().is::<Self>() => Some(&call.args),
            _ => None,
        }
    }
}

impl ScalarUDFImpl for AsofMatch {
    fn name(&self) -> &str {
        "asof_match"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right, op, strict, tolerance @ ..] = arg_types else {
            return plan_err!("MATCH_CONDITION compares a left and a right time");
        };
        let Some(time) = comparison_coercion(left, right) else {
            return plan_err!("MATCH_CONDITION cannot compare {left} with {right}");
        };
        if unit_ns(&time).is_none() && !time.is_numeric() {
            return plan_err!("MATCH_CONDITION compares times or numbers, not {time}");
        }
        let mut types = vec![time.clone(), time.clone(), op.clone(), strict.clone()];
        types.extend(tolerance.iter().map(|_| if unit_ns(&time).is_some() { INTERVAL } else { time.clone() }));
        Ok(types)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("an ASOF join was not planned as one")
    }
}

/// Plans the parentheses that [`super::rewrite`] makes.
#[derive(Debug)]
pub(in crate::series) struct AsofRelations;

impl RelationPlanner for AsofRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        match relation {
            TableFactor::NestedJoin { table_with_joins, alias }
                if matches!(
                    table_with_joins.joins.as_slice(),
                    [Join { join_operator: JoinOperator::AsOf { .. }, .. }]
                ) =>
            {
                let mut joins = table_with_joins.joins;
                let Some(Join { relation, join_operator: JoinOperator::AsOf { match_condition, constraint }, .. }) =
                    joins.pop()
                else {
                    return plan_err!("an ASOF join has no right side");
                };
                let left = context.plan(table_with_joins.relation)?;
                let right = context.plan(relation)?;
                let plan = asof_join(context, left, right, match_condition, constraint)?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
            }
            relation => Ok(RelationPlanning::Original(Box::new(relation))),
        }
    }
}

fn asof_join(
    context: &mut dyn RelationPlannerContext,
    left: LogicalPlan,
    right: LogicalPlan,
    condition: Sql,
    constraint: JoinConstraint,
) -> Result<LogicalPlan> {
    let schema = left.schema().join(right.schema())?;
    let sides = Sides { left: left.schema(), right: right.schema() };
    let (marker, join_type) = match_marker(context, condition, &schema, &sides)?;
    match constraint {
        JoinConstraint::None => join(left.clone(), right.clone(), join_type, (vec![], vec![]), marker),
        JoinConstraint::On(on) => {
            let on = context.sql_to_expr(on, &schema)?;
            let mut keys = (Vec::new(), Vec::new());
            for conjunct in split_conjunction_owned(on) {
                let (a, b) = match conjunct {
                    Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => sides.order(*left, *right)?,
                    other => {
                        return plan_err!("ASOF JOIN .. ON takes equalities of a left and a right value, not {other}");
                    }
                };
                keys.0.push(a);
                keys.1.push(b);
            }
            join(left.clone(), right.clone(), join_type, keys, marker)
        }
        JoinConstraint::Using(names) => {
            let columns = names
                .into_iter()
                .map(|mut name| match (name.0.pop(), name.0.is_empty()) {
                    (Some(part), true) if part.as_ident().is_some() => {
                        let ident = part.as_ident().cloned().map(|ident| context.normalize_ident(ident));
                        Ok(Column::from_name(ident.unwrap_or_default()))
                    }
                    _ => plan_err!("USING takes names of columns"),
                })
                .collect::<Result<Vec<_>>>()?;
            let plan = LogicalPlanBuilder::from(left.clone()).join_using(right.clone(), join_type, columns)?.build()?;
            match plan {
                LogicalPlan::Join(mut join) => {
                    join.filter = Some(marker);
                    Ok(LogicalPlan::Join(join))
                }
                _ => plan_err!("ASOF JOIN .. USING takes columns of both sides"),
            }
        }
        JoinConstraint::Natural => plan_err!("ASOF JOIN takes ON or USING, not NATURAL"),
    }
}

fn join(
    left: LogicalPlan,
    right: LogicalPlan,
    join_type: JoinType,
    keys: (Vec<Expr>, Vec<Expr>),
    marker: Expr,
) -> Result<LogicalPlan> {
    LogicalPlanBuilder::from(left).join_with_expr_keys(right, join_type, keys, Some(marker))?.build()
}

/// Which side an expression is of.
struct Sides<'a> {
    left: &'a DFSchema,
    right: &'a DFSchema,
}

impl Sides<'_> {
    fn is_of(schema: &DFSchema, expr: &Expr) -> bool {
        let columns = expr.column_refs();
        !columns.is_empty() && columns.iter().all(|column| schema.has_column(column))
    }

    /// The two with the left one first.
    fn order(&self, a: Expr, b: Expr) -> Result<(Expr, Expr)> {
        if Self::is_of(self.left, &a) && Self::is_of(self.right, &b) {
            return Ok((a, b));
        }
        if Self::is_of(self.right, &a) && Self::is_of(self.left, &b) {
            return Ok((b, a));
        }
        plan_err!("an ASOF join compares a value of its left side with one of its right side, not {a} with {b}")
    }
}

/// The marker that a `MATCH_CONDITION` becomes, and the type of the join.
fn match_marker(
    context: &mut dyn RelationPlannerContext,
    condition: Sql,
    schema: &DFSchema,
    sides: &Sides<'_>,
) -> Result<(Expr, JoinType)> {
    let mut conjuncts = Vec::new();
    split(condition, &mut conjuncts);
    let (mut join_type, mut comparison, mut tolerance) = (JoinType::Left, None, None);
    for conjunct in conjuncts {
        match conjunct {
            Sql::Function(function) if function.name.to_string() == INNER => join_type = JoinType::Inner,
            Sql::BinaryOp { left, op, right } if is_comparison(&op) => {
                let (left, op, right) = match (is_difference(&left), is_difference(&right)) {
                    (false, true) => (right, flip(&op), left),
                    _ => (left, op, right),
                };
                let differs = is_difference(&left);
                match strip(*left) {
                    Sql::BinaryOp { left: a, op: BinaryOperator::Minus, right: b } if differs => {
                        let a = context.sql_to_expr(*a, schema)?;
                        let b = context.sql_to_expr(*b, schema)?;
                        let limit = context.sql_to_expr(*right, schema)?;
                        if tolerance.replace((a, b, op, limit)).is_some() {
                            return plan_err!("MATCH_CONDITION has two tolerances");
                        }
                    }
                    left => {
                        let a = context.sql_to_expr(left, schema)?;
                        let b = context.sql_to_expr(*right, schema)?;
                        if comparison.replace((a, op, b)).is_some() {
                            return plan_err!("MATCH_CONDITION compares one pair of times; put equalities in ON");
                        }
                    }
                }
            }
            other => return plan_err!("MATCH_CONDITION takes left.ts >= right.ts, not {other}"),
        }
    }
    let Some((a, op, b)) = comparison else {
        return plan_err!("MATCH_CONDITION needs a comparison such as left.ts >= right.ts");
    };
    let (left, right) = sides.order(a.clone(), b)?;
    let op = if left == a { op } else { flip(&op) };
    if !matches!(op, BinaryOperator::Gt | BinaryOperator::GtEq | BinaryOperator::Lt | BinaryOperator::LtEq) {
        return plan_err!("MATCH_CONDITION compares times by >=, >, <= or <, not by {op}");
    }
    let mut args = vec![left.clone(), right.clone(), lit(op.to_string())];
    let forward = matches!(op, BinaryOperator::Lt | BinaryOperator::LtEq);
    match tolerance {
        None => args.push(lit(false)),
        Some((a, b, bound, limit)) => {
            let (later, earlier) = if forward { (right, left) } else { (left, right) };
            if (a, b) != (later.clone(), earlier.clone()) {
                return plan_err!("the tolerance of this MATCH_CONDITION is written {later} - {earlier} <= ..");
            }
            let strict = match bound {
                BinaryOperator::LtEq => false,
                BinaryOperator::Lt => true,
                other => return plan_err!("a tolerance is an upper bound, <= or <, not {other}"),
            };
            if !limit.column_refs().is_empty() {
                return plan_err!("a tolerance is a constant, not {limit}");
            }
            args.extend([lit(strict), limit]);
        }
    }
    Ok((MATCH.call(args), join_type))
}

fn split(condition: Sql, conjuncts: &mut Vec<Sql>) {
    match strip(condition) {
        Sql::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(*left, conjuncts);
            split(*right, conjuncts);
        }
        other => conjuncts.push(other),
    }
}

fn strip(expr: Sql) -> Sql {
    match expr {
        Sql::Nested(inner) => strip(*inner),
        other => other,
    }
}

/// True for `a - b` of two columns; `ts - INTERVAL '1 s'` is a time.
fn is_difference(expr: &Sql) -> bool {
    let is_column = |expr: &Sql| matches!(expr, Sql::Identifier(_) | Sql::CompoundIdentifier(_));
    match expr {
        Sql::Nested(inner) => is_difference(inner),
        Sql::BinaryOp { left, op: BinaryOperator::Minus, right } => is_column(left) && is_column(right),
        _ => false,
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Gt | GtEq | Lt | LtEq)
}

fn flip(op: &BinaryOperator) -> BinaryOperator {
    match op {
        BinaryOperator::Gt => BinaryOperator::Lt,
        BinaryOperator::GtEq => BinaryOperator::LtEq,
        BinaryOperator::Lt => BinaryOperator::Gt,
        BinaryOperator::LtEq => BinaryOperator::GtEq,
        other => other.clone(),
    }
}
