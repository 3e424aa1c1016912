"""Tokens a second with many requests at once, side by side in one run: llama.cpp's continuous batching and Hyprstream's.

    python bench/serving.py GGUF HYPRSTREAM_BENCH [--threads 2] [--clients 1,8,32,128] [--generate 64] [--rounds 3]

HYPRSTREAM_BENCH is the executable of `crates/hyprstream/benches/serving.rs`, which bench/run.sh builds. All
requests of a run are there when it starts; each has a prompt of its own, so that no prefix is shared, and writes
`--generate` tokens, the likeliest each time. llama.cpp is driven through its batch interface as its server drives
it: each step decodes one token of every sequence that has read its prompt and fills the rest of a batch of 512 tokens
with prompts. The two take turns, each in a process of its own. Prints one JSON object: medians, ratios, all rounds.
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

BATCH = 512
WORDS = (
    "the river of light carries small boats past quiet towns where people count stars and write letters to friends who "
    "never saw winter yet dream about snow on distant mountains under copper clouds"
).split()


def prompts(count: int, words: int = 48) -> list[str]:
    """Prompts that differ from the first word on."""
    state = 12345
    lines = []
    for index in range(count):
        line = [f"Story {index}:"]
        for _ in range(words):
            state = (state * 1103515245 + 12345) % (1 << 31)
            line.append(WORDS[(state >> 16) % len(WORDS)])
        lines.append(" ".join(line))
    return lines


class Llama:
    """llama.cpp with room for as many sequences as there are clients."""

    def __init__(self, arguments, clients: int, texts: list[str]):
        import llama_cpp as llama
        import numpy

        self.llama, self.numpy = llama, numpy
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(arguments.gguf.encode(), llama.llama_model_default_params())
        vocabulary = llama.llama_model_get_vocab(self.model)
        self.vocabulary = llama.llama_vocab_n_tokens(vocabulary)
        self.prompts = [self.tokens(vocabulary, text) for text in texts]
        options = llama.llama_context_default_params()
        options.n_ctx = clients * (max(map(len, self.prompts)) + arguments.generate + 8)
        options.n_batch = options.n_ubatch = BATCH
        options.n_seq_max = clients
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = arguments.threads
        self.context = llama.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"llama.cpp has no context for {clients} sequences")
        self.batch = llama.llama_batch_init(BATCH, 0, 1)

    def tokens(self, vocabulary, text: str) -> list[int]:
        encoded = text.encode()
        buffer = (self.llama.llama_token * (len(encoded) + 8))()
        count = self.llama.llama_tokenize(vocabulary, encoded, len(encoded), buffer, len(buffer), True, True)
        return list(buffer[:count])

    def add(self, token: int, position: int, sequence: int, logits: bool) -> None:
        batch, at = self.batch, self.batch.n_tokens
        batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
        batch.seq_id[at][0], batch.logits[at] = sequence, logits
        batch.n_tokens += 1

    def likeliest(self, at: int) -> int:
        logits = self.llama.llama_get_logits_ith(self.context, at)
        return int(self.numpy.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())

    def run(self, clients: int, generate: int) -> dict:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        texts = [list(prompt) for prompt in self.prompts[:clients]]
        seen, written, steps = [0] * clients, [0] * clients, 0
        while any(count < generate for count in written):
            self.batch.n_tokens = 0
            asked = []
            running = [at for at in range(clients) if written[at] < generate]
            decoding = [at for at in running if len(texts[at]) - seen[at] == 1]
            for at in decoding + [at for at in running if at not in decoding]:
                for position in range(seen[at], len(texts[at])):
                    if self.batch.n_tokens == BATCH:
                        break
                    last = position + 1 == len(texts[at])
                    if last:
                        asked.append((at, self.batch.n_tokens))
                    self.add(texts[at][position], position, at, last)
                    seen[at] = position + 1
            if self.llama.llama_decode(self.context, self.batch) != 0:
                raise SystemExit("llama.cpp failed to decode")
            steps += 1
            for at, row in asked:
                texts[at].append(self.likeliest(row))
                written[at] += 1
        return {"prompt_tokens": sum(map(len, self.prompts[:clients])), "generated_tokens": sum(written), "steps": steps}


def measure_llama(arguments, clients: int, texts: list[str]) -> dict:
    """One run of llama.cpp in this process."""
    engine = Llama(arguments, clients, texts[:clients])
    engine.run(1, 2)
    start = time.perf_counter()
    counts = engine.run(clients, arguments.generate)
    return {"clients": clients, "seconds": time.perf_counter() - start} | counts


def measure_hyprstream(arguments, clients: int, file: str) -> dict:
    """One run of Hyprstream's engine in a process of its own."""
    settings = {
        "HYPRSTREAM_BENCH_GGUF": arguments.gguf,
        "HYPRSTREAM_BENCH_PROMPTS": file,
        "HYPRSTREAM_BENCH_THREADS": str(arguments.threads),
        "HYPRSTREAM_BENCH_GENERATE": str(arguments.generate),
        "HYPRSTREAM_BENCH_CLIENTS": str(clients),
    }
    ran = subprocess.run([arguments.bench], check=True, capture_output=True, text=True, env=os.environ | settings)
    return json.loads(ran.stdout.splitlines()[-1])


def rates(run: dict) -> dict:
    """Written tokens a second, and all tokens a second."""
    return {
        "generated": run["generated_tokens"] / run["seconds"],
        "total": (run["generated_tokens"] + run["prompt_tokens"]) / run["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-llama", type=int, help="one run of llama.cpp with so many clients, as JSON")
    arguments = parser.parse_args()
    clients = [int(count) for count in arguments.clients.split(",")]
    texts = prompts(max(clients))
    if arguments.only_llama:
        print(json.dumps(measure_llama(arguments, arguments.only_llama, texts)))
        return
    result = {"threads": arguments.threads, "generate": arguments.generate, "clients": {}}
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "prompts.txt")
        file.write_text("\n".join(texts))
        for count in clients:
            rounds = {"llama.cpp": [], "hyprstream": []}
            for index in range(arguments.rounds):
                command = [sys.executable, *sys.argv, "--only-llama", str(count)]
                theirs = subprocess.run(command, check=True, capture_output=True, text=True)
                rounds["llama.cpp"].append(json.loads(theirs.stdout.splitlines()[-1]))
                rounds["hyprstream"].append(measure_hyprstream(arguments, count, str(file)))
                print(f"{count} clients, round {index + 1} of {arguments.rounds}", file=sys.stderr)
            if len({run["prompt_tokens"] for runs in rounds.values() for run in runs}) != 1:
                raise SystemExit(f"the two do not read the same prompts: {rounds}")
            entry = {"rounds": rounds}
            for kind in ("generated", "total"):
                medians = {name: statistics.median(rates(run)[kind] for run in runs) for name, runs in rounds.items()}
                entry[kind] = medians | {"ratio": medians["hyprstream"] / medians["llama.cpp"]}
            result["clients"][count] = entry
    print(json.dumps(result))


if __name__ == "__main__":
    main()
