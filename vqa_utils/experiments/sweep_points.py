"""Read the points of a sweep from a YAML file: a grid of settings, and single points."""

import itertools
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import RUN_ID
from vqa_utils.config import Config, field_types, parse_settings
from vqa_utils.errors import VqaError, listed
from vqa_utils.planning.machine.gpus import Gpu
from vqa_utils.presets import preset
from vqa_utils.running.auto_settings import for_machine
from vqa_utils.running.resolution import with_absolute_paths
from vqa_utils.setting_types import setting_text

COMMON = ("preset", "data", "model")  # of all points, beside `set`
# The keys of a sweep's file: type, and its name in an error
KINDS: dict[str, tuple[type, str]] = {
    "preset": (str, "text"),
    "data": (str, "text"),
    "model": (str, "text"),
    "set": (dict, "settings"),
    "grid": (dict, "settings"),
    "also": (list, "a list"),
}
HUGE = 10**18  # of no setting
VALUES = (str, int, float, list)  # the types of a setting in YAML; a bool is an int
MOST_POINTS = 1000  # of a sweep: each is a run of its own
LONGEST_NAME = 255  # bytes of a run's folder, on the usual file systems
Settings = dict[str, Any]


class SweepError(VqaError):
    """An unusable sweep, with all problems of all points; or the failed points of one."""


class _Loader(yaml.SafeLoader):
    """Loads YAML, and refuses a name that stands twice in a mapping: the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dictionary of a mapping."""
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping is no setting's name
            if key.value in names:
                problem = f"{key.value} twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    run_id: str
    """The file's name and the point's own settings."""
    config: Config

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.run_id)


def read_points(file: Path, gpus: Sequence[Gpu], console: Console) -> list[Point]:
    """Read a sweep's file: the product of its grid (the last name changes fastest), then `also`.

    Args:
        file: YAML, as in vqa_utils/experiments/README.md.
        gpus: the machine's; they give a number to each "auto".
        console: the terminal.

    Raises:
        SweepError: with everything wrong with the file, or with every point of unusable settings.
    """
    content = _read(file)
    common = {key: content[key] for key in COMMON if key in content}
    common |= content.get("set", {})
    points = []
    problems = []
    for own in _own_settings(content):
        try:
            points.append(_point(file.stem, common, own, gpus, console))
        except VqaError as error:
            problems.append(f"{_run_id(file.stem, own)}: {error}")
    problems += _problems_of_names([point.run_id for point in points])
    refuse(f"{file}: points that cannot run", problems)
    return points


def refuse(title: str, problems: Iterable[str]) -> None:
    """Raise a SweepError with the problems, if there are any."""
    problems = list(problems)
    if problems:
        raise SweepError(listed(title, problems))


def _own_settings(content: Settings) -> list[Settings]:
    """List the own settings of each point, without the common ones."""
    points = []
    grid = content.get("grid", {})
    if grid:  # the product of nothing is one empty point
        for values in itertools.product(*grid.values()):
            points.append(dict(zip(grid, values, strict=True)))
    return points + content.get("also", [])


def _point(
    stem: str, common: Settings, own: Settings, gpus: Sequence[Gpu], console: Console
) -> Point:
    """Make a point; its own settings override the common ones."""
    texts = [f"{name}={setting_text(value)}" for name, value in (common | own).items()]
    changes = parse_settings(texts)
    # Parsed values, so that 5e-5 and 0.00005 give the same name
    run_id = _run_id(stem, {name: changes[name] for name in own})
    changes = with_absolute_paths(changes)
    config = preset(changes.pop("preset", "demo"), **changes)
    return Point(run_id, for_machine(config, gpus, console))


def _run_id(stem: str, own: Settings) -> str:
    """Name a folder; a character unfit for such a name becomes an underscore."""
    settings = [f"{name}={setting_text(value)}" for name, value in own.items()]
    return re.sub(r"[^\w.=-]", "_", "-".join([stem, *settings]))


def _problems_of_names(names: list[str]) -> list[str]:
    problems = []
    for name in sorted(set(names)):
        if names.count(name) > 1:
            problems.append(f"{name}: expected one point of that name, found another")
    for name in names:
        if not re.fullmatch(RUN_ID, name) or len(name.encode()) > LONGEST_NAME:
            problems.append(
                f"{name}: expected the name of a run, up to 150 characters and {LONGEST_NAME} bytes; "
                "shorten the file's name or a text among its settings"
            )
    return problems


def _read(file: Path) -> Settings:
    """Read a sweep's file, and check its structure and the names of its settings."""
    if not file.is_file():
        raise SweepError(f"{file}: expected a sweep's file, found none")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a huge number too
        raise SweepError(f"{file}: expected YAML in UTF-8, found: {error}") from error
    if not isinstance(content, dict) or not (content.get("grid") or content.get("also")):
        raise SweepError(f"{file}: expected `grid`, `also` or both, found {_short(content)}")
    title = f"{file}: expected a sweep as in vqa_utils/experiments/README.md"
    # Each check relies on those before
    refuse(title, _problems_of_keys(content))
    refuse(title, _problems_of_lists(content))
    points = len(content.get("also", []))
    if content.get("grid"):
        points += math.prod(map(len, content["grid"].values()))
    if points > MOST_POINTS:
        raise SweepError(f"{file}: expected at most {MOST_POINTS:,} points, found {points:,}")
    refuse(title, _problems_of_settings(content))
    return content


def _problems_of_keys(content: Settings) -> list[str]:
    unknown = []
    wrong = []
    for key, value in content.items():
        if key not in KINDS:
            unknown.append(f"{key}: expected one of {', '.join(KINDS)}")
            continue
        kind, in_words = KINDS[key]
        if not isinstance(value, kind):
            wrong.append(f"{key}: expected {in_words}, found {_short(value)}")
    return unknown + wrong


def _problems_of_lists(content: Settings) -> list[str]:
    problems = []
    for name, values in content.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            problems.append(f"grid: {name}: expected a list of values, found {_short(values)}")
    for point in content.get("also", []):
        if not isinstance(point, dict):
            problems.append(f"also: expected settings, found {_short(point)}")
    return problems


def _problems_of_settings(content: Settings) -> list[str]:
    known = field_types()
    unknown = []
    wrong = []
    for settings in [content.get("set", {}), *_own_settings(content)]:
        for name, value in settings.items():
            if name not in known:
                unknown.append(f"{name}: expected a setting's name, such as lora_r")
            if not isinstance(value, VALUES) or _is_huge(value):
                wrong.append(f"{name}: expected a value, found {_short(value)}")
    return list(dict.fromkeys(unknown + wrong))  # each once, however many points have it


def _is_huge(value: Any) -> bool:
    """True for a number too long to be written, or a list with lists."""
    if isinstance(value, list):
        return any(isinstance(part, (list, dict)) or _is_huge(part) for part in value)
    return isinstance(value, int) and abs(value) >= HUGE


def _short(value: Any) -> str:
    """Write a value in a line, the beginning of a long one; aliases can make it endless."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except ValueError:
        return "a number of thousands of digits"
