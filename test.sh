#!/usr/bin/env bash
# Installs what is missing, builds, and passes every check. Needs Debian, or the packages named in scripts/lib.sh.
#   HYPRSTREAM_CACHE_DIR  downloads, models, virtual environment and build output (default ~/.cache/hyprstream)
#   CARGO_TARGET_DIR      build output, where it is set already
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/lib.sh
begin "all checks passed"

install_prerequisites
step "cargo tools"
install_cargo_tools
step "models"
scripts/fetch_models.sh "$VENV/bin/python" "$CACHE/models"
export HYPRSTREAM_TEST_MODELS="$CACHE/models"
du -sh "$HYPRSTREAM_TEST_MODELS"

step "format"
cargo fmt --all --check
step "layers, versions and sizes"
cargo xtask tidy
step "licences, bans and sources"
cargo deny --workspace check bans licenses sources

step "build"
cargo build --workspace --locked
cargo nextest run --workspace --locked --no-run
step "tests"
cargo nextest run --workspace --locked
step "documentation tests"
cargo test --workspace --locked --doc --quiet
step "Python clients over ADBC"
HYPRSTREAM_BIN="$CARGO_TARGET_DIR/debug/hyprstream" "$VENV/bin/python" -m pytest -q -p no:cacheprovider tests/adbc

step "clippy"
cargo clippy --workspace --locked --all-targets --quiet -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --quiet

step "done"
