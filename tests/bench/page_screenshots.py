"""Photograph the page of a run for the README: `python tests/bench/page_screenshots.py RUN [FOLDER]`.

Writes page_wide.png, page_phone.png and page_dark.png; of a run with `--lang ko` page_korean.png.
Needs Chromium, and pillow to make them small.
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.chromium import CHROMIUM  # noqa: E402
from vqa_utils.artifacts.paths import RunPaths  # noqa: E402  (the package is not installed)
from vqa_utils.artifacts.run import named_run, read_config  # noqa: E402

COLOURS = 96  # of a palette; a page has few


class Shot(NamedTuple):
    """A view of the page."""

    name: str
    width: int
    height: int
    scheme: str
    part: str
    """the place to begin with; "" for the head"""
    lang: str = "en"


SHOTS = (
    Shot("page_wide", 1280, 1400, "light", ""),
    Shot("page_phone", 390, 844, "light", ""),
    Shot("page_dark", 1280, 1400, "dark", "#part-1"),
    Shot("page_korean", 1280, 1400, "light", "", "ko"),
)


def photograph(browser: Browser, paths: RunPaths, shot: Shot, folder: Path) -> Path:
    """Write one view as a PNG with a small palette, and return its path."""
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        reduced_motion="reduce",  # it scrolls at once
    )
    page.goto(f"{paths.page.as_uri()}{shot.part}")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
    file = folder / f"{shot.name}.png"
    image.save(file, optimize=True)
    return file


def main() -> None:
    """Write the views of a run in its language."""
    paths = named_run(sys.argv[1] if len(sys.argv) > 1 else "latest")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    lang = read_config(paths).lang
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for shot in (shot for shot in SHOTS if shot.lang == lang):
            file = photograph(browser, paths, shot, folder)
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
