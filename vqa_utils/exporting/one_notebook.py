"""Write one notebook with the whole series, and the package inside.

    install -> package -> settings -> 01 -> 02 -> 03 of each fold -> 04 of each fold -> 05 -> 06

It is generated from the notebooks' sources. Run it as it is, in a folder of its own.
"""

import base64
import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vqa_utils.artifacts.files import write_atomically
from vqa_utils.artifacts.paths import DEMO_MODEL, NOTEBOOKS, ROOT
from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import RunError
from vqa_utils.exporting.code import code_files
from vqa_utils.presets import differences

ENDING = ".ipynb"
LINKS_TO_NOTEBOOKS = re.compile(r"\[(\w+)\]\(\w+\.ipynb\)")
PER_FOLD = ("03_train_fold", "04_infer")
LEFT_OUT = (".otf",)  # the font of Hangul takes more than all code
PARAMETERS = "parameters"  # the tag of a cell that papermill replaces
GIVEN = ("run_id", "fold")  # parameters that the sections before give
ABOUT = """# {preset}: the whole series in one notebook

Fine-tunes a Qwen vision-language model on four-choice questions about pictures: exploration, folds,
training and scoring of each fold, ensemble, analysis. It is generated from a modular series, whose
package is inside (the cell *The package*): change the settings here, and the code there.

Run it from top to bottom where the data are, with `DATA` below set to the folder with `train.csv`,
`test.csv`, `sample_submission.csv` and the pictures. Folds train one after the other;
`run_all.py` of the series trains two at a time, goes on after a stop, and keeps to a time budget."""
INSTALL = """import subprocess
import sys

REQUIREMENTS = [
{requirements}
]
pip = [sys.executable, "-m", "pip", "install", "--quiet"]
installed = subprocess.run([*pip, *REQUIREMENTS], check=True)"""
PACKAGE = """import base64
import io
import sys
import tarfile
from pathlib import Path

PACKAGE = "{package}"
code = Path("vqa_package").resolve()
with tarfile.open(fileobj=io.BytesIO(base64.b64decode(PACKAGE))) as archive:
    archive.extractall(code, filter="data")
sys.path.insert(0, str(code))
print(len(list(code.rglob("*.py"))), "modules in", code.name)"""
SETTINGS = """PRESET = {preset!r}
DATA = {data!r}  # "" takes what the preset has, or the one folder below /kaggle/input
CHANGES = {changes!r}
FOLDS = {folds!r}  # another number needs another export

from vqa_utils.exporting.by_hand import start_run_by_hand
from vqa_utils.model.notebook_memory import forget

run_id = start_run_by_hand(PRESET, DATA, CHANGES, FOLDS)"""
FORGET = "forget(globals(), names_before)  # the next fold needs the memory of its model"


def export_notebook(file: Path, config: Config) -> None:
    """Write the notebook.

    Args:
        file: its path.
        config: the settings that it starts with.

    Raises:
        RunError: the path is no notebook's.
    """
    if file.suffix != ENDING:
        raise RunError(f"export-notebook: expected a path that ends with {ENDING}, found {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda draft: nbformat.write(one_notebook(config), draft))


def one_notebook(config: Config) -> NotebookNode:
    """Make the notebook, without outputs."""
    folds = list(config.adapter_numbers)
    cells = [
        new_markdown_cell(ABOUT.format(preset=config.preset)),
        new_markdown_cell("# Install\n\nAn installed torch is kept."),
        new_code_cell(INSTALL.format(requirements=_requirements())),
        new_markdown_cell("# The package"),
        new_code_cell(
            PACKAGE.format(package=_package(config)),
            metadata={"jupyter": {"source_hidden": True}, "_kg_hide-input": True},
        ),
        new_markdown_cell("# Config"),
        new_code_cell(_settings(config, folds)),
        *_section("01_eda"),
        *_section("02_folds"),
        new_markdown_cell("# 3 and 4 · Dataset, model, training and inference, fold by fold"),
        *(_imports(name) for name in PER_FOLD),
        new_code_cell("names_before = {*globals(), 'names_before'}"),
    ]
    for name in PER_FOLD:
        for fold in folds:
            cells += _section_of_fold(name, fold, is_first=fold == folds[0])
    cells += [*_section("05_ensemble"), *_section("06_analysis")]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:03d}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _section(name: str) -> list[NotebookNode]:
    """Return the cells of a notebook of the series, which goes on after the sections before."""
    heading, *body = _body(name)
    return [heading, _imports(name), *body]


def _section_of_fold(name: str, fold: int, *, is_first: bool) -> list[NotebookNode]:
    """Return the cells for one fold; the words stand in the first one's alone."""
    cells = _body(name)
    if not is_first:
        cells = [cell for cell in cells if cell.cell_type == "code"]
        cells.insert(0, new_markdown_cell(f"## {name}, fold {fold}"))
    given = new_code_cell(f"fold = {fold}")
    return [*cells[:1], given, *cells[1:], new_code_cell(FORGET)]


def _imports(name: str) -> NotebookNode:
    """Return a notebook's first cell of code, without its way to the package."""
    first = next(cell for cell in _source(name) if cell.cell_type == "code")
    lines = first.source.splitlines()
    kept = [line for line in lines if line != "import sys" and not line.startswith("sys.path")]
    return new_code_cell("\n".join(kept).strip())


def _body(name: str) -> list[NotebookNode]:
    """Return a notebook's cells after its imports; of the parameters, those that are not given."""
    cells = _source(name)
    first_code = next(number for number, cell in enumerate(cells) if cell.cell_type == "code")
    body = []
    for cell in [*cells[:first_code], *cells[first_code + 1 :]]:
        source = cell.source
        if PARAMETERS in cell.metadata.get("tags", ()):
            lines = source.splitlines()
            source = "\n".join(line for line in lines if line.split(":")[0] not in GIVEN)
        if cell.cell_type == "markdown":
            body.append(new_markdown_cell(LINKS_TO_NOTEBOOKS.sub(r"\1", source)))
        elif source:
            body.append(new_code_cell(source))
    return body


def _source(name: str) -> list[NotebookNode]:
    return jupytext.read(NOTEBOOKS / f"{name}.py").cells


def _requirements() -> str:
    """Return the lines of requirements.txt as Python's strings, without its comments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.partition("#")[0].strip() for line in lines]
    return "\n".join(f'    "{package}",' for package in packages if package)


def _settings(config: Config, folds: Iterable[int]) -> str:
    changes = differences(config)
    source = {"preset": config.preset, "data": config.data, "changes": changes}
    return SETTINGS.format(**source, folds=list(folds))


def _package(config: Config) -> str:
    """Return the package's files, compressed, as text; the demo's model only for the demo."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for file in code_files():
            is_demo = (ROOT / file).is_relative_to(DEMO_MODEL)
            is_package = file.parts[0] == "vqa_utils" and file.suffix not in LEFT_OUT
            if is_package and (not is_demo or config.model == DEMO_MODEL_NAME):
                archive.add(ROOT / file, file, filter=_nameless)
    return base64.b64encode(packed.getvalue()).decode()


def _nameless(file: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out whose file it was, and when."""
    file.uid = file.gid = file.mtime = 0
    file.uname = file.gname = ""
    return file
