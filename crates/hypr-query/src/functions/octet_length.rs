//! `octet_length(x)`: bytes of a text or a blob. DataFusion's takes text only.

use std::sync::Arc;

use arrow::compute::kernels::length::length;
use arrow_cast::cast;
use arrow_schema::DataType;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::vector::{all_constant, first_as_constant};

pub(super) fn octet_length() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(OctetLength { signature: Signature::user_defined(Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OctetLength {
    signature: Signature,
}

impl ScalarUDFImpl for OctetLength {
    fn name(&self) -> &str {
        "octet_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [DataType::Null] => Ok(vec![DataType::Utf8]),
            [only] if only.is_string() || only.is_binary() => Ok(vec![only.clone()]),
            [other] => plan_err!("octet_length takes a text or a blob, not {other}"),
            _ => plan_err!("octet_length takes one argument, not {}", arg_types.len()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = all_constant(&args.args);
        let array = match args.args.as_slice() {
            [value] => value.to_array(if constant { 1 } else { args.number_rows })?,
            _ => return exec_err!("octet_length takes one argument"),
        };
        let result = cast(&length(array.as_ref())?, &DataType::Int64)?;
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}
