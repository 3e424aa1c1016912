#!/usr/bin/env python3
"""Writes tests/fixtures/series.json: sensor readings, and what DuckDB and pandas answer about them.

    pip install duckdb==2.0.0 pandas==3.1.1 pyarrow river heartpy pytz
    scripts/make_series_fixture.py > tests/fixtures/series.json

Tables: `water` is the hourly flow of a water main over a change of the clock, with a fifth of its rows taken out
(river, WaterFlow); `heart` is a photoplethysmogram (heartpy, data3) and `marks` are instants beside it; `instants` are
edges of the calendar and of clocks. Times are microseconds since 1970 in UTC.

A check is a query of ours, where the answer is from, and the rows in order. DuckDB computes what it has; pandas does
fixed widths over the wall clock, which DuckDB counts in elapsed hours, gap filling, and ASOF joins with tolerance.
"""

import json
import os

import duckdb
import heartpy
import pandas as pd
import river

INSTANTS = [
    "1969-12-31 23:59:59.999999", "1970-01-01 00:00:00", "1960-02-29 12:34:56", "1999-12-31 23:59:59",
    "2000-01-01 00:00:00", "2000-01-02 23:59:59", "2000-01-03 00:00:00", "2020-01-31 01:02:03", "2020-02-29 23:00:00",
    "2020-03-30 05:00:00", "2023-12-31 12:00:00", "2024-02-29 13:44:59.999",
]
ZONES = ["America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Auckland"]
EDGES = ["2024-03-10 07:00", "2024-03-31 01:00", "2024-04-06 14:00", "2024-09-28 14:00", "2024-10-27 01:00", "2024-11-03 06:00"]


def micros(series):
    return [None if pd.isna(v) else pd.Timestamp(v).value // 1000 for v in series]


def instants():
    times = [pd.Timestamp(text) for text in INSTANTS]
    for edge in EDGES:
        edge = pd.Timestamp(edge)
        times += [edge + pd.Timedelta(minutes=m) for m in (-1445, -61, -60, -31, -1, 0, 1, 29, 30, 59, 60, 61, 125, 1440)]
    return pd.DataFrame({"ts": sorted(set(times))}).astype("datetime64[us]")


def water():
    path = os.path.join(os.path.dirname(river.__file__), "datasets", "water-flow.csv")
    frame = pd.read_csv(path)
    frame.columns = ["ts", "flow"]
    frame["ts"] = pd.to_datetime(frame["ts"], utc=True).dt.tz_localize(None).astype("datetime64[us]")
    frame = frame.head(400).copy()
    frame["main"] = ["north" if n % 3 else "south" for n in range(len(frame))]
    return frame[[n % 5 != 2 and not 60 <= n < 90 for n in range(len(frame))]].reset_index(drop=True)


def heart():
    path = os.path.join(os.path.dirname(heartpy.__file__), "data", "data3.csv")
    frame = pd.read_csv(path, nrows=1200)
    frame.columns = ["ts", "hr"]
    frame["ts"] = pd.to_datetime(frame["ts"], format="ISO8601").astype("datetime64[us]")
    frame["lead"] = ["a" if n % 2 else "b" for n in range(len(frame))]
    return frame[[n % 11 < 7 for n in range(len(frame))]].reset_index(drop=True)


def marks(heart):
    times = [t + pd.Timedelta(milliseconds=(n * 7) % 23 - 11) for n, t in enumerate(heart["ts"]) if n % 9 == 0]
    times += [heart["ts"].iloc[5], heart["ts"].iloc[-1] + pd.Timedelta(seconds=9), heart["ts"].iloc[0] - pd.Timedelta(seconds=1)]
    times = sorted(times)
    leads = ["a" if n % 3 else "b" for n in range(len(times))]
    return pd.DataFrame({"id": range(len(times)), "ts": times, "lead": leads}).astype({"ts": "datetime64[us]"})


class Fixture:
    def __init__(self):
        self.db = duckdb.connect()
        self.db.execute("SET TimeZone = 'UTC'")
        self.tables, self.checks = {}, []

    def table(self, name, frame):
        self.db.register(f"{name}_frame", frame)
        self.db.execute(f"CREATE TABLE {name} AS SELECT * FROM {name}_frame")
        columns = {c: micros(frame[c]) if str(frame[c].dtype).startswith("datetime") else frame[c].tolist() for c in frame}
        self.tables[name] = columns

    def check(self, sql, source, frame):
        columns = []
        for name in frame:
            column = frame[name]
            if "datetime" in str(column.dtype):
                column = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
                columns.append(micros(column))
            else:
                columns.append([None if pd.isna(v) else v.item() if hasattr(v, "item") else v for v in column])
        assert columns and len(columns[0]) > 0, sql
        self.checks.append({"sql": sql, "source": source, "columns": columns})

    def duck(self, ours, theirs=None):
        self.check(ours, "DuckDB", self.db.execute(theirs or ours).to_arrow_table().to_pandas())


def buckets(fixture):
    for width in ["15 minutes", "5 hours", "1 day", "10 days", "1 week", "1 month", "5 months", "1 year"]:
        fixture.duck(
            f"SELECT time_bucket('{width}', ts) FROM instants ORDER BY ts",
            f"SELECT time_bucket(INTERVAL '{width}', ts) FROM instants ORDER BY ts",
        )
        origin = "2001-05-17 03:10:00"
        fixture.duck(
            f"SELECT time_bucket('{width}', ts, TIMESTAMP '{origin}') FROM instants ORDER BY ts",
            f"SELECT time_bucket(INTERVAL '{width}', ts, TIMESTAMP '{origin}') FROM instants ORDER BY ts",
        )
    for zone in ZONES:
        for width in ["30 minutes", "1 hour", "1 day", "1 week", "1 month", "1 year"]:
            fixture.duck(
                f"SELECT time_bucket('{width}', ts, '{zone}') FROM instants WHERE ts > '1971-01-01' ORDER BY ts",
                f"SELECT time_bucket(INTERVAL '{width}', ts::TIMESTAMPTZ, '{zone}') FROM instants "
                "WHERE ts > '1971-01-01' ORDER BY ts",
            )
        # Multiples of hours are those of the wall clock, as in TimescaleDB.
        frame = fixture.db.execute("SELECT ts FROM instants WHERE ts > '1971-01-01' ORDER BY ts").df()
        local = frame["ts"].dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
        wall = local.dt.floor("6h").dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
        frame["bucket"] = wall
        fixture.check(
            f"SELECT time_bucket('6 hours', ts, '{zone}') FROM instants WHERE ts > '1971-01-01' ORDER BY ts", "pandas", frame[["bucket"]]
        )


def aggregates(fixture):
    ours = "SELECT time_bucket('1 day', ts, 'Europe/Rome') AS day, main, count(*), avg(flow), first(flow, ts), last(flow, ts) FROM water GROUP BY day, main ORDER BY day, main"
    theirs = "SELECT time_bucket(INTERVAL '1 day', ts::TIMESTAMPTZ, 'Europe/Rome') AS day, main, count(*), avg(flow), arg_min(flow, ts), arg_max(flow, ts) FROM water GROUP BY day, main ORDER BY day, main"
    fixture.duck(ours, theirs)
    fixture.duck(
        "SELECT hop(ts, '6 hours', '2 hours') AS start, count(*), sum(flow) FROM water GROUP BY start ORDER BY start",
        "SELECT start, count(*), sum(flow) FROM water, generate_series(TIMESTAMP '2022-03-19', TIMESTAMP '2022-04-10', INTERVAL '2 hours') AS g (start) "
        "WHERE ts >= start AND ts < start + INTERVAL '6 hours' GROUP BY start ORDER BY start",
    )
    fixture.duck(
        "SELECT main, session(ts, '2 hours') AS start, max(ts), count(*), avg(flow) FROM water GROUP BY main, start ORDER BY main, start",
        "WITH marked AS (SELECT *, CASE WHEN ts - lag(ts) OVER w <= INTERVAL '2 hours' THEN 0 ELSE 1 END AS new FROM water WINDOW w AS (PARTITION BY main ORDER BY ts)), "
        "numbered AS (SELECT *, sum(new) OVER (PARTITION BY main ORDER BY ts) AS n FROM marked) "
        "SELECT main, min(ts) AS start, max(ts), count(*), avg(flow) FROM numbered GROUP BY main, n ORDER BY main, start",
    )
    fixture.duck(
        "SELECT ts, first(flow, ts) OVER w, last(flow, ts) OVER w FROM water WINDOW w AS (PARTITION BY main ORDER BY ts ROWS BETWEEN 3 PRECEDING AND 1 FOLLOWING) ORDER BY ts",
        "SELECT ts, arg_min(flow, ts) OVER w, arg_max(flow, ts) OVER w FROM water WINDOW w AS (PARTITION BY main ORDER BY ts ROWS BETWEEN 3 PRECEDING AND 1 FOLLOWING) ORDER BY ts",
    )


def gaps(fixture, water):
    parts = []
    for main, rows in water.groupby("main"):
        mean = rows.set_index("ts")["flow"].resample("3h").mean()
        whole = pd.date_range("2022-03-20 00:00", "2022-04-06 21:00", freq="3h")
        mean = mean.reindex(whole)
        line = mean.interpolate(method="time", limit_area="inside")
        parts.append(pd.DataFrame({"bucket": whole, "main": main, "mean": mean.values, "locf": mean.ffill().values, "line": line.values}))
    sql = (
        "SELECT time_bucket_gapfill('3 hours', ts) AS bucket, main, avg(flow), locf(avg(flow)), interpolate(avg(flow)) FROM water "
        "WHERE ts >= '2022-03-20 00:00:00' AND ts < '2022-04-07 00:00:00' GROUP BY bucket, main ORDER BY main, bucket"
    )
    fixture.check(sql, "pandas", pd.concat(parts))


def joins(fixture, heart, marks):
    for op in [">=", ">", "<=", "<"]:
        for kind, ours in [("LEFT", "ASOF JOIN"), ("", "ASOF INNER JOIN")]:
            fixture.duck(
                f"SELECT m.id, h.ts, h.hr FROM marks m {ours} heart h MATCH_CONDITION (m.ts {op} h.ts) ON m.lead = h.lead ORDER BY m.id",
                f"SELECT m.id, h.ts, h.hr FROM marks m ASOF {kind} JOIN heart h ON m.lead = h.lead AND m.ts {op} h.ts ORDER BY m.id",
            )
        back = op.startswith(">")
        near = pd.merge_asof(
            marks, heart.rename(columns={"ts": "at"}), left_on="ts", right_on="at", by="lead",
            tolerance=pd.Timedelta(milliseconds=20), direction="backward" if back else "forward",
            allow_exact_matches=op.endswith("="),
        ).sort_values("id")
        apart = "m.ts - h.ts" if back else "h.ts - m.ts"
        fixture.check(
            f"SELECT m.id, h.ts, h.hr FROM marks m ASOF JOIN heart h MATCH_CONDITION (m.ts {op} h.ts AND {apart} <= INTERVAL '20 milliseconds') ON m.lead = h.lead ORDER BY m.id",
            "pandas", near[["id", "at", "hr"]],
        )


def main():
    fixture = Fixture()
    water_rows, heart_rows = water(), heart()
    mark_rows = marks(heart_rows)
    fixture.table("instants", instants())
    fixture.table("water", water_rows)
    fixture.table("heart", heart_rows)
    fixture.table("marks", mark_rows)
    buckets(fixture)
    aggregates(fixture)
    gaps(fixture, water_rows)
    joins(fixture, heart_rows, mark_rows)
    out = {"tables": fixture.tables, "checks": fixture.checks}
    print(json.dumps(out, indent=None, separators=(",", ":")).replace('{"sql"', '\n{"sql"').replace('"checks"', '\n"checks"'))


if __name__ == "__main__":
    main()
