"""Reports and launchers say in each language what they say in English."""

import ast
import re

import pandas as pd
import pytest

from vqa_utils.analysis.baselines import describe_baselines
from vqa_utils.analysis.confidence import BANDS
from vqa_utils.analysis.position_bias import AS_WRITTEN, _order_name
from vqa_utils.analysis.question_groups import ALL_ALIKE, LENGTH_RANKS
from vqa_utils.artifacts.paths import ROOT
from vqa_utils.data.question_kinds import QUESTION_PATTERNS
from vqa_utils.exporting import launcher
from vqa_utils.exporting.launcher import LaunchError, launch
from vqa_utils.korean import SENTENCES
from vqa_utils.language import called, said, speak, speaking, spoken

FIELD = re.compile(r"{\w+(?::[^}]*)?}")


def calls_of(name):
    """Yield the calls of a function in the package, with the file they stand in."""
    for file in sorted((ROOT / "vqa_utils").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
                yield file, node


SAID = [(file, node.args[0]) for file, node in calls_of("said")]


def test_what_is_said_stands_in_the_code_as_it_is():
    assert len(SAID) > 30
    for file, sentence in SAID:
        assert isinstance(sentence, ast.Constant), (file, sentence.lineno)


@pytest.mark.parametrize("sentence", [sentence.value for _, sentence in SAID])
def test_each_sentence_is_there_in_korean_with_its_fields(sentence):
    korean = SENTENCES[sentence]
    assert sorted(FIELD.findall(korean)) == sorted(FIELD.findall(sentence))
    assert re.search("[가-힣]", korean)


def test_no_sentence_is_left_over():
    used = {sentence.value for _, sentence in SAID}
    assert {sentence for sentence in SENTENCES if "{" in sentence} <= used


def test_names_of_results_are_there_in_korean():
    names = [*BANDS, *LENGTH_RANKS, ALL_ALIKE, *QUESTION_PATTERNS, "yes/no", "other", AS_WRITTEN]
    names += [_order_name(shift) for shift in range(4)]
    assert [name for name in names if not re.search("[가-힣~]", SENTENCES[name])] == []


def test_a_sentence_is_said_in_the_language_that_is_spoken():
    sentence = "None of the {rows} rows is wrong."
    assert said(sentence, rows=3) == "None of the 3 rows is wrong."
    with speaking("ko"):
        assert said(sentence, rows=3) == "행 3개 중 틀린 것이 없습니다."
        assert called("none") == "없음" and called("a model's name {}") == "a model's name {}"
    assert spoken() == "en"
    speak("ko")
    try:
        assert called("none") == "없음"
        with speaking("en"):
            assert called("none") == "none"
    finally:
        speak("en")


def test_the_baselines_in_korean():
    lines = [
        {"model": "fine-tuned", "accuracy": 0.97, "low": 0.957, "high": 0.979, "mcnemar_p": None},
        {"model": "base, zero-shot", "accuracy": 0.9, "low": 0.8, "high": 0.95, "mcnemar_p": 0.018},
    ]
    with speaking("ko"):
        tuned, base = describe_baselines(pd.DataFrame(lines)).splitlines()
    assert tuned == "파인튜닝: 정확도 0.970(95 % 구간 0.957~0.979)"
    assert base.startswith(
        "베이스, 제로샷: 0.900, 파인튜닝이 +7.0포인트, 우연을 넘지 않음(p = 0.018."
    )


@pytest.mark.parametrize("arguments", [["--lang", "ko"], ["--lang=ko"], ["--limit", "4"]])
def test_a_launcher_speaks_the_language_of_its_arguments(monkeypatch, arguments):
    monkeypatch.setattr(launcher, "gpus_here", list)
    expected = "T4 2개" if "4" not in arguments else "expected 2 T4"
    try:
        with pytest.raises(LaunchError, match=expected):
            launch("safe", arguments, t4=2)
    finally:
        speak("en")
