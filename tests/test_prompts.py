import pytest

from vqa_utils.prompts import INSTRUCTION, chat, cyclic_order, question_text, reorder_options

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


def test_an_answer_becomes_the_assistants_turn_and_changes_nothing_before_it():
    assert chat(ROW, answer="b") == [*chat(ROW), {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="a, b, c, d, found 'B'"):
        chat(ROW, answer="B")


def test_turned_options_take_their_answer_along():
    turned = reorder_options(ROW | {"answer": "b"}, cyclic_order(1))
    assert [turned[letter] for letter in "abcd"] == [7, "파랑", "None", "빨강"]
    assert turned["answer"] == "a" and turned["question"] == ROW["question"]
    assert "answer" not in reorder_options(ROW, cyclic_order(1))
