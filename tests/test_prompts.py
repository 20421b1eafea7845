import pytest

from vqa_utils.presets import preset
from vqa_utils.prompts import (
    INSTRUCTION,
    USUAL,
    Prompt,
    chat,
    cyclic_order,
    question_text,
    reorder_options,
)
from vqa_utils.setting_types import ConfigError

ROW = {"question": "색은?", "a": "빨강", "b": 7, "c": "파랑", "d": "None"}


def test_a_question_is_followed_by_its_options():
    assert question_text(ROW) == "색은?\na. 빨강\nb. 7\nc. 파랑\nd. None"


def test_the_common_part_of_option_orders_comes_first():
    system, user = chat(ROW)
    assert system == {"role": "system", "content": INSTRUCTION}
    assert user["content"] == [
        {"type": "image"},
        {"type": "text", "text": question_text(ROW)},
    ]


def test_a_question_that_is_asked_twice_stands_before_the_image_too():
    _, user = chat(ROW, prompt=Prompt(asks_twice=True))
    assert user["content"] == [{"type": "text", "text": "색은?\n"}, *chat(ROW)[1]["content"]]


def test_crops_follow_the_picture():
    _, user = chat(ROW, prompt=Prompt(crops=2))
    assert user["content"] == [{"type": "image"}] * 4 + chat(ROW)[1]["content"]
    _, twice = chat(ROW, prompt=Prompt(crops=3, asks_twice=True))
    assert [part["type"] for part in twice["content"]] == ["text", *["image"] * 10, "text"]


def test_an_instruction_of_ones_own_gives_way_to_a_rows():
    own = Prompt("Answer in Korean.")
    assert chat(ROW, prompt=own)[0]["content"] == "Answer in Korean."
    assert chat({**ROW, "instruction": "Look."}, prompt=own)[0]["content"] == "Look."


def test_the_settings_say_how_questions_are_put():
    assert preset("safe").prompt == USUAL == Prompt(INSTRUCTION, asks_twice=False)
    assert preset("safe", instruction="Look.", ask_twice=True).prompt == Prompt("Look.", True)
    with pytest.raises(ConfigError, match="instruction: expected up to 4,000 characters"):
        preset("safe", instruction="word " * 1000)


def test_an_answer_becomes_the_assistants_turn_and_changes_nothing_before_it():
    assert chat(ROW, answer="b") == [*chat(ROW), {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="a, b, c, d, found 'B'"):
        chat(ROW, answer="B")


def test_turned_options_take_their_answer_along():
    turned = reorder_options(ROW | {"answer": "b"}, cyclic_order(1))
    assert [turned[letter] for letter in "abcd"] == [7, "파랑", "None", "빨강"]
    assert turned["answer"] == "a" and turned["question"] == ROW["question"]
    assert "answer" not in reorder_options(ROW, cyclic_order(1))
