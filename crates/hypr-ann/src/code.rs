//! The space a graph lives in, and vectors in it as 8-bit codes.
//!
//! Every metric becomes the squared Euclidean distance: of the cosine, between vectors scaled to length 1; of the
//! inner product, between vectors with one more dimension that makes all rows equally long and is 0 in a query
//! (Bachrach et al., "Speeding Up the Xbox Recommender System", 2014). The mean is taken away, which changes no
//! distance and leaves the codes more of their range.
//!
//! A code is `dims` bytes, value `v` as `round(v / scale) + 128`, and then its header in the same cache lines:
//! `scale: f32, squared norm: f32, sum of (byte - 128): i32`, little-endian.

use hypr_tensor::{CODE_ZERO, Distances};

use crate::Metric;

const HEADER_BYTES: usize = 12;
/// Codes start at a cache line.
pub(crate) const LINE: usize = 64;
/// Rows that the mean is taken over.
const SAMPLE: usize = 16_384;

#[derive(Debug)]
pub(crate) struct Space {
    metric: Metric,
    /// Of the vectors.
    width: usize,
    /// `[dims]`
    mean: Vec<f32>,
    /// Of the longest row, for the inner product.
    squared_radius: f64,
    pub kernels: Distances,
}

/// The numbers that go with the bytes of a code.
#[derive(Clone, Copy, Debug)]
struct Header {
    scale: f32,
    squared_norm: f32,
    sum: i32,
}

/// A code that many others are compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl Space {
    /// The space of `rows`, each with its squared norm.
    pub fn learn<'a>(
        metric: Metric,
        width: usize,
        rows: impl ExactSizeIterator<Item = (&'a [f32], f64)> + Clone,
        kernels: Distances,
    ) -> Self {
        let squared_radius = rows.clone().map(|(_, norm)| norm).fold(0.0, f64::max);
        let dims = width + usize::from(metric == Metric::InnerProduct);
        let mut space = Self { metric, width, mean: vec![0.0; dims], squared_radius, kernels };
        let step = rows.len().div_ceil(SAMPLE).max(1);
        let mut sums = vec![0f64; dims];
        let (mut count, mut placed) = (0usize, Vec::new());
        for (row, norm) in rows.step_by(step) {
            space.place(row, norm, false, &mut placed);
            sums.iter_mut().zip(&placed).for_each(|(sum, value)| *sum += f64::from(*value));
            count += 1;
        }
        space.mean = sums.iter().map(|sum| (sum / count.max(1) as f64) as f32).collect();
        space
    }

    fn dims(&self) -> usize {
        self.mean.len()
    }

    /// Bytes from one code to the next.
    pub fn stride(&self) -> usize {
        (self.dims() + HEADER_BYTES).next_multiple_of(LINE)
    }

    /// `vector` in this space.
    fn place(&self, vector: &[f32], squared_norm: f64, is_query: bool, out: &mut Vec<f32>) {
        let scale = match self.metric {
            Metric::Cosine if squared_norm > 0.0 => (1.0 / squared_norm.sqrt()) as f32,
            _ => 1.0,
        };
        out.clear();
        out.extend(vector.iter().zip(&self.mean).map(|(value, mean)| value * scale - mean));
        if self.metric == Metric::InnerProduct {
            let rest = if is_query { 0.0 } else { (self.squared_radius - squared_norm).max(0.0).sqrt() };
            out.push(rest as f32 - self.mean[self.width]);
        }
    }

    /// Writes the code of a row, or of a query, into `code`, which is [`Self::stride`] long.
    pub fn encode(&self, vector: &[f32], squared_norm: f64, is_query: bool, placed: &mut Vec<f32>, code: &mut [u8]) {
        self.place(vector, squared_norm, is_query, placed);
        let largest = placed.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        let (inverse, mut sum) = (1.0 / scale, 0);
        for (byte, value) in code.iter_mut().zip(placed.iter()) {
            let signed = (value * inverse).round() as i32;
            sum += signed;
            *byte = (signed + i32::from(CODE_ZERO)) as u8;
        }
        let norm = self.kernels.dot(placed, placed) as f32;
        let header = &mut code[self.dims()..self.dims() + HEADER_BYTES];
        header[0..4].copy_from_slice(&scale.to_le_bytes());
        header[4..8].copy_from_slice(&norm.to_le_bytes());
        header[8..12].copy_from_slice(&sum.to_le_bytes());
    }

    #[inline]
    fn header(&self, code: &[u8]) -> Header {
        let header = &code[self.dims()..self.dims() + HEADER_BYTES];
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        Header {
            scale: f32::from_le_bytes(word(0)),
            squared_norm: f32::from_le_bytes(word(4)),
            sum: i32::from_le_bytes(word(8)),
        }
    }

    /// A code to compare others with.
    pub fn probe<'a>(&self, code: &'a [u8]) -> Probe<'a> {
        Probe { bytes: &code[..self.dims()], header: self.header(code) }
    }

    /// The squared distance in this space, to the precision of the codes.
    #[inline]
    pub fn distance(&self, probe: &Probe<'_>, code: &[u8]) -> f32 {
        let header = self.header(code);
        let product = self.kernels.offset_product(&code[..self.dims()], probe.bytes);
        let product = product - i32::from(CODE_ZERO) * probe.header.sum;
        let scales = probe.header.scale * header.scale;
        probe.header.squared_norm + header.squared_norm - 2.0 * scales * product as f32
    }
}
