"""Photograph the terminal of a demo run for the README: `python tests/bench/terminal_screenshots.py`.

    terminal_running.png   while the folds train
    terminal_end.png       the end

The demo runs as the run `demo` in a terminal of 80 columns, whose screen pyte keeps. Needs pyte,
Chromium, and pillow.
"""

import io
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyte
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.chromium import CHROMIUM  # noqa: E402  (the package is not installed)

COLUMNS, LINES = 80, 200  # a screen that does not scroll
SECONDS_UNTIL_FOLDS_TRAIN = 45
RUN_ID = "demo"
BEGINS_WITH = "folds, probabilities"  # the end's first line
COLOURS = 48


class Recorded:
    """A command in a terminal, and the screen that one would see."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                heard = os.read(self._ours, 65536)
            except OSError:  # the command has ended
                return
            self._stream.feed(heard)

    def wait(self) -> None:
        """Wait for the end of the command, and of what it says."""
        self.process.wait()
        self._reader.join()

    def lines(self) -> list[Text]:
        """Return the lines of the screen up to the last one in use."""
        lines = []
        for number in range(LINES):
            row = self.screen.buffer[number]
            line = Text()
            for column in range(COLUMNS):
                cell = row[column]
                line.append(cell.data, Style(color=_colour(cell.fg), bold=cell.bold))
            line.rstrip()
            lines.append(line)
        while lines and not lines[-1].plain.strip():
            lines.pop()
        return lines


def _colour(name: str) -> str | None:
    """Turn pyte's name of a colour into rich's."""
    if name == "default":
        return None
    return f"#{name}" if len(name) == 6 and name.isalnum() and not name.isalpha() else COLOUR[name]


COLOUR = {
    "black": "black",
    "red": "red",
    "green": "green",
    "brown": "yellow",
    "blue": "blue",
    "magenta": "magenta",
    "cyan": "cyan",
    "white": "white",
}


def photograph(lines: list[Text], file: Path) -> None:
    """Write lines of a terminal as a PNG with a small palette."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    svg = console.export_svg(title="python run_all.py")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(f"<body style='margin:0'>{svg}</body>")
        picture = page.locator("svg").screenshot()
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS)
    image.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Run the demo, and write both pictures."""
    folder = Path(__file__).parent
    environment = os.environ | {"TERM": "xterm-256color"}
    recorded = Recorded([sys.executable, "run_all.py", "--run-id", RUN_ID], environment)
    time.sleep(SECONDS_UNTIL_FOLDS_TRAIN)
    while_training = recorded.lines()
    recorded.wait()
    whole = recorded.lines()
    first = next(n for n, line in enumerate(whole) if line.plain.startswith(BEGINS_WITH))
    photograph(while_training, folder / "terminal_running.png")
    photograph(whole[first:], folder / "terminal_end.png")


if __name__ == "__main__":
    main()
