"""Prefill and decode speed, side by side in one run: llama.cpp (through llama-cpp-python) and Hyprstream's engine.

    python bench/engines.py GGUF HYPRSTREAM_BENCH [--threads 2] [--prefill 512] [--decode 128] [--rounds 5]

HYPRSTREAM_BENCH is the executable of `crates/hyprstream/benches/generate.rs`, which bench/run.sh builds. The
two take turns, each in a process of its own, so that whatever else the machine does falls on both. A round is the
better of two in its process, since the first one warms up. Prints one JSON object: medians, ratios and all rounds.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

REPEAT = 2


def measure_llama(arguments) -> dict:
    """One round of llama.cpp in this process: tokens a second."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(arguments.gguf.encode(), llama.llama_model_default_params())
    options = llama.llama_context_default_params()
    options.n_ctx = arguments.prefill + arguments.decode + 64
    options.n_batch = options.n_ubatch = arguments.prefill
    options.n_threads = options.n_threads_batch = arguments.threads
    context = llama.llama_init_from_model(model, options)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    prompt = (llama.llama_token * arguments.prefill)(*prompt_tokens(arguments.prefill, vocabulary))

    def run() -> dict:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        decode(prompt, arguments.prefill)
        prefilled = time.perf_counter()
        token = (llama.llama_token * 1)(1000)
        for _ in range(arguments.decode):
            decode(token, 1)
        ended = time.perf_counter()
        return {"prefill": arguments.prefill / (prefilled - start), "decode": arguments.decode / (ended - prefilled)}

    def decode(tokens, count: int) -> None:
        if llama.llama_decode(context, llama.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama.cpp failed to decode")
        llama.llama_get_logits_ith(context, -1)

    runs = [run() for _ in range(REPEAT)]
    best = {phase: max(run[phase] for run in runs) for phase in ("prefill", "decode")}
    return best | {"system": llama.llama_print_system_info().decode().strip()}


def prompt_tokens(count: int, vocabulary: int) -> list[int]:
    """The same tokens for both: ordinary ones, spread over the vocabulary."""
    return [100 + (index * 7919) % (vocabulary - 200) for index in range(count)]


def measure_hyprstream(arguments) -> dict:
    """One round of Hyprstream's engine in a process of its own: tokens a second."""
    settings = {
        "HYPRSTREAM_BENCH_GGUF": arguments.gguf,
        "HYPRSTREAM_BENCH_THREADS": str(arguments.threads),
        "HYPRSTREAM_BENCH_PROMPT": str(arguments.prefill),
        "HYPRSTREAM_BENCH_GENERATE": str(arguments.decode),
        "HYPRSTREAM_BENCH_REPEAT": str(REPEAT),
    }
    ran = subprocess.run([arguments.bench], check=True, capture_output=True, text=True, env=os.environ | settings)
    found = dict(re.findall(r"^(prefill|decode) ([\d.]+) tokens/s$", ran.stdout, re.MULTILINE))
    if set(found) != {"prefill", "decode"}:
        raise SystemExit(f"the benchmark printed no rates:\n{ran.stdout}")
    return {phase: float(rate) for phase, rate in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-llama", action="store_true", help="one round of llama.cpp alone, as JSON")
    arguments = parser.parse_args()
    if arguments.only_llama:
        print(json.dumps(measure_llama(arguments)))
        return
    rounds = {"llama.cpp": [], "hyprstream": []}
    for index in range(arguments.rounds):
        theirs = subprocess.run(
            [sys.executable, *sys.argv, "--only-llama"], check=True, capture_output=True, text=True
        )
        rounds["llama.cpp"].append(json.loads(theirs.stdout.splitlines()[-1]))
        rounds["hyprstream"].append(measure_hyprstream(arguments))
        print(f"round {index + 1} of {arguments.rounds}", file=sys.stderr)
    result = {"rounds": rounds, "system": rounds["llama.cpp"][0]["system"]}
    for phase in ("prefill", "decode"):
        medians = {name: statistics.median(run[phase] for run in runs) for name, runs in rounds.items()}
        result[phase] = medians | {"ratio": medians["hyprstream"] / medians["llama.cpp"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
