import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from page_runs import new_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqa_utils.analysis.page.results import read_results
from vqa_utils.analysis.report import Report, cell_text
from vqa_utils.artifacts.files import settings_to_json, write_json
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
    return Report(new_run("report", n_folds=2, data="<data>"), tmp_path)


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_each_table_and_figure_is_a_file_too_and_all_of_it_is_data(report):
    report.add("The folds", table=TABLE)
    report.add("Right letters", figure=Figure())
    page = report.write()
    assert page == report.paths.page
    files = {file.name for file in page.parent.iterdir()}
    assert files == {"index.html", "results.json", "the_folds.csv", "right_letters.png"}
    written = pd.read_csv(page.parent / "the_folds.csv")
    assert written["name"].tolist() == ["x", "<y>"] and written["accuracy"][0] == 0.25
    results = read_results(report.paths)
    assert list(results) == ["the_folds", "right_letters"]
    assert results["the_folds"].records[1] == {"fold": "all", "accuracy": None, "name": "<y>"}


def test_trackers_are_told_of_all_folds_together_and_of_each_figure(report):
    config = preset("demo", report_to=("tensorboard",))
    write_json(report.paths.config, settings_to_json(config))
    scores = pd.DataFrame({"fold": [0, "all"], "accuracy": [0.5, 0.75], "log_loss": [1.0, 0.9]})
    report.add("Folds", table=scores)
    report.add("Right letters", figure=Figure())
    report.write()
    events = EventAccumulator(
        str(report.paths.folder.parent / "tensorboard" / "report" / "ensemble")
    ).Reload()
    assert events.Scalars("out of fold/accuracy")[0].value == 0.75
    assert len(events.Images("Right letters")) == 1


def test_the_page_holds_its_figures_itself(report):
    report.add("Right letters", figure=Figure())
    text = text_of(report.write())
    assert re.findall(r'<img src="(data:image/png;base64,)', text)
    assert "right_letters.png" not in text


def test_adding_prints_the_words_and_returns_the_figure_or_the_table(report, capsys):
    figure = Figure()
    assert report.add("Both", "two\nlines", table=TABLE, figure=figure) is figure
    assert capsys.readouterr().out == "two\nlines\n"
    shown = report.add("Numbers", table=TABLE)
    assert shown.columns.tolist() == TABLE.columns.tolist()
    assert shown.to_numpy().tolist() == [["0", "0.250", "x"], ["all", "", "<y>"]]
    assert report.add("No words") is None
    assert capsys.readouterr().out == ""


def test_a_table_and_a_figure_of_one_title_stand_together(report):
    report.add("Numbers", "few", table=TABLE)
    report.add("Other", table=TABLE)
    report.add("Numbers", figure=Figure())
    text = text_of(report.write())
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles.count("Numbers") == 1
    between = text.partition("<h2>Numbers</h2>")[2].partition("<h2>Other</h2>")[0]
    assert "few" in between and "<img " in between and "&lt;y&gt;" in between


def test_tables_are_added_by_their_titles(report):
    report.add_tables({"Places": TABLE, "Orders": TABLE.head(1)})
    lines = {title: len(section.table) for title, section in report.sections.items()}
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


def test_a_head_stands_over_its_cells(report):
    report.add("Numbers", table=TABLE)
    text = text_of(report.write()).partition("<h2>Numbers</h2>")[2]
    heads = re.findall(r'<th scope="col"([^>]*)><button type="button">([^<]*)<', text)
    assert heads == [("", "Fold"), ("", "Accuracy"), (' class="text"', "name")]
    cells = re.findall("<td[^>]*>(.*?)</td>", text)[:6]
    assert [cell.replace("\u202f", " ") for cell in cells] == [
        "0", "25.0 %", "x", "all", "", "&lt;y&gt;",
    ]  # fmt: skip


def test_mistakes_show_their_pictures_and_options(report):
    report.add("Worst mistakes", table=MISTAKES)
    page = report.write()
    text = text_of(page)
    assert text.count('<img src="data:image/') == 2 and 'alt="Picture of row r"' in text
    assert '<p class="question">is it &lt;b&gt;?</p>' in text
    options = re.findall(r'<li( class="\w+")?><span class="letter">(\w)</span>', text)
    assert options[:4] == [(' class="right"', "a"), (' class="chosen"', "b"), ("", "c"), ("", "d")]
    assert "50.0\u202f%" in text
    written = pd.read_csv(page.parent / "worst_mistakes.csv")
    pd.testing.assert_frame_equal(written, MISTAKES)


def test_pictures_of_a_page_are_small(report, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((900, 600), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "x.png")
    report.add("Worst mistakes", table=pd.concat([MISTAKES] * 25))
    assert report.write().stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (np.float64(1e-9), "<0.001"), (np.nan, ""), (None, ""), (3, "3"),
     (True, "True"), ("x", "x")],
)  # fmt: skip
def test_cells_have_three_decimals_and_nothing_for_nan(value, text):
    assert cell_text(value) == text
