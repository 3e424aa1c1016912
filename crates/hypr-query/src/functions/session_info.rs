//! `version()` and `current_user`.

use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use hypr_common::principal::Principal;

/// The product and its version.
pub(super) fn version() -> Arc<ScalarUDF> {
    constant("version", format!("Hyprstream {}", env!("CARGO_PKG_VERSION")))
}

/// The name of [`current_user`].
pub(super) const CURRENT_USER: &str = "current_user";

/// The name of whoever runs the statement.
pub(super) fn current_user(principal: &Principal) -> Arc<ScalarUDF> {
    constant(CURRENT_USER, principal.name().to_owned())
}

fn constant(name: &'static str, value: String) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(SessionConstant { name, value, signature: Signature::nullary(Volatility::Stable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionConstant {
    name: &'static str,
    value: String,
    signature: Signature,
}

impl ScalarUDFImpl for SessionConstant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(self.value.clone()))))
    }
}
