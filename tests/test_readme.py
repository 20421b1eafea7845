"""What README promises when something goes wrong: each line has tests."""

import ast
import re
from dataclasses import replace

import pytest

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.forecasting.folds_at_once import with_folds_at_once
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, RowCounts, forecast
from vqa_utils.planning.machine.gpus import T4, gpu_limits
from vqa_utils.planning.plan import make_plan, resolve_batches
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.setting_types import GIB

BACKED = {
    "Out of memory.": [
        "series/test_fold_runs.py::test_memory_that_ran_out_takes_a_rung_in_a_fresh_kernel",
        "series/test_fold_runs.py::test_a_run_without_the_ladder_ends_at_the_first_error",
        "series/test_side_by_side.py::test_folds_around_one_base_are_fewer_after_memory_ran_out",
        "gpu/test_out_of_memory.py::test_the_training_goes_on_from_its_checkpoint_with_half_the_batch",
        "planning/test_ladder.py::test_the_order_is_the_fields_advice",
    ],
    "Only one T4.": [
        "planning/test_machine_check.py::test_two_t4_hold_the_30b_and_one_does_not",
        "test_readme.py::test_one_t4_holds_what_it_is_told_to",
    ],
    "One row is much longer than the others.": [
        "running/test_resolution.py::test_texts_are_planned_for_as_the_data_has_them",
        "training/test_passes.py::test_an_outlier_leaves_gradients_and_scores_as_they_are",
        "scoring/test_options.py::test_an_outlier_is_scored_in_passes_of_its_own",
        "data/test_text_lengths.py::test_outliers_are_named_by_file_and_id_the_longest_first",
    ],
    "Too slow.": [
        "test_readme.py::test_what_makes_a_run_faster_is_expected_to",
        "ensembling/test_refit_member.py::test_a_single_split_has_a_refit_too",
    ],
    "Stopped.": [
        "series/test_kill.py::test_a_run_that_is_killed_at_six_moments_ends_the_same",
        "series/test_torn_files.py::test_a_torn_file_is_stepped_over",
        "series/test_stop.py::test_a_signal_lets_notebooks_end_where_nothing_is_lost",
    ],
    "Too little time.": [
        "series/test_stop.py::test_a_time_budget_lets_notebooks_end_where_nothing_is_lost",
        "series/test_time_budget.py::test_the_submission_is_of_the_folds_that_were_trained_in_time",
        "running/test_run_clock.py::test_the_expected_end_is_told_once_the_pace_is_known",
    ],
    "A full disk.": [
        "planning/test_disk.py::test_a_run_that_its_disk_cannot_hold_is_refused",
        "planning/test_disk.py::test_a_command_says_in_one_sentence_that_the_disk_is_full",
        "planning/test_disk.py::test_a_full_disk_leaves_whole_notebooks_and_no_temporaries",
    ],
    "Moved.": [
        "series/test_moved_run.py::test_all_is_reused_where_runs_data_and_machine_are_others",
        "series/test_moved_run.py::test_a_run_of_another_session_is_taken_over",
        "series/test_moved_run.py::test_a_model_that_has_moved_is_known_by_its_weights",
    ],
    "A notebook failed.": [
        "running/test_execution.py::test_a_failing_notebook_is_archived_and_named",
        "running/test_execution.py::test_what_has_died_is_tried_once_more",
        "running/test_execution.py::test_a_kernel_that_dies_is_named",
    ],
    "Nothing moves.": [
        "running/test_progress.py::test_a_step_without_progress_is_named_once",
        "running/test_execution.py::test_a_cell_that_takes_too_long_ends_its_notebook_and_kernel",
    ],
    "A notebook runs again.": [
        "running/test_runner.py::test_a_changed_picture_changes_every_step",
        "running/test_changes.py::test_a_notebook_with_other_cells_runs_again",
    ],
    "Code or libraries changed.": [
        "running/test_changes.py::test_changed_code_is_named_with_the_command_that_runs_notebooks_again",
        "running/test_changes.py::test_strict_refuses_before_anything_is_written",
        "running/test_origin.py::test_changed_libraries_are_named_with_both_versions",
    ],
    "Publishing a run.": [
        "series/test_pipeline.py::test_no_file_of_a_run_names_a_secret_a_folder_a_person_or_a_host",
    ],
    "What pays?": [
        "experiments/test_comparison.py::test_switches_are_judged_against_the_same_seeds_without_them",
    ],
}


def test_each_line_of_when_something_goes_wrong_has_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## When something goes wrong\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE) == list(BACKED)
    for tests in BACKED.values():
        for test in tests:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {getattr(node, "name", "") for node in tree.body}, test


def expected(config, gpus=(T4, T4)):
    return forecast(config, shape_of(config), gpus, ASSUMED_ROWS)


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "single_gpu"},
        {"preset": "safe", "offload_experts": True, "max_memory": ("14GB",)},
    ],
)
def test_one_t4_holds_what_it_is_told_to(settings):
    config = preset(settings["preset"], **{k: v for k, v in settings.items() if k != "preset"})
    assert make_plan(config, shape_of(config), gpu_limits(config, [T4])).fits


@pytest.mark.parametrize(
    "faster", [{"image_side": 320}, {"epochs": 1}, {"use_kfold": False}, {"n_folds": 2}]
)
def test_what_makes_a_run_faster_is_expected_to(faster):
    usual = expected(preset("safe", folds_at_once=1))
    assert expected(preset("safe", folds_at_once=1, **faster)).run_s < 0.95 * usual.run_s


def test_the_plans_of_the_readme_are_those_that_are_made():
    """The table of vqa_utils/planning/README.md, and the numbers of `safe` in the main one."""
    text = (ROOT / "vqa_utils/planning/README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(lines) == 3
    for name, cells in lines:
        config = with_folds_at_once(preset(name, cache_features=True), [T4, T4], None)
        shape, limits = shape_of(config), gpu_limits(config, [T4, T4])
        resolved = resolve_batches(config, shape, limits)
        totals = [gpu.total / GIB for gpu in make_plan(resolved, shape, limits).gpus]
        one_at_a_time = replace(config, folds_at_once=1)
        alone = expected(one_at_a_time).run_s / 60
        together = expected(config).run_s / 60
        of_gpus = ", ".join(f"{total:.1f}" for total in totals)
        found = [
            config.folds_at_once,
            resolved.micro_batch,
            of_gpus,
            f"{together:.0f}",
            f"{alone:.0f}",
        ]
        assert " | ".join(map(str, found)) == cells
        if name == "safe":
            one = resolve_batches(one_at_a_time, shape, limits)
            skipping = len(make_plan(one, shape, limits).uncheckpointed_layers)
            assert f"has memory to let {skipping} of the" in text
            main = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
            first, second = (f"{total:.1f}" for total in totals)
            assert f"three folds of `safe` at a time need {first} and {second} of the" in main
            assert f"{together:.0f} minutes for 1,000 train" in main


def hours(name, rows, **changes):
    """The expected hours of a preset on two T4, for so many train and test rows."""
    config = preset(name, cache_features=True, **changes)
    counts = RowCounts(rows, rows)
    config = with_folds_at_once(config, [T4, T4], counts)
    return forecast(config, shape_of(config), [T4, T4], counts).run_s / 3600


def test_the_hours_of_the_large_dense_model_are_those_that_are_expected():
    """Beside those of `safe`."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    dense, safe = "dense_32b", "safe"
    assert (
        f"`{dense}` takes, by the forecast, {hours(dense, 1000):.1f} hours for those rows, and of "
        f"4,000 train and 4,000 test rows {hours(dense, 4000):.1f} for three folds (more than a "
        f"session of 12) and {hours(dense, 4000, use_kfold=False):.1f} with `use_kfold=false`, "
        f"where `{safe}` takes {hours(safe, 4000):.1f} and {hours(safe, 4000, use_kfold=False):.1f}."
    ) in text
