"""The benchmarks run; what they measure is recorded in tests/bench/README.md."""

import json
import os
import subprocess
import sys

from vqa_utils.paths import ROOT


def test_the_speed_benchmark_runs_every_variant_at_a_tiny_size(tmp_path):
    command = [sys.executable, "tests/bench/speed.py", "--tiny", "--steps", "1", "--out", str(tmp_path / "speed.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    _, *cases = json.loads((tmp_path / "speed.json").read_text())
    assert {case["variant"] for case in cases} == {"usual", "stock", "ours"} and len(cases) == 6
    assert all(case[mode]["wall_s"] > 0 for case in cases for mode in ("train", "score"))
