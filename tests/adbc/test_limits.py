"""Limits through the real server: what is too much is refused by name, and the server lives."""

import threading

import pytest

# A sort that spills, a group of many, a window that keeps everything without asking, and a cross join.
HEAVY = [
    "SELECT count(*) FROM (SELECT md5(value::TEXT) AS m FROM generate_series(1, 1500000) ORDER BY m) WHERE m > ''",
    "SELECT count(*) FROM (SELECT md5(value::TEXT) AS m, count(*) FROM generate_series(1, 1500000) GROUP BY m)",
    "SELECT max(s) FROM (SELECT sum(value) OVER () AS s FROM generate_series(1, 300000000))",
    "SELECT count(*) FROM (SELECT array_agg(value) AS a FROM generate_series(1, 100000000)) WHERE array_length(a) > 0",
]


def test_heavy_queries_side_by_side_spill_or_are_refused_and_the_server_lives(start, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    server = start(
        env={
            "HYPRSTREAM_QUERY_MEMORY_LIMIT_MB": "96",
            "HYPRSTREAM_QUERY_PROCESS_MEMORY_LIMIT_MB": "700",
            "HYPRSTREAM_QUERY_TEMP_DIR": str(spill),
            "HYPRSTREAM_QUERY_TEMP_LIMIT_MB": "1024",
        }
    )
    outcomes = []

    def run(sql):
        try:
            with server.connect() as connection, connection.cursor() as cursor:
                cursor.execute(sql)
                outcomes.append((sql, cursor.fetchall()))
        except Exception as error:  # noqa: BLE001
            outcomes.append((sql, str(error)))

    threads = [threading.Thread(target=run, args=(sql,)) for sql in HEAVY * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.process.poll() is None, server.log.read_text()[-2000:]
    assert len(outcomes) == len(threads)
    for sql, outcome in outcomes:
        if isinstance(outcome, str):
            assert "query.memory_limit_mb" in outcome or "query.process_memory_limit_mb" in outcome, (sql, outcome)
    windows = [outcome for sql, outcome in outcomes if "OVER ()" in sql]
    assert all("query.process_memory_limit_mb" in str(outcome) for outcome in windows), windows
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT sum(value) FROM generate_series(1, 1000)")
        assert cursor.fetchall() == [(500500,)]
    peak = next(
        int(line.split()[1]) for line in open(f"/proc/{server.process.pid}/status") if line.startswith("VmHWM")
    )
    assert peak < 2_500_000, f"{peak} kB"
    assert server.stop() == 0


def test_rows_bytes_time_and_text_are_limited(start):
    server = start(
        env={
            "HYPRSTREAM_QUERY_MAX_RESULT_ROWS": "100000",
            "HYPRSTREAM_QUERY_MAX_RESULT_MB": "8",
            "HYPRSTREAM_QUERY_STATEMENT_TIMEOUT_MS": "2000",
            "HYPRSTREAM_QUERY_MAX_STATEMENT_KB": "64",
        }
    )
    with server.connect() as connection, connection.cursor() as cursor:
        for sql, key in [
            ("SELECT * FROM generate_series(1, 100001)", "query.max_result_rows = 100000"),
            ("SELECT repeat('x', 1000) FROM generate_series(1, 50000)", "query.max_result_mb = 8"),
            ("SELECT count(*) FROM generate_series(1, 100000000000)", "query.statement_timeout_ms = 2000"),
            (f"SELECT '{'x' * 70000}'", "query.max_statement_kb = 64"),
        ]:
            with pytest.raises(Exception, match=key):
                cursor.execute(sql)
                cursor.fetchall()
        cursor.execute("SELECT count(*) FROM generate_series(1, 100000)")
        assert cursor.fetchall() == [(100000,)]
    assert server.stop() == 0
