"""Concurrent ADBC writers on a real server that is killed at random moments, again and again.

    HYPRSTREAM_BIN=target/release/hyprstream python tests/adbc/soak.py --minutes 30

Every writer owns its keys and knows what each of its rows must be. After each kill the server is started again and
every acknowledged row must be there once, with its last value; of the one statement that was under way in each
writer all or nothing. Prints the seed (`--seed` picks the same statements and moments again) and at the end how many
kills landed inside a flush, a compaction, or a start, as the server's own log says.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from conftest import Server, binary

# So small that flushes and compactions run all the time.
SETTINGS = {
    "HYPRSTREAM_STORAGE_FLUSH_ROWS": "40",
    "HYPRSTREAM_STORAGE_FLUSH_INTERVAL_MS": "30",
    "HYPRSTREAM_LOG": "warn,hypr_storage=debug",
}
KEYS_PER_WRITER = 1_000_000_000
TABLES = ("keyed", "plain")


@dataclasses.dataclass
class Change:
    """A statement, and the new values of rows by key; None deletes."""

    table: str
    rows: dict
    kind: str


class Writer:
    """One client."""

    def __init__(self, number: int, seed: int, upserts: bool):
        self.random = random.Random(f"{seed}/{number}")
        self.first = number * KEYS_PER_WRITER
        self.next_key = self.first
        self.rows = {table: {} for table in TABLES}
        self.open: Change | None = None
        self.statements = 0
        self.upserts = upserts
        self.failure: BaseException | None = None

    def next_change(self) -> Change:
        table = self.random.choice(TABLES)
        rows = self.rows[table]
        kinds = ["insert", "insert", "many", "ingest"]
        if rows:
            kinds += ["update", "update", "delete"]
            if table == "keyed" and self.upserts:
                kinds += ["upsert", "upsert"]
        kind = self.random.choice(kinds)
        if kind in ("update", "delete"):
            key = self.random.choice(list(rows))
            return Change(table, {key: None if kind == "delete" else self.value()}, kind)
        count = 1 if kind == "insert" else self.random.randint(2, 30)
        new = {key: self.value() for key in range(self.next_key, self.next_key + count)}
        self.next_key += count
        if kind == "upsert":
            new[self.random.choice(list(rows))] = self.value()
        return Change(table, new, kind)

    def value(self) -> str:
        return f"value {self.random.randrange(1 << 40)}" + "x" * self.random.choice((0, 0, 100, 3000))

    def execute(self, cursor, change: Change):
        table, pairs = change.table, list(change.rows.items())
        if change.kind == "ingest":
            keys, values = zip(*pairs)
            columns = {"id": pyarrow.array(keys, pyarrow.int64()), "body": pyarrow.array(values, pyarrow.string())}
            cursor.adbc_ingest(table, pyarrow.table(columns), mode="append")
        elif change.kind == "many":
            cursor.executemany(f"INSERT INTO {table} VALUES (?, ?)", pairs)
        elif change.kind == "insert":
            cursor.execute(f"INSERT INTO {table} VALUES (?, ?)", pairs[0])
        elif change.kind == "upsert":
            values = ", ".join(f"({key}, '{value}')" for key, value in pairs)
            cursor.execute(
                f"INSERT INTO {table} VALUES {values} ON CONFLICT (id) DO UPDATE SET body = excluded.body"
            )
        elif change.kind == "update":
            cursor.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (pairs[0][1], pairs[0][0]))
        else:
            cursor.execute(f"DELETE FROM {table} WHERE id = ?", (pairs[0][0],))

    def work(self, address: str, killed: threading.Event):
        """Writes until the connection breaks, which must not happen before the kill."""
        try:
            with flightsql.connect(f"grpc://{address}", autocommit=True) as connection, connection.cursor() as cursor:
                while not killed.is_set():
                    change = self.next_change()
                    self.open = change
                    self.execute(cursor, change)
                    apply(self.rows[change.table], change)
                    self.open = None
                    self.statements += 1
        except BaseException as error:  # noqa: BLE001: whatever it is, the main thread judges it
            if not killed.is_set():
                self.failure = error

    def check(self, found: dict, context: str):
        """Compares what is there with what is known, and learns how the open statement ended."""
        own = {
            table: {key: value for key, value in rows.items() if self.first <= key < self.first + KEYS_PER_WRITER}
            for table, rows in found.items()
        }
        if own != self.rows and self.open:
            apply(self.rows[self.open.table], self.open)
        for table in TABLES:
            if own[table] != self.rows[table]:
                missing = {key: value for key, value in self.rows[table].items() if own[table].get(key) != value}
                unknown = {key: value for key, value in own[table].items() if self.rows[table].get(key) != value}
                raise AssertionError(f"{context}: {table}: missing {missing}, unknown {unknown}, open {self.open}")
        self.open = None


def apply(rows: dict, change: Change):
    for key, value in change.rows.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


def read(server: Server, context: str) -> dict:
    """All rows by table and key; a key that is there twice fails."""
    found = {}
    with server.connect() as connection, connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"SELECT id, body FROM {table}")
            rows = cursor.fetch_arrow_table()
            keys, values = rows["id"].to_pylist(), rows["body"].to_pylist()
            found[table] = dict(zip(keys, values))
            assert len(found[table]) == len(keys), f"{context}: {table} has a key twice"
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchone()[0] == len(keys), f"{context}: count(*) of {table} is not {len(keys)}"
    return found


def has_upserts(server: Server) -> bool:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE probe (id BIGINT PRIMARY KEY, body TEXT)")
        try:
            cursor.execute("INSERT INTO probe VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET body = excluded.body")
        except flightsql.Error:
            return False
        finally:
            cursor.execute("DROP TABLE probe")
        return True


def unfinished(log: str) -> list:
    """What was under way at the end of a log: begun and not ended."""
    running = {}
    for kind, what in re.findall(r"hypr_storage::(flush|compaction):.*?(begins|ends)", log):
        running[kind] = running.get(kind, 0) + (1 if what == "begins" else -1)
    return [kind for kind, count in running.items() if count > 0]


def soak(directory: pathlib.Path, seed: int, writers: int, until, say=print) -> dict:
    """Kills until `until(kills)` says it is enough; returns the counts."""
    moments = random.Random(seed)
    counts = {"seed": seed, "kills": 0, "in_flush": 0, "in_compaction": 0, "in_start": 0, "statements": 0}
    server = Server(directory, SETTINGS)
    counts["upserts"] = has_upserts(server)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE keyed (id BIGINT PRIMARY KEY, body TEXT)")
        cursor.execute("CREATE TABLE plain (id BIGINT, body TEXT)")
    clients = [Writer(number, seed, counts["upserts"]) for number in range(writers)]
    while not until(counts["kills"]):
        context = f"seed {seed}, kill {counts['kills']}"
        killed = threading.Event()
        threads = [threading.Thread(target=client.work, args=(server.address, killed)) for client in clients]
        before = server.log.stat().st_size
        for thread in threads:
            thread.start()
        time.sleep(moments.uniform(0.05, 2.0))
        killed.set()
        server.kill()
        for thread in threads:
            thread.join()
        failures = [client.failure for client in clients if client.failure]
        assert not failures, f"{context}: {failures}; log:\n{server.log.read_text()[-4000:]}"
        counts["kills"] += 1
        for kind in unfinished(server.log.read_bytes()[before:].decode()):
            counts[f"in_{kind}"] += 1
        if moments.random() < 0.2:
            # A start that is killed, too; the next one has more to mend.
            starting = Server(directory, SETTINGS, wait=False)
            time.sleep(moments.uniform(0.0, 0.3))
            starting.kill()
            counts["in_start"] += 1
        server = Server(directory, SETTINGS)
        found = read(server, context)
        for client in clients:
            client.check(found, context)
        known = sum(len(client.rows[table]) for client in clients for table in TABLES)
        assert sum(len(rows) for rows in found.values()) == known, f"{context}: rows that nobody wrote"
        if counts["kills"] % 20 == 0:
            say(json.dumps(counts | {"rows": known}))
    assert server.stop() == 0
    counts["statements"] = sum(client.statements for client in clients)
    counts["rows"] = sum(len(client.rows[table]) for client in clients for table in TABLES)
    counts["files"] = sum(1 for path in directory.rglob("*") if path.is_file())
    return counts


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--writers", type=int, default=6)
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = arguments.parse_args()
    print(f"seed {options.seed}, binary {binary()}", flush=True)
    end = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch, "data")
        counts = soak(directory, options.seed, options.writers, lambda _: time.monotonic() > end, lambda line: print(line, flush=True))
        print(json.dumps(counts))


if __name__ == "__main__":
    main()
