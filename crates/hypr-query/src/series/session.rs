//! `session_start(ts, gap) OVER (PARTITION BY .. ORDER BY ts)`: the time of the first row of the session that a row
//! is in. A session ends where the next row is more than `gap` later. Rows without a time are in none.

use std::sync::{Arc, LazyLock};

use arrow_array::{Array, ArrayRef, Int64Array};
use arrow_schema::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{PartitionEvaluator, Signature, Volatility, WindowUDF, WindowUDFImpl};

use super::bucket::fixed_ns;
use super::time_bucket::{coerce_time, coerce_width};
use super::times::{from_steps, steps, unit_ns};

static SESSION_START: LazyLock<Arc<WindowUDF>> = LazyLock::new(|| {
    Arc::new(WindowUDF::from(SessionStart { signature: Signature::user_defined(Volatility::Immutable) }))
});

/// `session_start`.
pub(super) fn session_start() -> Arc<WindowUDF> {
    Arc::clone(&SESSION_START)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionStart {
    signature: Signature,
}

impl WindowUDFImpl for SessionStart {
    fn name(&self) -> &str {
        "session_start"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [time, gap] = arg_types else {
            return plan_err!("session_start takes a timestamp and a gap");
        };
        Ok(vec![coerce_time("session_start", time)?, coerce_width("session_start", gap)?])
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        let Some(time) = args.get_input_field(0) else {
            return plan_err!("session_start takes a timestamp and a gap");
        };
        Ok(Arc::new(time.as_ref().clone().with_name(args.name()).with_nullable(true)))
    }

    fn partition_evaluator(&self, _: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Sessions))
    }
}

#[derive(Debug)]
struct Sessions;

impl PartitionEvaluator for Sessions {
    fn evaluate_all(&mut self, values: &[ArrayRef], num_rows: usize) -> Result<ArrayRef> {
        let (times, gaps) = (&values[0], &values[1]);
        let Some(unit) = unit_ns(times.data_type()) else {
            return exec_err!("session takes a timestamp or a date, not {}", times.data_type());
        };
        if num_rows == 0 {
            return Ok(Arc::clone(times));
        }
        let ScalarValue::IntervalMonthDayNano(Some(gap)) = ScalarValue::try_from_array(gaps, 0)? else {
            return exec_err!("session: the gap must be an interval, not NULL");
        };
        let Some(gap) = fixed_ns(gap).filter(|gap| *gap >= 0) else {
            return exec_err!("session: the gap is of days and shorter units, and not negative");
        };
        let numbers = steps(times)?;
        let (mut start, mut last): (Option<i64>, i64) = (None, 0);
        let starts: Int64Array = (0..num_rows)
            .map(|row| {
                if numbers.is_null(row) {
                    return None;
                }
                let now = numbers.value(row);
                let apart = (i128::from(now) - i128::from(last)).abs() * unit;
                if start.is_none() || apart > gap {
                    start = Some(now);
                }
                last = now;
                start
            })
            .collect();
        from_steps(starts, times.data_type())
    }
}
