//! `cosine_similarity`, `cosine_distance`, `l2_distance`, `inner_product`: two vectors to a double.
//!
//! Arithmetic is in `f32`, summed in 16 lanes. The cosine of a zero vector is NULL.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array};
use arrow_schema::DataType;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::vector::{VectorArg, all_constant, dot, first_as_constant, is_vector_like, squared_distance};

/// The four functions.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    METRICS
        .map(|metric| {
            Arc::new(ScalarUDF::from(VectorMetric {
                metric,
                signature: Signature::user_defined(Volatility::Immutable),
            }))
        })
        .to_vec()
}

/// True for the names of the four functions.
pub(crate) fn is_metric(name: &str) -> bool {
    METRICS.iter().any(|metric| metric.name() == name)
}

const METRICS: [Metric; 4] =
    [Metric::CosineSimilarity, Metric::CosineDistance, Metric::L2Distance, Metric::InnerProduct];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Metric {
    CosineSimilarity,
    CosineDistance,
    L2Distance,
    InnerProduct,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Metric::CosineSimilarity => "cosine_similarity",
            Metric::CosineDistance => "cosine_distance",
            Metric::L2Distance => "l2_distance",
            Metric::InnerProduct => "inner_product",
        }
    }

    fn is_cosine(self) -> bool {
        matches!(self, Metric::CosineSimilarity | Metric::CosineDistance)
    }

    /// `squared_norm_b` is computed once where `b` is a constant.
    fn compute(self, a: &[f32], b: &[f32], squared_norm_b: f64) -> Option<f64> {
        match self {
            Metric::L2Distance => Some(squared_distance(a, b).sqrt()),
            Metric::InnerProduct => Some(dot(a, b)),
            Metric::CosineSimilarity | Metric::CosineDistance => {
                let norms = (dot(a, a) * squared_norm_b).sqrt();
                let cosine = (norms > 0.0).then(|| (dot(a, b) / norms).clamp(-1.0, 1.0))?;
                Some(if self == Metric::CosineDistance { 1.0 - cosine } else { cosine })
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct VectorMetric {
    metric: Metric,
    signature: Signature,
}

impl ScalarUDFImpl for VectorMetric {
    fn name(&self) -> &str {
        self.metric.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [a, b] = arg_types else {
            return plan_err!("{name} takes two vectors, not {} arguments", arg_types.len());
        };
        for argument in [a, b] {
            if !is_vector_like(argument) {
                return plan_err!(
                    "{name} takes vectors, such as a VECTOR(n) column or ARRAY[0.1, 0.2], not {argument}"
                );
            }
        }
        if let (DataType::FixedSizeList(_, n), DataType::FixedSizeList(_, m)) = (a, b)
            && n != m
        {
            return plan_err!("{name}: the vectors have {n} and {m} dimensions");
        }
        Ok(arg_types.to_vec())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [a, b] = args.args.as_slice() else {
            return exec_err!("{} takes two vectors", self.name());
        };
        let constant = all_constant(&args.args);
        let rows = if constant { 1 } else { args.number_rows };
        let (mut a, mut b) = (VectorArg::new(a)?, VectorArg::new(b)?);
        if matches!((&a, &b), (VectorArg::Constant(_), VectorArg::Column(_))) {
            // All four are symmetric, and `b` is the one whose norm is kept.
            std::mem::swap(&mut a, &mut b);
        }
        let result: ArrayRef = Arc::new(self.over_rows(&a, &b, rows)?);
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}

impl VectorMetric {
    fn over_rows(&self, a: &VectorArg, b: &VectorArg, rows: usize) -> Result<Float64Array> {
        let constant_norm = match b {
            VectorArg::Constant(Some(b)) => Some(dot(b, b)),
            _ => None,
        };
        let mut result = Float64Array::builder(rows);
        for row in 0..rows {
            let (Some(a), Some(b)) = (a.get(row), b.get(row)) else {
                result.append_null();
                continue;
            };
            if a.len() != b.len() {
                return exec_err!("{}: the vectors have {} and {} dimensions", self.name(), a.len(), b.len());
            }
            let norm = match constant_norm {
                Some(norm) => norm,
                None if self.metric.is_cosine() => dot(b, b),
                None => 0.0,
            };
            result.append_option(self.metric.compute(a, b, norm));
        }
        Ok(result.finish())
    }
}
