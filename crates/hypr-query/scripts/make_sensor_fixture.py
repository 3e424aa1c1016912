#!/usr/bin/env python3
"""Writes tests/fixtures/sensors.json: extracts of three sensor sets, and what DuckDB, pandas and the code below say of them.

    pip install aeon==1.6.0 duckdb==2.0.0 pandas==3.1.1 pyarrow river heartpy pytz
    scripts/make_sensor_fixture.py > tests/fixtures/sensors.json

The sets come with aeon 1.6.0 (BSD 3-clause), which ships them from the UCR and UEA archives of time series:
- `bleeding`: the arterial pressure of KDD-TSAD_135 (UCR_Anomaly_InternalBleeding16), 480 samples around its labelled anomaly;
- `motion`: six axes of a smart watch (BasicMotions), one case of each of its four activities, ten samples a second;
- `gesture`: the z axis of a Wii remote while a thing is picked up (PickupGestureWiimoteZ), every fifth sample of six cases of unequal length.
The sets have no clock: each gets one here. Rows are taken out to make gaps. Times are microseconds since 1970 in UTC.

`lttb` is the algorithm of S. Steinarsson's thesis (2013, chapter 4.2), written from its pseudocode.
The form of the file is that of make_series_fixture.py.
"""

import json
import os

import aeon
import pandas as pd

from make_series_fixture import Fixture

DATA = os.path.join(os.path.dirname(aeon.__file__), "datasets", "data")


def cases(path):
    """The cases of a .ts file: the values of each dimension, and the class."""
    with open(path, encoding="utf-8") as lines:
        rows = [line.strip() for line in lines]
    rows = [row for row in rows[rows.index("@data") + 1 :] if row]
    for row in rows:
        *dimensions, label = row.split(":")
        yield [[float(v) for v in d.split(",") if v not in ("?", "NaN")] for d in dimensions], label


def bleeding():
    path = os.path.join(DATA, "KDD-TSAD_135", "135_UCR_Anomaly_InternalBleeding16_TEST.csv")
    frame = pd.read_csv(path)
    first = int(frame.index[frame["is_anomaly"] == 1][0])
    frame = frame.iloc[first - 240 : first + 240].reset_index(drop=True)
    times = pd.Timestamp("2024-02-28 23:59:56") + pd.to_timedelta(frame.index * 8, unit="ms")
    frame = pd.DataFrame({"ts": times, "pressure": frame["value"], "anomaly": frame["is_anomaly"].astype(int)})
    frame["ts"] = frame["ts"].astype("datetime64[us]")
    return frame[[n % 13 < 11 and not 150 <= n < 190 for n in range(len(frame))]].reset_index(drop=True)


def motion():
    path = os.path.join(DATA, "BasicMotions", "BasicMotions_TEST.ts")
    chosen = {}
    for dimensions, label in cases(path):
        chosen.setdefault(label, dimensions)
    parts = []
    for number, (label, axes) in enumerate(sorted(chosen.items())):
        start = pd.Timestamp("2024-03-10 06:59:55") + pd.Timedelta(milliseconds=17 * number)
        times = start + pd.to_timedelta([100 * n for n in range(len(axes[0]))], unit="ms")
        columns = dict(zip(["ax", "ay", "az", "gx", "gy", "gz"], axes))
        parts.append(pd.DataFrame({"ts": times, "activity": label, **columns}))
    frame = pd.concat(parts).sort_values("ts").reset_index(drop=True)
    frame["ts"] = frame["ts"].astype("datetime64[us]")
    keep = [n % 7 != 3 and not (120 <= n < 200 and a == "Running") for n, a in enumerate(frame["activity"])]
    return frame[keep].reset_index(drop=True)


def gesture():
    path = os.path.join(DATA, "PickupGestureWiimoteZ", "PickupGestureWiimoteZ_TEST.ts")
    parts = []
    for number, (axes, label) in enumerate(list(cases(path))[:6]):
        start = pd.Timestamp("2024-03-10 06:59:58") + pd.Timedelta(seconds=3 * number)
        kept = axes[0][::5]
        times = start + pd.to_timedelta([50 * n for n in range(len(kept))], unit="ms")
        parts.append(pd.DataFrame({"ts": times, "person": f"p{label}", "round": number, "z": kept}))
    frame = pd.concat(parts).reset_index(drop=True)
    frame["ts"] = frame["ts"].astype("datetime64[us]")
    return frame


def buckets(fixture):
    fixture.duck(
        "SELECT time_bucket('500 milliseconds', ts) AS t, count(*), avg(pressure), min(pressure), max(pressure), first(pressure, ts), last(pressure, ts) "
        "FROM bleeding GROUP BY t ORDER BY t",
        "SELECT time_bucket(INTERVAL '500 milliseconds', ts) AS t, count(*), avg(pressure), min(pressure), max(pressure), arg_min(pressure, ts), arg_max(pressure, ts) "
        "FROM bleeding GROUP BY t ORDER BY t",
    )
    fixture.duck(
        "SELECT activity, time_bucket('1 second', ts, 'America/New_York') AS t, stddev(gx), corr(ax, ay), last(gz, ts) FROM motion GROUP BY activity, t HAVING count(*) > 3 ORDER BY activity, t",
        "SELECT activity, time_bucket(INTERVAL '1 second', ts::TIMESTAMPTZ, 'America/New_York') AS t, stddev(gx), corr(ax, ay), arg_max(gz, ts) FROM motion GROUP BY activity, t HAVING count(*) > 3 ORDER BY activity, t",
    )
    fixture.duck(
        "SELECT person, round, count(*), first(z, ts), last(z, ts), max(ts) FROM gesture GROUP BY person, round ORDER BY round",
        "SELECT person, round, count(*), arg_min(z, ts), arg_max(z, ts), max(ts) FROM gesture GROUP BY person, round ORDER BY round",
    )
    fixture.duck(
        "SELECT session(ts, '200 milliseconds') AS start, max(ts), count(*), avg(z) FROM gesture GROUP BY start ORDER BY start",
        "WITH marked AS (SELECT *, CASE WHEN ts - lag(ts) OVER (ORDER BY ts) <= INTERVAL '200 milliseconds' THEN 0 ELSE 1 END AS new FROM gesture), "
        "numbered AS (SELECT *, sum(new) OVER (ORDER BY ts) AS n FROM marked) SELECT min(ts) AS start, max(ts), count(*), avg(z) FROM numbered GROUP BY n ORDER BY start",
    )
    fixture.duck(
        "SELECT hop(ts, '2 seconds', '500 milliseconds') AS start, count(*), avg(pressure) FROM bleeding GROUP BY start ORDER BY start",
        "SELECT start, count(*), avg(pressure) FROM bleeding, generate_series(TIMESTAMP '2024-02-28 23:59:50', TIMESTAMP '2024-02-29 00:00:10', INTERVAL '500 milliseconds') AS g (start) "
        "WHERE ts >= start AND ts < start + INTERVAL '2 seconds' GROUP BY start ORDER BY start",
    )


def windows(fixture):
    for sql in [
        "SELECT ts, avg(pressure) OVER (ORDER BY ts ROWS BETWEEN 8 PRECEDING AND 2 FOLLOWING) FROM bleeding ORDER BY ts",
        "SELECT ts, count(*) OVER w, min(pressure) OVER w FROM bleeding WINDOW w AS (ORDER BY ts RANGE BETWEEN INTERVAL '100 milliseconds' PRECEDING AND CURRENT ROW) ORDER BY ts",
        "SELECT ts, pressure - lag(pressure) OVER (ORDER BY ts), lead(ts, 3) OVER (ORDER BY ts) FROM bleeding ORDER BY ts",
        "SELECT activity, ts, sqrt(ax * ax + ay * ay + az * az) AS force FROM motion QUALIFY row_number() OVER (PARTITION BY activity ORDER BY ax * ax + ay * ay + az * az DESC, ts) <= 3 ORDER BY activity, force, ts",
        "SELECT activity, ts, first_value(gx) OVER w, last_value(gx) OVER w, nth_value(gx, 2) OVER w FROM motion WINDOW w AS (PARTITION BY activity ORDER BY ts ROWS BETWEEN 4 PRECEDING AND CURRENT ROW) ORDER BY activity, ts",
        "SELECT round, ts, ntile(4) OVER w, rank() OVER (PARTITION BY round ORDER BY z), cume_dist() OVER w FROM gesture WINDOW w AS (PARTITION BY round ORDER BY ts) ORDER BY round, ts, z",
    ]:
        fixture.duck(sql)
    fixture.duck(
        "SELECT ts, percentile_cont(0.5) WITHIN GROUP (ORDER BY pressure) OVER (ORDER BY ts ROWS BETWEEN 20 PRECEDING AND CURRENT ROW) FROM bleeding ORDER BY ts",
        "SELECT ts, quantile_cont(pressure, 0.5) OVER (ORDER BY ts ROWS BETWEEN 20 PRECEDING AND CURRENT ROW) FROM bleeding ORDER BY ts",
    )
    fixture.duck(
        "SELECT ts, pressure FROM bleeding WHERE pressure > 1.02 * avg(pressure) OVER (ORDER BY ts ROWS 60 PRECEDING) ORDER BY ts",
        "SELECT ts, pressure FROM bleeding QUALIFY pressure > 1.02 * avg(pressure) OVER (ORDER BY ts ROWS 60 PRECEDING) ORDER BY ts",
    )
    fixture.duck(
        "SELECT ts, last(pressure, ts) OVER (ORDER BY ts RANGE BETWEEN INTERVAL '40 milliseconds' PRECEDING AND INTERVAL '40 milliseconds' FOLLOWING) FROM bleeding ORDER BY ts",
        "SELECT ts, arg_max(pressure, ts) OVER (ORDER BY ts RANGE BETWEEN INTERVAL '40 milliseconds' PRECEDING AND INTERVAL '40 milliseconds' FOLLOWING) FROM bleeding ORDER BY ts",
    )


def filled(fixture, table, value, group, width, start, end, frame):
    """time_bucket_gapfill, locf and interpolate of the mean of `value` in buckets of `width`."""
    groups = [(None, frame)] if group is None else list(frame.groupby(group))
    whole = pd.date_range(start, end, freq=width, inclusive="left")
    parts = []
    for name, rows in groups:
        mean = rows.set_index("ts")[value].resample(width).mean().reindex(whole)
        line = mean.interpolate(method="time", limit_area="inside")
        part = {"bucket": whole} | ({} if group is None else {"group": name})
        parts.append(pd.DataFrame(part | {"mean": mean.values, "locf": mean.ffill().values, "line": line.values}))
    key = "" if group is None else f", {group}"
    order = "bucket" if group is None else f"{group}, bucket"
    milliseconds = int(pd.Timedelta(width).total_seconds() * 1000)
    sql = (
        f"SELECT time_bucket_gapfill('{milliseconds} milliseconds', ts) AS bucket{key}, avg({value}), locf(avg({value})), interpolate(avg({value})) "
        f"FROM {table} WHERE ts >= '{start}' AND ts < '{end}' GROUP BY bucket{key} ORDER BY {order}"
    )
    fixture.check(sql, "pandas", pd.concat(parts))


def joins(fixture, bleeding_rows, motion_rows):
    for op in [">=", "<="]:
        fixture.duck(
            f"SELECT g.round, g.ts, m.activity, m.ts AS at, m.az FROM gesture g ASOF JOIN (SELECT * FROM motion WHERE activity = 'Walking') m MATCH_CONDITION (g.ts {op} m.ts) ORDER BY g.round, g.ts",
            f"SELECT g.round, g.ts, m.activity, m.ts AS at, m.az FROM gesture g ASOF LEFT JOIN (FROM motion WHERE activity = 'Walking') m ON g.ts {op} m.ts ORDER BY g.round, g.ts",
        )
    shifted = motion_rows[motion_rows["activity"] == "Running"].copy()
    shifted["ts"] = (shifted["ts"] - pd.Timedelta(days=10, hours=6, minutes=59, seconds=58)).astype("datetime64[us]")
    near = pd.merge_asof(
        shifted.sort_values("ts"), bleeding_rows.rename(columns={"ts": "at"}), left_on="ts", right_on="at",
        tolerance=pd.Timedelta(milliseconds=9), direction="backward",
    )
    assert near["at"].notna().any() and near["at"].isna().any()
    fixture.check(
        "SELECT r.ts, b.ts, b.pressure FROM (SELECT ts - INTERVAL '10 days 6 hours 59 minutes 58 seconds' AS ts FROM motion WHERE activity = 'Running') r "
        "ASOF JOIN bleeding b MATCH_CONDITION (r.ts >= b.ts AND r.ts - b.ts <= INTERVAL '9 milliseconds') ORDER BY r.ts",
        "pandas", near[["ts", "at", "pressure"]],
    )


def lttb(points, threshold):
    """Largest-Triangle-Three-Buckets: [(x, y)] to at most `threshold` of them."""
    if len(points) <= threshold:
        return points
    inner = points[1:-1]
    size = len(inner) / (threshold - 2)
    # Bucket i holds the inner points from floor(i * size) on; the last bucket is the last point alone.
    bounds = [int(i * size) for i in range(threshold - 2)] + [len(inner)]
    groups = [inner[bounds[i] : bounds[i + 1]] for i in range(threshold - 2)] + [[points[-1]]]
    chosen = [points[0]]
    for group, following in zip(groups, groups[1:]):
        cx = sum(p[0] for p in following) / len(following)
        cy = sum(p[1] for p in following) / len(following)
        ax, ay = chosen[-1]
        areas = [abs(ax * (by - cy) + bx * (cy - ay) + cx * (ay - by)) / 2 for bx, by in group]
        chosen.append(group[areas.index(max(areas))])
    return chosen + [points[-1]]


def thinned(fixture, table, value, keep, frame, where=""):
    rows = [(t.value // 1000, v) for t, v in zip(frame["ts"], frame[value])]
    start = rows[0][0]
    kept = [(x + start, y) for x, y in lttb([(x - start, y) for x, y in rows], keep)]
    answer = pd.DataFrame({"ts": pd.to_datetime([x for x, _ in kept], unit="us"), "value": [y for _, y in kept]})
    sql = f"SELECT point['time'], point['value'] FROM (SELECT unnest(lttb(ts, {value}, {keep})) AS point FROM {table}{where}) ORDER BY 1"
    fixture.check(sql, "Steinarsson's algorithm", answer)


def main():
    fixture = Fixture()
    bleeding_rows, motion_rows, gesture_rows = bleeding(), motion(), gesture()
    fixture.table("bleeding", bleeding_rows)
    fixture.table("motion", motion_rows)
    fixture.table("gesture", gesture_rows)
    buckets(fixture)
    windows(fixture)
    filled(fixture, "bleeding", "pressure", None, "50ms", "2024-02-28 23:59:56", "2024-02-29 00:00:03", bleeding_rows)
    filled(fixture, "motion", "gy", "activity", "250ms", "2024-03-10 06:59:56", "2024-03-10 07:00:04", motion_rows)
    joins(fixture, bleeding_rows, motion_rows)
    for keep in [3, 10, 34, 100, 2000]:
        thinned(fixture, "bleeding", "pressure", keep, bleeding_rows)
    walking = motion_rows[motion_rows["activity"] == "Walking"]
    thinned(fixture, "motion", "gx", 25, walking, " WHERE activity = 'Walking'")
    out = {"tables": fixture.tables, "checks": fixture.checks}
    print(json.dumps(out, indent=None, separators=(",", ":")).replace('{"sql"', '\n{"sql"').replace('"checks"', '\n"checks"'))


if __name__ == "__main__":
    main()
