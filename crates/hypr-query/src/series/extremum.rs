//! `first(value, time)` and `last(value, time)`: the value at the earliest and at the latest time.
//!
//! Rows whose time is NULL do not count; a NULL value at the winning time is the answer. Among rows of one time any
//! may win. In `GROUP BY` both become DataFusion's `first_value(value ORDER BY time)`, which groups fast; over
//! windows they run as they stand here, since a frame that slides has to take rows back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::compute::{SortOptions, sort_to_indices};
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err, plan_err};
use datafusion::functions_aggregate::first_last::first_value_udaf;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ExprFunctionExt, Signature, SortExpr, Volatility,
};

/// Both functions.
pub(super) fn all() -> Vec<Arc<AggregateUDF>> {
    [End::First, End::Last]
        .map(|end| {
            let signature = Signature::user_defined(Volatility::Immutable);
            Arc::new(AggregateUDF::from(Extremum { end, signature }))
        })
        .to_vec()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    First,
    Last,
}

impl End {
    /// The order that puts the winner first.
    fn order(self) -> SortOptions {
        SortOptions { descending: self == End::Last, nulls_first: false }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Extremum {
    end: End,
    signature: Signature,
}

impl AggregateUDFImpl for Extremum {
    fn name(&self) -> &str {
        match self.end {
            End::First => "first",
            End::Last => "last",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [value, time] = arg_types else {
            return plan_err!("{name} takes a value and the time it was taken at, not {} arguments", arg_types.len());
        };
        if time.is_nested() {
            return plan_err!("{name}: the second argument orders the rows and cannot be {time}");
        }
        Ok(vec![value.clone(), time.clone()])
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let time = args.input_fields[1].data_type().clone();
        Ok(vec![
            Arc::new(args.return_field.as_ref().clone().with_name(format_state_name(args.name, "value"))),
            Arc::new(Field::new(format_state_name(args.name, "time"), time, true)),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let time = args.expr_fields[1].data_type();
        Ok(Box::new(Best {
            end: self.end,
            value: ScalarValue::try_from(args.return_field.data_type())?,
            time: ScalarValue::try_from(time)?,
        }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let time = args.expr_fields[1].data_type();
        Ok(Box::new(Sliding {
            end: self.end,
            null: ScalarValue::try_from(args.return_field.data_type())?,
            converter: RowConverter::new(vec![SortField::new(time.clone())])?,
            rows: BTreeMap::new(),
        }))
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        let order = self.end.order();
        Some(Box::new(move |call: AggregateFunction, _| {
            let params = call.params;
            let [value, time] = params.args.as_slice() else {
                return internal_err!("first and last take two arguments");
            };
            let timed = time.clone().is_not_null();
            let filter = match params.filter {
                Some(filter) => filter.and(timed),
                None => timed,
            };
            first_value_udaf()
                .call(vec![value.clone()])
                .order_by(vec![SortExpr::new(time.clone(), !order.descending, order.nulls_first)])
                .filter(filter)
                .build()
        }))
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        ScalarValue::try_from(data_type)
    }
}

/// The best row so far; its time is NULL while there is none.
#[derive(Debug)]
struct Best {
    end: End,
    value: ScalarValue,
    time: ScalarValue,
}

impl Best {
    fn take(&mut self, values: &ArrayRef, times: &ArrayRef) -> Result<()> {
        let best = sort_to_indices(times, Some(self.end.order()), Some(1))?;
        let Some(row) = best.values().first().map(|row| *row as usize).filter(|row| times.is_valid(*row)) else {
            return Ok(());
        };
        let time = ScalarValue::try_from_array(times, row)?;
        let wins = match time.partial_cmp(&self.time) {
            _ if self.time.is_null() => true,
            Some(order) if self.end == End::First => order.is_lt(),
            Some(order) => order.is_gt(),
            None => false,
        };
        if wins {
            self.value = ScalarValue::try_from_array(values, row)?;
            self.time = time;
        }
        Ok(())
    }
}

impl Accumulator for Best {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.take(&values[0], &values[1])
    }

    /// A state is a row as good as any other.
    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.take(&states[0], &states[1])
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), self.time.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size() + self.time.size() - 2 * size_of::<ScalarValue>()
    }
}

/// The rows of a sliding frame by time; those of one time in the order they came, which is that they leave in.
#[derive(Debug)]
struct Sliding {
    end: End,
    null: ScalarValue,
    converter: RowConverter,
    rows: BTreeMap<OwnedRow, VecDeque<ScalarValue>>,
}

impl Sliding {
    fn keys(&mut self, times: &ArrayRef) -> Result<Vec<Option<OwnedRow>>> {
        let rows = self.converter.convert_columns(std::slice::from_ref(times))?;
        Ok((0..times.len()).map(|row| times.is_valid(row).then(|| rows.row(row).owned())).collect())
    }
}

impl Accumulator for Sliding {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for (row, key) in self.keys(&values[1])?.into_iter().enumerate() {
            if let Some(key) = key {
                self.rows.entry(key).or_default().push_back(ScalarValue::try_from_array(&values[0], row)?);
            }
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for key in self.keys(&values[1])?.into_iter().flatten() {
            let Some(rows) = self.rows.get_mut(&key) else {
                return internal_err!("a row leaves a frame that it never entered");
            };
            rows.pop_front();
            if rows.is_empty() {
                self.rows.remove(&key);
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        internal_err!("frames of windows have no partial states")
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        internal_err!("frames of windows have no partial states")
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let best = match self.end {
            End::First => self.rows.first_key_value(),
            End::Last => self.rows.last_key_value(),
        };
        Ok(best.and_then(|(_, rows)| rows.front()).unwrap_or(&self.null).clone())
    }

    fn size(&self) -> usize {
        let rows: usize = self.rows.values().map(VecDeque::len).sum();
        size_of_val(self) + rows * (size_of::<ScalarValue>() + self.null.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, StringArray};

    fn columns(rows: &[(Option<&str>, Option<i64>)]) -> [ArrayRef; 2] {
        let values: StringArray = rows.iter().map(|row| row.0).collect();
        let times: Int64Array = rows.iter().map(|row| row.1).collect();
        [Arc::new(values), Arc::new(times)]
    }

    fn best(end: End) -> Best {
        Best { end, value: ScalarValue::Utf8(None), time: ScalarValue::Int64(None) }
    }

    #[test]
    fn partial_states_merge_to_the_extreme_of_all() {
        for (end, expected) in [(End::First, "b"), (End::Last, "d")] {
            let mut total = best(end);
            for rows in
                [&[(Some("a"), Some(5)), (Some("b"), Some(2))][..], &[(Some("c"), Some(7)), (Some("d"), Some(9))]]
            {
                let mut part = best(end);
                part.update_batch(&columns(rows)).unwrap();
                let state: Vec<ArrayRef> = part.state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
                total.merge_batch(&state).unwrap();
            }
            let mut empty = best(end);
            let state: Vec<ArrayRef> = empty.state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
            total.merge_batch(&state).unwrap();
            assert_eq!(total.evaluate().unwrap(), ScalarValue::from(expected));
        }
    }

    #[test]
    fn null_times_do_not_count_and_null_values_do() {
        let mut first = best(End::First);
        first.update_batch(&columns(&[(Some("x"), None), (None, Some(1)), (Some("y"), Some(2))])).unwrap();
        assert_eq!(first.evaluate().unwrap(), ScalarValue::Utf8(None));
        let mut none = best(End::Last);
        none.update_batch(&columns(&[(Some("x"), None)])).unwrap();
        assert_eq!(none.evaluate().unwrap(), ScalarValue::Utf8(None));
    }

    #[test]
    fn a_sliding_frame_takes_rows_back() {
        let converter = RowConverter::new(vec![SortField::new(DataType::Int64)]).unwrap();
        let null = ScalarValue::Utf8(None);
        let mut last = Sliding { end: End::Last, null, converter, rows: BTreeMap::new() };
        last.update_batch(&columns(&[(Some("late"), Some(9)), (Some("a"), Some(1)), (Some("b"), Some(1))])).unwrap();
        assert_eq!(last.evaluate().unwrap(), ScalarValue::from("late"));
        last.retract_batch(&columns(&[(Some("late"), Some(9)), (Some("a"), Some(1))])).unwrap();
        assert_eq!(last.evaluate().unwrap(), ScalarValue::from("b"));
        assert!(last.retract_batch(&columns(&[(Some("late"), Some(9))])).is_err());
    }
}
