#!/usr/bin/env bash
# Shows the whole flow on real input: installs what is missing, builds the release binary, imports three models,
# starts the server, and runs demo/demo.py against it. Needs Debian, or the packages named in scripts/lib.sh.
#   HYPRSTREAM_CACHE_DIR  downloads, models, virtual environment and build output (default ~/.cache/hyprstream)
#   CARGO_TARGET_DIR      build output, where it is set already
#   HYPRSTREAM_DEMO_CLIP  a directory with a CLIP checkpoint, where there is one: words then find pictures
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/lib.sh
begin "demo complete"

install_prerequisites
step "release build"
cargo build --release --locked -p hyprstream
BINARY="$CARGO_TARGET_DIR/release/hyprstream"
"$BINARY" --version

step "book and pictures"
demo/fetch_data.sh "$VENV/bin/python" "$CACHE/demo-data"
ls "$CACHE/demo-data"

step "models"
rm -rf "$CACHE/demo"
mkdir -p "$CACHE/demo"
"$BINARY" model pull all-minilm-l6-v2 --name minilm --data-dir "$CACHE/demo/data"
"$BINARY" model pull smollm2-135m-instruct --name smollm2 --data-dir "$CACHE/demo/data"
"$BINARY" model pull vit-s-focus --name vit --data-dir "$CACHE/demo/data"
if [ -n "${HYPRSTREAM_DEMO_CLIP:-}" ]; then
    "$BINARY" model import --name clip "$HYPRSTREAM_DEMO_CLIP" --data-dir "$CACHE/demo/data"
fi
"$BINARY" model list --data-dir "$CACHE/demo/data"

step "server and SQL over Arrow Flight"
"$VENV/bin/python" demo/demo.py "$BINARY" "$CACHE/demo/data" "$CACHE/demo-data"

step "done"
echo "look around: $BINARY sql --data-dir $CACHE/demo/data"
