//! Conditions under which an expression is needed, as SQL's lazy forms define them.
//!
//! Guards are built from `CASE`, which DataFusion evaluates lazily as well: a later condition is not evaluated
//! for rows that an earlier one decides, so `CASE WHEN x = 0 THEN 'none' WHEN 9 / x > 1 THEN f(x) END` divides
//! by no zero on the guard's account.

use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::{Expr, lit};

/// `condition` for the rows that `outer` lets through.
pub(super) fn within(outer: Option<&Expr>, condition: Expr) -> Expr {
    match outer {
        None => condition,
        Some(outer) => case(vec![(outer.clone(), condition)], lit(false)),
    }
}

/// True when the last of `conditions` is true and those before it are not; with no last condition when none
/// of `not` is true.
pub(super) fn first_true(not: &[Expr], last: Option<&Expr>) -> Option<Expr> {
    match (not, last) {
        ([], None) => None,
        ([], Some(last)) => Some(last.clone().is_true()),
        ([one], None) => Some(one.clone().is_not_true()),
        (not, last) => {
            let mut branches: Vec<_> = not.iter().map(|condition| (condition.clone(), lit(false))).collect();
            branches.extend(last.map(|last| (last.clone(), lit(true))));
            Some(case(branches, lit(last.is_none())))
        }
    }
}

/// True when `decides` holds for none of `operands`: what comes after them in `AND`, `OR` or `COALESCE` matters.
pub(super) fn undecided(
    operands: &[Expr],
    decides: impl Fn(Expr) -> Expr,
    keeps: impl Fn(Expr) -> Expr,
) -> Option<Expr> {
    match operands {
        [] => None,
        [one] => Some(keeps(one.clone())),
        many => Some(case(many.iter().map(|operand| (decides(operand.clone()), lit(false))).collect(), lit(true))),
    }
}

/// True when either guard is; `None` is always true.
pub(super) fn either(a: Option<Expr>, b: Option<Expr>) -> Option<Expr> {
    match (a, b) {
        (Some(a), Some(b)) if a == b => Some(a),
        (Some(a), Some(b)) => Some(case(vec![(a, lit(true))], b)),
        _ => None,
    }
}

/// `CASE true WHEN ..`: the form with a base is one that the simplifier does not take for a chain of `AND` and
/// `OR`, whose operands are evaluated for every row.
fn case(branches: Vec<(Expr, Expr)>, otherwise: Expr) -> Expr {
    let branches = branches.into_iter().map(|(when, then)| (Box::new(when), Box::new(then))).collect();
    Expr::Case(Case::new(Some(Box::new(lit(true))), branches, Some(Box::new(otherwise))))
}
