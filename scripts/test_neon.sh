#!/usr/bin/env bash
# Tests the NEON kernels on a machine that is not AArch64, under qemu's emulation of a process: once on a processor that
# has them, once on one without `dotprod`, which must fall back to plain Rust. It says nothing about their speed.
#   scripts/test_neon.sh
# needs Debian's qemu-user-static, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and
# `rustup target add aarch64-unknown-linux-gnu`. On an AArch64 machine, `cargo test -p hypr-tensor` is enough.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for tool in qemu-aarch64-static aarch64-linux-gnu-gcc; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing: apt-get install qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2
        exit 1
    fi
done

# run CPU LEVEL: all unit tests of the crate on CPU, where LEVEL must be the best level.
run() {
    echo "qemu -cpu $1: $2"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $1 -L /usr/aarch64-linux-gnu" \
        HYPRSTREAM_TEST_LEVEL="$2" \
        cargo test --locked -p hypr-tensor --lib --target aarch64-unknown-linux-gnu
}

run max neon
run cortex-a53 portable
