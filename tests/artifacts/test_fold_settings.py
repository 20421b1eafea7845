"""A fold's config.json is the truth about its settings; rungs.json is a log."""

from dataclasses import replace

import pytest

from vqa_utils.artifacts.files import read_json, settings_of
from vqa_utils.artifacts.fold_settings import (
    Rung,
    checkpoint_settings,
    fold_config,
    prepare_fold,
    read_rungs,
    take_rung,
)
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import from_dict
from vqa_utils.presets import preset

RUN = preset("safe", micro_batch=4, accumulation=4, score_batch=8)


def rung(**after):
    before = {name: getattr(RUN, name) for name in after}
    return Rung(" ".join(after), before, after, 0, "training", 0.5, ("another",))


FEWER_ROWS = rung(micro_batch=2, accumulation=8)
LOWER_RANK = rung(lora_r=4, lora_alpha=8)
FEWER_SCORED = rung(score_batch=4)
LOWER_LIMIT = rung(max_memory=("12GB", "14GB"))


@pytest.fixture
def fold(tmp_path):
    return FoldPaths(tmp_path / "fold0")


@pytest.fixture
def other(tmp_path):
    return FoldPaths(tmp_path / "fold1")


def test_a_fold_without_a_file_has_the_runs_settings(fold):
    assert fold_config(fold, RUN) == RUN == checkpoint_settings(fold, RUN)
    assert read_rungs(fold) == []


def test_a_prepared_fold_has_its_settings_in_its_file(fold):
    prepare_fold(fold, RUN)
    assert from_dict(read_json(fold.config)["fold"]) == RUN
    take_rung(fold, RUN, FEWER_ROWS)
    take_rung(fold, RUN, LOWER_LIMIT)
    expected = replace(RUN, micro_batch=2, accumulation=8, max_memory=("12GB", "14GB"))
    assert from_dict(read_json(fold.config)["fold"]) == fold_config(fold, RUN) == expected
    assert read_rungs(fold) == [FEWER_ROWS, LOWER_LIMIT]


def test_the_log_decides_nothing(fold):
    take_rung(fold, RUN, LOWER_RANK)
    fold.rungs.unlink()
    prepare_fold(fold, RUN)
    assert fold_config(fold, RUN).lora_r == 4


def test_a_change_that_no_adapter_depends_on_reaches_the_fold(fold):
    take_rung(fold, RUN, FEWER_ROWS)
    take_rung(fold, RUN, LOWER_LIMIT)
    changed = replace(RUN, tta=2, cache_dir="/elsewhere", score_batch=2)
    prepare_fold(fold, changed)
    expected = replace(changed, micro_batch=2, accumulation=8, max_memory=("12GB", "14GB"))
    assert settings_of(read_json(fold.config)["fold"], fold.config) == expected
    assert read_rungs(fold) == [FEWER_ROWS, LOWER_LIMIT]


def test_the_users_later_word_counts_more_than_a_rung(fold):
    take_rung(fold, RUN, FEWER_SCORED)
    assert fold_config(fold, replace(RUN, seed=RUN.seed, score_batch=6)).score_batch == 6


def test_a_change_of_the_training_starts_the_fold_anew(fold):
    take_rung(fold, RUN, FEWER_ROWS)
    changed = replace(RUN, epochs=5)
    assert fold_config(fold, changed) == changed
    prepare_fold(fold, changed)
    assert from_dict(read_json(fold.config)["fold"]) == changed and read_rungs(fold) == []


def test_a_change_that_was_taken_back_before_anything_ran_changes_nothing(fold):
    take_rung(fold, RUN, LOWER_RANK)
    assert fold_config(fold, replace(RUN, epochs=5)).lora_r == RUN.lora_r
    assert fold_config(fold, RUN).lora_r == 4


def test_a_fold_starts_with_the_most_rungs_of_the_others(fold, other, tmp_path):
    take_rung(other, RUN, FEWER_ROWS)
    take_rung(other, RUN, LOWER_RANK)
    third = FoldPaths(tmp_path / "fold2")
    take_rung(third, RUN, LOWER_LIMIT)
    prepare_fold(fold, RUN, [fold, other, third])
    assert fold_config(fold, RUN) == fold_config(other, RUN) != RUN
    assert read_rungs(fold) == [FEWER_ROWS, LOWER_RANK]


@pytest.mark.parametrize("gone", ["config", "rungs"])
def test_another_folds_file_may_be_set_aside_while_it_is_read(fold, other, monkeypatch, gone):
    take_rung(other, RUN, FEWER_ROWS)

    def read(path):
        if path == getattr(other, gone):
            path.unlink()  # as another process does, after any question whether it is there
        return read_json(path)

    monkeypatch.setattr("vqa_utils.artifacts.fold_settings.read_json", read)
    prepare_fold(fold, RUN, [other])
    assert fold_config(fold, RUN) == RUN and read_rungs(fold) == []


def test_a_fold_with_a_rung_of_its_own_keeps_its_settings(fold, other):
    take_rung(fold, RUN, LOWER_LIMIT)
    take_rung(other, RUN, FEWER_ROWS)
    take_rung(other, RUN, LOWER_RANK)
    prepare_fold(fold, RUN, [fold, other])
    assert fold_config(fold, RUN) == replace(RUN, max_memory=("12GB", "14GB"))


def test_the_rungs_of_other_settings_are_no_example(fold, other):
    take_rung(other, replace(RUN, epochs=5), LOWER_RANK)
    prepare_fold(fold, RUN, [fold, other])
    assert fold_config(fold, RUN) == RUN and read_rungs(fold) == []


def test_checkpoints_keep_their_name_until_the_adapter_has_another_shape(fold):
    prepare_fold(fold, RUN)
    take_rung(fold, RUN, FEWER_ROWS)
    assert checkpoint_settings(fold, fold_config(fold, RUN)) == RUN
    take_rung(fold, RUN, LOWER_RANK)
    named = checkpoint_settings(fold, fold_config(fold, RUN))
    assert named == replace(RUN, lora_r=4, lora_alpha=8)


def test_checkpoints_of_settings_that_no_runner_prepared_are_named_by_these(fold):
    take_rung(fold, RUN, FEWER_ROWS)
    by_hand = replace(RUN, learning_rate=1e-3)
    assert checkpoint_settings(fold, by_hand) == by_hand
