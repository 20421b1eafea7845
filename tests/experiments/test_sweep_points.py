"""The points that a sweep's file gives, and the problems of such files."""

import re

import pytest

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.experiments.sweep_points import SweepError, read_points
from vqa_utils.planning.machine.gpus import T4

GRID = """
data: DATA
set: {n_folds: 2, learning_rate: 1e-3}
grid:
  seed: [1, 2]
  lora_r: [4, 8]
also:
  - {tta: 4}
"""
BOTH_GPUS = [T4, T4]


@pytest.fixture
def read(tmp_path, console, monkeypatch):
    """Reads the points of a file with this text."""

    monkeypatch.setattr("vqa_utils.running.auto_settings.sharing_problem", lambda gpus: "")

    def read(text, name="little.yaml", gpus=()):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return read_points(file, list(gpus), console)

    return read


def test_points_are_the_product_of_the_grid_and_the_list_beside_it(read, korean_folder):
    points = read(GRID.replace("DATA", str(korean_folder)))
    assert [point.run_id for point in points] == [
        "little-seed=1-lora_r=4",
        "little-seed=1-lora_r=8",
        "little-seed=2-lora_r=4",
        "little-seed=2-lora_r=8",
        "little-tta=4",
    ]
    configs = [point.config for point in points]
    assert [config.seed for config in configs] == [1, 1, 2, 2, 42]
    assert [config.lora_r for config in configs] == [4, 8, 4, 8, 8]
    assert [config.tta for config in configs] == [1, 1, 1, 1, 4]
    for config in configs:
        assert (config.preset, config.n_folds, config.learning_rate) == ("demo", 2, 1e-3)
        assert config.data == str(korean_folder)


def test_own_settings_of_a_point_override_the_common_ones(read):
    points = read("set: {seed: 7, tta: 2}\ngrid: {seed: [1]}\nalso: [{tta: 4}]")
    assert [(point.config.seed, point.config.tta) for point in points] == [(1, 2), (7, 4)]


def test_the_sweep_of_the_readme_has_seven_points(read):
    text = (ROOT / "vqa_utils/experiments/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    [sweep] = [block for block in blocks if "grid:" in block]
    points = read(sweep, "grid.yaml")
    assert len(points) == 7
    assert f"runs/{points[0].run_id}" in text
    assert {point.config.epochs for point in points} == {1}


@pytest.mark.slow
def test_a_point_is_named_by_values_not_by_their_spelling(read):
    text = (
        "grid: {max_memory: [[14GB, 13GB]], learning_rate: [5e-5, 1.0e-4], epochs: [1], "
        "preset: [safe]}\nalso: [{}]"
    )
    points = read(text, "a b.yaml", BOTH_GPUS)
    assert [point.run_id for point in points] == [
        "a_b-max_memory=14GB_13GB-learning_rate=5e-05-epochs=1-preset=safe",
        "a_b-max_memory=14GB_13GB-learning_rate=0.0001-epochs=1-preset=safe",
        "a_b",
    ]
    first = points[0].config
    assert first.preset == "safe"
    assert first.max_memory == ("14GB", "13GB")
    assert first.is_resolved
    other_spelling = text.replace("5e-5", "0.00005").replace("[1]", "[1.0]")
    assert read(other_spelling, "a b.yaml", BOTH_GPUS) == points


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("grid: [1", ["YAML"]),
        ("- 1", ["[1]"]),
        ("preset: demo", ["`grid`", "'preset': 'demo'"]),
        ("gird: {}\nset: 1\ngrid: {seed: [1]}", ["gird: ", "set: ", "found 1"]),
        ("grid: {seed: 1, tta: []}\nalso: [2]", ["seed: ", "found 1", "tta: ", "also: ", "found 2"]),
        ("set: {lora_rr: 1}\ngrid: {seeed: [1], model: [null]}", ["lora_rr", "seeed", "model: ", "None"]),
        ("grid: {seed: [1, 1]}", ["little-seed=1: "]),
        (f"grid: {{model: [{'m' * 150}]}}", [f"little-model={'m' * 150}: ", "150", "255"]),
        (f"grid: {{instruction: [{'가' * 90}]}}", [f"little-instruction={'가' * 90}: ", "150", "255"]),
        ("grid: {preset: [saef]}", ["little-preset=saef: ", "'saef'"]),
    ],
)  # fmt: skip
def test_problems_of_a_file_are_named_in_one_error(read, text, named):
    with pytest.raises(SweepError) as refused:
        read(text)
    message = str(refused.value)
    assert "little.yaml" in message
    places = [message.find(datum) for datum in named]
    assert -1 not in places and places == sorted(places), message


def test_a_missing_file_is_named(tmp_path, console):
    with pytest.raises(SweepError, match=r"none\.yaml"):
        read_points(tmp_path / "none.yaml", [], console)


def test_problems_of_all_points_are_named_in_one_error(read):
    text = (
        "set: {n_folds: 1}\ngrid: {lora_r: [8, 0]}\n"
        "also: [{tta: 3, n_folds: 2}, {seed: 1.5, preset: none}]"
    )
    with pytest.raises(SweepError) as refused:
        read(text)
    problems = re.split(r"\n  - (?=little)", str(refused.value))[1:]
    assert [problem.split(":")[0] for problem in problems] == [
        "little-lora_r=8",
        "little-lora_r=0",
        "little-tta=3-n_folds=2",
        "little-seed=1.5-preset=none",
    ]
    assert "n_folds: " in problems[0] and "lora_r: " not in problems[0]
    assert "n_folds: " in problems[1] and re.search(r"lora_r: .* 0\b", problems[1])
    assert re.search(r"tta: .* 3\b", problems[2])
    assert re.search(r"seed: .*1\.5", problems[3])
