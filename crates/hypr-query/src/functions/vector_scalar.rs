//! `vector_dims(v)`: the number of dimensions. `l2_normalize(v)`: `v` scaled to length 1, a zero vector to NULL.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, ListBuilder};
use arrow_array::{ArrayRef, Int32Array};
use arrow_schema::{DataType, Field};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use hypr_common::types;

use super::vector::{VectorArg, all_constant, dot, first_as_constant, is_vector_like};

pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    let signature = || Signature::user_defined(Volatility::Immutable);
    vec![
        Arc::new(ScalarUDF::from(VectorDims { signature: signature() })),
        Arc::new(ScalarUDF::from(L2Normalize { signature: signature() })),
    ]
}

fn one_vector(name: &str, arg_types: &[DataType]) -> Result<Vec<DataType>> {
    match arg_types {
        [only] if is_vector_like(only) => Ok(arg_types.to_vec()),
        [other] => plan_err!("{name} takes a vector, such as a VECTOR(n) column or ARRAY[0.1, 0.2], not {other}"),
        _ => plan_err!("{name} takes one vector, not {} arguments", arg_types.len()),
    }
}

/// Applies `per_rows` to the only argument and keeps constants constant.
fn over_vectors(
    args: &ScalarFunctionArgs,
    per_rows: impl Fn(&VectorArg, usize) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    let [argument] = args.args.as_slice() else {
        return exec_err!("one vector is expected");
    };
    let constant = all_constant(&args.args);
    let result = per_rows(&VectorArg::new(argument)?, if constant { 1 } else { args.number_rows })?;
    if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct VectorDims {
    signature: Signature,
}

impl ScalarUDFImpl for VectorDims {
    fn name(&self) -> &str {
        "vector_dims"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        one_vector(self.name(), arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        over_vectors(&args, |vectors, rows| {
            let dims = (0..rows).map(|row| vectors.get(row).map(|vector| vector.len() as i32));
            Ok(Arc::new(dims.collect::<Int32Array>()))
        })
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct L2Normalize {
    signature: Signature,
}

impl ScalarUDFImpl for L2Normalize {
    fn name(&self) -> &str {
        "l2_normalize"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [DataType::FixedSizeList(_, dimension)] => Ok(types::vector_type(*dimension)),
            _ => Ok(types::dynamic_vector_type()),
        }
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        one_vector(self.name(), arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let width = match args.return_type() {
            DataType::FixedSizeList(_, width) => Some(*width),
            _ => None,
        };
        over_vectors(&args, |vectors, rows| {
            let scaled = (0..rows).map(|row| vectors.get(row).and_then(normalized));
            Ok(match width {
                Some(width) => fixed_vectors(scaled, width),
                None => dynamic_vectors(scaled),
            })
        })
    }
}

fn normalized(vector: &[f32]) -> Option<Vec<f32>> {
    let length = dot(vector, vector).sqrt();
    (length > 0.0).then(|| vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}

fn item() -> Field {
    Field::new("item", DataType::Float32, true)
}

/// Vectors of `width` values; every one given has that many.
pub(super) fn fixed_vectors(vectors: impl Iterator<Item = Option<Vec<f32>>>, width: i32) -> ArrayRef {
    let mut list = FixedSizeListBuilder::new(Float32Builder::new(), width).with_field(item());
    for vector in vectors {
        match &vector {
            Some(vector) => list.values().append_slice(vector),
            None => list.values().append_nulls(width as usize),
        }
        list.append(vector.is_some());
    }
    Arc::new(list.finish())
}

/// Vectors of any length.
pub(super) fn dynamic_vectors(vectors: impl Iterator<Item = Option<Vec<f32>>>) -> ArrayRef {
    let mut list = ListBuilder::new(Float32Builder::new()).with_field(item());
    for vector in vectors {
        if let Some(vector) = &vector {
            list.values().append_slice(vector);
        }
        list.append(vector.is_some());
    }
    Arc::new(list.finish())
}
