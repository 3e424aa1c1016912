//! A tensor whose bytes lie in Arrow buffers.

use std::fmt;
use std::sync::Arc;

use arrow_buffer::Buffer;
use hypr_common::{Error, Result};

use crate::{DType, quant};

/// Where the bytes of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// Host memory, mapped or on the heap.
    Cpu,
}

/// Consecutive whole rows of a tensor in one buffer.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Index of its first row in the tensor.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// `rows` encoded rows, one after the other.
    pub data: Buffer,
}

/// A typed, shaped, read-only view of Arrow buffers. The buffers are shared and never copied; a clone costs a
/// reference count.
#[derive(Clone)]
pub struct WeightArray {
    dtype: DType,
    shape: Arc<[usize]>,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    pieces: Arc<[Piece]>,
}

impl WeightArray {
    /// A tensor of `shape` from buffers of whole rows, in row order. The last dimension is a row; all before
    /// it count rows; `[n]` is one row.
    ///
    /// # Errors
    /// `InvalidInput` when the shape is empty or holds a zero, a row is not a whole number of blocks, a
    /// piece is not a whole number of rows, or the pieces hold more or fewer rows than the shape.
    pub fn new(dtype: DType, shape: Vec<usize>, pieces: Vec<Buffer>) -> Result<Self> {
        let Some((&cols, outer)) = shape.split_last() else {
            return Err(Error::invalid("a tensor needs at least one dimension"));
        };
        if shape.contains(&0) {
            return Err(Error::invalid(format!("a tensor of shape {shape:?} has no values")));
        }
        let rows = outer
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n))
            .ok_or_else(|| Error::invalid(format!("a tensor of shape {shape:?} is too large")))?;
        let row_bytes = dtype.row_bytes(cols)?;
        let mut first_row = 0;
        let mut checked = Vec::with_capacity(pieces.len());
        for (index, data) in pieces.into_iter().enumerate() {
            if data.is_empty() || !data.len().is_multiple_of(row_bytes) {
                return Err(Error::invalid(format!(
                    "piece {index} of a {dtype} tensor of shape {shape:?} has {} bytes: it must hold whole rows of \
                     {row_bytes} bytes",
                    data.len()
                )));
            }
            let rows = data.len() / row_bytes;
            checked.push(Piece { first_row, rows, data });
            first_row += rows;
        }
        if first_row != rows {
            return Err(Error::invalid(format!(
                "the pieces of a {dtype} tensor of shape {shape:?} hold {first_row} rows of {row_bytes} bytes: the \
                 shape needs {rows}"
            )));
        }
        Ok(Self { dtype, shape: shape.into(), rows, cols, row_bytes, pieces: checked.into() })
    }

    /// A one-piece F32 tensor from values on the heap, for tests and computed constants.
    ///
    /// # Errors
    /// As [`WeightArray::new`].
    pub fn from_f32(values: &[f32], shape: Vec<usize>) -> Result<Self> {
        Self::new(DType::F32, shape, vec![Buffer::from_slice_ref(values)])
    }

    /// How the values are encoded.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the bytes lie.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// The logical shape, `[rows, cols]` or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The product of all dimensions but the last; 1 for `[n]`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The last dimension: values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one encoded row.
    pub fn row_stride(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// The buffers, in row order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The encoded bytes of row `row`.
    ///
    /// # Panics
    /// When `row` is not below [`WeightArray::rows`].
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        &self.rows_from(row)[..self.row_bytes]
    }

    /// The encoded bytes of row `row` and of those after it in the same piece.
    ///
    /// # Panics
    /// When `row` is not below [`WeightArray::rows`].
    pub fn rows_from(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of a tensor with {} rows", self.rows);
        let piece = match &*self.pieces {
            [only] => only,
            pieces => &pieces[pieces.partition_point(|piece| piece.first_row + piece.rows <= row)],
        };
        &piece.data.as_slice()[(row - piece.first_row) * self.row_bytes..]
    }

    /// Decodes row `row` into `out`, `[cols]`.
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `cols` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        quant::dequantize(self.dtype, self.row_bytes(row), out);
    }

    /// Decodes the whole tensor, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        for (row, out) in values.chunks_exact_mut(self.cols).enumerate() {
            self.dequantize_row(row, out);
        }
        values
    }

    /// The values themselves, without a copy, where they are F32 in one aligned buffer.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match (&*self.pieces, self.dtype) {
            ([piece], DType::F32) if cfg!(target_endian = "little") => {
                // SAFETY: every bit pattern is a valid f32.
                let (before, values, after) = unsafe { piece.data.as_slice().align_to::<f32>() };
                (before.is_empty() && after.is_empty()).then_some(values)
            }
            _ => None,
        }
    }
}

impl fmt::Debug for WeightArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightArray({} {:?} in {} pieces)", self.dtype, self.shape, self.pieces.len())
    }
}

#[cfg(test)]
mod tests;
