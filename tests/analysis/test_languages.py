"""The page says in each language what it says in English."""

import re

import pytest
from page_runs import new_run

from vqa_utils.analysis.page.words import COLUMNS, LANGUAGES, WORDS
from vqa_utils.analysis.page.writing import write_page
from vqa_utils.language import speaking

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
