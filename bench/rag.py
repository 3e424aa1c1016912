"""Questions over a book, side by side: Hyprstream, and a vector database, an embedding runtime and a model server.

    python bench/rag.py BINARY MODELS SOURCES MINILM_ONNX [--load LOAD] [--seconds 5] [--threads 2] [--embedding Q8_0]

Both stacks hold the same 1,310 passages of about 80 words and the descriptions of 16 pictures, embed them with the same
all-MiniLM-L6-v2 and answer with the same SmolLM2-135M (Q4_1), with the same number of threads:

- Hyprstream: the release build BINARY, one server, asked over ADBC with prepared SQL; MiniLM's matrices as `model convert`
  makes them of the same file (`--embedding Q8_0`, or `F32` for the file as it is). It keeps no answers of models: the
  questions repeat.
- glued: one Python process with lancedb, ONNX Runtime and llama.cpp (llama-cpp-python), called directly, without a wire.

MODELS is where scripts/fetch_models.sh put the models, SOURCES what demo/fetch_data.sh left, MINILM_ONNX what
bench/export_minilm.py wrote. Measured, one stack after the other:

- query: a question's text to the text of its five nearest passages, p50 and p99 of one client
- multimodal QPS: the five nearest of passages and pictures, by 1, 8 and 32 clients
- searchable: from the text of a new passage to the first search that finds it
- answer: a question to an answer from its two nearest passages, of 48 tokens at most, by the model's chat template

With LOAD, the program of crates/hyprstream/benches/flight_rate.rs, queries are asked by compiled clients as well: a Python
client takes 2 to 3 ms of processor time of its own for a statement.

Nine of ten passages that they find must be the same, or the run fails (what is about as near changes places when weights
are rounded). Prints one JSON object.
"""

import argparse
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

import book
import compiled
import images
from server import Server

K, ANSWER_TOKENS, CONTEXT = 5, 48, 2
MODEL = "embedder"
CLIENTS = (1, 8, 32)
QUESTIONS = [
    "Where was the blue carbuncle found?",
    "Who was the King of Bohemia afraid of?",
    "What did the red-headed league pay for?",
    "How did the stepfather deceive Miss Sutherland?",
    "What was the speckled band?",
    "Why did the engineer lose his thumb?",
    "Who stole the beryl coronet?",
    "What did the five orange pips mean?",
    "Where did the noble bachelor's bride go?",
    "Why did the governess have to cut her hair?",
    "Who killed the man at Boscombe Pool?",
    "What did the man with the twisted lip do for a living?",
    "a picture of a cat",
    "a cup of coffee on a table",
    "the surface of the moon",
    "a rocket before it starts",
]
PROMPT = "Context:\n{}\n\nQuestion: {}\nAnswer:"


class Hyprstream:
    """One server, one connection a client."""

    nearest = f"FROM passages ORDER BY cosine_distance(embedding, embed(?, model => '{MODEL}')) LIMIT"
    text = f"SELECT id, body {nearest} {K}"
    of_table = f"""(SELECT id, body, cosine_distance(embedding, embed($1, model => '{MODEL}')) AS distance FROM {{}}
        ORDER BY distance LIMIT {K})"""
    mixed = f"{of_table} UNION ALL {of_table} ORDER BY distance LIMIT {K}".format("passages", "pictures")
    insert = f"INSERT INTO passages (id, body, embedding) VALUES (?, ?, embed(?, model => '{MODEL}'))"
    generate = f"SELECT GENERATE_RESPONSE(?, model => 'smollm2', max_tokens => {ANSWER_TOKENS}, temperature => 0.0)"

    def __init__(self, arguments, directory: pathlib.Path, passages, pictures):
        data = directory / "data"
        imported = MODEL if arguments.embedding == "F32" else "minilm"
        for name, source in ((imported, "all-minilm-l6-v2"), ("smollm2", "smollm2-135m-instruct")):
            command = [arguments.binary, "model", "import", "--name", name, "--data-dir", str(data)]
            found = pathlib.Path(arguments.models) / source
            files = sorted(found.glob("*.gguf"))
            subprocess.run([*command, str(files[0] if files else found)], check=True, stdout=subprocess.DEVNULL)
        if arguments.embedding != "F32":
            convert = ["model", "convert", "minilm", "--to", arguments.embedding, "--name", MODEL]
            subprocess.run([arguments.binary, *convert, "--data-dir", str(data)], check=True, stdout=subprocess.DEVNULL)
        os.environ["HYPRSTREAM_QUERY_AI_CACHE_MB"] = "0"
        self.server = Server(arguments.binary, data, directory / "log")
        with self.client() as cursor:
            for table, rows in (("passages", passages), ("pictures", pictures)):
                cursor.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, body TEXT, embedding VECTOR(384))")
                rows = pyarrow.table({"id": [row[0] for row in rows], "body": [row[1] for row in rows]})
                cursor.adbc_ingest(table, rows, mode="append")
                cursor.execute(f"UPDATE {table} SET embedding = embed(body, model => '{MODEL}')")
            cursor.execute("CREATE INDEX ON passages USING HNSW (embedding) WITH (metric = 'cosine')")
        time.sleep(8)  # The tail is flushed after five seconds: what is timed is the settled state.

    def client(self):
        return self.server.connect().cursor()

    def find(self, cursor, question: str) -> list[str]:
        cursor.execute(self.text, (question,))
        return cursor.fetch_arrow_table()["id"].to_pylist()

    def find_mixed(self, cursor, question: str) -> list[str]:
        cursor.execute(self.mixed, (question,))
        return cursor.fetch_arrow_table()["id"].to_pylist()

    def add(self, cursor, key: str, body: str) -> None:
        cursor.execute(self.insert, (key, body, body))

    def answer(self, cursor, question: str) -> str:
        cursor.execute(f"SELECT body {self.nearest} {CONTEXT}", (question,))
        bodies = cursor.fetch_arrow_table()["body"].to_pylist()
        cursor.execute(self.generate, (PROMPT.format("\n".join(bodies), question),))
        return cursor.fetch_arrow_table()[0][0].as_py()

    def compiled(self, load: str, seconds: float) -> dict:
        """What compiled clients get of the same statements."""

        def ask(sql: str, clients: int) -> dict:
            return compiled.ask(load, self.server.address, QUESTIONS, sql, clients, seconds)

        return {"query": ask(self.text, 1), "mixed_qps": {clients: ask(self.mixed, clients)["qps"] for clients in CLIENTS}}

    def close(self) -> None:
        self.server.stop()


class Glued:
    """lancedb, ONNX Runtime and llama.cpp in this process."""

    def __init__(self, arguments, directory: pathlib.Path, passages, pictures):
        import lancedb
        import llama_cpp
        import onnxruntime
        import tokenizers

        models = pathlib.Path(arguments.models)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(models / "all-minilm-l6-v2" / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.session = onnxruntime.InferenceSession(arguments.minilm_onnx, options, ["CPUExecutionProvider"])
        (gguf,) = (models / "smollm2-135m-instruct").glob("*.gguf")
        self.llama = llama_cpp.Llama(str(gguf), n_ctx=1024, n_threads=arguments.threads, verbose=False)
        self.model = threading.Lock()
        database = lancedb.connect(directory / "lance")

        def table(name, rows):
            vectors = numpy.stack([self.embed(body) for _, body in rows])
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
            ids, bodies = [row[0] for row in rows], [row[1] for row in rows]
            return database.create_table(name, pyarrow.table({"id": ids, "body": bodies, "vector": column}))

        self.passages, self.pictures = table("passages", passages), table("pictures", pictures)

    def embed(self, text: str) -> numpy.ndarray:
        """`[384]`, the mean of the tokens, of length one."""
        ids = numpy.array([self.tokenizer.encode(text).ids], dtype=numpy.int64)
        states = self.session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0]
        mean = states[0].mean(axis=0)
        return (mean / numpy.linalg.norm(mean)).astype(numpy.float32)

    def client(self):
        return None

    def search(self, table, vector, k: int):
        return table.search(vector).distance_type("cosine").limit(k).select(["id", "body", "_distance"]).to_arrow()

    def find(self, _, question: str) -> list[str]:
        return self.search(self.passages, self.embed(question), K)["id"].to_pylist()

    def find_mixed(self, _, question: str) -> list[str]:
        vector = self.embed(question)
        found = pyarrow.concat_tables([self.search(table, vector, K) for table in (self.passages, self.pictures)])
        return found.sort_by("_distance").slice(0, K)["id"].to_pylist()

    def add(self, _, key: str, body: str) -> None:
        self.passages.add([{"id": key, "body": body, "vector": self.embed(body)}])

    def answer(self, _, question: str) -> str:
        bodies = self.search(self.passages, self.embed(question), CONTEXT)["body"].to_pylist()
        asked = [{"role": "user", "content": PROMPT.format("\n".join(bodies), question)}]
        with self.model:
            answer = self.llama.create_chat_completion(asked, max_tokens=ANSWER_TOKENS, temperature=0.0)
        return answer["choices"][0]["message"]["content"]

    def close(self) -> None:
        pass


def percentiles(milliseconds: list[float]) -> dict:
    milliseconds = sorted(milliseconds)
    return {
        "p50_ms": round(statistics.median(milliseconds), 2),
        "p99_ms": round(milliseconds[len(milliseconds) * 99 // 100], 2),
    }


def query_latency(stack, seconds: float) -> dict:
    client, took, end = stack.client(), [], time.perf_counter() + seconds
    for question in QUESTIONS:
        stack.find(client, question)
    while time.perf_counter() < end:
        start = time.perf_counter()
        stack.find(client, QUESTIONS[len(took) % len(QUESTIONS)])
        took.append((time.perf_counter() - start) * 1e3)
    return percentiles(took)


def mixed_qps(stack, clients: int, seconds: float) -> float:
    counts, start = [0] * clients, threading.Barrier(clients + 1)
    end = [0.0]

    def ask(number: int) -> None:
        client = stack.client()
        stack.find_mixed(client, QUESTIONS[0])
        start.wait()
        while time.perf_counter() < end[0]:
            stack.find_mixed(client, QUESTIONS[(number + counts[number]) % len(QUESTIONS)])
            counts[number] += 1

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for asker in askers:
        asker.start()
    end[0] = time.perf_counter() + 60
    start.wait()
    begun = time.perf_counter()
    end[0] = begun + seconds
    for asker in askers:
        asker.join()
    return round(sum(counts) / (time.perf_counter() - begun), 1)


def searchable(stack) -> dict:
    client, took = stack.client(), []
    for number in range(20):
        key, body = f"new_{number}", f"The lighthouse keeper of island {number} counted {number * 37} herrings before dawn."
        start = time.perf_counter()
        stack.add(client, key, body)
        while key not in stack.find(client, body):
            pass
        took.append((time.perf_counter() - start) * 1e3)
    return percentiles(took)


def answers(stack) -> dict:
    client, took, texts = stack.client(), [], []
    for question in QUESTIONS[:6]:
        start = time.perf_counter()
        texts.append(stack.answer(client, question))
        took.append((time.perf_counter() - start) * 1e3)
    return percentiles(took) | {"first": texts[0]}


def measure(kind, arguments, passages, pictures) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        stack = kind(arguments, pathlib.Path(directory), passages, pictures)
        try:
            client = stack.client()
            found = [stack.find(client, question) for question in QUESTIONS]
            result = {"found": found, "query": query_latency(stack, arguments.seconds)}
            result["mixed_qps"] = {clients: mixed_qps(stack, clients, arguments.seconds) for clients in CLIENTS}
            if arguments.load and isinstance(stack, Hyprstream):
                result["compiled"] = stack.compiled(arguments.load, arguments.seconds)
            result["answer"] = answers(stack)
            result["searchable"] = searchable(stack)
            return result
        finally:
            stack.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("binary", "models", "sources", "minilm_onnx"):
        parser.add_argument(name)
    parser.add_argument("--load")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--embedding", default="Q8_0")
    arguments = parser.parse_args()
    sources = pathlib.Path(arguments.sources)
    passages = [(key, text) for key, text, _ in book.rows(sources / "sherlock.txt")]
    pictures = [(key, metadata["description"]) for key, _, metadata in images.rows(sources / "images")]
    glued = measure(Glued, arguments, passages, pictures)
    ours = measure(Hyprstream, arguments, passages, pictures)
    same = sum(len(set(a) & set(b)) for a, b in zip(glued.pop("found"), ours.pop("found"))) / (K * len(QUESTIONS))
    if same < 0.9:
        raise SystemExit(f"the stacks agree on {same:.0%} of the passages only")
    ratios = {
        "query_p50": glued["query"]["p50_ms"] / ours["query"]["p50_ms"],
        "query_p99": glued["query"]["p99_ms"] / ours["query"]["p99_ms"],
        "searchable_p50": glued["searchable"]["p50_ms"] / ours["searchable"]["p50_ms"],
        "answer_p50": glued["answer"]["p50_ms"] / ours["answer"]["p50_ms"],
        **{f"mixed_qps_{n}": ours["mixed_qps"][n] / glued["mixed_qps"][n] for n in CLIENTS},
    }
    if asked := ours.get("compiled"):
        ratios["compiled_query_p50"] = glued["query"]["p50_ms"] / asked["query"]["p50_ms"]
        ratios["compiled_query_p99"] = glued["query"]["p99_ms"] / asked["query"]["p99_ms"]
        for n in CLIENTS:
            ratios[f"compiled_mixed_qps_{n}"] = asked["mixed_qps"][n] / glued["mixed_qps"][n]
    ratios = {name: round(ratio, 2) for name, ratio in ratios.items()}
    print(json.dumps({"agree": round(same, 3), "ratios": ratios, "hyprstream": ours, "glued": glued}, indent=1))


if __name__ == "__main__":
    main()
