"""The code and the libraries that a notebook's results come from."""

import json

import pytest

from vqa_utils.artifacts.paths import NOTEBOOKS
from vqa_utils.running.archive import origin
from vqa_utils.running.archive.origin import code_alone, differences, hash_of_cells, origin_of
from vqa_utils.running.stages import STAGES

CODE = '''"""A module."""
TEXT = """no docstring  # and no comment
"""  # a comment


class Kept:
    """A class."""

    size: int = 1
    """its unit"""

    def work(self):
        # a reason
        return f"{self.size}#"  # a letter
'''


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("A module.", "One module.\n\nOf two lines."),
        CODE.replace("  # a comment", "").replace("# a reason", "# another"),
        CODE.replace('    """A class."""\n', "").replace("its unit", "px"),
        CODE.replace("\n\n", "\n"),
    ],
)
def test_comments_and_docstrings_are_no_code(same):
    assert same != CODE and code_alone(same) == code_alone(CODE)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("# and no comment", "# and none"),
        CODE.replace("= 1", "= 2"),
        CODE.replace('#"', '"'),
        CODE.replace("TEXT", "WORDS"),
    ],
)
def test_every_other_letter_is_code(other):
    assert other != CODE and code_alone(other) != code_alone(CODE)


def test_what_is_no_python_is_code_as_it_is():
    assert code_alone("%matplotlib  # x") == "%matplotlib  # x"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package and a notebook in place of the series; writes their files."""
    monkeypatch.setattr(origin, "ROOT", tmp_path)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("vqa_utils/prompts.py", "LETTERS = 'abcd'\n")
    write("vqa_utils/model/encoder.py", "import PIL\nfrom vqa_utils.prompts import LETTERS\n")
    write("vqa_utils/ops/gate.py", "import torch\n")
    write("vqa_utils/ops/gate.cu", "// x\n")
    write("vqa_utils/artifacts/lock.py", "from vqa_utils.ops.gate import a\n")
    write("vqa_utils/scoring/options.py", "1\n")
    cells = [["%pip list\n"], ["from vqa_utils.model import encoder\n", "print(1)  # one"]]
    write("03_train_fold.ipynb", as_notebook(*cells))
    write(
        "vqa_utils/model/encoder.py",
        "def f():\n    import PIL\n    from vqa_utils.artifacts.lock import b\n"
        "from vqa_utils.prompts import LETTERS\n",
    )
    return write


def as_notebook(*sources):
    cells = [{"cell_type": "code", "source": source} for source in sources]
    return json.dumps({"cells": [*cells, {"cell_type": "markdown", "source": ["# title"]}]})


@pytest.fixture
def notebook(package, tmp_path):
    return tmp_path / "03_train_fold.ipynb"


def test_code_is_what_is_imported_from_the_rooms_of_the_results(notebook):
    found = origin_of(notebook)
    # not the lock, which moves no number, but the kernel that it leads to
    names = ["prompts.py", "model/encoder.py", "ops/gate.py", "ops/gate.cu"]
    assert set(found["code"]) == {f"vqa_utils/{name}" for name in names}
    assert set(found["libraries"]) == {"Python", "pillow", "torch"}


@pytest.mark.parametrize(
    ("path", "text", "changed"),
    [
        ("vqa_utils/prompts.py", "LETTERS = 'ABCD'\n", ["vqa_utils/prompts.py"]),
        ("vqa_utils/prompts.py", "# letters\nLETTERS = 'abcd'  # four\n", []),
        ("vqa_utils/ops/gate.cu", "// y\n", ["vqa_utils/ops/gate.cu"]),
        ("vqa_utils/artifacts/lock.py", "from vqa_utils.ops.gate import a, b\n", []),
        ("vqa_utils/scoring/options.py", "2\n", []),
        ("vqa_utils/model/encoder.py", "1\n", [
            "vqa_utils/model/encoder.py", "vqa_utils/ops/gate.cu", "vqa_utils/ops/gate.py",
            "vqa_utils/prompts.py", "pillow 1 (now none)", "torch 1 (now none)",
        ]),
    ],
)  # fmt: skip
def test_changed_files_are_named(package, notebook, monkeypatch, path, text, changed):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    before = origin_of(notebook)
    package(path, text)
    assert differences(before, origin_of(notebook)) == changed


def test_changed_libraries_are_named_with_both_versions(notebook, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.9", "pillow": "12.0"}.get)
    before = origin_of(notebook)
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.14", "pillow": "12.0"}.get)
    assert differences(before, origin_of(notebook)) == ["torch 2.9 (now 2.14)"]


@pytest.mark.parametrize(
    ("sources", "is_same"),
    [
        ([["%pip list\n"], ["from vqa_utils.model import encoder\n", "print(1)"]], True),
        ([["%pip list\n"], ["from vqa_utils.model import encoder\n", "print(2)"]], False),
        ([["%pip freeze\n"], ["from vqa_utils.model import encoder\n", "print(1)"]], False),
    ],
)
def test_a_notebook_is_the_code_of_its_cells(package, notebook, sources, is_same):
    before = hash_of_cells(notebook)
    package(notebook.name, as_notebook(*sources))
    assert (hash_of_cells(notebook) == before) == is_same


def test_every_notebook_of_the_series_has_its_rooms():
    assert set(origin.ROOMS) == {stage.name for stage in STAGES}
    code = {stage.name: origin_of(NOTEBOOKS / f"{stage.name}.ipynb")["code"] for stage in STAGES}
    for name in ("03_train_fold", "04_infer"):
        assert {"vqa_utils/prompts.py", "vqa_utils/model/encoder.py"} <= set(code[name])
    assert "vqa_utils/scoring/options.py" in code["04_infer"]
    assert "vqa_utils/ops/expert_slots.cu" in code["03_train_fold"]
    assert not any(name.startswith("vqa_utils/model/") for name in code["05_ensemble"])
    assert "vqa_utils/analysis/baselines.py" in code["06_analysis"]
