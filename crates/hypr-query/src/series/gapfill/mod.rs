//! Fills the gaps between buckets of time: a row for every bucket of a range, for every series.
//!
//! A series is the rows with the same values in the other group columns. The rows of the input are all kept, also
//! those outside of the range. A row that is added has the series' group columns, its bucket, and NULL in all other
//! columns but the filled ones:
//! - `locf` repeats the last value before that is not NULL,
//! - `interpolate` lies on the line between the values before and after, and is NULL where one of them is missing;
//!   integers are rounded.
//!
//! Both treat a NULL in a row of the input like a gap. Without other group columns the range is filled even when
//! there is no row at all.

mod exec;
mod node;
mod planner;
mod series;

pub(super) use node::{Fill, GapFillNode, Range};
pub(super) use planner::{constant, plan};
