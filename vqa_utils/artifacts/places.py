"""Write paths as they hold on any machine, and texts without this machine's names and secrets.

A run's folder may be published. It names files from the repository on, or from the home folder:

    /home/kim/vqa/vqa_utils/prompts.py      ./vqa_utils/prompts.py
    /home/kim/eyes, beside the repository   ../eyes
    /home/kim/eyes, a repository elsewhere  ~/eyes
    /scratch/kim/eyes                       ../../scratch/$USER/eyes
"""

import getpass
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.paths import ROOT, runs_dir

USER_SIGN = "$USER"  # in place of a folder of the user's name
# Variables with secrets, such as HF_TOKEN, KAGGLE_KEY, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY
SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|CREDENTIALS?|JWT)(_|$)|PASSW(OR)?D", re.IGNORECASE)
LEAST_SECRET = 8  # letters; a shorter value may be a word of any text
COLOUR = r"\x1b\[[\d;]*m"  # of a traceback, whose last letter is before a path
BINARY = "image/"  # the kind of an output that is no text


def portable(path: str) -> str:
    """Write an absolute path from the repository on, or from the home folder; another as it is.

    It begins with a dot or a tilde, and `located` reads it.
    """
    if not Path(path).is_absolute():
        return path
    home = _home()
    if home and Path(path).is_relative_to(home) and not ROOT.is_relative_to(home):
        return (Path("~") / Path(path).relative_to(home)).as_posix()
    try:
        relative = Path(os.path.relpath(path, ROOT))
    except ValueError:  # another drive of Windows
        return path
    user = _user()
    parts = [USER_SIGN if part == user else part for part in relative.parts]
    text = "/".join(parts)
    return text if text.startswith("..") else f"./{text}"


def located(text: str) -> str:
    """Return the absolute path that `portable` wrote; other texts as they are."""
    first, *others = Path(text).parts or [""]
    if first == "~":
        return str(Path.home().joinpath(*others))
    if not text.startswith(("./", "../")):
        return text
    user = _user()
    parts = [user if user and part == USER_SIGN else part for part in Path(text).parts]
    return os.path.normpath(ROOT.joinpath(*parts))


def without_names(value: Any, folders: Iterable[str] = ()) -> Any:
    """Shorten the paths in a text, or in all texts of JSON values; name secrets by their variables.

    Pictures stay as they are.

    Args:
        value: a text, or lists and dictionaries with texts.
        folders: more folders, which a text names as `portable` does.
    """
    short = _short_names(folders)
    # The longest first, as one may begin with another
    names = sorted(short, key=len, reverse=True)
    begins = rf"(^|[^\w.-]|{COLOUR})"
    pattern = re.compile(rf"{begins}({'|'.join(map(re.escape, names))})(?![\w-])")

    def shortened(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: match[1] + short[match[2]], value)
        if isinstance(value, list):
            return [shortened(part) for part in value]
        if isinstance(value, dict):
            return {
                name: part if name.startswith(BINARY) else shortened(part)
                for name, part in value.items()
            }
        return value

    return shortened(value)


def _short_names(folders: Iterable[str]) -> dict[str, str]:
    """Return the texts to replace, each with its short form."""
    home = _home()
    short = {str(ROOT): ".", str(runs_dir()): "runs"}
    for folder in folders:
        if Path(folder).is_absolute():
            short.setdefault(folder, portable(folder))
    if home:
        short[str(home)] = "~"
        for folder, name in list(short.items()):  # as IPython writes files of a traceback
            if folder.startswith(f"{home}{os.sep}"):
                short[f"~{folder.removeprefix(str(home))}"] = name
    for name, secret in os.environ.items():
        if SECRET.search(name) and len(secret) >= LEAST_SECRET:
            short[secret] = f"${name}"
    return short


def _home() -> Path | None:
    """Return the home folder; None without one, or where it is the root of the file system."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() and len(home.parts) > 1 else None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name, as in some containers
        return None
