"""The page of a run, whatever there is of it: after one notebook, at work, failed, refitted, whole."""

import dataclasses
import html as html_lib
import re

import pytest
from hostile_text import HOSTILE, Page, hostile
from page_runs import (
    baselines,
    folds,
    groups,
    log_fold,
    mistakes,
    new_run,
    progress,
    result,
    suspects,
    train_fold,
    whole_run,
    write_results,
)
from PIL import Image

from vqa_utils.analysis.page.progress import PlannedGpu
from vqa_utils.analysis.page.results import read_results
from vqa_utils.analysis.page.verdict import verdict_of
from vqa_utils.analysis.page.words import WORDS
from vqa_utils.analysis.page.writing import REFRESH_SECONDS, write_page
from vqa_utils.artifacts.files import write_json, write_text
from vqa_utils.artifacts.fold_settings import Rung

REFRESH = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))


def html_of(paths):
    return write_page(paths).read_text(encoding="utf-8")


def text_of(paths):
    """The page's words, without tags, styles and scripts, its spaces as one kind."""
    html = re.sub(r"(?s)<(style|script)>.*?</\1>", "", html_of(paths))
    text = html_lib.unescape(re.sub("<[^>]*>", " ", html))
    return " ".join(text.replace("\u202f", " ").split())


def test_the_verdict_comes_first_with_what_it_is_judged_against():
    paths = new_run()
    write_results(paths, folds(), baselines())
    text = text_of(paths)
    for words in (
        "97.0 % of 900 held-out questions right (95 % interval 95.7–97.9 %)",
        "9.2 points more than the base without fine-tuning (87.8 %, p < 0.001)",
        "Without the pictures it gets 31.8 %: it looks at them.",
        "chance, 25 %",
    ):
        assert words in text
    assert "e-162" not in text and "not_yes_no" not in text


@pytest.mark.parametrize(("count", "sentences"), [(1, 1), (2, 2), (3, 3)])
def test_the_verdict_says_what_is_known(count, sentences):
    paths = new_run()
    write_results(paths, baselines(count))
    verdict = verdict_of(read_results(paths))
    assert len(verdict.sentences) == sentences and len(verdict.chart.bars) == count


@pytest.mark.parametrize(
    ("accuracy", "p", "words"),
    [
        (0.96, 0.3, "gets 96.0 %: no difference beyond chance (p = 0.300; below 0.01 is asked for"),
        (0.98, 0.5, "gets 98.0 %: no difference beyond chance (p = 0.500; below 0.01 is asked for"),
        (0.99, 1e-5, "2.0 points less than the base without fine-tuning (99.0 %, p < 0.001)"),
    ],
)
def test_a_base_that_is_as_good_or_better_is_said_to_be(accuracy, p, words):
    paths = new_run()
    lines = baselines()
    for line in lines["rows"][1:]:
        line[1], line[-1] = accuracy, p
    write_results(paths, lines)
    text = text_of(paths)
    assert words in text and "hardly looks" in text and "points more" not in text


def test_a_run_of_one_notebook_has_a_page():
    paths = new_run(n_folds=4)
    progress(paths)
    html, text = html_of(paths), text_of(paths)
    assert REFRESH in html and WORDS["no_results"] in text
    assert "1 of 2 notebooks" in text and "n_folds=4" in text
    assert WORDS["learning"] not in text and WORDS["worst_mistakes"] not in text


def test_a_training_shows_its_step_loss_memory_and_time_left():
    paths = new_run()
    progress(paths, expected_end=None)
    log_fold(paths, 1, steps=10, lines="11,40,0.55,0.05,1")  # half written
    text = text_of(paths)
    assert "fold 1 step 10 of 40 · loss 0.100 · 1.25 GiB · about 60 s left" in text
    train_fold(paths, 1)
    assert "step 40 of 40" not in text_of(paths), "a trained fold is not at work"


def test_the_expected_end_is_said_while_the_run_goes_on():
    paths = new_run()
    progress(paths, expected_end=4e9)
    assert re.search(r"about [\d,]+ h \d+ min left", text_of(paths))
    progress(paths, "stopped", expected_end=4e9)
    assert "left" not in text_of(paths).partition(WORDS["contents"])[0]


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_run_that_has_ended_is_not_loaded_again(state):
    paths = new_run()
    progress(paths, state, {"01_eda": "stopped"}, message="01_eda: <broken>")
    html = html_of(paths)
    assert "refresh" not in html.replace("REFRESH", "") and "&lt;broken&gt;" in html
    assert (WORDS["resume"] in html) == (state != "finished")


def test_a_run_by_hand_has_no_progress():
    paths = new_run()
    html = html_of(paths)
    assert "http-equiv" not in html and 'class="status' not in html


def test_curves_have_a_line_for_each_fold_and_a_refit_has_no_held_out_score():
    paths = new_run(n_folds=2, refit=True)
    for number in (0, 1):
        train_fold(paths, number)
    train_fold(paths, 2, epochs=0)
    html = html_of(paths)
    assert html.count("<path d=") == 3 + 2 + 2
    assert WORDS["refit"] in html and "Held-out accuracy by epoch: fold 0 ends at" in html


def test_a_single_split_has_a_page():
    paths = new_run(use_kfold=False)
    train_fold(paths, 0)
    write_results(paths, folds(), baselines(1))
    assert html_of(paths).count("<path d=") == 3 and "use_kfold=False" in text_of(paths).replace(
        "false", "False"
    )


def test_memory_stands_beside_the_plan_of_each_gpu():
    paths = new_run(n_folds=2)
    train_fold(paths, 0, peaks=(11.2, 10.0))
    train_fold(paths, 1, peaks=(11.4, 9.0))
    assert "GPU 1, fold 0" in text_of(paths), "the plan is not known"
    gpus = (PlannedGpu("Tesla T4", 11.0, 11.9, 13.0), PlannedGpu("Tesla T4", 10.5, 12.2, 13.0))
    progress(paths, "finished", gpus=gpus)
    text = text_of(paths)
    assert "GPU 0: Tesla T4 11.40 GiB of 11.00 GiB planned" in text
    assert "GPU 1: Tesla T4 10.00 GiB of 10.50 GiB planned" in text


def test_rungs_are_listed_by_fold():
    paths = new_run(n_folds=2)
    train_fold(paths, 0)
    assert WORDS["no_rungs"] in text_of(paths)
    rung = Rung("micro-batch", {"micro_batch": 2}, {"micro_batch": 1}, 1, "training", 0.5, ())
    write_json(paths.fold(0).rungs, [dataclasses.asdict(rung)])
    assert "fold 0: GPU 1, training: micro-batch" in text_of(paths)


def test_groups_have_words_for_columns_and_marks_for_the_hard_ones():
    paths = new_run()
    write_results(paths, groups())
    html, text = html_of(paths), text_of(paths)
    assert html.count("fill bad") == 1 and "Kind: rare" not in text
    assert "Beyond chance" in text and "< 0.001 yes" in text and "True" not in text
    assert "87.0–94.0 %" in text and "p_worse" not in text


def test_biases_are_in_points():
    text = text_of(whole_run())
    for words in ("a −1.0 b +0.0", "shifted by 0 +1.0", "−2.0 … +3.0", "Answers changed", "4.0 %"):
        assert words in text


def test_a_result_of_ones_own_shows_its_table_and_its_figure_in_the_page():
    paths = new_run()
    Image.new("RGB", (3, 2), "red").save(paths.folder / "x.png")
    paths.report.mkdir()
    (paths.folder / "x.png").rename(paths.report / "x.png")
    write_results(paths, result("Lengths", ["length"], [[1.23456]], "so long", figure="x.png"))
    html = html_of(paths)
    assert "<h2>Lengths</h2>" in html and "so long" in html and "1.235" in html
    assert 'src="data:image/png;base64,' in html and "x.png" not in html


def test_nothing_but_notebooks_is_asked_of_other_files():
    html = html_of(whole_run())
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    others = [link for link in links if not link.startswith("data:")]
    assert others == [
        f"../notebooks/{name}.ipynb"
        for name in ("01_eda", "03_train_fold-fold0", "03_train_fold-fold1", "06_analysis")
    ]


def test_attempts_that_ended_early_are_listed_as_such():
    paths = whole_run()
    write_json(paths.notebooks / "03_train_fold-fold1-died1.ipynb", {"metadata": {}})
    assert f"03_train_fold-fold1-died1 {WORDS['earlier_attempt']}" in text_of(paths)


def test_every_picture_and_chart_is_said_in_words():
    html = html_of(whole_run())
    figures = re.findall(r"<(?:img|svg)\b[^>]*>|<figure class=\"bars[^>]*>", html)
    assert len(figures) >= 15
    for figure in figures:
        assert re.search(r'(?:alt|aria-label)="[^"]{5,}"', figure), figure


def without_options(page):
    return [tag for tag in page.tags if tag[0].strip("/") != "option"]


@pytest.mark.parametrize("torn", ["results", "progress"])
def test_a_torn_file_is_left_out(torn):
    paths = whole_run()
    write_text(getattr(paths, torn), '{"state": ')
    assert "<h1>r</h1>" in html_of(paths)


def test_words_of_the_data_stay_words():
    plain = Page(html_of(whole_run("r")))
    html = html_of(whole_run("r", hostile))
    page = Page(html)
    # A filter has an option for each kind, and hostile kinds differ
    assert without_options(page) == without_options(plain)
    assert len(page.tags) > 300 and page.words["script"] == plain.words["script"]
    assert page.words["title"] == "r" and "{{ 7 * 7 }}{% raw %}" in html
    assert sum(text in html for text in HOSTILE if "<" in text) == 0


def test_the_language_is_named_and_every_word_is_in_one_place():
    html = html_of(whole_run())
    assert '<html lang="en">' in html and 'name="viewport"' in html
    assert WORDS["search_hint"] in html


def test_labels_that_look_wrong_are_cards_with_the_reason():
    paths = new_run()
    write_results(paths, mistakes(), suspects())
    text = html_of(paths)
    _, _, section = text.partition('<section id="suspects">')
    section = section.partition("</section>")[0]
    assert section.count('class="card"') == 2, "the first rows have cards"
    assert f"suspect0 · {WORDS['rejected']} · " in section
    assert f"suspect1 · {WORDS['contradicts'].format(ids='row7, row8')} · " in section
    assert 'href="#suspects"' in text and "3 of 9" in section
    write_results(paths, mistakes())
    assert "suspects" not in html_of(paths)


def test_no_mistake_is_said():
    paths = new_run()
    write_results(paths, mistakes(0))
    assert WORDS["no_mistakes"] in text_of(paths)
