//! Columns of time as numbers: timestamps of every precision, and dates.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_cast::cast;
use arrow_schema::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, exec_err};
use datafusion::logical_expr::ColumnarValue;

use super::bucket::{self, Origin};

pub(super) const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// Nanoseconds in one step of a column of time; `None` for other types.
pub(super) fn unit_ns(data_type: &DataType) -> Option<i128> {
    match data_type {
        DataType::Timestamp(TimeUnit::Second, _) => Some(bucket::SECOND_NS),
        DataType::Timestamp(TimeUnit::Millisecond, _) => Some(1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(1),
        DataType::Date32 => Some(86_400 * bucket::SECOND_NS),
        _ => None,
    }
}

/// The steps of a column of time.
pub(super) fn steps(array: &ArrayRef) -> Result<Int64Array> {
    let array = match array.data_type() {
        DataType::Date32 => cast(array, &DataType::Int32)?,
        _ => Arc::clone(array),
    };
    Ok(cast(&array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// Steps as a column of `data_type`.
pub(super) fn from_steps(steps: Int64Array, data_type: &DataType) -> Result<ArrayRef> {
    let steps: ArrayRef = Arc::new(steps);
    Ok(match data_type {
        DataType::Date32 => cast(&cast(&steps, &DataType::Int32)?, data_type)?,
        _ => cast(&steps, data_type)?,
    })
}

/// An instant as steps of `unit_ns`, rounded down.
pub(super) fn to_steps(instant: i128, unit_ns: i128) -> Result<i64> {
    i64::try_from(instant.div_euclid(unit_ns))
        .map_err(|_| exec_datafusion_err!("{} is outside of what the column's type holds", bucket::show(instant)))
}

/// The instant that a constant of time is; `None` for NULL.
pub(super) fn instant(value: &ScalarValue) -> Result<Option<i128>> {
    let Some(unit) = unit_ns(&value.data_type()) else {
        return exec_err!("{value} is no point in time");
    };
    if value.is_null() {
        return Ok(None);
    }
    let array = steps(&value.to_array_of_size(1)?)?;
    Ok(Some(i128::from(array.value(0)) * unit))
}

/// An origin: text and timestamps without a zone are what the clock on the wall shows.
pub(super) fn origin(value: &ScalarValue) -> Result<Origin> {
    if let Some(text) = value.try_as_str() {
        return match text.map(|text| (text, bucket::parse_local(text))) {
            None => Ok(Origin::Default),
            Some((_, Some(local))) => Ok(Origin::Local(local)),
            Some((text, None)) => exec_err!("\"{text}\" is no timestamp such as 2000-01-03 or 2000-01-03 06:00:00"),
        };
    }
    Ok(match (instant(value)?, value.data_type()) {
        (None, _) => Origin::Default,
        (Some(instant), DataType::Timestamp(_, Some(_))) => Origin::Instant(instant),
        (Some(local), _) => Origin::Local(local),
    })
}

/// The value of an argument that must be the same for all rows.
pub(super) fn constant<'a>(function: &str, name: &str, value: &'a ColumnarValue) -> Result<&'a ScalarValue> {
    match value {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(_) => exec_err!("{function}: {name} must be a constant, not a column"),
    }
}
