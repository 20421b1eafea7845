"""The points of a sweep: a grid of settings from a YAML file, each with the name and the settings of its run."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config, field_types, parse_settings
from vqa_utils.errors import VqaError
from vqa_utils.planning.gpus import Gpu
from vqa_utils.planning.plan import resolve_for_machine
from vqa_utils.presets import preset
from vqa_utils.running.resolution import with_absolute_paths
from vqa_utils.setting_types import setting_text

COMMON = ("preset", "data", "model")
KINDS = {
    **dict.fromkeys(COMMON, (str, "text")),
    "set": (dict, "settings"),
    "grid": (dict, "settings"),
    "also": (list, "a list"),
}
LONGEST_NAME = 200  # of a run's folder; file systems allow 255 bytes
Settings = dict[str, Any]


class SweepError(VqaError):
    """A sweep that cannot start, with all problems of all points; or one of which points failed."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    run_id: str
    """The file's name and the point's own settings."""
    config: Config

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.run_id)


def read_points(file: Path, gpus: Sequence[Gpu]) -> list[Point]:
    """The points of a sweep's file: the product of its grid, in which the last name changes fastest, then those of `also`.

    Args:
        gpus: the machine's, by which batches that are "auto" get a number.

    Raises:
        SweepError: with everything that is wrong with the file, or with every point whose settings cannot be used.
    """
    content = _read(file)
    common = {key: content[key] for key in COMMON if key in content} | content.get("set", {})
    points, problems = [], []
    for own in _own_settings(content):
        try:
            changes = parse_settings(
                f"{name}={setting_text(value)}" for name, value in (common | own).items()
            )
            run_id = _run_id(file.stem, {name: changes[name] for name in own})
            whole = with_absolute_paths(changes)
            points.append(
                Point(
                    run_id, resolve_for_machine(preset(whole.pop("preset", "demo"), **whole), gpus)
                )
            )
        except VqaError as error:
            problems.append(f"{_run_id(file.stem, own)}: {error}")
    names = [point.run_id for point in points]
    problems += [
        f"{name}: expected one point of that name, found another"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    problems += [
        f"{name}: expected {LONGEST_NAME} letters at most"
        for name in names
        if len(name) > LONGEST_NAME
    ]
    refuse(f"{file}: points that cannot run", problems)
    return points


def refuse(title: str, problems: Iterable[str]) -> None:
    """Raise a SweepError that lists the problems, if there are any."""
    lines = ["  - " + problem.replace("\n", "\n    ") for problem in problems]
    if lines:
        raise SweepError("\n".join([title, *lines]))


def _own_settings(content: Settings) -> list[Settings]:
    grid = content.get("grid", {})
    product = (
        [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        if grid
        else []
    )
    return product + content.get("also", [])


def _run_id(stem: str, own: Settings) -> str:
    """A folder's name: what stands in no such name becomes an underscore."""
    return re.sub(
        r"[^\w.=-]",
        "_",
        "-".join([stem, *(f"{name}={setting_text(value)}" for name, value in own.items())]),
    )


def _read(file: Path) -> Settings:
    """A sweep's file, with its shape and the settings' names checked."""
    if not file.is_file():
        raise SweepError(f"{file}: expected a sweep's file, found none")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"{file}: expected YAML in UTF-8, found: {error}") from error
    if not isinstance(content, dict) or not (content.get("grid") or content.get("also")):
        raise SweepError(f"{file}: expected `grid`, `also` or both, found {content!r}")
    for problems_of in (
        _problems_of_keys,
        _problems_of_lists,
        _problems_of_settings,
    ):  # each relies on those before
        refuse(f"{file}: expected a sweep as in README.md", problems_of(content))
    return content


def _problems_of_keys(content: Settings) -> list[str]:
    unknown = [f"{key}: expected one of {', '.join(KINDS)}" for key in content if key not in KINDS]
    wrong = {
        key: value
        for key, value in content.items()
        if key in KINDS and not isinstance(value, KINDS[key][0])
    }
    return unknown + [
        f"{key}: expected {KINDS[key][1]}, found {value!r}" for key, value in wrong.items()
    ]


def _problems_of_lists(content: Settings) -> list[str]:
    grid = {
        name: values
        for name, values in content.get("grid", {}).items()
        if not isinstance(values, list) or not values
    }
    also = [point for point in content.get("also", []) if not isinstance(point, dict)]
    problems = [
        f"grid: {name}: expected a list of values, found {values!r}"
        for name, values in grid.items()
    ]
    return problems + [f"also: expected settings, found {point!r}" for point in also]


def _problems_of_settings(content: Settings) -> list[str]:
    points = [content.get("set", {}), *_own_settings(content)]
    settings = [(name, value) for point in points for name, value in point.items()]
    unknown = [
        f"{name}: expected a setting's name, such as lora_r"
        for name, _ in settings
        if name not in field_types()
    ]
    kinds = (str, int, float, list)
    other = [
        f"{name}: expected a value, found {value!r}"
        for name, value in settings
        if not isinstance(value, kinds)
    ]
    return list(dict.fromkeys(unknown + other))  # each once, however many points have it
