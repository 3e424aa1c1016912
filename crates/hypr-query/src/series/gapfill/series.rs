//! The rows of one series, with those that are missing.

use std::sync::Arc;

use arrow::compute::kernels::zip::zip;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, UInt32Array};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::take::take;
use datafusion::common::Result;

use super::Fill;
use crate::series::bucket::Bucketing;
use crate::series::times::{from_steps, steps, to_steps};

/// The buckets to fill, as instants.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Buckets {
    pub grid: Bucketing,
    pub first: i128,
    /// Before `first` when there is none.
    pub last: i128,
    /// Nanoseconds in a step of the column of time.
    pub unit: i128,
}

/// Positions of the columns that take part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spec {
    pub buckets: Buckets,
    pub series: Vec<usize>,
    pub time: usize,
    pub fills: Vec<(Fill, usize)>,
}

/// One row to emit.
struct Slot {
    /// Steps of the column of time.
    time: Option<i64>,
    /// The row of the input, or a gap.
    row: Option<u32>,
    /// The rows of the input before the next slot.
    passed: u32,
}

/// Emits the rows of one series in order of time, gaps filled; rows without a time come last.
pub(super) struct Series {
    spec: Arc<Spec>,
    schema: SchemaRef,
    rows: RecordBatch,
    times: Int64Array,
    next_row: usize,
    next_bucket: Option<i128>,
    fills: Vec<Filling>,
}

/// A filled column.
struct Filling {
    column: ArrayRef,
    numbers: Option<Float64Array>,
    /// For each row, the first one from there on that has a value.
    following: Vec<Option<u32>>,
}

impl Filling {
    fn new(fill: Fill, column: &ArrayRef) -> Result<Self> {
        let linear = fill == Fill::Linear;
        let mut following = vec![None; if linear { column.len() + 1 } else { 0 }];
        for row in (0..following.len().saturating_sub(1)).rev() {
            following[row] = if column.is_valid(row) { u32::try_from(row).ok() } else { following[row + 1] };
        }
        let numbers = match linear {
            true => Some(cast(column, &DataType::Float64)?.as_primitive::<Float64Type>().clone()),
            false => None,
        };
        Ok(Self { column: Arc::clone(column), numbers, following })
    }
}

impl Series {
    /// `rows` are of one series, by time.
    pub fn new(spec: Arc<Spec>, schema: SchemaRef, rows: RecordBatch) -> Result<Self> {
        let times = steps(rows.column(spec.time))?;
        let fills = spec.fills.iter().map(|(fill, at)| Filling::new(*fill, rows.column(*at))).collect::<Result<_>>()?;
        let buckets = &spec.buckets;
        let next_bucket = (buckets.first <= buckets.last).then_some(buckets.first);
        Ok(Self { spec, schema, rows, times, next_row: 0, next_bucket, fills })
    }

    /// The next rows, at most `limit`; `None` after the last.
    pub fn emit(&mut self, limit: usize) -> Result<Option<RecordBatch>> {
        let mut slots = Vec::new();
        while slots.len() < limit
            && let Some(slot) = self.next_slot()?
        {
            slots.push(slot);
        }
        if slots.is_empty() {
            return Ok(None);
        }
        let own: UInt32Array = slots.iter().map(|slot| slot.row).collect();
        let first = UInt32Array::from(vec![0; slots.len()]);
        let columns = (0..self.rows.num_columns()).map(|at| {
            let column = Arc::clone(self.rows.column(at));
            if at == self.spec.time {
                let times = slots.iter().map(|slot| slot.time).collect();
                return from_steps(times, column.data_type());
            }
            if self.spec.series.contains(&at) {
                return Ok(take(&column, &first, None)?);
            }
            match self.spec.fills.iter().position(|(_, filled)| *filled == at) {
                Some(fill) => self.filled(fill, &slots, &own),
                None => Ok(take(&column, &own, None)?),
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.schema), columns)?))
    }

    fn next_slot(&mut self) -> Result<Option<Slot>> {
        let row = (self.next_row < self.rows.num_rows()).then_some(self.next_row);
        let row_time = row.filter(|row| self.times.is_valid(*row)).map(|row| self.times.value(row));
        let bucket = self.next_bucket.map(|bucket| to_steps(bucket, self.spec.buckets.unit)).transpose()?;
        let takes_row = match (row, row_time, bucket) {
            (None, _, None) => return Ok(None),
            (Some(_), Some(time), Some(bucket)) => time <= bucket,
            (Some(_), _, None) => true,
            (_, None, Some(_)) => false,
            (None, Some(_), Some(_)) => false,
        };
        if row_time.filter(|_| takes_row) == bucket || !takes_row {
            self.next_bucket = self
                .next_bucket
                .map(|bucket| self.spec.buckets.grid.next(bucket))
                .filter(|next| *next <= self.spec.buckets.last);
        }
        if takes_row {
            self.next_row += 1;
        }
        let passed = u32::try_from(self.next_row).unwrap_or(u32::MAX);
        let row = row.filter(|_| takes_row).and_then(|row| u32::try_from(row).ok());
        Ok(Some(Slot { time: if takes_row { row_time } else { bucket }, row, passed }))
    }

    /// The values of a filled column in `slots`.
    fn filled(&self, fill: usize, slots: &[Slot], own: &UInt32Array) -> Result<ArrayRef> {
        let filling = &self.fills[fill];
        let mut passed = slots.first().map_or(0, |slot| slot.passed - u32::from(slot.row.is_some()));
        let mut last = (0..passed).rev().find(|row| filling.column.is_valid(*row as usize));
        let mut sources = Vec::with_capacity(slots.len());
        for slot in slots {
            for row in passed..slot.passed {
                if filling.column.is_valid(row as usize) {
                    last = Some(row);
                }
            }
            passed = slot.passed;
            sources.push(last);
        }
        let Some(numbers) = &filling.numbers else {
            return Ok(take(&filling.column, &UInt32Array::from(sources), None)?);
        };
        let has_value = |slot: &Slot| slot.row.is_some_and(|row| filling.column.is_valid(row as usize));
        let lines: Float64Array = slots
            .iter()
            .zip(&sources)
            .map(|(slot, before)| {
                let after = filling.following[slot.passed as usize]?;
                self.on_line(numbers, (*before)?, after, slot.time?)
            })
            .collect();
        let data_type = filling.column.data_type();
        let lines: ArrayRef = match data_type.is_integer() {
            true => Arc::new(lines.unary::<_, Float64Type>(f64::round)),
            false => Arc::new(lines),
        };
        let lines = cast(&lines, data_type)?;
        let values = take(&filling.column, own, None)?;
        let given: BooleanArray = slots.iter().map(|slot| Some(has_value(slot))).collect();
        Ok(zip(&given, &values, &lines)?)
    }

    fn on_line(&self, numbers: &Float64Array, before: u32, after: u32, time: i64) -> Option<f64> {
        let (before, after) = (before as usize, after as usize);
        if self.times.is_null(before) || self.times.is_null(after) {
            return None;
        }
        let (from, to) = (i128::from(self.times.value(before)), i128::from(self.times.value(after)));
        let share = (i128::from(time) - from) as f64 / (to - from) as f64;
        let (low, high) = (numbers.value(before), numbers.value(after));
        Some(low + (high - low) * share)
    }
}
