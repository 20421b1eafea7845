"""The package's floors: imports only go down, and what needs no torch does not import it."""

import ast
import subprocess
import sys

import pytest

from vqa_utils.artifacts.paths import ROOT

FLOORS = {
    0: ("errors", "paths", "artifacts", "stages", "arguments", "lock", "settings"),
    1: ("config", "presets", "shapes", "memory", "placement", "plan", "hub", "source", "machine", "cache", "ladder",
        "data", "csv_files", "images", "duplicates", "groups", "extra", "paraphrases", "prompts", "folds", "metrics", "ensemble",
        "calibration", "mixture", "runs", "timings", "points", "chunks", "loads", "cost", "rates", "forecast", "baselines", "error_analysis",
        "clusters", "position_bias"),
    2: ("encode", "orders", "model", "loaded", "precision", "quantize", "nf4", "experts", "routing", "streaming", "lora", "vision",
        "attention", "padding", "kernels", "launch", "layer", "norms", "dropout"),
    3: ("train", "batches", "shuffle", "wordings", "callbacks", "score"),
    4: ("runner", "execution", "report", "figures", "terminal", "plan_table", "blend", "combine", "compare", "sweep"),
}  # fmt: skip
MAY_USE = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 2, 3}, 4: {0, 1, 4}}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
TORCH_FREE = [name for floor in (0, 1, 4) for name in FLOORS[floor]]


def test_every_module_has_a_floor():
    assert set(FLOOR_OF) == {p.stem for p in (ROOT / "vqa_utils").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", FLOOR_OF)
def test_imports_only_go_down(name):
    tree = ast.parse((ROOT / "vqa_utils" / f"{name}.py").read_text(encoding="utf-8"))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "vqa_utils":
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vqa_utils.") and ".demo" not in node.module:
            used.add(node.module.split(".")[1])
    assert {u for u in used if FLOOR_OF[u] not in MAY_USE[FLOOR_OF[name]]} == set()


def test_what_needs_no_torch_does_not_import_it():
    imports = "; ".join(f"import vqa_utils.{name}" for name in TORCH_FREE)
    code = f"import sys; {imports}; import vqa_utils.demo.challenge; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
