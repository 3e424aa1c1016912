"""Ingest rate and query latency of a running server over ADBC Flight SQL.

    python bench/server.py BINARY DATA_DIR

BINARY is the release build, DATA_DIR what ./demo.sh left, with its tables embedded. Prints one JSON
object: rows a second for single-row executemany batches and for bulk ingest, and milliseconds at p50 and p99 for
vector search over the demo's passages.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import pyarrow

from server import Server

INGEST_ROWS = 100_000
BULK_ROWS = 1_000_000
QUERIES = 300


def sensor_rows(count: int) -> pyarrow.Table:
    """Plain rows: a key, a name, a number and JSON text."""
    return pyarrow.table(
        {
            "id": pyarrow.array(range(count), pyarrow.int64()),
            "name": [f"sensor-{index % 1000}" for index in range(count)],
            "reading": pyarrow.array([index * 0.25 for index in range(count)], pyarrow.float64()),
            "note": [f"row {index}" for index in range(count)],
        }
    )


def ingest_rates(connection) -> dict:
    """Rows a second, acknowledged as durable."""
    rates = {}
    columns = "(id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)"
    with connection.cursor() as cursor:
        for table in ("bench_single", "bench_many", "bench_bulk"):
            cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"CREATE TABLE bench_single {columns}")
        rows = sensor_rows(500).to_pylist()
        start = time.perf_counter()
        for row in rows:
            cursor.execute("INSERT INTO bench_single VALUES (?, ?, ?, ?)", tuple(row.values()))
        rates["single_row_inserts"] = len(rows) / (time.perf_counter() - start)

        cursor.execute(f"CREATE TABLE bench_many {columns}")
        values = [tuple(row.values()) for row in sensor_rows(INGEST_ROWS).to_pylist()]
        start = time.perf_counter()
        cursor.executemany("INSERT INTO bench_many VALUES (?, ?, ?, ?)", values)
        rates["executemany"] = len(values) / (time.perf_counter() - start)

        table = sensor_rows(BULK_ROWS)
        start = time.perf_counter()
        cursor.adbc_ingest("bench_bulk", table.to_reader(max_chunksize=65_536), mode="create")
        rates["adbc_ingest"] = BULK_ROWS / (time.perf_counter() - start)

        start = time.perf_counter()
        cursor.execute("SELECT * FROM bench_bulk")
        read = cursor.fetch_arrow_table().num_rows
        rates["select_all"] = read / (time.perf_counter() - start)
        for name in ("bench_single", "bench_many", "bench_bulk"):
            cursor.execute(f"DROP TABLE {name}")
    return rates


def search_latencies(connection) -> dict:
    """Milliseconds of the five nearest passages, with the vector bound, and with the text embedded by the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT text_content, text_embedding FROM sherlock_text ORDER BY text_id LIMIT ?", (QUERIES,))
        table = cursor.fetch_arrow_table()
        vectors = [row.as_py() for row in table["text_embedding"]]
        texts = [row.as_py()[:80].replace("'", "''") for row in table["text_content"]]
        by_vector = "SELECT text_id FROM sherlock_text ORDER BY cosine_distance(text_embedding, ?) LIMIT 5"
        by_text = (
            "SELECT text_id FROM sherlock_text "
            "ORDER BY cosine_distance(text_embedding, embed('{}', model => 'minilm')) LIMIT 5"
        )
        embedding = pyarrow.list_(pyarrow.float32(), len(vectors[0]))
        bound = [pyarrow.record_batch([pyarrow.array([vector], embedding)], names=["vector"]) for vector in vectors]
        return {
            "vector_bound": percentiles(cursor, [(by_vector, batch) for batch in bound]),
            "text_embedded": percentiles(cursor, [(by_text.format(text), None) for text in texts]),
        }


def percentiles(cursor, statements: list) -> dict:
    """Milliseconds from sending a statement to its last row."""
    taken = []
    for sql, parameters in statements:
        start = time.perf_counter()
        cursor.execute(sql, parameters)
        if cursor.fetch_arrow_table().num_rows != 5:
            raise SystemExit(f"expected five rows: {sql}")
        taken.append((time.perf_counter() - start) * 1000)
    cuts = statistics.quantiles(taken, n=100)
    return {"p50_ms": statistics.median(taken), "p99_ms": cuts[98], "queries": len(taken)}


def main() -> None:
    binary, data_dir = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        with Server(binary, data_dir, pathlib.Path(scratch, "server.log")) as server, server.connect() as connection:
            print(json.dumps({"ingest_rows_per_s": ingest_rates(connection), "search": search_latencies(connection)}))


if __name__ == "__main__":
    main()
