"""The Korean README says what the English one does: whoever changes one is led to the other."""

import re
from collections import Counter

from markdown_it import MarkdownIt

from vqa_utils.artifacts.paths import ROOT

ENGLISH, KOREAN = ROOT / "README.md", ROOT / ".github" / "README.ko.md"
MARKDOWN = MarkdownIt("commonmark").enable("table")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def tokens_of(page):
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return [token for token in tokens if token.type != "html_block"]  # a marker for CI


def texts_of(page):
    """The text tokens of each paragraph, head and cell."""
    return [token.children for token in tokens_of(page) if token.type == "inline"]


def code_spans(children):
    return Counter(child.content for child in children if child.type == "code_inline")


def numbers(children):
    text = " ".join(child.content for child in children if child.type == "text")
    return Counter(NUMBER.findall(text))


def links(children, page):
    """The targets, a file's from the repository's folder; those to the other language left out."""
    found = Counter()
    for child in children:
        target = child.attrs.get("href") or child.attrs.get("src")
        if target and "://" not in target:
            target = (page.parent / target).resolve()
            assert target.exists(), f"{page.name}: {target}"
        if target not in (None, ENGLISH, KOREAN):
            found[target] += 1
    return found


def test_they_have_the_same_heads_tables_lists_and_paragraphs():
    english, korean = map(tokens_of, (ENGLISH, KOREAN))
    assert [token.tag for token in korean] == [token.tag for token in english]
    assert len(english) > 100


def test_they_have_the_same_code_blocks():
    english, korean = map(tokens_of, (ENGLISH, KOREAN))
    blocks = [token.content for token in english if token.tag == "code"]
    assert [token.content for token in korean if token.tag == "code"] == blocks
    assert len(blocks) > 3


def test_each_text_has_the_code_numbers_and_links_of_its_translation():
    """A Korean text may have more numbers: two GPUs are 2 there."""
    for english, korean in zip(texts_of(ENGLISH), texts_of(KOREAN), strict=True):
        shown = " ".join(child.content for child in english)
        assert code_spans(korean) == code_spans(english), shown
        assert numbers(korean) >= numbers(english), shown
        assert links(korean, KOREAN) == links(english, ENGLISH), shown


def test_each_links_to_the_other():
    for page, other in ((ENGLISH, KOREAN), (KOREAN, ENGLISH)):
        targets = re.findall(r"\]\((\S+?)\)", page.read_text(encoding="utf-8"))
        assert other in [(page.parent / target).resolve() for target in targets[:1]]
