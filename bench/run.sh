#!/usr/bin/env bash
# Every number of docs/benchmarks.md, on this machine: each part prints JSON, which stays in ~/.cache/hyprstream/bench.
#   bench/run.sh [PART ..]    all parts, or those of: engines serving embedding server rag text vector inserts upserts queries files
#   THREADS                   of the engines of models, 2 by default
#   HYPRSTREAM_BENCH_QWEN     a GGUF file of Qwen2.5-1.5B in Q4_K_M, where there is one: engines are measured on it as well
# Run ./demo.sh first: the server part searches its tables. Building llama.cpp takes several minutes, once, the peers'
# packages take 5 GB, and all parts together about an hour. Leave the machine alone meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
begin "benchmarks done"
THREADS="${THREADS:-2}"
PARTS="${*:-engines serving embedding server rag text vector inserts upserts queries files}"
OUT="$CACHE/bench"
SMOLLM="$CACHE/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
mkdir -p "$OUT"

# program NAME ARGUMENTS ..: builds what cargo is told to, if need be, and says where the executable NAME is.
program() {
    local name="$1"
    shift
    cargo "$@" "$name" --locked --message-format=json |
        sed -n 's/.*"name":"'"$name"'".*"executable":"\([^"]*\)".*/\1/p' | tail -n1
}

install_peers() {
    install_python_packages scripts/requirements.txt
    install_python_packages bench/requirements.txt
    "$VENV/bin/python" -c 'import llama_cpp' 2>/dev/null && return
    echo "building llama.cpp with AVX-512 and without AMX"
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
        -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON \
        -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF" \
        "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-binary llama-cpp-python llama-cpp-python==0.3.36
}

# part NAME COMMAND ..: runs the command if the part is asked for, and keeps what it prints.
part() {
    local name="$1"
    shift
    case " $PARTS " in *" ${name%%-*} "*) ;; *) return 0 ;; esac
    step "$name"
    "$@" | tee "$OUT/$name.json"
}

step "what they run on"
install_system_packages
install_rust
VENV="$CACHE/venv-bench"
install_peers
PYTHON="$VENV/bin/python"
scripts/fetch_models.sh "$PYTHON" "$CACHE/models"
demo/fetch_data.sh "$PYTHON" "$CACHE/demo-data"
[ -e "$OUT/minilm.onnx" ] || "$PYTHON" bench/export_minilm.py "$CACHE/models/all-minilm-l6-v2" "$OUT/minilm.onnx"
grep -m1 'model name' /proc/cpuinfo
nproc

step "release build"
cargo build --release --locked -p hyprstream --bins --benches
BINARY="$CARGO_TARGET_DIR/release/hyprstream"
GENERATE="$(program generate bench -p hyprstream --no-run --bench)"
SERVING="$(program serving bench -p hyprstream --no-run --bench)"
WRITERS="$(program writers bench -p hyprstream --no-run --bench)"
FLIGHT_RATE="$(program flight_rate bench -p hyprstream --no-run --bench)"
RECALL="$(program recall build --release -p hypr-ann --example)"

step "memory bandwidth, GB/s read by $THREADS threads"
cc -O3 -march=native -pthread bench/bandwidth.c -o "$OUT/bandwidth"
"$OUT/bandwidth" "$THREADS" | tee "$OUT/bandwidth.txt"

part engines "$PYTHON" bench/engines.py "$SMOLLM" "$GENERATE" --threads "$THREADS"
if [ -n "${HYPRSTREAM_BENCH_QWEN:-}" ]; then
    part engines-qwen "$PYTHON" bench/engines.py "$HYPRSTREAM_BENCH_QWEN" "$GENERATE" --threads "$THREADS" --rounds 3
fi
part engines-guessing env HYPRSTREAM_BENCH_GGUF="$SMOLLM" HYPRSTREAM_BENCH_THREADS="$THREADS" "$GENERATE" --bench
part serving "$PYTHON" bench/serving.py "$SMOLLM" "$SERVING" --threads "$THREADS" --rounds 1
part embedding "$PYTHON" bench/embedding.py "$BINARY" "$CACHE/models" "$CACHE/demo-data" "$OUT/minilm.onnx" --threads "$THREADS"
part server "$PYTHON" bench/server.py "$BINARY" "$CACHE/demo/data"
part rag "$PYTHON" bench/rag.py "$BINARY" "$CACHE/models" "$CACHE/demo-data" "$OUT/minilm.onnx" --load "$FLIGHT_RATE" --threads "$THREADS"
part text "$PYTHON" bench/text.py "$BINARY" --load "$FLIGHT_RATE"
part vector "$PYTHON" bench/vector.py "$BINARY" "$RECALL" --load "$FLIGHT_RATE" --metric l2
part inserts "$PYTHON" bench/rates.py inserts "$BINARY" "$WRITERS" "$FLIGHT_RATE"
part upserts "$PYTHON" bench/upserts.py "$BINARY"
part queries "$PYTHON" bench/rates.py queries "$BINARY" "$OUT/tpch"
part files "$PYTHON" bench/small_writes.py "$BINARY"

step "done"
