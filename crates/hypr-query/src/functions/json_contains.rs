//! `json_contains(a, b)`, the operator `@>`: true when JSON `a` holds all of `b`, by PostgreSQL's rules for
//! jsonb: objects by key, arrays as sets, and an array contains a bare scalar that is one of its elements.

use std::sync::{Arc, LazyLock};

use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use serde_json::Value;

use super::vector::{all_constant, first_as_constant};

/// The function.
pub(crate) fn json_contains() -> Arc<ScalarUDF> {
    static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
        let signature = Signature::string(2, Volatility::Immutable);
        Arc::new(ScalarUDF::from(JsonContains { signature }))
    });
    Arc::clone(&FUNCTION)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonContains {
    signature: Signature,
}

impl ScalarUDFImpl for JsonContains {
    fn name(&self) -> &str {
        "json_contains"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [outer, inner] = args.args.as_slice() else {
            return exec_err!("json_contains takes two JSON values");
        };
        let constant = all_constant(&args.args);
        let rows = if constant { 1 } else { args.number_rows };
        let (outer, inner) = (JsonArg::new(outer, rows)?, JsonArg::new(inner, rows)?);
        let mut result = BooleanArray::builder(rows);
        for row in 0..rows {
            let contained = match (outer.get(row)?, inner.get(row)?) {
                (Some(outer), Some(inner)) => Some(contains(&outer, &inner, true)),
                _ => None,
            };
            result.append_option(contained);
        }
        let result = Arc::new(result.finish()) as _;
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}

/// An argument; a constant is parsed once.
enum JsonArg {
    Constant(Option<Value>),
    Column(arrow_array::StringArray),
}

impl JsonArg {
    fn new(value: &ColumnarValue, rows: usize) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(scalar) => match scalar.try_as_str() {
                Some(Some(text)) => Ok(Self::Constant(Some(parse(text)?))),
                _ => Ok(Self::Constant(None)),
            },
            ColumnarValue::Array(_) => {
                let texts = cast(&value.to_array(rows)?, &DataType::Utf8)?;
                Ok(Self::Column(texts.as_string().clone()))
            }
        }
    }

    fn get(&self, row: usize) -> Result<Option<std::borrow::Cow<'_, Value>>> {
        match self {
            Self::Constant(value) => Ok(value.as_ref().map(std::borrow::Cow::Borrowed)),
            Self::Column(texts) if texts.is_null(row) => Ok(None),
            Self::Column(texts) => Ok(Some(std::borrow::Cow::Owned(parse(texts.value(row))?))),
        }
    }
}

fn parse(text: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => {
            let shown: String = text.chars().take(40).collect();
            exec_err!("json_contains: '{shown}' is not JSON: {error}")
        }
    }
}

fn contains(outer: &Value, inner: &Value, is_root: bool) -> bool {
    match (outer, inner) {
        (Value::Object(outer), Value::Object(inner)) => {
            inner.iter().all(|(key, inner)| outer.get(key).is_some_and(|outer| contains(outer, inner, false)))
        }
        (Value::Array(outer), Value::Array(inner)) => {
            inner.iter().all(|inner| outer.iter().any(|outer| contains(outer, inner, false)))
        }
        (Value::Array(outer), scalar) if is_root && !scalar.is_object() => outer.contains(scalar),
        (Value::Number(outer), Value::Number(inner)) => outer == inner || outer.as_f64() == inner.as_f64(),
        (outer, inner) => outer == inner,
    }
}
