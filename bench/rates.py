"""Durable inserts and queries side by side, each with the same rows, keys and durability.

    python bench/rates.py inserts BINARY WRITERS FLIGHT_RATE      single rows and bulk, against SQLite and DuckDB
    python bench/rates.py queries BINARY DATA                     TPC-H at scale 1 and scans, against DuckDB

BINARY is the release build of hyprstream; WRITERS and FLIGHT_RATE are the programs in
crates/hyprstream/benches. DATA is a directory to keep generated Parquet files in. Prints one JSON object.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import duckdb
import pyarrow

from server import Server

SECONDS = float(os.environ.get("SECONDS_EACH", "3"))
COLUMNS = "(id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)"
INSERT = "INSERT INTO {} VALUES (?, ?, ?, ?)"
BULK_ROWS = 1_000_000
THREADS = 2
RUNS = 3


def row(key: int) -> tuple:
    return key, f"sensor-{key % 1000}", key * 0.25, f"row {key}"


def table(rows: int) -> pyarrow.Table:
    return pyarrow.table(
        {
            "id": pyarrow.array(range(rows), pyarrow.int64()),
            "name": [f"sensor-{key % 1000}" for key in range(rows)],
            "reading": [key * 0.25 for key in range(rows)],
            "note": [f"row {key}" for key in range(rows)],
        }
    )


def rate_of(insert, seconds: float = SECONDS) -> float:
    """Calls a second of `insert(key)`."""
    start = time.perf_counter()
    key = 0
    while time.perf_counter() - start < seconds:
        insert(key)
        key += 1
    return key / (time.perf_counter() - start)


def sqlite_rates(directory: pathlib.Path) -> dict:
    connection = sqlite3.connect(directory / "rows.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE t {COLUMNS}")
    single = rate_of(lambda key: connection.execute(INSERT.format("t"), row(key)))
    connection.execute(f"CREATE TABLE bulk {COLUMNS}")
    rows = [row(key) for key in range(BULK_ROWS)]
    start = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany(INSERT.format("bulk"), rows)
    connection.execute("COMMIT")
    return {"single": single, "bulk": BULK_ROWS / (time.perf_counter() - start)}


def duckdb_rates(directory: pathlib.Path) -> dict:
    connection = duckdb.connect(str(directory / "rows.duckdb"))
    connection.execute(f"CREATE TABLE t {COLUMNS}")
    single = rate_of(lambda key: connection.execute(INSERT.format("t"), row(key)))
    connection.execute(f"CREATE TABLE bulk {COLUMNS}")
    rows = table(BULK_ROWS)
    start = time.perf_counter()
    connection.execute("INSERT INTO bulk SELECT * FROM rows")
    connection.execute("CHECKPOINT")
    return {"single": single, "bulk": rows.num_rows / (time.perf_counter() - start)}


def in_process(writers: str, directory: pathlib.Path) -> dict:
    environment = {**os.environ, "TMPDIR": str(directory)}
    printed = subprocess.run([writers, str(SECONDS)], env=environment, check=True, capture_output=True, text=True)
    return json.loads(printed.stdout)["rows_per_s_by_writers"]


def adbc_rate(address: str, clients: int) -> float:
    """Single-row inserts a second of `clients` ADBC connections, a thread each."""
    import adbc_driver_flightsql.dbapi

    counts, stop = [0] * clients, threading.Event()
    first = time.time_ns() // 1000

    def insert(client: int) -> None:
        with adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", autocommit=True) as connection:
            with connection.cursor() as cursor:
                while not stop.is_set():
                    key = first + client + counts[client] * clients
                    cursor.execute(INSERT.format("bench_rate"), row(key))
                    counts[client] += 1

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(insert, client) for client in range(clients)]
        start = time.perf_counter()
        time.sleep(SECONDS)
        rate = sum(counts) / (time.perf_counter() - start)
        stop.set()
        for future in running:
            future.result()
    return rate


def load(flight_rate: str, address: str, clients: int) -> float:
    command = [flight_rate, "load", f"http://{address}", str(clients), str(SECONDS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows_per_s"]


def read(flight_rate: str, address: str) -> dict:
    command = [flight_rate, "read", f"http://{address}", str(RUNS), "SELECT * FROM bench_bulk"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def null_server(flight_rate: str):
    process = subprocess.Popen([flight_rate, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.kill()
        process.wait()


def over_flight(binary: str, flight_rate: str, directory: pathlib.Path) -> dict:
    """Rates of both servers, and their ratio, by way and number of clients."""
    rates = {}
    with Server(binary, directory / "flight", directory / "server.log") as server:
        with null_server(flight_rate) as null:
            with server.connect() as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE TABLE bench_rate {COLUMNS}")
            for clients in (1, 8, 32):
                ways = {
                    "adbc": lambda address: adbc_rate(address, clients),
                    "do_put": lambda address: load(flight_rate, address, clients),
                }
                for way, measure in ways.items():
                    ours, nothing = measure(server.address), measure(null)
                    rates[f"{way} {clients}"] = {"hyprstream": ours, "null": nothing, "ratio": ours / nothing}
            rates["bulk"] = bulk_rates(server)
            for name, address in {"hyprstream": server.address, "null": null}.items():
                rates["bulk"][f"read by a compiled client, {name}"] = read(flight_rate, address)
    return rates


def bulk_rates(server: Server) -> dict:
    rows = table(BULK_ROWS)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE bench_bulk {COLUMNS}")
        start = time.perf_counter()
        cursor.adbc_ingest("bench_bulk", rows.to_reader(max_chunksize=65_536), mode="append")
        ingest = time.perf_counter() - start
        start = time.perf_counter()
        cursor.execute("SELECT * FROM bench_bulk")
        read = cursor.fetch_arrow_table()
        fetch = time.perf_counter() - start
    return {
        "ingest_rows_per_s": BULK_ROWS / ingest,
        "read_rows_per_s": read.num_rows / fetch,
        "read_gb_per_s": read.nbytes / fetch / 1e9,
        "loopback_gb_per_s": loopback_rate(),
    }


def loopback_rate(total: int = 4 << 30) -> float:
    """GB/s of one TCP connection on the loopback interface, between two threads that do nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))
    chunk = bytes(1 << 20)

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as connection:
            for _ in range(total // len(chunk)):
                connection.sendall(chunk)

    sender = threading.Thread(target=send)
    sender.start()
    connection, _ = listener.accept()
    buffer, received = bytearray(1 << 20), 0
    start = time.perf_counter()
    while received < total:
        received += connection.recv_into(buffer)
    taken = time.perf_counter() - start
    sender.join()
    return total / taken / 1e9


def inserts(binary: str, writers: str, flight_rate: str) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        sqlite, duck = sqlite_rates(directory), duckdb_rates(directory)
        ours = in_process(writers, directory)
        return {
            "sqlite": sqlite,
            "duckdb": duck,
            "hyprstream_in_process": ours,
            "ratio_to_sqlite": {count: rate / sqlite["single"] for count, rate in ours.items()},
            "flight": over_flight(binary, flight_rate, directory),
        }


def median_seconds(run, runs: int = RUNS) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def parquet_files(directory: pathlib.Path) -> dict:
    """TPC-H at scale factor 1, generated once by the `tpchgen-cli` package."""
    target = directory / "tpch-sf1"
    if not (target / "lineitem.parquet").exists():
        generator = pathlib.Path(sys.executable).parent / "tpchgen-cli"
        subprocess.run([generator, "parquet", "-s", "1", "--output-dir", target], check=True)
    return {path.stem: path for path in sorted(target.glob("*.parquet"))}


def queries(binary: str, data: str) -> dict:
    """Median seconds of each query on both, after loading the same Parquet files into each one's own tables."""
    files = parquet_files(pathlib.Path(data))
    statements = {path.stem: path.read_text() for path in sorted((pathlib.Path(__file__).parent / "tpch").glob("*.sql"))}
    results = {}
    with tempfile.TemporaryDirectory(dir=data) as scratch:
        directory = pathlib.Path(scratch)
        duck = duckdb.connect(str(directory / "tpch.duckdb"), config={"threads": THREADS})
        with Server(binary, directory / "data", directory / "server.log") as server, server.connect() as connection:
            cursor = connection.cursor()
            loading = {"duckdb": 0.0, "hyprstream": 0.0}
            for name, path in files.items():
                start = time.perf_counter()
                duck.execute(f"CREATE TABLE {name} AS SELECT * FROM '{path}'")
                loading["duckdb"] += time.perf_counter() - start
                reader = pyarrow.parquet.ParquetFile(path).iter_batches(65_536)
                schema = pyarrow.parquet.read_schema(path)
                start = time.perf_counter()
                cursor.adbc_ingest(name, pyarrow.RecordBatchReader.from_batches(schema, reader), mode="create")
                loading["hyprstream"] += time.perf_counter() - start
            results["load_seconds"] = loading
            for name, sql in statements.items():
                results[name] = one_query(duck, cursor, sql)
            cursor.close()
    ratios = [result["ratio"] for result in results.values() if "ratio" in result]
    results["geometric_mean_ratio"] = statistics.geometric_mean(ratios)
    return results


def one_query(duck, cursor, sql: str) -> dict:
    def ours() -> pyarrow.Table:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()

    try:
        rows = ours().num_rows
    except Exception as error:  # A query that fails is a result to report, not a reason to stop.
        return {"error": str(error)[:300]}
    theirs = duck.execute(sql).to_arrow_table().num_rows
    if rows != theirs:
        return {"error": f"{rows} rows, DuckDB has {theirs}"}
    mine, duck_seconds = median_seconds(ours), median_seconds(lambda: duck.execute(sql).to_arrow_table())
    return {"duckdb_s": duck_seconds, "hyprstream_s": mine, "ratio": duck_seconds / mine}


def main() -> None:
    import pyarrow.parquet  # noqa: F401  (makes pyarrow.parquet an attribute)

    match sys.argv[1:]:
        case ["inserts", binary, writers, flight_rate]:
            print(json.dumps(inserts(binary, writers, flight_rate), indent=1))
        case ["queries", binary, data]:
            print(json.dumps(queries(binary, data), indent=1))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
