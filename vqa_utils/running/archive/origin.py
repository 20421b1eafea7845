"""Record what a step runs with: its notebook's cells, the package's code, the libraries.

A step's code is what its notebook imports, and what that imports, in the rooms of its results:

    03_train_fold.ipynb --> training/fold.py --> model/encoder.py --> prompts.py

Settings and data are compared by themselves. Comments, docstrings and empty lines are left out.
"""

import ast
import functools
import hashlib
import importlib.metadata
import io
import platform
import threading
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypedDict

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import ROOT

PACKAGE = "vqa_utils"
# Rooms and single modules whose code a notebook's results come from. Others plan memory and move
# files, and what is of an earlier notebook counts for that one
DATA = {"data"}
MODEL = {"data", "prompts", "nf4_format", "ops", "model"}
ROOMS = {
    "01_eda": DATA,
    "02_folds": DATA,
    "03_train_fold": {*MODEL, "training", "metrics"},
    "04_infer": {*MODEL, "scoring"},
    "05_ensemble": {*DATA, "ensembling", "metrics"},
    "06_analysis": {*DATA, "ensembling", "metrics", "analysis"},
}
ONLY_SHOW_RESULTS = {"figures.py", "gallery.py", "report.py", "_templates.py", "page"}
KERNELS = "*.cu"  # they count with their room
# Packages by the modules that are imported of them
LIBRARIES = {
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers", "accelerate"),
    "peft": ("peft",),
    "bitsandbytes": ("bitsandbytes",),
    "qwen_vl_utils": ("qwen-vl-utils",),
    "PIL": ("pillow",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn",),
}
# ast.parse counts its depth for all threads at once in Python 3.11: two at a time fail
PARSING = threading.Lock()
DIGITS = 12  # hex, of a hash that only tells versions of a file apart


class Origin(TypedDict):
    """What a step runs with."""

    notebook: str
    """the hash of its code cells"""
    code: dict[str, str]
    """hashes by file, such as vqa_utils/prompts.py"""
    libraries: dict[str, str]
    """versions by name"""


class Source(NamedTuple):
    """A file of code."""

    hash: str
    imports: frozenset[str]
    """dotted names; of `from a import b`, `a.b`"""


def origin_of(notebook: Path) -> Origin:
    """Describe what a notebook would run with now; nothing without the notebook."""
    if not notebook.exists():
        return Origin(notebook="", code={}, libraries={})
    cells = _source_of(notebook, notebook.stat().st_mtime_ns)
    modules, others = _reached(cells.imports)
    counting = [file for file in modules if _decides(notebook.stem, file)]
    code = {}
    for file in sorted({*counting, *_beside(counting)}):
        code[file.relative_to(ROOT).as_posix()] = _source_of(file, file.stat().st_mtime_ns).hash
    return Origin(notebook=cells.hash, code=code, libraries=_versions(others))


def hash_of_cells(notebook: Path) -> str:
    """Name the code of a notebook's cells; "" without the notebook."""
    return _source_of(notebook, notebook.stat().st_mtime_ns).hash if notebook.exists() else ""


def differences(before: Origin, now: Origin) -> list[str]:
    """Name the files and libraries that differ: "vqa_utils/prompts.py", "peft 0.19 (now 0.21)"."""
    found = []
    for file in sorted(before["code"].keys() | now["code"].keys()):
        if before["code"].get(file) != now["code"].get(file):
            found.append(file)
    for name in sorted(before["libraries"].keys() | now["libraries"].keys()):
        versions = [origin["libraries"].get(name, "none") for origin in (before, now)]
        if versions[0] != versions[1]:
            found.append(f"{name} {versions[0]} (now {versions[1]})")
    return found


def code_alone(source: str) -> str:
    """Return Python code without comments, docstrings and empty lines; other text as it is."""
    lines = source.split("\n")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            lines[first:last] = [""] * (last - first)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.cache
def _source_of(file: Path, written: int) -> Source:
    """Read a module, a notebook or another file; again if it was written since."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [cell for cell in read_json(file)["cells"] if cell["cell_type"] == "code"]
        # Each cell for itself: one may have a magic, which is no Python
        parts = ["".join(cell["source"]) for cell in cells]
    else:
        parts = [text]
    imports: frozenset[str] = frozenset()
    if file.suffix in (".ipynb", ".py"):
        with PARSING:
            imports = frozenset(name for part in parts for name in _imports(part))
            text = "\n".join(map(code_alone, parts))
    return Source(hashlib.sha256(text.encode()).hexdigest()[:DIGITS], imports)


def _imports(source: str) -> Iterable[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _reached(imports: Iterable[str]) -> tuple[set[Path], set[str]]:
    """Follow imports through the package; return its files, and the names of other packages."""
    modules: set[Path] = set()
    others = set()
    waiting = set(imports)
    while waiting:
        name = waiting.pop()
        if not name.startswith(f"{PACKAGE}."):
            others.add(name.partition(".")[0])
            continue
        file = _module_file(name)
        if file is not None and file not in modules:
            modules.add(file)
            waiting |= _source_of(file, file.stat().st_mtime_ns).imports
    return modules, others


def _module_file(name: str) -> Path | None:
    """Return the file of `vqa_utils.data.folds`, or of a name in it; None of a room alone."""
    whole = ROOT.joinpath(*name.split("."))
    for path in (whole, whole.parent):
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    return None


def _decides(notebook: str, file: Path) -> bool:
    """Tell whether a notebook's results come from a file of the package."""
    parts = file.relative_to(ROOT / PACKAGE).parts
    room = parts[0].removesuffix(".py")
    return room in ROOMS.get(notebook, ()) and ONLY_SHOW_RESULTS.isdisjoint(parts)


def _beside(modules: Iterable[Path]) -> Iterable[Path]:
    for folder in {module.parent for module in modules}:
        yield from folder.glob(KERNELS)


def _versions(imported: set[str]) -> dict[str, str]:
    """Return the versions of Python and of the imported libraries."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for module in sorted(imported & LIBRARIES.keys()):
        for package in LIBRARIES[module]:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "none"
    return found
