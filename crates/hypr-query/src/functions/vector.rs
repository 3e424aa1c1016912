//! How SQL functions see vectors: rows of `f32`, whatever list or text they come in.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, Float32Array};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_cast::cast;
use arrow_schema::DataType;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::ColumnarValue;

/// A column of vectors: `[rows]` ranges into one run of `f32`.
pub(crate) struct VectorColumn {
    values: Float32Array,
    rows: Rows,
    nulls: Option<NullBuffer>,
}

enum Rows {
    /// Every row has this many values.
    Fixed(usize),
    Offsets(OffsetBuffer<i32>),
    LargeOffsets(OffsetBuffer<i64>),
}

impl VectorColumn {
    /// Reads a column of lists of numbers. Lists of `f32` are read in place; others are converted whole.
    pub(crate) fn new(array: &ArrayRef) -> Result<Self> {
        let (values, rows) = match array.data_type() {
            DataType::FixedSizeList(_, width) => (array.as_fixed_size_list().values(), Rows::Fixed(*width as usize)),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (list.values(), Rows::Offsets(list.offsets().clone()))
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                (list.values(), Rows::LargeOffsets(list.offsets().clone()))
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => return Self::parse(array),
            other => return exec_err!("{other} is no vector; vectors are VECTOR(n) columns and ARRAY[..]"),
        };
        let values = match values.data_type() {
            DataType::Float32 => Arc::clone(values),
            _ => cast(values, &DataType::Float32)?,
        };
        Ok(Self { values: values.as_primitive::<Float32Type>().clone(), rows, nulls: array.nulls().cloned() })
    }

    /// Reads text such as `[0.1, 0.2]`.
    fn parse(array: &ArrayRef) -> Result<Self> {
        let texts = cast(array, &DataType::Utf8)?;
        let mut values = Vec::new();
        let mut lengths = Vec::with_capacity(texts.len());
        for text in texts.as_string::<i32>() {
            let before = values.len();
            if let Some(text) = text {
                let Ok(parsed) = serde_json::from_str::<Vec<f32>>(text) else {
                    let shown: String = text.chars().take(40).collect();
                    return exec_err!("'{shown}' is no vector; write it as '[0.1, 0.2]' or ARRAY[0.1, 0.2]");
                };
                values.extend(parsed);
            }
            lengths.push(values.len() - before);
        }
        let rows = Rows::Offsets(OffsetBuffer::from_lengths(lengths));
        Ok(Self { values: Float32Array::from(values), rows, nulls: texts.nulls().cloned() })
    }

    fn range(&self, row: usize) -> Range<usize> {
        match &self.rows {
            Rows::Fixed(width) => row * width..(row + 1) * width,
            Rows::Offsets(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Rows::LargeOffsets(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
        }
    }

    /// The vector of a row; none if it is NULL or has a NULL in it.
    pub(crate) fn get(&self, row: usize) -> Option<&[f32]> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        let range = self.range(row);
        if self.values.null_count() > 0 && range.clone().any(|at| self.values.is_null(at)) {
            return None;
        }
        Some(&self.values.values()[range])
    }
}

/// An argument that is a vector per row, or one for all rows.
pub(crate) enum VectorArg {
    Constant(Option<Vec<f32>>),
    Column(VectorColumn),
}

impl VectorArg {
    /// Reads an argument; a constant is converted once.
    pub(crate) fn new(value: &ColumnarValue) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(scalar) if scalar.is_null() => Ok(Self::Constant(None)),
            ColumnarValue::Scalar(scalar) => {
                let column = VectorColumn::new(&scalar.to_array()?)?;
                Ok(Self::Constant(column.get(0).map(<[f32]>::to_vec)))
            }
            ColumnarValue::Array(array) if array.data_type().is_null() => Ok(Self::Constant(None)),
            ColumnarValue::Array(array) => Ok(Self::Column(VectorColumn::new(array)?)),
        }
    }

    /// The vector for a row.
    pub(crate) fn get(&self, row: usize) -> Option<&[f32]> {
        match self {
            Self::Constant(vector) => vector.as_deref(),
            Self::Column(column) => column.get(row),
        }
    }
}

/// True for the types [`VectorColumn`] reads.
pub(crate) fn is_vector_like(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_numeric() || item.data_type().is_null()
        }
        _ => false,
    }
}

/// Whether all arguments are constants, in which case the result should be one too.
pub(crate) fn all_constant(args: &[ColumnarValue]) -> bool {
    args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)))
}

/// The only row of `array` as a constant.
pub(crate) fn first_as_constant(array: &ArrayRef) -> Result<ColumnarValue> {
    Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(array, 0)?))
}

/// Sums kept apart, so that the compiler can use vector registers.
const LANES: usize = 16;

/// Sum of `a[i] * b[i]`; the slices are of one length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum_over_pairs(a, b, |x, y| x * y)
}

/// Sum of `(a[i] - b[i])^2`; the slices are of one length.
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    sum_over_pairs(a, b, |x, y| (x - y) * (x - y))
}

#[inline(always)]
fn sum_over_pairs(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&x, &y)| term(x, y)).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(tail)
}
