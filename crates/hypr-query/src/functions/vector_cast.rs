//! The cast of a value to a `VECTOR` column, with an error that names the column.

use std::sync::Arc;

use arrow_schema::{DataType, FieldRef};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::vector::{all_constant, first_as_constant, is_vector_like};
use crate::{convert, error};

/// Casts its argument to the type of one column.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct VectorCast {
    target: FieldRef,
    signature: Signature,
}

impl VectorCast {
    /// `value` cast to the type of `target`.
    pub(crate) fn call(value: Expr, target: FieldRef) -> Expr {
        let cast = Self { target, signature: Signature::user_defined(Volatility::Immutable) };
        ScalarUDF::from(cast).call(vec![value])
    }
}

impl ScalarUDFImpl for VectorCast {
    fn name(&self) -> &str {
        "to_vector"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.target.data_type().clone())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(self.target.as_ref().clone().with_nullable(true)))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [only] if is_vector_like(only) => Ok(arg_types.to_vec()),
            [other] => {
                plan_err!("column \"{}\" takes vectors such as ARRAY[0.1, 0.2], not {other}", self.target.name())
            }
            _ => plan_err!("to_vector takes one argument"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = all_constant(&args.args);
        let array = match args.args.as_slice() {
            [value] => value.to_array(if constant { 1 } else { args.number_rows })?,
            _ => return exec_err!("to_vector takes one argument"),
        };
        let result = convert::column(&array, &self.target).map_err(error::to_datafusion)?;
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}
