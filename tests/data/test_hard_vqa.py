"""The harder challenge: its questions are right, the same on every machine, not answered by their words."""

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from vqa_utils.artifacts.files import sha256
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.groups import same_words
from vqa_utils.data.known import _hard_questions as questions
from vqa_utils.data.known import hard_vqa
from vqa_utils.data.known.easy_vqa import all_questions
from vqa_utils.data.known.shapes import COLOURS, Item
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS
from vqa_utils.tiny_base.scenes import ask, draw_scene

SCENE = questions.Scene(
    [
        Item("star", "red", 20, 64),
        Item("circle", "blue", 64, 20),
        Item("circle", "green", 108, 100),
    ],
    "4",
    128,
)


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RUNS_DIR", str(folder))
        yield load_challenge(preset("demo", data="hard-vqa"))


def asked(kind, words):
    """The right answer to each question that a kind has about `SCENE`."""
    found = (kind(SCENE, words, random.Random(seed)) for seed in range(200))
    found = [question for question in found if question]
    assert all(len(set(question.options)) == 4 for question in found)
    return {question.text: question.options[0] for question in found}


@pytest.mark.parametrize(
    ("kind", "english"),
    [
        (questions._sign, {"which number is written on the sign?": "4"}),
        (questions._count_all, {"how many shapes are in it?": "three"}),
        (
            questions._count,
            {
                "how many stars are in it?": "one",
                "how many circles are in it?": "two",
                "how many triangles are in it?": "zero",
                "how many rectangles are in it?": "zero",
            },
        ),
        (questions._colour, {"in which color is the star drawn?": "red"}),
        (
            questions._shape,
            {
                "what is it that is red?": "star",
                "what is it that is blue?": "circle",
                "what is it that is green?": "circle",
            },
        ),
        (
            questions._outermost,
            {
                "which color is leftmost?": "red",
                "which color is rightmost?": "green",
                "which color is highest?": "blue",
                "which color is lowest?": "green",
            },
        ),
        (questions._corner, {"where is the green circle?": "lower right"}),
    ],
)
def test_a_question_has_the_right_answer(kind, english):
    assert asked(kind, questions.ENGLISH) == english
    korean = asked(kind, questions.KOREAN)
    assert len(korean) == len(english)


def test_what_is_absent_is_nowhere():
    absent = asked(questions._is_absent, questions.ENGLISH)
    assert absent["is nothing red in here?"] == absent["is there no circle in here?"] == "no"
    assert absent["is nothing black in here?"] == absent["is there no triangle in here?"] == "yes"
    rng = random.Random(0)
    missing = {questions._missing(SCENE, questions.ENGLISH, rng).options[0] for _ in range(200)}
    assert missing == {"yellow", "black", "purple"}


def test_korean_questions_name_the_same_things():
    assert asked(questions._colour, questions.KOREAN) == {"별은 무슨 색인가요?": "빨간색"}
    assert asked(questions._corner, questions.KOREAN) == {
        "초록색 원은 어디에 있나요?": "오른쪽 아래"
    }
    names = [*questions.KOREAN.colours.values(), *questions.KOREAN.shapes.values()]
    finals = [(ord(name[-1]) - ord("가")) % 28 for name in names]  # 0: the syllable has none
    assert 0 not in finals, "the particles 은 and 이 follow a consonant"


def test_a_picture_shows_its_scene():
    rng = random.Random(3)
    for _ in range(50):
        image, scene = hard_vqa.draw_scene(rng)
        pixels = np.asarray(image).astype(int)
        assert pixels.shape == (128, 128, 3) and 1 <= len(scene.items) <= 4
        for item in scene.items:  # the centre of each shape has its colour
            found = pixels[round(item.y), round(item.x)]
            assert np.abs(found - COLOURS[item.colour]).max() <= 30
        plate = (pixels == 255).all(axis=2).sum() + (pixels == 0).all(axis=2).sum()
        assert plate > 0.9 * 28 * 44, "the sign is whole"


def test_it_is_the_same_on_every_machine(hard):
    """The measured tables are of these rows."""
    assert [len(hard.train), len(hard.test)] == [1200, 400]
    assert sha256(hard.folder / "train.csv")[:16] == "f8b032755c63fe2a"


def test_the_base_has_read_none_of_its_questions(hard):
    learnt = [ask(draw_scene(seed)[1], random.Random(seed))["question"] for seed in range(3000)]
    known = set(same_words(pd.Series([*learnt, *all_questions()])))
    assert not known & set(same_words(hard.train["question"]))


def test_the_words_alone_answer_little(hard):
    """A reader of the training's questions takes the option that was right most often."""
    columns = [*LETTERS]
    right = Counter()
    for row in hard.train.to_dict("records"):
        right[row["question"], row[row["answer"]]] += 1
    held_out = [example.columns for example in hard_vqa.draw_examples("test", 400)]
    hits = []
    for row in held_out:
        chosen = max(columns, key=lambda letter: right[row["question"], row[letter]])
        hits.append(chosen == row["answer"])
    assert np.mean(hits) < 0.40
