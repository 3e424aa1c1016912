"""Vector search side by side, in one run: Hyprstream in process and over Flight SQL, faiss, usearch, lancedb, DuckDB.

    python bench/vector.py BINARY EXAMPLE [--load LOAD] [--metric l2|cosine] [--only NAME ..] [--cache DIR]

BINARY is the release build of hyprstream, EXAMPLE that of `cargo build --release -p hypr-ann --example recall`, LOAD that
of `cargo bench -p hyprstream --bench flight_rate --no-run`: a compiled client, asking ours and a server that does
nothing, beside the Python one. Needs
numpy, pyarrow, the ADBC Flight SQL driver and the peers (bench/requirements.txt). The data is Fashion-MNIST from
the Debian package dataset-fashion-mnist: 59,000 rows to search, 1,000 others as queries, their exact ten nearest computed
here. Engines run one after the other, never two at a time; each prints one JSON object a line: seconds to build, MiB,
recall@10 with queries a second on one thread and on all clients. Ours over Flight SQL adds the latency of one client, the
time from an acknowledged insert to the row being found, and recall after 30 % of the rows were churned.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import numpy
import pyarrow

from server import Server

ROWS, QUERIES, DIMS, K = 59_000, 1_000, 784, 10
CLIENTS = 8
PACKAGE = "dataset-fashion-mnist"


def fashion_mnist(cache: pathlib.Path) -> numpy.ndarray:
    """`[60000, 784]` as f32, from the package, which is unpacked and not installed."""
    images = cache / "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
    if not images.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        (package,) = cache.glob(f"{PACKAGE}*.deb")
        subprocess.run(["dpkg", "-x", package, cache], check=True)
    pixels = numpy.frombuffer(gzip.open(images).read(), dtype=numpy.uint8, offset=16)
    return pixels.reshape(-1, DIMS).astype(numpy.float32)


def exact_neighbours(rows: numpy.ndarray, queries: numpy.ndarray, metric: str) -> numpy.ndarray:
    """`[queries, 10]` positions in `rows`, by f64."""
    rows, queries = rows.astype(numpy.float64), queries.astype(numpy.float64)
    if metric == "cosine":
        rows = rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
        queries = queries / numpy.linalg.norm(queries, axis=1, keepdims=True)
    norms, found = (rows**2).sum(1), []
    for start in range(0, len(queries), 50):
        distances = norms - 2 * queries[start : start + 50] @ rows.T
        few = numpy.argpartition(distances, 4 * K, axis=1)[:, : 4 * K]
        order = numpy.argsort(numpy.take_along_axis(distances, few, axis=1), axis=1)[:, :K]
        found.append(numpy.take_along_axis(few, order, axis=1))
    return numpy.concatenate(found)


def recall(found, truth) -> float:
    hits = sum(len(set(map(int, a)) & set(map(int, b))) for a, b in zip(found, truth))
    return round(hits / truth.size, 4)


def resident_mib(pid="self") -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def timed(search, queries, threads: int) -> float:
    """Queries a second of `threads` threads that each ask all of `queries`."""

    def work():
        for query in queries:
            search(query)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return round(threads * len(queries) / (time.perf_counter() - start))


def in_process(example, rows, queries, truth, metric):
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{name}" for name in ("rows", "queries", "truth")]
        rows.tofile(paths[0])
        queries.tofile(paths[1])
        truth.astype(numpy.uint32).tofile(paths[2])
        output = subprocess.run([example, *paths, str(DIMS), metric], check=True, capture_output=True, text=True)
    return {"engine": "hyprstream in process", **json.loads(output.stdout)}


def faiss_hnsw(rows, queries, truth, metric):
    import faiss

    if metric == "cosine":
        rows, queries = rows.copy(), queries.copy()
        faiss.normalize_L2(rows)
        faiss.normalize_L2(queries)
    faiss.omp_set_num_threads(2)
    before, start = resident_mib(), time.perf_counter()
    index = faiss.IndexHNSWFlat(DIMS, 16)
    index.hnsw.efConstruction = 40
    index.add(rows)
    result = {"engine": "faiss HNSW", "build_s": round(time.perf_counter() - start, 2), "points": []}
    result["memory_mib"] = resident_mib() - before
    for ef in (16, 32, 64, 128):
        index.hnsw.efSearch = ef
        point = {"ef": ef, "recall": recall(index.search(queries, K)[1], truth)}
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            start = time.perf_counter()
            index.search(queries, K)
            point[f"qps_{threads}_thread{'s' if threads > 1 else ''}"] = round(QUERIES / (time.perf_counter() - start))
        result["points"].append(point)
    return result


def usearch_hnsw(rows, queries, truth, metric):
    from usearch.index import Index

    before, start = resident_mib(), time.perf_counter()
    index = Index(ndim=DIMS, metric="cos" if metric == "cosine" else "l2sq", dtype="f32")
    index.add(numpy.arange(len(rows)), rows, threads=2)
    result = {"engine": "usearch", "build_s": round(time.perf_counter() - start, 2), "points": []}
    result["memory_mib"] = resident_mib() - before
    for ef in (32, 64, 128):
        index.expansion_search = ef
        point = {"ef": ef, "recall": recall(index.search(queries, K, threads=2).keys, truth)}
        for threads in (1, 2):
            start = time.perf_counter()
            index.search(queries, K, threads=threads)
            point[f"qps_{threads}_thread{'s' if threads > 1 else ''}"] = round(QUERIES / (time.perf_counter() - start))
        result["points"].append(point)
    return result


def lancedb_hnsw(rows, queries, truth, metric):
    import lancedb

    with tempfile.TemporaryDirectory() as directory:
        vectors = pyarrow.FixedSizeListArray.from_arrays(rows.ravel(), DIMS)
        table = lancedb.connect(directory).create_table(
            "t", pyarrow.table({"id": numpy.arange(len(rows)), "v": vectors})
        )
        start = time.perf_counter()
        table.create_index(metric=metric, vector_column_name="v", index_type="IVF_HNSW_SQ", num_partitions=1)
        result = {"engine": "lancedb IVF_HNSW_SQ", "build_s": round(time.perf_counter() - start, 2), "points": []}
        for ef in (32, 64, 128):

            def search(query):
                found = table.search(query).distance_type(metric).ef(ef).refine_factor(2).limit(K).select(["id"])
                return found.to_arrow()["id"].to_numpy()

            sample = queries[:300]
            point = {"ef": ef, "recall": recall([search(query) for query in queries], truth)}
            point["qps_1_thread"] = timed(search, sample, 1)
            point[f"qps_{CLIENTS}_threads"] = timed(search, sample, CLIENTS)
            result["points"].append(point)
        result["memory_mib"] = resident_mib()
        return result


def duckdb_vss(rows, queries, truth, metric):
    import duckdb

    connection = duckdb.connect()
    try:
        connection.execute("INSTALL vss")
        connection.execute("LOAD vss")
    except duckdb.Error as error:
        return {"engine": "DuckDB vss", "skipped": f"the extension could not be had: {error}".splitlines()[0]}
    vectors = pyarrow.FixedSizeListArray.from_arrays(rows.ravel(), DIMS)
    data = pyarrow.table({"id": numpy.arange(len(rows)), "v": vectors})
    connection.execute(f"CREATE TABLE t AS SELECT id, v::FLOAT[{DIMS}] AS v FROM data")
    start = time.perf_counter()
    connection.execute(f"CREATE INDEX i ON t USING HNSW (v) WITH (metric = '{'cosine' if metric == 'cosine' else 'l2sq'}')")
    build = time.perf_counter() - start
    name = "array_cosine_distance" if metric == "cosine" else "array_distance"

    def search(query):
        sql = f"SELECT id FROM t ORDER BY {name}(v, ?::FLOAT[{DIMS}]) LIMIT {K}"
        return [row[0] for row in connection.execute(sql, [query.tolist()]).fetchall()]

    found = [search(query) for query in queries]
    point = {"recall": recall(found, truth), "qps_1_thread": timed(search, queries[:300], 1)}
    return {"engine": "DuckDB vss", "build_s": round(build, 2), "points": [point]}


class FlightTable:
    """The rows in a running server, asked with a bound vector."""

    def __init__(self, server, metric: str):
        self.server, self.metric = server, metric
        function = "cosine_distance" if metric == "cosine" else "l2_distance"
        self.sql = f"SELECT id FROM vectors ORDER BY {function}(v, ?) LIMIT {K}"

    def run(self, sql):
        with self.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table() if cursor.description else None

    def ingest(self, ids, vectors):
        list_type = pyarrow.list_(pyarrow.field("item", pyarrow.float32()), DIMS)
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), type=list_type)
        with self.server.connect() as connection, connection.cursor() as cursor:
            table = pyarrow.table({"id": pyarrow.array(ids, pyarrow.int64()), "v": column})
            cursor.adbc_ingest("vectors", table.to_reader(max_chunksize=4096), mode="append")

    def wait_for_index(self) -> float:
        """Seconds until the plan of the search shows the index with few rows beside it."""
        start = time.perf_counter()
        query = "[" + ",".join(["1"] * DIMS) + "]"
        sql = "EXPLAIN " + self.sql.replace("?", f"'{query}'")
        while True:
            plan = str(self.run(sql).to_pydict())
            new_rows = plan.rpartition("new_rows=")[2]
            if "graph_rows=" in plan and int("".join(c for c in new_rows[:9] if c.isdigit()) or "0") < 256:
                return time.perf_counter() - start
            if time.perf_counter() - start > 600:
                raise SystemExit(f"no index after ten minutes: {plan}")
            time.sleep(0.1)

    def searcher(self):
        """A function of one connection with a prepared statement: query to ids."""
        connection = self.server.connect()
        cursor = connection.cursor()
        cursor.adbc_statement.set_sql_query(self.sql)
        cursor.adbc_statement.prepare()

        def search(query):
            column = pyarrow.array([query.tolist()], pyarrow.list_(pyarrow.float32()))
            batch = pyarrow.record_batch([column], names=["0"])
            cursor.adbc_statement.bind(batch)
            handle, _ = cursor.adbc_statement.execute_query()
            return pyarrow.RecordBatchReader._import_from_c(handle.address).read_all()["id"].to_numpy()

        return search

    def clients_qps(self, queries) -> int:
        searchers = [self.searcher() for _ in range(CLIENTS)]
        for search in searchers:
            search(queries[0])
        start = time.perf_counter()

        def work(search):
            for query in queries:
                search(query)

        workers = [threading.Thread(target=work, args=(search,)) for search in searchers]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return round(CLIENTS * len(queries) / (time.perf_counter() - start))


def freshness_ms(table: FlightTable) -> dict:
    """Milliseconds of an insert, and from its acknowledgement until a search has found the row."""
    search, inserts, found = table.searcher(), [], []
    with table.server.connect() as connection, connection.cursor() as cursor:
        for at in range(30):
            vector = numpy.full(DIMS, 300 + at, dtype=numpy.float32)
            vector[at] = 900
            text = "[" + ",".join(str(value) for value in vector) + "]"
            start = time.perf_counter()
            cursor.execute(f"INSERT INTO vectors VALUES ({9_000_000 + at}, '{text}')")
            acknowledged = time.perf_counter()
            while int(search(vector)[0]) != 9_000_000 + at:
                pass
            found.append((time.perf_counter() - acknowledged) * 1e3)
            inserts.append((acknowledged - start) * 1e3)
        cursor.execute("DELETE FROM vectors WHERE id >= 9000000")
    return {"insert_p50": round(statistics.median(inserts), 2), "found_p50": round(statistics.median(found), 2)}


def churned(table: FlightTable, rows, queries, metric) -> dict:
    """A tenth deleted, a tenth updated, a tenth added: recall against the exact neighbours of what is left."""
    numbers = numpy.arange(len(rows))
    shifted = rows[numbers % 10 == 2][:, ::-1].copy()
    table.run("DELETE FROM vectors WHERE id % 10 IN (1, 2)")
    table.ingest(numbers[numbers % 10 == 2], shifted)
    added = numpy.clip(rows[numbers % 10 == 3] + 7, 0, 255).astype(numpy.float32)
    table.ingest(numbers[numbers % 10 == 3] + 100_000, added)
    keep = ~numpy.isin(numbers % 10, (1, 2))
    now = numpy.concatenate([rows[keep], shifted, added])
    ids = numpy.concatenate([numbers[keep], numbers[numbers % 10 == 2], numbers[numbers % 10 == 3] + 100_000])
    truth = ids[exact_neighbours(now, queries, metric)]
    search = table.searcher()
    at_once = recall([search(query) for query in queries[:200]], truth[:200])
    table.wait_for_index()
    return {"recall_at_once": at_once, "recall_settled": recall([search(query) for query in queries], truth)}


def compiled_clients(load, url, sql, queries) -> dict:
    """What one and eight clients without Python see: of a server that does nothing, and of ours."""
    found = {}
    with tempfile.NamedTemporaryFile() as file:
        queries.tofile(file.name)
        with subprocess.Popen([load, "serve"], stdout=subprocess.PIPE, text=True) as idle:
            for name, at in (("nothing", idle.stdout.readline().strip()), ("hyprstream", url)):
                for clients in (1, CLIENTS):
                    command = [load, "search", at, str(clients), "5", file.name, str(DIMS), sql]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found.setdefault(name, []).append(json.loads(output))
            idle.kill()
    return found


def over_flight(binary, load, rows, queries, truth, metric):
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        with Server(binary, directory / "data", directory / "log") as server:
            table = FlightTable(server, metric)
            table.run(f"CREATE TABLE vectors (id BIGINT, v VECTOR({DIMS}))")
            table.ingest(numpy.arange(len(rows)), rows)
            table.run(f"CREATE INDEX ON vectors USING HNSW (v) WITH (metric = '{metric}')")
            result = {"engine": "hyprstream over Flight SQL", "build_s": round(table.wait_for_index(), 2)}
            time.sleep(8)  # The tail is flushed after five seconds: what is timed is the settled state.
            search = table.searcher()
            result["recall"] = recall([search(query) for query in queries], truth)
            latencies = []
            for query in queries:
                start = time.perf_counter()
                search(query)
                latencies.append((time.perf_counter() - start) * 1e3)
            latencies.sort()
            result["p50_ms"] = round(statistics.median(latencies), 3)
            result["p99_ms"] = round(latencies[len(latencies) * 99 // 100], 3)
            result[f"qps_{CLIENTS}_clients"] = table.clients_qps(queries[:300])
            if load:
                result["compiled"] = compiled_clients(load, f"http://{server.address}", table.sql, queries)
            result["freshness_ms"] = freshness_ms(table)
            result["churn"] = churned(table, rows, queries, metric)
            result["memory_mib"] = resident_mib(server.process.pid)
            return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("example")
    parser.add_argument("--load")
    parser.add_argument("--metric", choices=("l2", "cosine"), default="l2")
    parser.add_argument("--only", nargs="*", default=[])
    cache = os.environ.get("HYPRSTREAM_CACHE_DIR", pathlib.Path.home() / ".cache/hyprstream")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path(cache) / PACKAGE)
    arguments = parser.parse_args()
    images = fashion_mnist(arguments.cache)
    rows, queries = images[:ROWS].copy(), images[ROWS : ROWS + QUERIES].copy()
    truth = exact_neighbours(rows, queries, arguments.metric)
    engines = {
        "flight": lambda *data: over_flight(arguments.binary, arguments.load, *data),
        "process": lambda *data: in_process(arguments.example, *data),
        "faiss": faiss_hnsw,
        "usearch": usearch_hnsw,
        "lancedb": lancedb_hnsw,
        "duckdb": duckdb_vss,
    }
    for name, run in engines.items():
        if not arguments.only or name in arguments.only:
            print(json.dumps(run(rows, queries, truth, arguments.metric)), flush=True)


if __name__ == "__main__":
    main()
