"""The rooms of vqa_utils: imports go up the list only, what is private stays at home, torch lives in some rooms."""

import ast

import pytest
from torch_libraries import TORCH

from vqa_utils.artifacts.paths import ROOT

TOP = {
    "errors",
    "setting_types",
    "config",
    "presets",
    "prompts",
    "metrics",
    "nf4_format",
    "korean",
    "language",
}
ROOMS = ("artifacts", "data", "planning", "forecasting", "sharing", "ops", "model", "tracking", "training", "scoring", "ensembling", "analysis",
         "running", "experiments", "exporting", "tiny_base")  # fmt: skip
WITH_TORCH = {"ops", "model", "tracking", "training", "scoring", "tiny_base"}
PACKAGE = ROOT / "vqa_utils"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room_of(parts):
    """The number of a dotted module's room; what stands at the top comes before all rooms."""
    return -1 if parts[1] in TOP else ROOMS.index(parts[1])


def imports(path):
    """Every module, and every name in a module, that a file imports: `vqa_utils.data.folds.make_folds` as its four parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([*node.module.split("."), alias.name] for alias in node.names)


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
)
def test_a_module_keeps_the_rules_of_its_room(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    for used in imports(path):
        if used[0] == "vqa_utils":
            assert room_of(used) <= room_of(own), f"{'.'.join(used)} is in a room below"
            private = any(part.startswith("_") for part in used[2:])
            assert not private or used[1] == own[1], f"{'.'.join(used)} is private to its room"
        if used[0] in TORCH:
            assert own[1] in WITH_TORCH, f"{used[0]} in a room without torch"


def test_every_folder_is_a_room_of_a_size_to_be_read():
    folders = {path.parent for path in MODULES} - {PACKAGE}
    assert {folder.relative_to(PACKAGE).parts[0] for folder in folders} == set(ROOMS)
    for folder in folders:
        assert len(list(folder.glob("*.py"))) - 1 <= 12 and (folder / "__init__.py").exists()
