"""A challenge whose words, ids and file names are HTML, scripts, markup, templates and formulas; HTML, looked at."""

from html.parser import HTMLParser

import pandas as pd
from korean_challenge import write_korean_challenge

TAKEN = "document.title='taken'"
HOSTILE = [
    f"<script>{TAKEN}</script>",
    f'"><img src=x onerror="{TAKEN}">',
    f"'><svg onload={TAKEN}>",
    f"</title></style></script><script>{TAKEN}</script>",
    f"<!-- </td></table><iframe srcdoc='<script>parent.{TAKEN}</script>'>",
    f"<a href=javascript:{TAKEN}>",
    "<style>body{display:none}</style><base href=//x><meta http-equiv=refresh content=0>",
    "{{ 7 * 7 }}{% raw %}{0}{run_id}%s%(x)s",
    r"$\frac$ $$ $\input{x}$",
    "[red]x[/] [/b]",
    "=1+1",
]


def hostile(text, number):
    """A text with one of them in it, where it is certain to be shown."""
    return f"{HOSTILE[number % len(HOSTILE)]} {text}"


def write_hostile_challenge(folder, train=24, test=8):
    """The Korean challenge with such ids, questions and options, and file names as far as a disk has them."""
    write_korean_challenge(folder, train, test)
    for name in ("train", "test", "sample_submission"):
        frame = pd.read_csv(folder / f"{name}.csv", dtype=str)
        frame["id"] = [hostile(row_id, int(row_id[-4:])) for row_id in frame["id"]]
        for column in ("question", *"abcd"):
            if column in frame:
                frame[column] = [hostile(text, i) for i, text in enumerate(frame[column])]
        if "path" in frame:
            frame["path"] = [rename(folder, path, i) for i, path in enumerate(frame["path"])]
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


def rename(folder, path, number):
    name = hostile(path.removeprefix("images/"), number).replace("/", "|")
    (folder / path).rename(folder / "images" / name)
    return f"images/{name}"


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, its title, and the words of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.words = {"title": "", "script": "", "style": ""}
        self._within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        is_of_a_dot = tag == "title" and ("body",) in self.tags
        self.tags.append((tag, *sorted(name for name, _ in attributes)))
        self._within = "" if is_of_a_dot else tag

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag,))
        self._within = ""

    def handle_comment(self, data):
        self.tags.append(("comment",))

    def handle_data(self, data):
        if self._within in self.words:
            self.words[self._within] += data
