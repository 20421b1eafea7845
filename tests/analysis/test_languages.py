"""The page says in each language what it says in English."""

import dataclasses
import re

import pytest
from page_runs import new_run, whole_run

from vqa_utils.analysis.page.verdict import accuracy_bars
from vqa_utils.analysis.page.words import COLUMNS, LANGUAGES, WORDS
from vqa_utils.analysis.page.writing import render_page, write_page
from vqa_utils.artifacts.run import read_config
from vqa_utils.language import called, speaking

FIELD = re.compile(r"{\w+}")
OTHERS = [pytest.param(module, id=name) for name, module in LANGUAGES.items() if name != "en"]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["WORDS", "COLUMNS", "FLAGS"])
def test_each_word_is_there_with_its_fields(other, name):
    english, translated = getattr(LANGUAGES["en"], name), getattr(other, name)
    assert list(translated) == list(english)
    for key, text in english.items():
        assert sorted(FIELD.findall(translated[key])) == sorted(FIELD.findall(text)), key
        assert "{" not in FIELD.sub("", translated[key])


def test_a_language_is_spoken_only_meanwhile():
    with speaking("ko"):
        assert WORDS["folds"] == "폴드" and COLUMNS["rows"] == "행"
    assert WORDS["folds"] == "Folds"


def test_a_page_is_in_its_runs_language(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    page = write_page(new_run("r", lang="ko")).read_text(encoding="utf-8")
    assert '<html lang="ko">' in page
    assert LANGUAGES["ko"].WORDS["no_results"] in page and "No results yet" not in page


def test_names_of_results_are_in_its_language_too(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths = whole_run()
    with speaking("ko"):
        named = {name: called(name) for name in ("yes/no", "right in train", "as scored", "all")}
    texts = {}
    for lang in ("en", "ko"):
        config = dataclasses.replace(read_config(paths), lang=lang)
        texts[lang] = render_page(paths, config)
    for english, korean in named.items():
        assert english != korean and f">{korean}<" in texts["ko"]
        assert f">{korean}<" not in texts["en"] and f">{english}<" not in texts["ko"]
    # Bars of the groups, with the rows of each
    assert "유형: 예/아니요 (296)" in texts["ko"] and "Kind: yes/no (296)" in texts["en"]
    rule = {"model": "longest option", "accuracy": 0.2, "low": 0.1, "high": 0.3}
    with speaking("ko"):
        assert accuracy_bars([rule], "model").bars[0].label == called("longest option")
    assert accuracy_bars([rule], "model").bars[0].label == "Longest option"
