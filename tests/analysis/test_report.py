import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vqa_utils.analysis import figures, report
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.ensembling.members import Member
from vqa_utils.presets import preset

TRAIN = pd.DataFrame({
    "id": ["p", "q", "r", "s"], "path": ["x.png"] * 4, "question": ["is it red?", "색은?", "is it <b>?", "색은?"],
    "a": ["yes", "빨강", "yes", "흰색"], "b": ["no", "파랑", "no", "회색"], "c": ["maybe", "흰색", "maybe", "빨강"],
    "d": ["unknown", "회색", "unknown", "파랑"], "answer": ["a", "b", "a", "d"],
})  # fmt: skip
FOLDS = pd.DataFrame({"id": TRAIN["id"], "group": list("1234"), "fold": [0, 1, 0, 1]})
RIGHT, WRONG = (0.7, 0.1, 0.1, 0.1), (0.05, 0.05, 0.85, 0.05)


def probabilities(ids, *rows):
    return pd.concat([pd.DataFrame({"id": ids}), pd.DataFrame(rows, columns=list("abcd"))], axis=1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two scored folds: fine-tuned right on p, wrong on the others; the base wrong on all."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config = RunPaths("report"), preset("demo", n_folds=2)
    for k, ids in ((0, ["p", "r"]), (1, ["q", "s"])):
        write_probabilities(paths.fold(k).probs("oof"), probabilities(ids, RIGHT, WRONG))
        write_probabilities(paths.fold(k).probs("zero_shot"), probabilities(ids, WRONG, WRONG))
        write_probabilities(paths.fold(k).probs("test"), probabilities(["t"], RIGHT))
        write_json(paths.fold(k).meta, {"seconds": 60 * (k + 1), "peak_memory_gib": [1.5, 2.0 + k]})
    return paths, config


def test_the_fold_table_has_each_fold_and_all_of_them(run):
    table = report.fold_table(*run, FOLDS, TRAIN)
    assert table["fold"].tolist() == [0, 1, "all"] and table["rows"].tolist() == [2, 2, 4]
    assert table["accuracy"].tolist() == [0.5, 0.0, 0.25]
    assert table["low"].tolist() == [0, 0, 0] and table["high"].tolist() == [1, 0, 0.75]
    assert table["minutes"].tolist() == [1, 2, 3] and table["peak_gib"].tolist() == [2, 3, 3]
    assert table["log_loss"][0] == pytest.approx(-(np.log(0.7) + np.log(0.05)) / 2)


def test_agreement_in_words():
    table = pd.DataFrame(
        [[1, 0.9, 0.7], [0.9, 1, 0.8], [0.7, 0.8, 1]],
        index=["x", "y", "z"],
        columns=["x", "y", "z"],
    )
    assert (
        report.describe_agreement(table)
        == "Least agreement: x and z choose the same letter in 70.0% of the test rows, different ones in 30.0%."
    )
    assert "takes two" in report.describe_agreement(table.iloc[:1, :1])
    members = [
        Member(k, f"fold {k}", probabilities(["t", "u"], RIGHT, second))
        for k, second in enumerate((WRONG, RIGHT))
    ]
    assert (
        report.describe_unanimity(members)
        == "All 2 members choose the same letter in 50.0% of 2 test rows."
    )
    assert "takes two" in report.describe_unanimity(members[:1])


def test_a_card_marks_the_right_and_the_chosen_option_and_shows_any_script(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "x.png")
    html = report.gallery(
        TRAIN.tail(2).assign(chosen=["b", "d"], p_chosen=[0.5, 0.9]), tmp_path
    )._repr_html_()
    assert "is it &lt;b&gt;?" in html and "색은?" in html
    assert (
        "a. yes ✓" in html and "<b>b. no</b> (0.50)" in html and "<b>d. 파랑</b> (0.90) ✓" in html
    )
    assert html.count("data:image/png;base64,") == 2


def test_the_page_shows_every_table_and_figure(run):
    paths, config = run
    table = report.fold_table(paths, config, FOLDS, TRAIN)
    page = report.write_report(
        paths, config, {"Folds": table}, {"Right letters": figures.answer_balance(TRAIN)}
    )
    text = page.read_text(encoding="utf-8")
    assert "<h2>Folds</h2>" in text and "0.25" in text
    for name in re.findall(r'src="([^"]+)"', text):
        with Image.open(page.parent / name) as image:
            assert image.size[0] > 200
    pd.testing.assert_frame_equal(
        pd.read_csv(page.parent / "folds.csv", dtype={"fold": str}), table.astype({"fold": str})
    )


def test_the_page_shows_pictures_and_words_and_sorts_its_tables(run, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "x.png")
    mistakes = TRAIN.tail(2).assign(
        chosen=["b", "a"], p_chosen=[0.5, 0.9], cluster="<색>", p_answer=[0.25, np.nan]
    )
    words = {"Worst mistakes": "two & more"}
    shown = {"Balance": figures.answer_balance(TRAIN)}
    page = report.write_report(*run, {"Worst mistakes": mistakes}, shown, words, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.index("<h2>Balance</h2>") < text.index("<h2>Worst mistakes</h2>"), (
        "what is long stands at the end"
    )
    assert "Preset demo, changed settings: n_folds=2." in text
    assert text.count("data:image/png;base64,") == 2 and "<p>two &amp; more</p>" in text
    heads = re.findall("<th([^>]*)>([^<]*)</th>", text)
    assert [name for _, name in heads] == [
        "picture",
        "question",
        "options",
        "id",
        "p_chosen",
        "cluster",
        "p_answer",
    ]
    assert [name for kind, name in heads if not kind] == ["p_chosen", "p_answer"], (
        "a head stands where its numbers do"
    )
    assert (
        "is it &lt;b&gt;?" in text
        and "&lt;색&gt;" in text
        and "a. yes ✓<br><b>b. no</b> (0.50)" in text
    )
    assert "<td>0.25</td>" in text and "<td></td>" in text and 'addEventListener("click"' in text
    written = pd.read_csv(page.parent / "worst_mistakes.csv", dtype={"id": str})
    pd.testing.assert_frame_equal(written, mistakes.reset_index(drop=True))


def bars(figure):
    return [patch.get_height() for patch in figure.axes[0].patches if patch.get_height() > 0]


def test_figures_show_the_numbers_they_are_given():
    assert bars(figures.answer_balance(TRAIN)) == [2, 1, 1]
    assert sorted(bars(figures.fold_balance(FOLDS, TRAIN))) == [1, 1, 2]
    probs = probabilities(["p", "q", "r", "s"], RIGHT, WRONG, WRONG, RIGHT)
    confusion = figures.confusion(probs, TRAIN["answer"])
    assert [int(text.get_text()) for text in confusion.axes[0].texts] == [
        1,
        0,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    mask = figures.label_mask(["<s>", "\n", "b"], [False, False, True])
    assert [text.get_text() for text in mask.axes[0].texts] == ["<s>", "⏎", "b"]
    colours = {text.get_bbox_patch().get_facecolor() for text in mask.axes[0].texts}
    assert len(colours) == 2
    by = figures.accuracy_by(pd.DataFrame({"group": ["x"], "accuracy": [0.75], "rows": [4]}), "t")
    assert by.axes[0].patches[0].get_width() == 0.75 and not by.axes[0].collections
    by = figures.accuracy_by(
        pd.DataFrame(
            {"group": ["x"], "accuracy": [0.75], "rows": [4], "low": [0.5], "high": [1.0]}
        ),
        "t",
    )
    assert by.axes[0].collections[0].get_segments()[0].tolist() == [[0.5, 0], [1.0, 0]]
    reliability = figures.reliability_diagrams({"as scored": probs}, TRAIN["answer"])
    points = {
        tuple(round(float(v), 6) for v in p)
        for p in reliability.axes[0].collections[0].get_offsets()
    }
    assert points == {(0.7, 0.5), (0.85, 0.0)}
    log = pd.DataFrame({"epoch": [0.5, 1.0], "loss": [2.0, 1.0]})
    curves = figures.training_curves(
        log, pd.DataFrame({"epoch": [1], "accuracy": [0.5], "log_loss": [1.2]})
    )
    assert curves.axes[0].lines[0].get_ydata().tolist() == [2.0, 1.0]
    others = (figures.text_lengths(TRAIN, TRAIN), figures.confidences({"oof": probs}), figures.agreement(pd.DataFrame([[1.0]])),
              figures.image_sizes(pd.DataFrame({"split": ["train"], "width": [3], "height": [4]})))  # fmt: skip
    assert all(isinstance(figure, Figure) for figure in others)
