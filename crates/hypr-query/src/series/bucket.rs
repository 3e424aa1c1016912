//! Where buckets of time begin: the arithmetic behind `time_bucket` and everything built on it.
//!
//! A bucket is named by its first instant. With a time zone the grid is laid over the local clock:
//! - widths of whole days begin at one time of the local day, midnight by default, however long the days between are;
//!   a time that the clock skips is the first instant after the gap, of one that it shows twice the first counts;
//! - widths of months begin at the first midnight of a month; of an origin only the month counts;
//! - other widths begin at every instant at which the local clock shows a multiple of the width, so an hour that
//!   the clock repeats is two buckets, and at the end of a gap that skips a multiple.
//!
//! Invariant: `floor(t) <= t < next(floor(t))`, and `floor` never falls when time rises.
//! All instants here are nanoseconds since the Unix epoch in `i128`, which holds every Arrow timestamp.

use arrow_buffer::IntervalMonthDayNano;
use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike, Utc};
use chrono::{MappedLocalTime, TimeDelta};
use chrono_tz::Tz;

pub(crate) const SECOND_NS: i128 = 1_000_000_000;
const DAY_NS: i128 = 86_400 * SECOND_NS;
/// 2000-01-03, a Monday: the origin of buckets that are not of months.
const DEFAULT_ORIGIN_NS: i128 = 10_959 * DAY_NS;
/// 2000-01-01: the origin of buckets of months.
const DEFAULT_MONTH_ORIGIN_NS: i128 = 10_957 * DAY_NS;

/// Where a grid of buckets is anchored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    Default,
    /// What a clock on the wall shows.
    Local(i128),
    Instant(i128),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Width {
    Fixed(i128),
    Months(i64),
}

/// A grid of buckets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bucketing {
    width: Width,
    /// On the local clock.
    origin: i128,
    zone: Option<Tz>,
}

impl Bucketing {
    /// Buckets of `width`, or what is wrong with it.
    pub(crate) fn new(width: IntervalMonthDayNano, zone: Option<Tz>, origin: Origin) -> Result<Self, String> {
        let fixed = i128::from(width.days) * DAY_NS + i128::from(width.nanoseconds);
        let width = match (width.months, fixed) {
            (0, fixed) if fixed > 0 => Width::Fixed(fixed),
            (months, 0) if months > 0 => Width::Months(i64::from(months)),
            (months, fixed) if months > 0 && fixed > 0 => {
                return Err("a width is of months or of days and shorter units, not of both".to_owned());
            }
            _ => return Err("a width must be longer than nothing".to_owned()),
        };
        let zone = zone.filter(|zone| *zone != Tz::UTC);
        let mut bucketing = Self { width, origin: 0, zone };
        let origin = match (origin, width) {
            (Origin::Default, Width::Fixed(_)) => DEFAULT_ORIGIN_NS,
            (Origin::Default, Width::Months(_)) => DEFAULT_MONTH_ORIGIN_NS,
            (Origin::Local(local), _) => local,
            (Origin::Instant(instant), _) => bucketing.local(instant),
        };
        bucketing.origin = match width {
            Width::Fixed(_) => origin,
            Width::Months(_) => first_of_month(month_number(date_time(origin))),
        };
        Ok(bucketing)
    }

    /// Width and origin in nanoseconds, when buckets are equally long everywhere.
    pub(crate) fn as_fixed(&self) -> Option<(i128, i128)> {
        match (self.width, self.zone) {
            (Width::Fixed(width), None) => Some((width, self.origin)),
            _ => None,
        }
    }

    /// True when every bucket begins at a whole multiple of `unit_ns`, so that a column of that precision can
    /// name it. Zones change their clocks at whole seconds.
    pub(crate) fn fits(&self, unit_ns: i128) -> bool {
        let width_fits = match self.width {
            Width::Fixed(width) => width % unit_ns == 0,
            Width::Months(_) => true,
        };
        width_fits && self.origin % unit_ns == 0 && (self.zone.is_none() || unit_ns <= SECOND_NS)
    }

    /// The bucket that holds instant `t`.
    pub(crate) fn floor(&self, t: i128) -> i128 {
        let Some(zone) = self.zone else {
            return self.grid_floor(t);
        };
        if self.follows_dates() {
            let mut grid = self.grid_floor(self.local(t));
            loop {
                let start = date_instant(zone, grid);
                if start <= t {
                    return start;
                }
                grid = self.grid_floor(grid - 1);
            }
        }
        let mut t = t;
        loop {
            let (local, offset) = (self.local(t), offset_at(zone, t));
            let grid = self.grid_floor(local);
            let start = t - (local - grid);
            let before = offset_at(zone, start);
            if before == offset {
                return start;
            }
            let change = transition(zone, start, t);
            if offset > before && grid >= change + before {
                return change;
            }
            t = change - 1;
        }
    }

    /// The bucket after the one that begins at `start`.
    pub(crate) fn next(&self, start: i128) -> i128 {
        let Some(zone) = self.zone else {
            return self.grid_next(self.grid_floor(start));
        };
        if self.follows_dates() {
            let mut grid = self.grid_next(self.grid_floor(self.local(start)));
            loop {
                let next = date_instant(zone, grid);
                if next > start {
                    return next;
                }
                grid = self.grid_next(grid);
            }
        }
        let (local, offset) = (self.local(start), offset_at(zone, start));
        let grid = self.grid_next(self.grid_floor(local));
        let next = start + (grid - local);
        let after = offset_at(zone, next);
        if after == offset {
            return next;
        }
        let change = transition(zone, start, next);
        let local_after = change + after;
        if after > offset {
            return if grid < local_after { change } else { change + (grid - local_after) };
        }
        let floor = self.grid_floor(local_after);
        let grid = if floor == local_after { floor } else { self.grid_next(floor) };
        change + (grid - local_after)
    }

    fn follows_dates(&self) -> bool {
        match self.width {
            Width::Fixed(width) => width % DAY_NS == 0,
            Width::Months(_) => true,
        }
    }

    fn local(&self, t: i128) -> i128 {
        self.zone.map_or(t, |zone| t + offset_at(zone, t))
    }

    /// The last point of the grid at or before `local`, both on the local clock.
    fn grid_floor(&self, local: i128) -> i128 {
        match self.width {
            Width::Fixed(width) => local - (local - self.origin).rem_euclid(width),
            Width::Months(months) => {
                let month = month_number(date_time(local));
                first_of_month(month - (month - month_number(date_time(self.origin))).rem_euclid(months))
            }
        }
    }

    fn grid_next(&self, grid: i128) -> i128 {
        match self.width {
            Width::Fixed(width) => grid + width,
            Width::Months(months) => first_of_month(month_number(date_time(grid)) + months),
        }
    }
}

fn month_number(at: NaiveDateTime) -> i64 {
    i64::from(at.year()) * 12 + i64::from(at.month0())
}

fn first_of_month(number: i64) -> i128 {
    let year = i32::try_from(number.div_euclid(12)).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX });
    let month = u32::try_from(number.rem_euclid(12)).unwrap_or(0) + 1;
    let bound = if number < 0 { NaiveDate::MIN } else { NaiveDate::MAX };
    nanoseconds(NaiveDate::from_ymd_opt(year, month, 1).unwrap_or(bound).and_time(NaiveTime::MIN))
}

fn nanoseconds(at: NaiveDateTime) -> i128 {
    i128::from(at.and_utc().timestamp()) * SECOND_NS + i128::from(at.nanosecond())
}

/// Clamped to what the calendar knows, some 262,000 years around today.
fn date_time(ns: i128) -> NaiveDateTime {
    let seconds = ns.div_euclid(SECOND_NS);
    let nanos = u32::try_from(ns.rem_euclid(SECOND_NS)).unwrap_or(0);
    let seconds = i64::try_from(seconds).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX });
    let bound = if ns < 0 { NaiveDate::MIN } else { NaiveDate::MAX };
    DateTime::<Utc>::from_timestamp(seconds, nanos).map_or(bound.and_time(NaiveTime::MIN), |at| at.naive_utc())
}

/// What `zone` adds to UTC at instant `t`.
fn offset_at(zone: Tz, t: i128) -> i128 {
    let offset = zone.offset_from_utc_datetime(&date_time(t));
    i128::from(offset.fix().local_minus_utc()) * SECOND_NS
}

/// The first instant of a local date and time.
fn date_instant(zone: Tz, local: i128) -> i128 {
    let wanted = date_time(local);
    match zone.offset_from_local_datetime(&wanted) {
        MappedLocalTime::Single(offset) | MappedLocalTime::Ambiguous(offset, _) => {
            local - i128::from(offset.fix().local_minus_utc()) * SECOND_NS
        }
        // Offsets stay within a day, so the gap lies between these.
        MappedLocalTime::None => transition(zone, local - DAY_NS, local + DAY_NS),
    }
}

/// The first instant after `after`, up to `until`, that has the offset of `until`.
fn transition(zone: Tz, after: i128, until: i128) -> i128 {
    let old = offset_at(zone, after);
    let (mut low, mut high) = (after.div_euclid(SECOND_NS), until.div_euclid(SECOND_NS));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if offset_at(zone, middle * SECOND_NS) == old { low = middle } else { high = middle }
    }
    high * SECOND_NS
}

/// Reads `2024-03-31`, `2024-03-31 12:00` and the like as what a clock on the wall shows.
pub(crate) fn parse_local(text: &str) -> Option<i128> {
    let text = text.trim();
    if let Ok(date) = text.parse::<NaiveDate>() {
        return Some(nanoseconds(date.and_time(NaiveTime::MIN)));
    }
    ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .map(nanoseconds)
}

/// `width` as nanoseconds, when it is the same everywhere.
pub(crate) fn fixed_ns(width: IntervalMonthDayNano) -> Option<i128> {
    let fixed = i128::from(width.days) * DAY_NS + i128::from(width.nanoseconds);
    (width.months == 0).then_some(fixed)
}

/// An instant less an interval, by the calendar of UTC.
pub(crate) fn minus(instant: i128, interval: IntervalMonthDayNano) -> i128 {
    let at = date_time(instant);
    let step = Months::new(interval.months.unsigned_abs());
    let moved = if interval.months < 0 { at.checked_add_months(step) } else { at.checked_sub_months(step) };
    let fixed = i128::from(interval.days) * DAY_NS + i128::from(interval.nanoseconds);
    moved.map_or(instant, nanoseconds) - fixed
}

/// An instant as text, for messages.
pub(crate) fn show(instant: i128) -> String {
    let at = date_time(instant) + TimeDelta::zero();
    at.format("%Y-%m-%dT%H:%M:%S%.f").to_string()
}

#[cfg(test)]
mod tests;
