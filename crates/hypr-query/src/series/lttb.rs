//! `lttb(time, value, resolution)`: a series thinned out so that its line looks the same.
//!
//! Largest-Triangle-Three-Buckets (S. Steinarsson, "Downsampling Time Series for Visual Representation", University of
//! Iceland, 2013): the first and the last point stay; those between fall into `resolution - 2` buckets of equal
//! numbers of points, and of each that point stays which makes the largest triangle with the point before it that
//! stayed and the mean of the next bucket. Name and arguments are those of TimescaleDB's toolkit; the answer is a list of
//! structs `{time, value}` in the order of time, for `unnest`.
//!
//! Rows whose time or value is NULL, or NaN, do not count. Memory: 16 bytes a row of a group.

use std::sync::Arc;

use arrow::compute::cast;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, ListArray, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// The function.
pub(super) fn lttb() -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::from(Lttb { signature: Signature::user_defined(Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Lttb {
    signature: Signature,
}

/// The fields of a point.
fn point(time: &DataType) -> Fields {
    Fields::from(vec![Field::new("time", time.clone(), false), Field::new("value", DataType::Float64, false)])
}

fn item(time: &DataType) -> FieldRef {
    Arc::new(Field::new("item", DataType::Struct(point(time)), true))
}

fn list_of(data_type: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", data_type, true)))
}

impl AggregateUDFImpl for Lttb {
    fn name(&self) -> &str {
        "lttb"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(item(&arg_types[0])))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [time, value, resolution] = arg_types else {
            return plan_err!(
                "lttb takes a time, a value and the number of points to keep, not {} arguments",
                arg_types.len()
            );
        };
        let time = match time {
            DataType::Timestamp(..) => time.clone(),
            DataType::Date32 | DataType::Date64 => DataType::Timestamp(TimeUnit::Microsecond, None),
            number if number.is_integer() => DataType::Int64,
            other => return plan_err!("lttb: the first argument is a time or a whole number, not {other}"),
        };
        if !(value.is_numeric() || value.is_null()) {
            return plan_err!("lttb: the second argument is a number, not {value}");
        }
        if !(resolution.is_integer() || resolution.is_null()) {
            return plan_err!("lttb: the third argument is the number of points to keep, not {resolution}");
        }
        Ok(vec![time, DataType::Float64, DataType::Int64])
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |name: &str, data_type| Arc::new(Field::new(format_state_name(args.name, name), data_type, true));
        Ok(vec![
            field("times", list_of(DataType::Int64)),
            field("values", list_of(DataType::Float64)),
            field("resolution", DataType::Int64),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let time = args.expr_fields[0].data_type().clone();
        Ok(Box::new(Points { time, points: Vec::new(), resolution: None }))
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        ScalarValue::try_from(data_type)
    }
}

/// The points of a group, in the order they came.
#[derive(Debug)]
struct Points {
    /// The type of the times.
    time: DataType,
    points: Vec<(i64, f64)>,
    resolution: Option<i64>,
}

impl Points {
    fn add(&mut self, times: &Int64Array, values: &Float64Array) {
        let rows = (0..times.len()).filter(|row| times.is_valid(*row) && values.is_valid(*row));
        let points = rows.map(|row| (times.value(row), values.value(row)));
        self.points.extend(points.filter(|(_, value)| !value.is_nan()));
    }

    fn set_resolution(&mut self, given: &Int64Array) -> Result<()> {
        for resolution in given.iter().flatten() {
            if resolution < 2 {
                return exec_err!("lttb keeps at least the first and the last point: {resolution} points are too few");
            }
            if self.resolution.replace(resolution).is_some_and(|before| before != resolution) {
                return exec_err!("lttb: the number of points to keep must be the same for all rows of a group");
            }
        }
        Ok(())
    }
}

impl Accumulator for Points {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let times = cast(&columns[0], &DataType::Int64)?;
        self.set_resolution(columns[2].as_primitive::<Int64Type>())?;
        self.add(times.as_primitive::<Int64Type>(), columns[1].as_primitive::<Float64Type>());
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (times, values) = (states[0].as_list::<i32>(), states[1].as_list::<i32>());
        for row in (0..times.len()).filter(|row| times.is_valid(*row)) {
            let (times, values) = (times.value(row), values.value(row));
            self.add(times.as_primitive::<Int64Type>(), values.as_primitive::<Float64Type>());
        }
        self.set_resolution(states[2].as_primitive::<Int64Type>())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let list = |values: ArrayRef| {
            let item = Arc::new(Field::new("item", values.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([values.len()]);
            ScalarValue::List(Arc::new(ListArray::new(item, offsets, values, None)))
        };
        let times: Int64Array = self.points.iter().map(|(time, _)| Some(*time)).collect();
        let values: Float64Array = self.points.iter().map(|(_, value)| Some(*value)).collect();
        Ok(vec![list(Arc::new(times)), list(Arc::new(values)), ScalarValue::Int64(self.resolution)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let Some(resolution) = self.resolution.filter(|_| !self.points.is_empty()) else {
            return ScalarValue::try_from(&DataType::List(item(&self.time)));
        };
        // Points of one time in the order of their values, so that the answer does not depend on how they came.
        self.points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let kept = downsample(&self.points, usize::try_from(resolution).unwrap_or(usize::MAX));
        let times: Int64Array = kept.iter().map(|at| Some(self.points[*at].0)).collect();
        let values: Float64Array = kept.iter().map(|at| Some(self.points[*at].1)).collect();
        let times = cast(&times, &self.time)?;
        let points = StructArray::try_new(point(&self.time), vec![times, Arc::new(values)], None)?;
        let list =
            ListArray::try_new(item(&self.time), OffsetBuffer::from_lengths([kept.len()]), Arc::new(points), None);
        Ok(ScalarValue::List(Arc::new(list?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.points.capacity() * size_of::<(i64, f64)>()
    }
}

/// The positions of the points to keep: at most `resolution` of `points`, which are in the order of time.
fn downsample(points: &[(i64, f64)], resolution: usize) -> Vec<usize> {
    let count = points.len();
    if count <= resolution {
        return (0..count).collect();
    }
    let start = points[0].0;
    // Times apart from the first: their size must not cost precision.
    let at = |index: usize| {
        let (time, value) = points[index];
        (time.wrapping_sub(start) as u64 as f64, value)
    };
    let buckets = resolution - 2;
    let every = (count - 2) as f64 / buckets as f64;
    let edge = |bucket: usize| ((bucket as f64 * every) as usize + 1).min(count);
    let mut kept = Vec::with_capacity(resolution);
    let mut last = 0;
    kept.push(last);
    for bucket in 0..buckets {
        let next = edge(bucket + 1)..edge(bucket + 2);
        let length = next.len().max(1) as f64;
        let (sum_x, sum_y) = next.map(at).fold((0.0, 0.0), |(x, y), (a, b)| (x + a, y + b));
        let (mean_x, mean_y) = (sum_x / length, sum_y / length);
        let (last_x, last_y) = at(last);
        let mut largest = -1.0;
        for index in edge(bucket)..edge(bucket + 1) {
            let (x, y) = at(index);
            let area = ((last_x - mean_x) * (y - last_y) - (last_x - x) * (mean_y - last_y)).abs();
            if area > largest {
                (largest, last) = (area, index);
            }
        }
        kept.push(last);
    }
    kept.push(count - 1);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_stays_and_the_ends_do() {
        let mut points: Vec<(i64, f64)> = (0..100).map(|time| (time, 0.0)).collect();
        points[37].1 = 5.0;
        let kept = downsample(&points, 10);
        assert_eq!((kept.len(), kept[0], kept[9]), (10, 0, 99));
        assert!(kept.contains(&37), "{kept:?}");
        assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
        assert_eq!(downsample(&points, 2), [0, 99]);
        assert_eq!(downsample(&points[..5], 5), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn partial_states_give_what_all_rows_give() {
        let rows: Vec<(i64, f64)> = (0..50).map(|time| (time, f64::from((time * 7 % 11) as i32))).collect();
        let columns = |rows: &[(i64, f64)]| -> Vec<ArrayRef> {
            let times: Int64Array = rows.iter().map(|row| Some(row.0)).collect();
            let values: Float64Array = rows.iter().map(|row| Some(row.1)).collect();
            vec![Arc::new(times), Arc::new(values), Arc::new(Int64Array::from_value(8, rows.len()))]
        };
        let empty = || Points { time: DataType::Int64, points: Vec::new(), resolution: None };
        let mut whole = empty();
        whole.update_batch(&columns(&rows)).unwrap();
        let mut merged = empty();
        for part in [&rows[30..], &[], &rows[..30]] {
            let mut state = empty();
            state.update_batch(&columns(part)).unwrap();
            let state: Vec<ArrayRef> = state.state().unwrap().iter().map(|value| value.to_array().unwrap()).collect();
            merged.merge_batch(&state).unwrap();
        }
        assert_eq!(merged.evaluate().unwrap(), whole.evaluate().unwrap());
        assert!(empty().evaluate().unwrap().is_null());
    }
}
