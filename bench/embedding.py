"""Passages embedded a second, side by side in one run, and the time to the first token of a process that has just started.

    python bench/embedding.py BINARY MODELS SOURCES MINILM_ONNX [--threads 2] [--passages 640] [--rounds 3]

BINARY is the release build of hyprstream, MODELS where scripts/fetch_models.sh put the models, SOURCES what
demo/fetch_data.sh left, MINILM_ONNX what bench/export_minilm.py wrote. Needs torch, transformers, onnxruntime, pyarrow and the
ADBC Flight SQL driver.

All-MiniLM-L6-v2 embeds the same passages of about 80 words by PyTorch in f32, by ONNX Runtime in f32 (both get batches of 32
passages of like length and are called in this process), and by Hyprstream's server in one statement over Flight SQL, in F32
as the file has it and in Q8_0 as `model convert` makes it, answers not kept. They take turns; the numbers are medians. The
cosine is the least of all passages to PyTorch's vector. `first_token_ms` is the whole life of `hyprstream sql` with a
question of one token for SmolLM2-135M Q4_1, files in the page cache. Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "demo"))

import numpy
import pyarrow

import book
from server import Server

BATCH = 32
FORMATS = ("F32", "Q8_0")


def batches(tokenizer, texts: list[str]):
    """Positions, tokens and mask of texts of like length together."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), BATCH):
        positions = order[start : start + BATCH]
        encoded = tokenizer([texts[at] for at in positions], padding=True, truncation=True, max_length=256, return_tensors="np")
        yield positions, encoded["input_ids"], encoded["attention_mask"]


def embedded(tokenizer, texts: list[str], run) -> numpy.ndarray:
    """`[texts, width]`: the mean of each text's tokens, of length one. `run` gives `[batch, tokens, width]`."""
    vectors = [None] * len(texts)
    for positions, ids, mask in batches(tokenizer, texts):
        states = run(ids, mask)
        means = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        for at, mean in zip(positions, means / numpy.linalg.norm(means, axis=1, keepdims=True)):
            vectors[at] = mean
    return numpy.stack(vectors)


def with_torch(model: pathlib.Path, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    network = transformers.AutoModel.from_pretrained(model).eval()

    def run(ids, mask):
        with torch.inference_mode():
            answer = network(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            return answer.last_hidden_state.numpy()

    return run


def with_onnx(graph: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def imported(binary: str, models: pathlib.Path, data: pathlib.Path) -> None:
    def model(*command: str) -> None:
        subprocess.run([binary, "model", *command, "--data-dir", str(data)], check=True, stdout=subprocess.DEVNULL)

    (gguf,) = (models / "smollm2-135m-instruct").glob("*.gguf")
    model("import", "--name", "smollm2", str(gguf))
    model("import", "--name", "F32", str(models / "all-minilm-l6-v2"))
    model("convert", "F32", "--to", "Q8_0", "--name", "Q8_0")


def first_token_ms(binary: str, data: pathlib.Path) -> float:
    question = "SELECT generate_response('The sea', model => 'smollm2', max_tokens => 1)"
    took = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([binary, "sql", "--data-dir", str(data), question], check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(took[1:]), 1)


def measured(arguments, texts: list[str], directory: pathlib.Path) -> dict:
    import transformers

    models, data = pathlib.Path(arguments.models), directory / "data"
    imported(arguments.binary, models, data)
    result = {"first_token_ms": first_token_ms(arguments.binary, data)}
    os.environ["HYPRSTREAM_QUERY_AI_CACHE_MB"] = "0"
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "all-minilm-l6-v2")
    torch_run = with_torch(models / "all-minilm-l6-v2", arguments.threads)
    onnx_run = with_onnx(arguments.minilm_onnx, arguments.threads)
    with Server(arguments.binary, data, directory / "log") as server, server.connect() as connection:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE passages (id BIGINT PRIMARY KEY, body TEXT)")
            rows = pyarrow.table({"id": range(len(texts)), "body": texts})
            cursor.adbc_ingest("passages", rows, mode="append")

            def hyprstream(model: str) -> numpy.ndarray:
                cursor.execute(f"SELECT id, embed(body, model => '{model}') AS v FROM passages ORDER BY id")
                vectors = cursor.fetch_arrow_table()["v"].combine_chunks()
                return vectors.flatten().to_numpy().reshape(len(texts), -1)

            ways = {
                "PyTorch f32": lambda: embedded(tokenizer, texts, torch_run),
                "ONNX Runtime f32": lambda: embedded(tokenizer, texts, onnx_run),
                **{f"Hyprstream {format}": lambda format=format: hyprstream(format) for format in FORMATS},
            }
            return result | compared(ways, len(texts), arguments.rounds)


def compared(ways: dict, passages: int, rounds: int) -> dict:
    rates, vectors = {name: [] for name in ways}, {}
    for round in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            vectors[name] = way()
            if round > 0:  # The first warms up.
                rates[name].append(passages / (time.perf_counter() - start))
        print(f"round {round} of {rounds}", file=sys.stderr)
    rates = {name: statistics.median(found) for name, found in rates.items()}
    exact = vectors["PyTorch f32"]
    rows = {}
    for name, rate in rates.items():
        cosines = (vectors[name] * exact).sum(axis=1) / numpy.linalg.norm(vectors[name], axis=1)
        rows[name] = {
            "passages_per_s": float(f"{rate:.1f}"),
            "of_pytorch": float(f"{rate / rates['PyTorch f32']:.2f}"),
            "of_onnx": float(f"{rate / rates['ONNX Runtime f32']:.2f}"),
            "least_cosine": float(f"{cosines.min():.6f}"),
        }
    return {"passages": passages, "embedding": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("binary", "models", "sources", "minilm_onnx"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passages", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = [text for _, text, _ in book.rows(pathlib.Path(arguments.sources) / "sherlock.txt")][: arguments.passages]
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measured(arguments, texts, pathlib.Path(directory)), indent=1))


if __name__ == "__main__":
    main()
