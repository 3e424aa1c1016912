#!/usr/bin/env bash
# Fetches what the demo reads into a folder, verified, and does nothing when it is there:
#   demo/fetch_data.sh PYTHON DIR
# leaves DIR/sherlock.txt, The Adventures of Sherlock Holmes (Project Gutenberg 1661), from the crate aho-corasick
# 0.5.3, and DIR/images/*, photographs from the packages scikit-image and scikit-learn.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$1"
dir="$2"
book_sha256=242ec73a70f0a03dcbe007e32038e7deeaee004aaec9a09a07fa322743440fa8
mkdir -p "$dir/images"

if ! echo "$book_sha256  $dir/sherlock.txt" | sha256sum --check --status 2>/dev/null; then
    echo "fetching The Adventures of Sherlock Holmes (crate aho-corasick 0.5.3)"
    work="$(mktemp -d)"
    mkdir "$work/src"
    touch "$work/src/lib.rs"
    printf '[package]\nname = "book"\nversion = "0.0.0"\n[dependencies]\naho-corasick = "=0.5.3"\n[workspace]\n' >"$work/Cargo.toml"
    (cd "$work" && cargo vendor --quiet >/dev/null)
    echo "$book_sha256  $work/vendor/aho-corasick/benches/sherlock.txt" | sha256sum --check --quiet
    mv "$work/vendor/aho-corasick/benches/sherlock.txt" "$dir/sherlock.txt"
    rm -rf "$work"
fi

if ! "$python" "$here/images.py" --verify "$dir/images"; then
    echo "fetching images (packages scikit-image 0.26.0, scikit-learn 1.9.1)"
    work="$(mktemp -d)"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$work" \
        scikit-image==0.26.0 scikit-learn==1.9.1
    "$python" "$here/images.py" --unpack "$work" "$dir/images"
    rm -rf "$work"
fi
