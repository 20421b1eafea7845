"""A page as Chromium sees it."""

import subprocess

from chromium import CHROMIUM


def dom_of(page, folder):
    """The HTML of a page after its scripts; the browser keeps its files below `folder`."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    profile = f"--user-data-dir={folder / 'browser'}"
    command = [CHROMIUM, *options, profile, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
