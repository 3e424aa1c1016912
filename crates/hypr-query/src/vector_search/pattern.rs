//! What the rule looks for in expressions.

use arrow_schema::DataType;
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, ColumnarValue, Expr, Operator};
use hypr_storage::ann::Metric;

use crate::functions::vector::{VectorArg, is_vector_like};

/// A distance function of a column and a constant, as a sort key in the direction that a search can serve.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DistanceCall {
    /// The call as it stands over the table's columns.
    pub expr: Expr,
    pub column: Column,
    /// What it is compared with.
    pub query: Query,
    pub function: DistanceFunction,
}

/// The constant of a [`DistanceCall`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Query {
    Known(Vec<f32>),
    /// A subquery that does not read the row, which is computed once, before the search, or a parameter.
    Later(Expr),
}

impl Query {
    fn of(expr: &Expr, function: DistanceFunction) -> Option<Self> {
        match expr {
            Expr::Literal(constant, _) => vector(constant, function).map(Self::Known),
            Expr::ScalarSubquery(subquery) if subquery.outer_ref_columns.is_empty() => Some(Self::Later(expr.clone())),
            Expr::Placeholder(_) => Some(Self::Later(expr.clone())),
            Expr::Cast(cast) if matches!(*cast.expr, Expr::Placeholder(_)) => Some(Self::Later(expr.clone())),
            _ => None,
        }
    }

    /// False for a vector that is known to have another width.
    pub fn fits(&self, width: usize) -> bool {
        let data_type = match self {
            Self::Known(vector) => return vector.len() == width,
            Self::Later(Expr::ScalarSubquery(subquery)) => subquery.subquery.schema().field(0).data_type(),
            Self::Later(Expr::Cast(cast)) => cast.field.data_type(),
            Self::Later(Expr::Placeholder(parameter)) => match &parameter.field {
                Some(field) => field.data_type(),
                None => return false,
            },
            Self::Later(_) => return false,
        };
        match data_type {
            DataType::FixedSizeList(_, given) => usize::try_from(*given).is_ok_and(|given| given == width),
            other => is_vector_like(other),
        }
    }
}

/// The functions that order rows by nearness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum DistanceFunction {
    CosineDistance,
    CosineSimilarity,
    L2Distance,
    InnerProduct,
}

impl DistanceFunction {
    fn of(name: &str) -> Option<Self> {
        match name {
            "cosine_distance" => Some(Self::CosineDistance),
            "cosine_similarity" => Some(Self::CosineSimilarity),
            "l2_distance" => Some(Self::L2Distance),
            "inner_product" => Some(Self::InnerProduct),
            _ => None,
        }
    }

    pub fn metric(self) -> Metric {
        match self {
            Self::CosineDistance | Self::CosineSimilarity => Metric::Cosine,
            Self::L2Distance => Metric::L2,
            Self::InnerProduct => Metric::InnerProduct,
        }
    }

    /// True when small values are near.
    pub fn ascends(self) -> bool {
        matches!(self, Self::CosineDistance | Self::L2Distance)
    }
}

impl DistanceCall {
    /// `expr`, over the columns of a table, as a call that orders by nearness when sorted as `ascending` says.
    pub fn of(expr: &Expr, ascending: bool) -> Option<Self> {
        let Expr::ScalarFunction(call) = expr else { return None };
        let function = DistanceFunction::of(call.func.name()).filter(|function| function.ascends() == ascending)?;
        let (column, constant) = column_and_constant(expr)?;
        Some(Self { expr: expr.clone(), column: column.clone(), query: Query::of(constant, function)?, function })
    }

    /// True for a condition that, of rows in order of nearness, leaves a first part: it can be checked after the
    /// search.
    pub fn bounds(&self, condition: &Expr) -> bool {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return false };
        let is_bound = |expr: &Expr| match expr {
            Expr::Literal(value, _) => !value.is_null(),
            // No row passes a bound that turns out to be NULL.
            Expr::Placeholder(_) => true,
            _ => false,
        };
        let op = match (**left == self.expr, **right == self.expr) {
            (true, _) if is_bound(right) => *op,
            (_, true) if is_bound(left) => match op.swap() {
                Some(op) => op,
                None => return false,
            },
            _ => return false,
        };
        match self.function.ascends() {
            true => matches!(op, Operator::Lt | Operator::LtEq),
            false => matches!(op, Operator::Gt | Operator::GtEq),
        }
    }
}

/// The arguments of a call with a column and something else.
pub(super) fn column_and_constant(call: &Expr) -> Option<(&Column, &Expr)> {
    let Expr::ScalarFunction(call) = call else { return None };
    match call.args.as_slice() {
        [Expr::Column(column), constant] | [constant, Expr::Column(column)] => Some((column, constant)),
        _ => None,
    }
}

/// A constant that the function compares with; none for NULL, a zero vector of a cosine and values that are not
/// finite, which the function itself has to judge.
pub(super) fn vector(constant: &ScalarValue, function: DistanceFunction) -> Option<Vec<f32>> {
    let argument = VectorArg::new(&ColumnarValue::Scalar(constant.clone())).ok()?;
    let vector = argument.get(0)?.to_vec();
    let finite = vector.iter().all(|value| value.is_finite());
    let compares = function.metric() != Metric::Cosine || vector.iter().any(|value| *value != 0.0);
    (finite && compares && !vector.is_empty()).then_some(vector)
}
