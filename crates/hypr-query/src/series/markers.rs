//! Functions that planning replaces: `time_bucket_gapfill`, `hop` and `session` in `GROUP BY`, `locf` and
//! `interpolate` beside them. They have a type and no implementation; one that is left over stands where it must not.

use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::time_bucket::{coerce_time, coerce_width};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Marker {
    GapFill,
    Hop,
    Session,
    Locf,
    Interpolate,
}

const ALL: [Marker; 5] = [Marker::GapFill, Marker::Hop, Marker::Session, Marker::Locf, Marker::Interpolate];

/// All of them.
pub(super) fn all() -> Vec<Arc<ScalarUDF>> {
    ALL.map(|marker| {
        let signature = Signature::user_defined(Volatility::Stable);
        Arc::new(ScalarUDF::from(MarkerFunction { marker, signature }))
    })
    .to_vec()
}

impl Marker {
    pub(super) fn name(self) -> &'static str {
        match self {
            Marker::GapFill => "time_bucket_gapfill",
            Marker::Hop => "hop",
            Marker::Session => "session",
            Marker::Locf => "locf",
            Marker::Interpolate => "interpolate",
        }
    }

    /// The marker that `expr` calls, and its arguments.
    pub(super) fn of(expr: &Expr) -> Option<(Self, &[Expr])> {
        match expr {
            Expr::Alias(alias) => Self::of(&alias.expr),
            Expr::ScalarFunction(call) => {
                let marker = call.func.inner().downcast_ref::<MarkerFunction>()?.marker;
                Some((marker, &call.args))
            }
            _ => None,
        }
    }

    pub(super) fn groups(self) -> bool {
        !self.fills()
    }

    pub(super) fn fills(self) -> bool {
        matches!(self, Marker::Locf | Marker::Interpolate)
    }

    /// Where it belongs, for the error of one that is elsewhere.
    pub(super) fn place(self) -> &'static str {
        match self {
            Marker::GapFill | Marker::Hop | Marker::Session => "it is an expression of GROUP BY, one a query",
            Marker::Locf | Marker::Interpolate => {
                "it fills an aggregate in the SELECT list of a query that groups by time_bucket_gapfill"
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct MarkerFunction {
    marker: Marker,
    signature: Signature,
}

impl ScalarUDFImpl for MarkerFunction {
    fn name(&self) -> &str {
        self.marker.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let at = usize::from(self.marker == Marker::GapFill);
        Ok(arg_types[at].clone())
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        match (self.marker, arg_types) {
            (Marker::GapFill, [width, time, rest @ ..]) => {
                let (width, time) = (coerce_width(name, width)?, coerce_time(name, time)?);
                let rest = match rest.len() {
                    0 => vec![],
                    1 => vec![DataType::Utf8],
                    2 => vec![time.clone(), time.clone()],
                    3 => vec![DataType::Utf8, time.clone(), time.clone()],
                    _ => return plan_err!("{name} takes (width, ts [, timezone] [, start, finish])"),
                };
                Ok([vec![width, time], rest].concat())
            }
            (Marker::GapFill, _) => plan_err!("{name} takes (width, ts [, timezone] [, start, finish])"),
            (Marker::Hop, [time, width, slide]) => {
                Ok(vec![coerce_time(name, time)?, coerce_width(name, width)?, coerce_width(name, slide)?])
            }
            (Marker::Hop, _) => plan_err!("{name} takes (ts, width, slide)"),
            (Marker::Session, [time, gap]) => Ok(vec![coerce_time(name, time)?, coerce_width(name, gap)?]),
            (Marker::Session, _) => plan_err!("{name} takes (ts, gap)"),
            (Marker::Locf, [value]) => Ok(vec![value.clone()]),
            (Marker::Interpolate, [value]) if value.is_integer() || value.is_floating() => Ok(vec![value.clone()]),
            (Marker::Interpolate, [value]) if value.is_numeric() || value.is_null() => Ok(vec![DataType::Float64]),
            (Marker::Interpolate, [value]) => plan_err!("{name} draws lines between numbers, not between {value}"),
            (Marker::Locf | Marker::Interpolate, _) => plan_err!("{name} takes one aggregate"),
        }
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{} cannot stand here: {}", self.name(), self.marker.place())
    }
}
