//! `time_bucket(width, ts [, timezone] [, origin])`, `tumble(ts, width [, timezone] [, origin])`, which is the same with
//! the arguments in the order of the other windows, and `hop_starts(ts, width, slide)`.

use std::str::FromStr;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::{Array, ArrayRef, Int64Array, ListArray};
use arrow_schema::{DataType, Field, TimeUnit};
use chrono_tz::Tz;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::bucket::{Bucketing, Origin};
use super::times::{self, INTERVAL, constant, from_steps, steps, to_steps, unit_ns};

/// `time_bucket`.
pub(super) fn time_bucket() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(TimeBucket { signature: Signature::user_defined(Volatility::Immutable) }))
}

/// `tumble`.
pub(super) fn tumble() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Tumble { signature: Signature::user_defined(Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Tumble {
    signature: Signature,
}

impl ScalarUDFImpl for Tumble {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        coerce_bucket("tumble", arg_types, (1, 0))
    }

    fn simplify(&self, mut args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        args.swap(0, 1);
        Ok(ExprSimplifyResult::Simplified(time_bucket().call(args)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.swap(0, 1);
        args.arg_fields.swap(0, 1);
        time_bucket().invoke_with_args(args)
    }
}

/// The types of the arguments, with the positions of the width and the time.
fn coerce_bucket(function: &str, arg_types: &[DataType], (width, time): (usize, usize)) -> Result<Vec<DataType>> {
    if !(2..=4).contains(&arg_types.len()) {
        return plan_err!("{function} takes a width and a timestamp, and after them a time zone and an origin");
    }
    let mut types = arg_types.to_vec();
    types[width] = coerce_width(function, &arg_types[width])?;
    types[time] = coerce_time(function, &arg_types[time])?;
    for (at, argument) in arg_types.iter().enumerate().skip(2) {
        types[at] = coerce_zone_or_origin(function, argument)?;
    }
    Ok(types)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[1].clone())
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        coerce_bucket("time_bucket", arg_types, (0, 1))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let data_type = args.return_field.data_type().clone();
        let Some(bucketing) = bucketing("time_bucket", &args.args)? else {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(&data_type)?));
        };
        match &args.args[1] {
            ColumnarValue::Array(times) => bucket_array(&bucketing, times).map(ColumnarValue::Array),
            ColumnarValue::Scalar(time) => {
                let starts = bucket_array(&bucketing, &time.to_array_of_size(1)?)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&starts, 0)?))
            }
        }
    }

    /// Buckets rise with the time.
    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        let others_fixed =
            inputs.iter().enumerate().all(|(at, input)| at == 1 || input.sort_properties == SortProperties::Singleton);
        Ok(match inputs.get(1) {
            Some(time) if others_fixed => time.sort_properties,
            _ => SortProperties::Unordered,
        })
    }

    /// `time_bucket('1 hour', ts) = b` is a range of `ts`, which prunes.
    fn preimage(&self, args: &[Expr], lit_expr: &Expr, _: &SimplifyContext) -> Result<PreimageResult> {
        let (Some(time), Expr::Literal(start, _)) = (args.get(1), lit_expr) else {
            return Ok(PreimageResult::None);
        };
        let literals: Option<Vec<ColumnarValue>> = args
            .iter()
            .enumerate()
            .map(|(at, arg)| match arg {
                Expr::Literal(value, _) => Some(ColumnarValue::Scalar(value.clone())),
                _ if at == 1 => Some(ColumnarValue::Scalar(ScalarValue::Null)),
                _ => None,
            })
            .collect();
        let (Some(literals), Some(unit)) = (literals, unit_ns(&start.data_type())) else {
            return Ok(PreimageResult::None);
        };
        let (Some(bucketing), Some(instant)) = (bucketing("time_bucket", &literals)?, times::instant(start)?) else {
            return Ok(PreimageResult::None);
        };
        if !bucketing.fits(unit) || bucketing.floor(instant) != instant {
            return Ok(PreimageResult::None);
        }
        let end = Int64Array::from(vec![to_steps(bucketing.next(instant), unit)?]);
        let end = ScalarValue::try_from_array(&from_steps(end, &start.data_type())?, 0)?;
        let interval = Box::new(Interval::try_new(start.clone(), end)?);
        Ok(PreimageResult::Range { expr: time.clone(), interval })
    }
}

pub(super) fn coerce_width(function: &str, width: &DataType) -> Result<DataType> {
    match width {
        DataType::Interval(_) | DataType::Duration(_) | DataType::Null => Ok(INTERVAL),
        text if text.is_string() => Ok(INTERVAL),
        other => plan_err!("{function}: a width is an interval such as '15 minutes', not {other}"),
    }
}

pub(super) fn coerce_time(function: &str, time: &DataType) -> Result<DataType> {
    match time {
        DataType::Timestamp(..) | DataType::Date32 => Ok(time.clone()),
        DataType::Date64 => Ok(DataType::Timestamp(TimeUnit::Millisecond, None)),
        DataType::Null => Ok(DataType::Timestamp(TimeUnit::Nanosecond, None)),
        text if text.is_string() => Ok(DataType::Timestamp(TimeUnit::Nanosecond, None)),
        other => plan_err!("{function} takes a timestamp or a date, not {other}"),
    }
}

fn coerce_zone_or_origin(function: &str, argument: &DataType) -> Result<DataType> {
    match argument {
        DataType::Null => Ok(DataType::Utf8),
        text if text.is_string() => Ok(DataType::Utf8),
        other => coerce_time(function, other),
    }
}

/// The grid that constant arguments describe; `None` when the width is NULL.
pub(super) fn bucketing(function: &str, args: &[ColumnarValue]) -> Result<Option<Bucketing>> {
    let ScalarValue::IntervalMonthDayNano(width) = constant(function, "the width", &args[0])? else {
        return exec_err!("{function}: the width is no interval");
    };
    let (mut zone, mut origin) = (None, Origin::Default);
    for argument in args.get(2..).unwrap_or_default() {
        let value = constant(function, "the time zone and the origin", argument)?;
        match value.try_as_str() {
            Some(Some(text)) => match Tz::from_str(text) {
                Ok(found) => zone = Some(found),
                Err(_) if super::bucket::parse_local(text).is_some() => origin = times::origin(value)?,
                Err(_) => {
                    return exec_err!(
                        "{function}: \"{text}\" is neither a time zone such as Europe/Berlin nor a timestamp"
                    );
                }
            },
            Some(None) => {}
            None => origin = times::origin(value)?,
        }
    }
    let Some(width) = width else {
        return Ok(None);
    };
    match Bucketing::new(*width, zone, origin) {
        Ok(bucketing) => Ok(Some(bucketing)),
        Err(why) => exec_err!("{function}: {why}"),
    }
}

/// The bucket of each time.
pub(super) fn bucket_array(bucketing: &Bucketing, times: &ArrayRef) -> Result<ArrayRef> {
    let data_type = times.data_type();
    let Some(unit) = unit_ns(data_type) else {
        return exec_err!("time_bucket takes a timestamp or a date, not {data_type}");
    };
    if !bucketing.fits(unit) {
        return exec_err!("time_bucket: buckets would begin between two values of {data_type}; use a finer type");
    }
    let values = steps(times)?;
    let mut cursor = BucketCursor::new(bucketing, unit);
    let starts: Int64Array = match bucketing.as_fixed() {
        Some((width, origin)) if i64::try_from(width / unit).is_ok() => {
            let width = i64::try_from(width / unit).unwrap_or(i64::MAX);
            let phase = i64::try_from((origin / unit).rem_euclid(i128::from(width))).unwrap_or(0);
            values.unary_opt(|value| {
                let past = (i128::from(value) - i128::from(phase)).rem_euclid(i128::from(width));
                value.checked_sub(i64::try_from(past).unwrap_or(0))
            })
        }
        _ => values.iter().map(|value| value.map(|value| cursor.start(value)).transpose()).collect::<Result<_>>()?,
    };
    from_steps(starts, data_type)
}

/// Remembers the last bucket: neighbouring rows are mostly of the same one.
struct BucketCursor<'a> {
    bucketing: &'a Bucketing,
    unit: i128,
    start: i128,
    next: i128,
}

impl<'a> BucketCursor<'a> {
    fn new(bucketing: &'a Bucketing, unit: i128) -> Self {
        Self { bucketing, unit, start: 0, next: 0 }
    }

    fn start(&mut self, value: i64) -> Result<i64> {
        let instant = i128::from(value) * self.unit;
        if !(self.start..self.next).contains(&instant) {
            self.start = self.bucketing.floor(instant);
            self.next = self.bucketing.next(self.start);
        }
        to_steps(self.start, self.unit)
    }
}

/// `hop_starts(ts, width, slide)`: the beginnings of all windows of `width`, one every `slide`, that hold `ts`.
pub(super) fn hop_starts() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(HopStarts { signature: Signature::user_defined(Volatility::Immutable) }))
}

/// The most windows that one row may be in.
const MAX_WINDOWS: i128 = 10_000;

#[derive(Debug, PartialEq, Eq, Hash)]
struct HopStarts {
    signature: Signature,
}

impl ScalarUDFImpl for HopStarts {
    fn name(&self) -> &str {
        "hop_starts"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(arg_types[0].clone(), true))))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [time, width, slide] = arg_types else {
            return plan_err!("hop_starts takes a timestamp, a width and a slide");
        };
        Ok(vec![coerce_time("hop", time)?, coerce_width("hop", width)?, coerce_width("hop", slide)?])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let time_type = args.args[0].data_type();
        let interval = |at: usize, name: &str| match constant("hop", name, &args.args[at])? {
            ScalarValue::IntervalMonthDayNano(Some(interval)) => Ok(*interval),
            _ => exec_err!("hop: {name} must not be NULL"),
        };
        let (width, slide) = (interval(1, "the width")?, interval(2, "the slide")?);
        let slides = match Bucketing::new(slide, None, Origin::Default) {
            Ok(slides) => slides,
            Err(why) => return exec_err!("hop: {why}"),
        };
        let (Some(unit), Some((slide_ns, _)), Some(width_ns)) =
            (unit_ns(&time_type), slides.as_fixed(), super::bucket::fixed_ns(width))
        else {
            return exec_err!("hop: width and slide are of days and shorter units; months differ in length");
        };
        if width_ns <= 0 || width_ns % unit != 0 || !slides.fits(unit) {
            return exec_err!("hop: width and slide must be positive multiples of the precision of {time_type}");
        }
        if width_ns / slide_ns > MAX_WINDOWS {
            return exec_err!("hop: a row would be in more than {MAX_WINDOWS} windows; use a longer slide");
        }
        let times = args.args[0].to_array(args.number_rows)?;
        windows(&slides, &times, unit, width_ns, slide_ns).map(|list| ColumnarValue::Array(Arc::new(list)))
    }
}

fn windows(slides: &Bucketing, times: &ArrayRef, unit: i128, width_ns: i128, slide_ns: i128) -> Result<ListArray> {
    let values = steps(times)?;
    let mut lists = ListBuilder::new(Int64Builder::new());
    for value in &values {
        let Some(value) = value else {
            lists.append(true);
            continue;
        };
        let instant = i128::from(value) * unit;
        let last = slides.floor(instant);
        let count = (width_ns - (instant - last) + slide_ns - 1).div_euclid(slide_ns).max(0);
        for back in (0..count).rev() {
            lists.values().append_value(to_steps(last - back * slide_ns, unit)?);
        }
        lists.append(true);
    }
    let lists = lists.finish();
    let starts = steps(lists.values())?;
    let starts = from_steps(starts, times.data_type())?;
    let field = Arc::new(Field::new_list_field(times.data_type().clone(), true));
    Ok(ListArray::try_new(field, lists.offsets().clone(), starts, None)?)
}
