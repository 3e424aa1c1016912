"""The short form of `soak.py`: a few kills, and a directory that `hyprstream check` finds sound."""

import json
import subprocess
import time

from conftest import binary
from soak import soak

KILLS = 8


def test_acknowledged_rows_survive_kills_under_concurrent_writers(tmp_path):
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    directory = tmp_path / "data"
    counts = soak(directory, seed, 4, lambda kills: kills >= KILLS)
    print(counts)
    assert counts["statements"] > KILLS
    checked = subprocess.run([binary(), "check", "--format", "json", str(directory)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads(checked.stdout)
    assert report["verdict"] == "sound" and report["rows"] == counts["rows"]
