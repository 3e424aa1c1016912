//! What "near" means.

use hypr_common::{Error, Result};
use hypr_tensor::Distances;

use crate::Neighbor;

/// A measure of distance between vectors; less is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// 1 less the cosine of the angle.
    Cosine,
    /// The Euclidean distance.
    L2,
    /// The dot product, negated.
    InnerProduct,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 3] = [Self::Cosine, Self::L2, Self::InnerProduct];

    /// The name that SQL has for it: `cosine`, `l2`, `inner_product`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::L2 => "l2",
            Self::InnerProduct => "inner_product",
        }
    }

    /// The metric of this name; `euclidean`, `ip` and `dot` are taken too.
    ///
    /// # Errors
    /// `InvalidInput`, listing the names.
    pub fn parse(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "cosine" => Ok(Self::Cosine),
            "l2" | "euclidean" => Ok(Self::L2),
            "inner_product" | "ip" | "dot" => Ok(Self::InnerProduct),
            _ => Err(Error::invalid(format!("'{name}' is no metric; use one of cosine, l2, inner_product"))),
        }
    }
}

/// A query and what its exact distances need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExactQuery<'a> {
    pub metric: Metric,
    pub vector: &'a [f32],
    /// Of the cosine only.
    squared_norm: f64,
    pub kernels: Distances,
}

impl<'a> ExactQuery<'a> {
    pub fn new(metric: Metric, vector: &'a [f32], kernels: Distances) -> Self {
        let squared_norm = if metric == Metric::Cosine { kernels.dot(vector, vector) } else { 0.0 };
        Self { metric, vector, squared_norm, kernels }
    }

    /// The row with its measure and distance; `squared_norm` is the row's, by [`Distances::dot`]. The operations and
    /// their order are those of the SQL functions.
    #[inline]
    pub fn compare(&self, row_id: u64, row: &[f32], squared_norm: f64) -> Neighbor {
        let (measure, distance) = match self.metric {
            Metric::L2 => {
                let distance = self.kernels.squared_l2(row, self.vector).sqrt();
                (distance, distance)
            }
            Metric::InnerProduct => {
                let product = self.kernels.dot(row, self.vector);
                (product, -product)
            }
            Metric::Cosine => {
                let norms = (squared_norm * self.squared_norm).sqrt();
                if norms > 0.0 {
                    let cosine = (self.kernels.dot(row, self.vector) / norms).clamp(-1.0, 1.0);
                    (cosine, 1.0 - cosine)
                } else {
                    (f64::NEG_INFINITY, f64::INFINITY)
                }
            }
        };
        Neighbor { row_id, distance, measure }
    }
}
