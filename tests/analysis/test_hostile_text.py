"""Words of the data stay words: in the report, in the notebooks and in figures."""

import io

import nbformat
import pandas as pd
import pytest
from browser import dom_of
from chromium import CHROMIUM
from hostile_text import HOSTILE, Page, hostile, write_hostile_challenge
from korean_challenge import write_korean_challenge
from PIL import Image

import run_all
from vqa_utils.analysis import figures
from vqa_utils.analysis.gallery import gallery
from vqa_utils.analysis.report import Report
from vqa_utils.artifacts.files import settings_to_json, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.data.challenge import load_challenge
from vqa_utils.presets import preset
from vqa_utils.running.notebooks.execution import execute


def write_report(folder, words):
    """A report of a run, its table, its rows and its settings in such words; `words` changes a text."""
    Image.new("RGB", (30, 20), "red").save(folder / "x.png")
    config = preset("demo", data=words("data", 0), model=words("model", 1))
    paths = RunPaths(words("run", 2).replace("/", "|"))
    write_json(paths.config, settings_to_json(config))
    report = Report(paths, folder)
    numbers = range(len(HOSTILE))
    table = pd.DataFrame({words(f"column {i}", i): [words("cell", i), 0.5] for i in numbers})
    rows = pd.DataFrame({
        "id": [words("id", i) for i in numbers],
        "path": "x.png",
        "question": [words("question", i) for i in numbers],
        **{letter: [words(letter, i) for i in numbers] for letter in "abcd"},
        "answer": "a",
        "chosen": "b",
        "fold": 0,
        "kind": "other",
        "p_chosen": 0.9,
    })  # fmt: skip
    bars = pd.DataFrame({"group": table.columns, "accuracy": 0.5, "rows": 1})
    report.add(words("numbers", 3), words("said", 4), table=table)
    report.add("Bars", words("drawn", 5), figure=figures.accuracy_by(bars, words("title", 8)))
    report.add("Worst mistakes", table=rows)
    return report


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The page of harmless words, and the file with that of hostile ones."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    harmless = write_report(tmp_path, lambda text, number: text).write()
    return harmless, write_report(tmp_path, hostile).write()


def test_the_report_has_the_same_tags_whatever_the_words_are(pages):
    harmless, page = (Page(file.read_text(encoding="utf-8")) for file in pages)
    assert page.tags == harmless.tags and len(page.tags) > 100
    assert page.words["script"] == harmless.words["script"]
    assert page.words["style"] == harmless.words["style"]
    assert page.words["title"] == hostile("run", 2).replace("/", "|")
    assert "{{ 7 * 7 }}{% raw %}" in pages[1].read_text(encoding="utf-8")


def test_the_tables_of_a_report_are_safe_in_a_spreadsheet(pages):
    mistakes = pd.read_csv(pages[1].parent / "worst_mistakes.csv", dtype=str)
    assert mistakes["question"].tolist()[-1] == "'=1+1 question"
    assert mistakes["question"].tolist()[:-1] == [hostile("question", i) for i in range(10)]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_title_stays_in_a_browser(pages, tmp_path):
    dom = dom_of(pages[1], tmp_path)
    page = Page(dom)
    assert page.words["title"] == hostile("run", 2).replace("/", "|")
    assert "Worst mistakes" in dom


def test_labels_of_figures_are_no_formulas():
    tokens = [r"$\frac$", "$$", "$", "$x$"]
    drawn = figures.label_mask(tokens, [False] * 4)
    drawn.savefig(io.BytesIO(), format="png")  # a formula that is none is an error as late as here
    assert [text.get_text() for text in drawn.axes[0].texts] == tokens
    assert not any(text.get_parse_math() for text in drawn.axes[0].texts)


def test_tables_and_cards_of_a_notebook_are_words_alone(tmp_path):
    def outputs(write, folder):
        challenge = load_challenge(preset("demo", data=str(write(tmp_path / folder))))
        cards = gallery(challenge.train, challenge.folder)._repr_html_()
        return Page(challenge.train._repr_html_()), Page(cards), cards

    table, cards, html = outputs(write_hostile_challenge, "hostile")
    plain_table, plain_cards, _ = outputs(write_korean_challenge, "plain")
    assert table.tags == plain_table.tags and cards.tags == plain_cards.tags
    # tex2jax_ignore in pandas 2, mathjax_ignore too in pandas 3
    assert "mathjax_ignore" in html and "jax_ignore" in pd.DataFrame([1])._repr_html_()


def tags_of_notebook(path):
    """The tags in the HTML of all outputs, and all output as one text."""
    tags = []
    cells = nbformat.read(path, 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:
        html = output.get("data", {}).get("text/html")
        if html:
            tags += Page(html).tags
    return tags, str(outputs)


@pytest.mark.slow
def test_notebooks_show_words_as_words(tmp_path, stand_in, console, monkeypatch):
    seen = []
    for name, write in (("plain", write_korean_challenge), ("hostile", write_hostile_challenge)):
        data = write(tmp_path / f"{name} <b>{{0}}[red]")
        words = ["--run-id", name, "--data", str(data), "--set", "n_folds=2"]
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        run_all.run(run_all.parse_arguments(), console)
        archive = RunPaths(name).folder / "archive"
        for notebook in ("01_eda", "06_analysis"):
            execute(notebook, archive / f"{notebook}.ipynb", {"run_id": name})
        seen.append([tags_of_notebook(archive / f"{nb}.ipynb") for nb in ("01_eda", "06_analysis")])
        page = Page((RunPaths(name).report / "index.html").read_text(encoding="utf-8"))
        assert page.words["title"] == name and "taken" not in page.words["script"]
    for (plain, _), (tags, text) in zip(*seen, strict=True):
        assert tags == plain and len(tags) > 50 and "taken" in text
