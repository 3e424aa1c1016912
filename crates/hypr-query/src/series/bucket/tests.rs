use super::*;

const MINUTE: i64 = 60_000_000_000;

fn at(text: &str) -> i128 {
    parse_local(text).unwrap()
}

fn width(months: i32, days: i32, minutes: i64) -> IntervalMonthDayNano {
    IntervalMonthDayNano::new(months, days, minutes * MINUTE)
}

fn zoned(width: IntervalMonthDayNano, zone: &str) -> Bucketing {
    Bucketing::new(width, Some(zone.parse().unwrap()), Origin::Default).unwrap()
}

#[test]
fn the_grid_begins_at_the_origin_and_goes_back_before_it() {
    let weeks = Bucketing::new(width(0, 7, 0), None, Origin::Default).unwrap();
    assert_eq!(show(weeks.floor(at("2024-02-29 13:00"))), "2024-02-26T00:00:00");
    assert_eq!(show(weeks.floor(at("1969-12-31 23:59:59.999999999"))), "1969-12-29T00:00:00");
    let shifted = Bucketing::new(width(0, 0, 60), None, Origin::Local(at("2000-01-01 00:20"))).unwrap();
    assert_eq!(show(shifted.floor(at("1999-12-31 23:19:59"))), "1999-12-31T22:20:00");
}

#[test]
fn months_are_counted_from_the_origin() {
    let quarters = Bucketing::new(width(3, 0, 0), None, Origin::Default).unwrap();
    assert_eq!(show(quarters.floor(at("1999-12-31 23:59"))), "1999-10-01T00:00:00");
    let shifted = Bucketing::new(width(3, 0, 0), None, Origin::Local(at("2020-02-29 12:00"))).unwrap();
    assert_eq!(show(shifted.floor(at("2020-04-30"))), "2020-02-01T00:00:00");
    assert_eq!(show(shifted.next(at("2020-02-01"))), "2020-05-01T00:00:00");
}

#[test]
fn an_hour_that_the_clock_repeats_is_two_buckets() {
    let hours = zoned(width(0, 0, 60), "America/New_York");
    assert_eq!(show(hours.floor(at("2024-11-03 05:30"))), "2024-11-03T05:00:00");
    assert_eq!(show(hours.floor(at("2024-11-03 06:30"))), "2024-11-03T06:00:00");
    let long = zoned(width(0, 0, 120), "America/New_York");
    assert_eq!(show(long.floor(at("2024-11-03 06:59"))), "2024-11-03T04:00:00");
    assert_eq!(show(long.next(at("2024-11-03 04:00"))), "2024-11-03T07:00:00");
}

#[test]
fn a_multiple_that_the_clock_skips_is_the_end_of_the_gap() {
    let hours = zoned(width(0, 0, 120), "America/New_York");
    assert_eq!(show(hours.floor(at("2024-03-10 07:10"))), "2024-03-10T07:00:00");
    assert_eq!(show(hours.next(at("2024-03-10 05:00"))), "2024-03-10T07:00:00");
    // Beirut goes from 23:59 to 01:00.
    let days = zoned(width(0, 1, 0), "Asia/Beirut");
    assert_eq!(show(days.floor(at("2024-03-31 12:00"))), "2024-03-30T22:00:00");
    assert_eq!(show(days.next(at("2024-03-30 22:00"))), "2024-03-31T21:00:00");
}

#[test]
fn buckets_follow_one_another_without_holes() {
    let widths = [width(0, 0, 1), width(0, 0, 45), width(0, 0, 75), width(0, 0, 90), width(0, 0, 360)];
    let dates = [width(0, 1, 0), width(0, 7, 0), width(1, 0, 0), width(0, 1, 720)];
    let zones = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana", "Asia/Beirut"];
    let edges = ["2024-03-10 03:00", "2024-03-31 00:00", "2024-04-06 12:00", "2024-10-27 00:00", "2024-11-03 00:00"];
    for (width, zone) in widths.iter().chain(&dates).flat_map(|w| zones.map(|z| (*w, z))) {
        let bucketing = zoned(width, zone);
        for edge in edges {
            let mut t = at(edge);
            let (mut start, mut next) = (bucketing.floor(t), bucketing.next(bucketing.floor(t)));
            for _ in 0..120 {
                t += 7 * 60 * SECOND_NS;
                while t >= next {
                    (start, next) = (next, bucketing.next(next));
                }
                let found = bucketing.floor(t);
                assert_eq!(show(found), show(start), "{width:?} {zone} at {}", show(t));
            }
        }
    }
}

#[test]
fn widths_that_are_none_are_refused() {
    for bad in [width(0, 0, 0), width(0, 0, -5), width(-1, 0, 0), width(1, 1, 0)] {
        assert!(Bucketing::new(bad, None, Origin::Default).is_err(), "{bad:?}");
    }
}
