"""How many files 100,000 single-row inserts leave behind, while they run and at the end.

    python bench/small_writes.py BINARY [ROWS] [FLUSH_ROWS]

Each insert is one statement and one durable commit, over ADBC from several connections. FLUSH_ROWS (default 100)
makes flushes small, far more often than the server's defaults would: every one is a new version. Prints one JSON
object: the rate, the files of the table by kind at most and at the end, and what a full scan reads.
"""

import collections
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "adbc"))

from conftest import Server

CONNECTIONS = 8


def count(directory: pathlib.Path) -> collections.Counter:
    """Files by kind; one that goes away meanwhile does not matter."""
    kinds = collections.Counter()
    for path in directory.rglob("*"):
        relative = path.relative_to(directory).parts
        if path.is_file():
            kinds[relative[2] if relative[0] == "tables" and len(relative) > 3 else relative[0]] += 1
    kinds["all"] = sum(kinds.values())
    return kinds


def insert(server: Server, first: int, rows: int, done: list):
    with server.connect() as connection, connection.cursor() as cursor:
        for key in range(first, first + rows):
            cursor.execute("INSERT INTO t VALUES (?, ?)", (key, f"row {key}"))
            done[0] += 1


def main():
    binary, *numbers = sys.argv[1:]
    rows, flush_rows = [int(number) for number in numbers] + [100_000, 100][len(numbers) :]
    os.environ["HYPRSTREAM_BIN"] = binary
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch, "data")
        server = Server(directory, {"HYPRSTREAM_STORAGE_FLUSH_ROWS": str(flush_rows)})
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (id BIGINT, body TEXT)")
        done = [[0] for _ in range(CONNECTIONS)]
        share = rows // CONNECTIONS
        threads = [
            threading.Thread(target=insert, args=(server, number * share, share, done[number]))
            for number in range(CONNECTIONS)
        ]
        start, most = time.perf_counter(), collections.Counter()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most |= count(directory)
            time.sleep(0.5)
        seconds = time.perf_counter() - start
        inserted = sum(number[0] for number in done)
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT id) FROM t")
            found = cursor.fetchone()
        if found != (inserted, inserted):
            raise SystemExit(f"{inserted} rows were inserted, {found} are there")
        running = count(directory)
        status = server.stop()
        print(
            json.dumps(
                {
                    "rows": inserted,
                    "rows_per_s": inserted / seconds,
                    "flush_rows": flush_rows,
                    "files_at_most": dict(most),
                    "files_after": dict(running),
                    "files_after_stop": dict(count(directory)),
                    "exit_status": status,
                }
            )
        )


if __name__ == "__main__":
    main()
