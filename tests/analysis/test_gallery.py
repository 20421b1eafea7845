import pandas as pd
import pytest
from browser import dom_of
from chromium import CHROMIUM
from hostile_text import Page
from PIL import Image

from vqa_utils.analysis.gallery import cards_of, gallery


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "x.png")
    return tmp_path


ROWS = pd.DataFrame({
    "path": ["x.png"] * 2, "question": ["is it <b>?", "색은?"], "a": ["yes", "흰색"],
    "b": ["no", "회색"], "c": ["maybe", "빨강"], "d": ["<unknown>", "파랑"],
})  # fmt: skip
ANSWERED = ROWS.assign(answer=["a", "d"], chosen=["b", "d"], p_chosen=[0.5, 0.9])


def test_a_card_marks_the_right_and_the_chosen_option(folder):
    first, second = cards_of(ANSWERED, folder, 128)
    assert [option.letter for option in first.options if option.is_right] == ["a"]
    assert [option.letter for option in first.options if option.is_chosen] == ["b"]
    assert [option.probability for option in first.options] == [None, 0.5, None, None]
    right, *_ = [option for option in second.options if option.is_right]
    assert right.letter == "d" and right.is_chosen and right.text == "파랑"


def test_rows_without_answers_have_no_marks(folder):
    for card in cards_of(ROWS, folder, 128):
        assert not any(option.is_right or option.is_chosen for option in card.options)


def test_a_notebook_shows_pictures_marks_and_any_script(folder):
    html = gallery(ANSWERED, folder)._repr_html_()
    assert html.count("data:image/png;base64,") == 2
    assert "a. yes ✓" in html and "<b>b. no</b> (0.500)" in html
    assert "<b>d. 파랑</b> (0.900) ✓" in html and "색은?" in html


def test_the_text_of_a_row_is_no_html(folder):
    html = gallery(ANSWERED, folder)._repr_html_()
    assert "is it &lt;b&gt;?" in html and "is it <b>?" not in html
    assert "d. &lt;unknown&gt;" in html


LINES_OF_WORDS = """
<script>
const text = document.querySelector("b").firstChild, range = document.createRange();
const lines = [];
for (const word of text.data.matchAll(/\\S+/g)) {
  range.setStart(text, word.index);
  range.setEnd(text, word.index + word[0].length);
  lines.push(range.getClientRects().length);
}
document.title = lines.join(" ");
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_lines_end_between_words_of_hangul_and_none_leaves_its_card(folder, tmp_path):
    short = ["초록색으로", "칠해진", "삼각형의", "오른쪽에는", "무엇이", "있습니까?"] * 3
    long = "가" * 200  # wider than a card in any font
    rows = ROWS.head(1).assign(question=" ".join([*short, long]))
    page = tmp_path / "page.html"
    html = gallery(rows, folder)._repr_html_()
    page.write_text(f"<title></title>{html}{LINES_OF_WORDS}", encoding="utf-8")
    *lines, lines_of_long = map(int, Page(dom_of(page, tmp_path)).words["title"].split())
    assert lines == [1] * len(short) and lines_of_long > 1
