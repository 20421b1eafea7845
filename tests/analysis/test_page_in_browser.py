"""The page in a browser: its script, a keyboard, a phone, and the dark."""

import pytest
from chromium import CHROMIUM
from page_runs import whole_run

from vqa_utils.analysis.page.writing import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
PHONE = {"width": 390, "height": 844}
LONG = "아주긴한글문장이줄바꿈없이" * 5  # one word, wider than a phone
# The contrast of a text with the paper behind it, by the rules of WCAG 2
CONTRASTS = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paperOf = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour.startsWith("rgb(")) return colour;
    }
  };
  const found = {};
  for (const node of document.querySelectorAll("h1, h2, p, a, span, td, th, dt, dd, li, summary, label")) {
    if (!node.textContent.trim() || node.closest("figure.bars .track")) continue;
    const lights = [light(getComputedStyle(node).color), light(paperOf(node))].sort((x, y) => y - x);
    const name = `${node.tagName} ${node.className}`;
    found[name] = Math.min(found[name] ?? 99, (lights[0] + 0.05) / (lights[1] + 0.05));
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path, monkeypatch):
    """Opens the page of a whole run; at the end, the console has to be silent."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    problems = []
    pages = []

    def opened(words=lambda text, number: text, **options):
        file = write_page(whole_run(words=words))
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert problems == []


def shown(page):
    return page.locator("#mistakes .card:visible .question").all_inner_texts()


def choose(page, name, option):
    page.locator(f"select[data-filter={name}], select[data-range={name}]").select_option(option)


def test_filters_and_the_search_work_together(opened):
    page = opened()
    assert len(shown(page)) == 6 and page.locator("output").inner_text() == "6 of 6 shown"
    choose(page, "fold", "1")
    assert [text[-2] for text in shown(page)] == ["1", "3", "5"]
    choose(page, "answer", "b")
    assert [text[-2] for text in shown(page)] == ["1", "5"]
    choose(page, "confidence", "50 to 90 %")
    assert [text[-2] for text in shown(page)] == ["1"], "row 5 is unsure"
    choose(page, "fold", "all")
    choose(page, "answer", "all")
    choose(page, "kind", "yes/no")
    assert [text[-2] for text in shown(page)] == ["2", "4"]
    page.get_by_label("Search").fill("옵션  b4")
    assert [text[-2] for text in shown(page)] == ["4"]
    page.get_by_label("Search").fill("row9")
    assert shown(page) == [] and page.locator("output").inner_text() == "0 of 6 shown"


def test_a_head_sorts_with_the_keyboard(opened):
    page = opened()
    page.locator("#part-1 summary").press("Enter")
    table = page.locator("#part-1 table")
    head = table.get_by_role("button", name="Accuracy")
    head.focus()
    page.keyboard.press("Enter")
    column = table.locator("tbody td:nth-child(4)")
    assert [text[:4] for text in column.all_inner_texts()] == ["50.0", "90.9", "99.0"]
    page.keyboard.press("Space")
    assert [text[:4] for text in column.all_inner_texts()] == ["99.0", "90.9", "50.0"]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("Accuracy")
    table.get_by_role("button", name="Rows").press("Enter")
    assert table.locator("tbody td:nth-child(3)").all_inner_texts() == ["4", "296", "500"]
    table.get_by_role("button", name="Group").press("Enter")
    names = table.locator("tbody td:nth-child(2)").all_inner_texts()
    assert names == ["colour", "rare", "yes/no"]


def test_the_keyboard_reaches_every_control(opened):
    page = opened()
    controls = page.locator("button:visible, select, input, summary, a").count()
    reached = set()
    for _ in range(controls + 20):  # and tables that scroll
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 300)"))
    for kind in ("<button", "<select", "<input", "<summary", "<a "):
        assert any(element.startswith(kind) for element in reached), kind


@pytest.mark.parametrize("is_open", [False, True])
def test_nothing_is_wider_than_a_phone(opened, is_open):
    page = opened(lambda text, number: f"{text} {LONG}", viewport=PHONE)
    if is_open:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    widths = page.evaluate(
        "[...document.querySelectorAll('.wide')].map(one => [one.clientWidth, one.scrollWidth])"
    )
    assert all(own <= PHONE["width"] for own, _ in widths)
    if is_open:
        assert any(inner > own for own, inner in widths), "a table scrolls within itself"


def test_words_in_hangul_stay_whole(opened):
    page = opened(lambda text, number: "한국어로 적은 질문과 보기는 낱말 안에서 끊기지 않는다 " * 3)
    style = "getComputedStyle(document.querySelector('.question')).wordBreak"
    assert page.evaluate(style) == "keep-all"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(opened, scheme):
    page = opened(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 29)"}[scheme]
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_a_page_without_scripts_shows_all_mistakes(browser, opened):
    page = opened(java_script_enabled=False)
    assert len(shown(page)) == 6 and not page.locator(".filters").is_visible()
