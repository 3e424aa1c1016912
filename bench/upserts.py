"""Durable changes of rows side by side: upserts, updates, deletes and merges, on the same rows with the same keys.

    python bench/upserts.py BINARY

BINARY is the release build of hyprstream, asked over ADBC by 1, 8 and 32 clients. SQLite (WAL, synchronous=FULL) and
DuckDB run in this process on one connection each, which is how they are fastest: both let one writer in at a time. A
change is acknowledged when it is synced, in all three. The table has ROWS rows; `single` is statements of one row a second
by kind, `set` rows a second of one statement over SET_ROWS rows, whose effect is counted.
Prints one JSON object.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import duckdb
import pyarrow

from server import Server

SET_RUNS = 7
SECONDS = float(os.environ.get("SECONDS_EACH", "3"))
ROWS = int(os.environ.get("ROWS", "200000"))
SET_ROWS = ROWS // 4
CLIENTS = (1, 8, 32)
COLUMNS = "(id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)"
# Keys of their own for each kind: a delete must find its row.
UPSERT = (
    "INSERT INTO {} (id, name, reading, note) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET name = excluded.name, reading = excluded.reading, note = excluded.note"
)
UPDATE = "UPDATE {} SET reading = ?, note = ? WHERE id = ?"
DELETE = "DELETE FROM {} WHERE id = ?"
MERGE = (
    "MERGE INTO {0} USING (SELECT CAST(? AS BIGINT) AS id, CAST(? AS TEXT) AS name, CAST(? AS DOUBLE) AS reading, "
    "CAST(? AS TEXT) AS note) AS s ON {0}.id = s.id "
    "WHEN MATCHED THEN UPDATE SET reading = s.reading, note = s.note "
    "WHEN NOT MATCHED THEN INSERT (id, name, reading, note) VALUES (s.id, s.name, s.reading, s.note)"
)
SETS = {
    "upsert": "INSERT INTO {0} (id, name, reading, note) SELECT id, name, reading + 1, note FROM {1} WHERE true "
    "ON CONFLICT (id) DO UPDATE SET reading = excluded.reading, note = excluded.note",
    "update": "UPDATE {0} SET reading = s.reading + 2, note = 'set' FROM {1} AS s WHERE {0}.id = s.id",
    "merge": "MERGE INTO {0} USING {1} AS s ON {0}.id = s.id WHEN MATCHED THEN UPDATE SET reading = s.reading + 3 "
    "WHEN NOT MATCHED THEN INSERT (id, name, reading, note) VALUES (s.id, s.name, s.reading, s.note)",
    "delete": "DELETE FROM {0} WHERE id IN (SELECT id FROM {1})",
}


def row(key: int) -> tuple:
    return key, f"sensor-{key % 1000}", key * 0.25, f"row {key}"


def changed(key: int, turn: int) -> tuple:
    return key, f"sensor-{key % 1000}", turn * 0.5, f"turn {turn}"


def rows(keys: range) -> pyarrow.Table:
    columns = list(zip(*(row(key) for key in keys)))
    types = [pyarrow.int64(), pyarrow.string(), pyarrow.float64(), pyarrow.string()]
    return pyarrow.table([pyarrow.array(c, t) for c, t in zip(columns, types)], names=["id", "name", "reading", "note"])


def kinds(merges: bool) -> dict:
    """For each kind the statement, and the arguments of its call number `turn` on `key`, which is in the table, and
    `fresh`, which is not."""
    statements = {
        "upsert of a new row": (UPSERT, lambda key, fresh, turn: changed(fresh, turn)),
        "upsert of an old row": (UPSERT, lambda key, fresh, turn: changed(key, turn)),
        "update": (UPDATE, lambda key, fresh, turn: (turn * 0.5, f"turn {turn}", key)),
        "merge": (MERGE, lambda key, fresh, turn: changed(key if turn % 2 else fresh, turn)),
        "delete": (DELETE, lambda key, fresh, turn: (key,)),
    }
    return statements if merges else {kind: how for kind, how in statements.items() if how[0] is not MERGE}


class Keys:
    """The keys of one client: some of the table's, in an order that is not theirs, and as many that are new."""

    def __init__(self, client: int, clients: int, kind: int):
        self.old = list(range(client, ROWS, clients))
        random.Random(client).shuffle(self.old)
        self.fresh = ROWS * (2 + kind) + client
        self.step = clients
        self.turn = 0

    def next(self) -> tuple[int, int, int]:
        key, fresh = self.old[self.turn % len(self.old)], self.fresh + self.turn * self.step
        self.turn += 1
        return key, fresh, self.turn


def single(execute, merges: bool, fill) -> dict:
    """Statements a second on one connection of this process, each kind on a table of its own."""
    rates = {}
    for number, (kind, (sql, arguments)) in enumerate(kinds(merges).items()):
        name, keys = f"single_{number}", Keys(0, 1, number)
        fill(name, range(ROWS))
        statement, start = sql.format(name), time.perf_counter()
        while time.perf_counter() - start < SECONDS and keys.turn < ROWS:
            execute(statement, arguments(*keys.next()))
        rates[kind] = keys.turn / (time.perf_counter() - start)
    return rates


def sets(execute, merges: bool, fill, count) -> dict:
    """Rows a second of one statement, the median of several. Half of the rows of the source are in the table."""
    rates = {}
    fill("source", range(ROWS - SET_ROWS // 2, ROWS + SET_ROWS // 2))
    for kind, sql in SETS.items():
        if kind == "merge" and not merges:
            continue
        taken = []
        for run in range(SET_RUNS):
            name = f"set_{kind}_{run}"
            fill(name, range(ROWS))
            start = time.perf_counter()
            execute(sql.format(name, "source"), ())
            taken.append(time.perf_counter() - start)
            expected = {"update": ROWS, "delete": ROWS - SET_ROWS // 2}.get(kind, ROWS + SET_ROWS // 2)
            if count(name) != expected:
                raise SystemExit(f"{kind}: {count(name)} rows where {expected} were expected")
        rates[kind] = SET_ROWS / statistics.median(taken)
    return rates


def sqlite_rates(directory: pathlib.Path) -> dict:
    connection = sqlite3.connect(directory / "rows.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")

    def fill(name: str, keys: range) -> None:
        connection.execute(f"CREATE TABLE {name} {COLUMNS}")
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", (row(key) for key in keys))
        connection.execute("COMMIT")

    def count(name: str) -> int:
        return connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]

    return {
        "single": single(connection.execute, False, fill),
        "set": sets(connection.execute, False, fill, count),
    }


def duckdb_rates(directory: pathlib.Path) -> dict:
    connection = duckdb.connect(str(directory / "rows.duckdb"))

    def fill(name: str, keys: range) -> None:
        connection.execute(f"CREATE TABLE {name} {COLUMNS}")
        connection.register("filling", rows(keys))
        connection.execute(f"INSERT INTO {name} SELECT * FROM filling")
        connection.execute("CHECKPOINT")

    def count(name: str) -> int:
        return connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]

    def execute(sql: str, arguments: tuple) -> None:
        connection.execute(sql, arguments)

    return {"single": single(execute, True, fill), "set": sets(execute, True, fill, count)}


def by_clients(server: Server, clients: int, fill) -> dict:
    """Statements a second of all clients together, which change different rows."""
    rates = {}
    for number, (kind, (sql, arguments)) in enumerate(kinds(True).items()):
        name, stop = f"clients_{clients}_{number}", threading.Event()
        fill(name, range(ROWS))
        every = [Keys(client, clients, number) for client in range(clients)]

        def change(keys: Keys) -> None:
            with server.connect() as connection, connection.cursor() as cursor:
                statement = sql.format(name)
                while not stop.is_set() and keys.turn < len(keys.old):
                    cursor.execute(statement, arguments(*keys.next()))

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            running = [pool.submit(change, keys) for keys in every]
            concurrent.futures.wait(running, timeout=SECONDS)
            taken, turns = time.perf_counter() - start, sum(keys.turn for keys in every)
            stop.set()
            for future in running:
                future.result()
        rates[kind] = turns / taken
    return rates


def hyprstream_rates(binary: str, directory: pathlib.Path) -> dict:
    with Server(binary, directory / "rows", directory / "server.log") as server:
        with server.connect() as connection, connection.cursor() as cursor:

            def fill(name: str, keys: range) -> None:
                cursor.execute(f"CREATE TABLE {name} {COLUMNS}")
                cursor.adbc_ingest(name, rows(keys).to_reader(max_chunksize=65_536), mode="append")

            def count(name: str) -> int:
                cursor.execute(f"SELECT count(*) FROM {name}")
                return cursor.fetchone()[0]

            def execute(sql: str, _: tuple) -> None:
                cursor.execute(sql)

            found = {f"single, {clients} clients": by_clients(server, clients, fill) for clients in CLIENTS}
            return {**found, "set": sets(execute, True, fill, count)}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        rates = {
            "sqlite": sqlite_rates(directory),
            "duckdb": duckdb_rates(directory),
            "hyprstream": hyprstream_rates(sys.argv[1], directory),
        }
    print(json.dumps({"rows": ROWS, "set_rows": SET_ROWS, "seconds_each": SECONDS, **rates}))


if __name__ == "__main__":
    main()
