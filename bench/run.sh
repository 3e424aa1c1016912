#!/usr/bin/env bash
# Every number of docs/benchmarks.md, on this machine: memory bandwidth, both engines side by side, the server.
# Run ./demo.sh first: the server part searches its tables. Building llama.cpp takes several minutes, once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
begin "benchmarks done"
THREADS="${THREADS:-2}"
OUT="$CACHE/bench"
mkdir -p "$OUT"

step "what they run on"
install_system_packages
install_rust
install_python_packages scripts/requirements.txt
scripts/fetch_models.sh "$VENV/bin/python" "$CACHE/models"
grep -m1 'model name' /proc/cpuinfo
nproc

step "llama.cpp with AVX-512 and without AMX"
LLAMA="$CACHE/venv-llama"
if ! "$LLAMA/bin/python" -c 'import llama_cpp' 2>/dev/null; then
    python3 -m venv --clear "$LLAMA"
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
        -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON \
        -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF" \
        "$LLAMA/bin/pip" install --quiet --disable-pip-version-check --no-binary llama-cpp-python llama-cpp-python==0.3.36
fi

step "memory bandwidth, GB/s read by $THREADS threads"
cc -O3 -march=native -pthread bench/bandwidth.c -o "$OUT/bandwidth"
"$OUT/bandwidth" "$THREADS" | tee "$OUT/bandwidth.txt"

step "both engines, taking turns"
BENCH="$(cargo bench --locked -p hyprstream --bench generate --no-run --message-format=json |
    sed -n 's/.*"name":"generate".*"executable":"\([^"]*\)".*/\1/p' | tail -n1)"
"$LLAMA/bin/python" bench/engines.py "$CACHE/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf" \
    "$BENCH" --threads "$THREADS" | tee "$OUT/engines.json"

step "many requests at once, both engines, taking turns"
SERVING="$(cargo bench --locked -p hyprstream --bench serving --no-run --message-format=json |
    sed -n 's/.*"name":"serving".*"executable":"\([^"]*\)".*/\1/p' | tail -n1)"
"$LLAMA/bin/python" bench/serving.py "$CACHE/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf" \
    "$SERVING" --threads "$THREADS" | tee "$OUT/serving.json"

step "server"
cargo build --release --locked -p hyprstream
"$VENV/bin/python" bench/server.py "$CARGO_TARGET_DIR/release/hyprstream" "$CACHE/demo/data" | tee "$OUT/server.json"

step "done"
