"""Full-text search by BM25 side by side, in one run: Hyprstream over Flight SQL, tantivy, bm25s, DuckDB fts.

    python bench/text.py BINARY [--load LOAD] [--rows N] [--queries N] [--only NAME ..] [--cache DIR]

BINARY is the release build of hyprstream, LOAD the program of crates/hyprstream/benches/flight_rate.rs, which asks as
compiled clients do. Needs numpy, pyarrow, the ADBC Flight SQL driver and the peers
(bench/requirements.txt). The text is the Collaborative International Dictionary of English from the Debian package
dict-gcide: some 126,000 entries, 35 MiB. It is put into lower-case words of letters and digits first, so that every engine
sees the same words. A query is one to five words of one entry, chosen by a fixed seed. Engines run one after the other,
never two at a time; each prints one JSON object a line: seconds to load and index, MiB, queries a second on one thread and
on all clients, and agreement: the share of its ten best rows whose score, computed here in f64, is no less than the tenth
best. Engines that keep the length of a row in one byte agree less.
"""

import argparse
import collections
import contextlib
import gzip
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import numpy
import pyarrow

import compiled

K, CLIENTS = 10, 8
K1, B = 1.2, 0.75
PACKAGE = "dict-gcide"
DIGITS = {c: n for n, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def entries(cache: pathlib.Path) -> list[str]:
    """The entries of the dictionary, from the package, which is unpacked and not installed."""
    folder = cache / "usr/share/dictd"
    if not (folder / "gcide.index").exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        (package,) = cache.glob(f"{PACKAGE}*.deb")
        subprocess.run(["dpkg", "-x", package, cache], check=True)
    text = gzip.open(folder / "gcide.dict.dz").read()
    spans = set()
    for line in (folder / "gcide.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00-database"):
            spans.add((number(start), number(length)))
    found = [words(text[start : start + length].decode("utf-8", "replace")) for start, length in sorted(spans)]
    return [entry for entry in found if entry]


def number(digits: str) -> int:
    """The index of dictd counts in base 64."""
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def questions(rows: list[str], count: int) -> list[str]:
    """One to five different words of one row, of at least three letters."""
    choice, found = random.Random(7), []
    while len(found) < count:
        candidates = sorted({word for word in choice.choice(rows).split() if len(word) > 2 and word.isalpha()})
        wanted = choice.choice((1, 2, 2, 3, 3, 4, 5))
        if len(candidates) >= wanted:
            found.append(" ".join(choice.sample(candidates, wanted)))
    return found


class Exact:
    """BM25 of every row, in f64."""

    def __init__(self, rows: list[str]):
        postings = collections.defaultdict(lambda: ([], []))
        lengths = numpy.empty(len(rows))
        for at, row in enumerate(rows):
            split = row.split()
            lengths[at] = len(split)
            for word, times in collections.Counter(split).items():
                positions, counts = postings[word]
                positions.append(at)
                counts.append(times)
        self.postings, self.rows = postings, len(rows)
        self.norms = K1 * (1 - B + B * lengths / lengths.mean())

    def scores(self, query: str) -> numpy.ndarray:
        total = numpy.zeros(self.rows)
        for word in query.split():
            if word not in self.postings:
                continue
            positions, counts = map(numpy.array, self.postings[word])
            idf = math.log(1 + (self.rows - len(positions) + 0.5) / (len(positions) + 0.5))
            total[positions] += idf * counts * (K1 + 1) / (counts + self.norms[positions])
        return total

    def agreement(self, queries: list[str], found: list[list[int]]) -> float:
        """The share of rows found that are among the best, ties of the last place all counted as such."""
        hits = wanted = 0
        for query, ids in zip(queries, found):
            scores = self.scores(query)
            matching = int((scores > 0).sum())
            best = min(K, matching)
            if best == 0:
                continue
            bound = numpy.partition(scores, -best)[-best] * (1 - 1e-6)
            hits += sum(scores[id] >= bound for id in set(ids[:best]))
            wanted += best
        return round(hits / wanted, 4)


def resident_mib(pid="self") -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def queries_per_second(searchers, queries) -> int:
    """Of one thread for each searcher; each asks all queries."""

    def work(search):
        for query in queries:
            search(query)

    workers = [threading.Thread(target=work, args=(search,)) for search in searchers]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return round(len(searchers) * len(queries) / (time.perf_counter() - start))


def measured(search, queries, exact, clients) -> dict:
    """Agreement, latency and rates; `clients` makes as many searchers as it is told to."""
    found, latencies = [], []
    search(queries[0])
    for query in queries:
        start = time.perf_counter()
        found.append([int(id) for id in search(query)])
        latencies.append((time.perf_counter() - start) * 1e3)
    latencies.sort()
    return {
        "agreement": exact.agreement(queries, found),
        "p50_ms": round(statistics.median(latencies), 3),
        "p99_ms": round(latencies[len(latencies) * 99 // 100], 3),
        "qps_1": queries_per_second([search], queries),
        f"qps_{CLIENTS}": queries_per_second(clients(CLIENTS), queries),
    }


def over_flight(binary, load, rows, queries, exact):
    from server import Server

    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        with Server(binary, directory / "data", directory / "log") as server:
            with server.connect() as connection, connection.cursor() as cursor:
                cursor.execute("CREATE TABLE entries (id BIGINT, body TEXT)")
                table = pyarrow.table({"id": pyarrow.array(range(len(rows)), pyarrow.int64()), "body": rows})
                start = time.perf_counter()
                cursor.adbc_ingest("entries", table.to_reader(max_chunksize=8192), mode="append")
                loaded = time.perf_counter()
                cursor.execute("CREATE INDEX entries_body ON entries USING FTS (body)")
                result = {
                    "engine": "hyprstream over Flight SQL",
                    "load_s": round(loaded - start, 2),
                    "index_s": round(time.perf_counter() - loaded, 2),
                }
            time.sleep(8)  # The tail is flushed after five seconds: what is timed is the settled state.
            with contextlib.ExitStack() as open_ones:

                def searchers(count):
                    return [flight_searcher(server, open_ones) for _ in range(count)]

                result |= measured(searchers(1)[0], queries, exact, searchers)
                if load:
                    result["compiled"] = [
                        compiled.ask(load, server.address, queries, SEARCH, clients) for clients in (1, CLIENTS)
                    ]
                result["memory_mib"] = resident_mib(server.process.pid)
            return result


SEARCH = f"SELECT id FROM text_search(entries, ?, body, {K}) ORDER BY score DESC LIMIT {K}"


def flight_searcher(server, open_ones):
    """A function of one connection with a prepared statement, both closed with `open_ones`: query to ids."""
    connection = open_ones.enter_context(server.connect())
    cursor = open_ones.enter_context(connection.cursor())
    cursor.adbc_statement.set_sql_query(SEARCH)
    cursor.adbc_statement.prepare()

    def search(query):
        cursor.adbc_statement.bind(pyarrow.record_batch([pyarrow.array([query])], names=["0"]))
        handle, _ = cursor.adbc_statement.execute_query()
        return pyarrow.RecordBatchReader._import_from_c(handle.address).read_all()["id"].to_numpy()

    return search


def with_tantivy(rows, queries, exact):
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_unsigned_field("id", stored=True)
    schema.add_text_field("body", tokenizer_name="whitespace", stored=False)
    with tempfile.TemporaryDirectory() as directory:
        before = resident_mib()
        index = tantivy.Index(schema.build(), path=directory)
        start = time.perf_counter()
        writer = index.writer(heap_size=256 << 20, num_threads=2)
        for id, row in enumerate(rows):
            writer.add_document(tantivy.Document(id=id, body=row))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        result = {"engine": "tantivy", "index_s": round(time.perf_counter() - start, 2)}
        searcher = index.searcher()

        def search(query):
            hits = searcher.search(index.parse_query(query, ["body"]), K, count=False).hits
            return [searcher.doc(address)["id"][0] for _, address in hits]

        result |= measured(search, queries, exact, lambda count: [search] * count)
        result["memory_mib"] = resident_mib() - before
        return result


def with_bm25s(rows, queries, exact):
    import bm25s

    before, start = resident_mib(), time.perf_counter()
    tokens = bm25s.tokenize(rows, stopwords=None, token_pattern=r"\S+", show_progress=False)
    retriever = bm25s.BM25(method="lucene", k1=K1, b=B)
    retriever.index(tokens, show_progress=False)
    result = {"engine": "bm25s", "index_s": round(time.perf_counter() - start, 2)}

    def search(query):
        found, _ = retriever.retrieve([query.split()], k=K, show_progress=False, n_threads=0)
        return found[0]

    result |= measured(search, queries, exact, lambda count: [search] * count)
    result["memory_mib"] = resident_mib() - before
    return result


def with_duckdb(rows, queries, exact):
    import duckdb

    connection = duckdb.connect()
    try:
        connection.execute("INSTALL fts")
        connection.execute("LOAD fts")
    except duckdb.Error as error:
        return {"engine": "DuckDB fts", "skipped": f"the extension could not be had: {error}".splitlines()[0]}
    data = pyarrow.table({"id": pyarrow.array(range(len(rows)), pyarrow.int64()), "body": rows})
    connection.execute("CREATE TABLE entries AS SELECT * FROM data")
    start = time.perf_counter()
    connection.execute("PRAGMA create_fts_index('entries', 'id', 'body', stemmer = 'none', stopwords = 'none')")
    build = time.perf_counter() - start
    sql = f"""SELECT id FROM (SELECT id, fts_main_entries.match_bm25(id, ?) AS score FROM entries)
        WHERE score IS NOT NULL ORDER BY score DESC LIMIT {K}"""

    def searcher():
        own = connection.cursor()
        return lambda query: [row[0] for row in own.execute(sql, [query]).fetchall()]

    result = {"engine": "DuckDB fts", "index_s": round(build, 2)}
    few = queries[:100]
    return result | measured(searcher(), few, exact, lambda count: [searcher() for _ in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--load")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=[])
    cache = os.environ.get("HYPRSTREAM_CACHE_DIR", pathlib.Path.home() / ".cache/hyprstream")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path(cache) / PACKAGE)
    arguments = parser.parse_args()
    rows = entries(arguments.cache)[: arguments.rows]
    queries, exact = questions(rows, arguments.queries), Exact(rows)
    print(json.dumps({"rows": len(rows), "mib": sum(map(len, rows)) >> 20, "queries": len(queries)}), flush=True)
    engines = {
        "flight": lambda *data: over_flight(arguments.binary, arguments.load, *data),
        "tantivy": with_tantivy,
        "bm25s": with_bm25s,
        "duckdb": with_duckdb,
    }
    for name, run in engines.items():
        if not arguments.only or name in arguments.only:
            print(json.dumps(run(rows, queries, exact)), flush=True)


if __name__ == "__main__":
    main()
