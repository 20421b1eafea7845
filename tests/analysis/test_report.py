import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vqa_utils.analysis._templates import cell_text
from vqa_utils.analysis.report import Report
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.presets import preset

TABLE = pd.DataFrame({"fold": [0, "all"], "accuracy": [0.25, np.nan], "name": ["x", "<y>"]})
MISTAKES = pd.DataFrame({
    "id": ["r", "s"], "path": ["x.png"] * 2, "question": ["is it <b>?", "색은?"],
    "a": ["yes", "흰색"], "b": ["no", "회색"], "c": ["maybe", "빨강"], "d": ["unknown", "파랑"],
    "answer": ["a", "d"], "chosen": ["b", "a"], "p_chosen": [0.5, 0.9],
})  # fmt: skip


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    Image.new("RGB", (300, 200), "red").save(tmp_path / "x.png")
    config = preset("demo", n_folds=2, data="<data>")
    return Report(RunPaths("report"), config, tmp_path)


def text_of(page):
    return page.read_text(encoding="utf-8")


def heads_of(text):
    """The name of each column's head, and whether it stands at the left."""
    return [(name, bool(kind)) for kind, name in re.findall("<th([^>]*)>([^<]*)</th>", text)]


def cells_of(text):
    return re.findall("<td[^>]*>(.*?)</td>", text, re.DOTALL)


def test_each_table_and_figure_is_a_file_too(report):
    report.add("The folds", table=TABLE)
    report.add("Right letters", figure=Figure())
    page = report.write()
    assert page == report.paths.report / "index.html"
    files = {file.name for file in page.parent.iterdir()}
    assert files == {"index.html", "the_folds.csv", "right_letters.png"}
    written = pd.read_csv(page.parent / "the_folds.csv")
    assert written["name"].tolist() == ["x", "<y>"] and written["accuracy"][0] == 0.25
    (source,) = re.findall(r'src="([^"]+)"', text_of(page))
    with Image.open(page.parent / source) as image:
        assert image.size[0] > 200


def test_adding_prints_the_words_and_returns_the_figure_or_the_table(report, capsys):
    figure = Figure()
    assert report.add("Both", "two\nlines", table=TABLE, figure=figure) is figure
    assert capsys.readouterr().out == "two\nlines\n"
    shown = report.add("Numbers", table=TABLE)
    assert shown.columns.tolist() == TABLE.columns.tolist()
    assert shown.to_numpy().tolist() == [["0", "0.250", "x"], ["all", "", "<y>"]]
    assert report.add("No words") is None
    assert capsys.readouterr().out == ""


def test_tables_are_added_by_their_titles(report):
    report.add_tables({"Places": TABLE, "Orders": TABLE.head(1)})
    lines = {section.title: len(section.table) for section in report.sections}
    assert lines == {"Places": 2, "Orders": 1}


def test_nothing_that_is_added_becomes_html(report):
    report.add("A <title>", "two & more <words>", table=TABLE.rename(columns={"name": "<name>"}))
    text = text_of(report.write())
    for raw in ("<title>A", "<words>", "<y>", "<name>", "<data>"):
        assert raw not in text
    for escaped in ("A &lt;title&gt;", "two &amp; more &lt;words&gt;", "&lt;y&gt;", "&lt;data&gt;"):
        assert escaped in text


def test_the_page_names_the_run_and_its_changed_settings(report):
    text = text_of(report.write())
    assert "<h1>report</h1>" in text and "n_folds=2" in text and "n_folds=3" not in text


def test_tables_come_first_and_rows_with_pictures_last(report):
    report.add("Mistakes", table=MISTAKES)
    report.add("Figure", figure=Figure())
    report.add("Numbers", table=TABLE)
    titles = re.findall("<h2>(.*?)</h2>", text_of(report.write()))
    assert titles == ["Numbers", "Figure", "Mistakes"]


def test_a_head_stands_over_its_cells(report):
    report.add("Numbers", table=TABLE)
    text = text_of(report.write())
    assert heads_of(text) == [("fold", False), ("accuracy", False), ("name", True)]
    assert cells_of(text) == ["0", "0.250", "x", "all", "", "&lt;y&gt;"]
    assert text.count('<td class="text">') == 3  # "all", "x", "<y>"


def test_rows_with_a_path_show_their_pictures_and_options(report):
    report.add("Worst mistakes", table=MISTAKES)
    page = report.write()
    text = text_of(page)
    assert text.count("data:image/png;base64,") == 2
    names = [name for name, _ in heads_of(text)]
    assert names == ["picture", "question", "options", "id", "p_chosen"]
    _, question, options, row_id, p_chosen, *_ = cells_of(text)
    assert question == "is it &lt;b&gt;?" and row_id == "r" and p_chosen == "0.500"
    assert options == "a. yes ✓<br><b>b. no</b> (0.500)<br>c. maybe<br>d. unknown"
    written = pd.read_csv(page.parent / "worst_mistakes.csv")
    pd.testing.assert_frame_equal(written, MISTAKES)


def test_a_page_without_mistakes_keeps_the_heads(report):
    report.add("Worst mistakes", table=MISTAKES.head(0))
    names = [name for name, _ in heads_of(text_of(report.write()))]
    assert names == ["picture", "question", "options", "id", "p_chosen"]


def test_a_click_on_a_head_sorts(report):
    assert 'addEventListener("click"' in text_of(report.write())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (np.float64(1e-9), "<0.001"), (np.nan, ""), (None, ""), (3, "3"),
     (True, "True"), ("x", "x")],
)  # fmt: skip
def test_cells_have_three_decimals_and_nothing_for_nan(value, text):
    assert cell_text(value) == text
