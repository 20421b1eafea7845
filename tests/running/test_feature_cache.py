"""Whether a run encodes its pictures before all else: `cache_features`."""

import dataclasses
from collections import namedtuple

import pytest

from vqa_utils.forecasting.forecast import RowCounts, forecast
from vqa_utils.model import cache_folders
from vqa_utils.planning.images import feature_bytes
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.plan import plan_for, resolve_for_machine
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.running import auto_settings
from vqa_utils.running.auto_settings import with_feature_cache

TWO_T4 = [T4, T4]
PACKED = 18.0092e9  # bytes of the packed base
PICTURE = 2_359_296  # bytes: 144 tokens, four times 2,048 numbers of 16 bits


@pytest.fixture
def free(monkeypatch, tmp_path):
    """Sets the free bytes of every disk."""
    monkeypatch.setattr(cache_folders, "_disks", lambda: [tmp_path])
    monkeypatch.setattr(auto_settings, "rows_here", lambda config: RowCounts(600, 300, 100))
    usage = namedtuple("usage", "total used free")

    def set_free(size):
        monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: usage(0, 0, size))

    set_free(10**12)
    return set_free


def chosen(config, gpus=TWO_T4):
    return with_feature_cache(config, gpus).cache_features


def test_a_picture_of_safe_takes_2_4_megabytes():
    config = preset("safe")
    assert feature_bytes(shape_of(config), config) == PICTURE


def test_it_is_chosen_where_a_disk_has_room_for_the_pictures_of_all_rows(free, tmp_path):
    assert chosen(preset("safe")) is True
    free(1.1 * (PACKED + 1000 * PICTURE) + 10**7)
    assert chosen(preset("safe")) is True
    free(1.1 * (PACKED + 1000 * PICTURE) - 10**8)
    assert chosen(preset("safe")) is False
    features = tmp_path / cache_folders.FOLDER / "Qwen3-VL-30B-A3B-Instruct-features-384px-0"
    features.mkdir(parents=True)
    with (features / "a").open("wb") as file:
        file.truncate(1000 * PICTURE)  # of an earlier run
    assert chosen(preset("safe")) is True
    assert chosen(preset("balanced")) is False, "another size of the pictures"


def test_it_is_not_chosen_without_use_or_place(free):
    assert chosen(preset("safe"), []) is False, "a CPU"
    assert chosen(preset("demo")) is False
    assert chosen(preset("safe", cache_dir="")) is False
    assert chosen(preset("safe", device_map="auto")) is False, "nothing is planned"


@pytest.mark.parametrize("asked", [True, False])
def test_what_was_asked_for_stays(free, asked):
    free(0)
    assert chosen(preset("safe", cache_features=asked), []) is asked


def test_a_plan_without_the_tower_has_its_memory_for_others():
    config = resolve_for_machine(preset("safe", cache_features=False), TWO_T4)
    tower, none = (
        plan_for(dataclasses.replace(config, cache_features=cached), TWO_T4)
        for cached in (False, True)
    )
    assert "vision" in tower.gpus[0].weights and "vision" not in none.gpus[0].weights
    assert none.weights == tower.weights - tower.gpus[0].weights["vision"]
    assert none.device_map["model.visual"] == 0, "it is loaded before it goes"
    assert len(none.gpus[0].layers) > len(tower.gpus[0].layers)
    assert none.gpus[0].training["images"] < tower.gpus[0].training["images"]
    alone = none.gpus[0].peaks["vision tower"]
    assert tower.gpus[0].weights["vision"] < alone < none.gpus[0].total


def test_a_run_without_the_tower_in_each_pass_is_expected_to_end_sooner():
    config = preset("safe", folds_at_once=1)
    rows = RowCounts(1000, 1000)
    tower, none, more = (
        forecast(dataclasses.replace(config, cache_features=cached), shape_of(config), TWO_T4, of)
        for cached, of in ((False, rows), (True, rows), (True, RowCounts(1000, 2000)))
    )
    assert none.run_s < tower.run_s
    assert none.training.wall < 0.95 * tower.training.wall
    assert none.scoring.wall < 0.9 * tower.scoring.wall
    seconds_a_test_row = (more.run_s - none.run_s) / 1000
    folds_score_it = 3 * none.scoring.wall / none.scoring.gain(2)
    encoded_once = 0.055  # alone, a picture waits for the launches of a slow host
    assert seconds_a_test_row == pytest.approx(folds_score_it + encoded_once, abs=0.02)
