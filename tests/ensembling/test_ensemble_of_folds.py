"""A run's folds combined. Runs with a refit: tests/series/test_refit.py."""

import pandas as pd

from run_all import STAGES
from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.presets import preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps

LETTERS = list("abcd")


def scored_run(run_id, data_folder, console, **changes):
    """A run of the stand-in up to 04_infer."""
    config, paths = preset("demo", data=str(data_folder), **changes), RunPaths(run_id)
    start_run(paths, config)
    steps = select_steps(STAGES, config.fold_numbers)[:-2]
    Runner(paths, config, console, reuse=True).run(steps)
    return paths, config


def test_the_mean_decides_a_vote_of_three_folds_for_three_letters(stand_in, console, korean_folder):
    paths, config = scored_run(
        "three-letters", korean_folder, console, ensemble="vote", calibrate=False
    )
    split = ((0.6, 0.3, 0.1, 0), (0, 0.9, 0.1, 0), (0.1, 0.3, 0.6, 0))
    even = ((0.6, 0.2, 0.2, 0), (0.2, 0.6, 0.2, 0), (0.2, 0.2, 0.6, 0))
    for k in config.fold_numbers:
        probs = read_probabilities(paths.fold(k).probs("test"))
        probs.loc[0, LETTERS] = split[k]
        probs.loc[1, LETTERS] = even[k]
        write_probabilities(paths.fold(k).probs("test"), probs)
    ensemble = of_folds("three-letters")
    assert ensemble.outcome.submission["answer"].head(2).tolist() == ["b", "a"]
    assert "1 of 8" in ensemble.outcome.describe_ties()
    assert ensemble.outcome.record["ensemble"] == "vote"


def test_the_written_files_hold_the_combined_rows_and_the_temperatures(
    stand_in, console, korean_folder
):
    paths, config = scored_run("written", korean_folder, console, calibrate=True)
    ensemble = of_folds("written")
    written = ensemble.outcome.write(paths)
    assert written == [paths.ensemble, paths.submission(use_kfold=True)]
    record = read_json(paths.members)
    assert record["folds"] == list(config.fold_numbers) and record["calibrated"]
    assert list(record["temperatures"]) == [str(k) for k in config.fold_numbers]
    for split, expected in (("oof", ensemble.outcome.oof), ("test", ensemble.outcome.test)):
        probs = read_probabilities(paths.ensemble / f"probs_{split}.csv", expected["id"])
        pd.testing.assert_frame_equal(probs[LETTERS], expected[LETTERS].reset_index(drop=True))
    assert len(pd.read_csv(paths.submission(use_kfold=True))) == 8


def test_the_scores_in_words_are_those_of_the_last_line(stand_in, console, korean_folder):
    scored_run("words", korean_folder, console)
    ensemble = of_folds("words")
    whole = ensemble.scores.iloc[-1]
    assert whole["fold"] == "all"
    said = ensemble.describe_scores()
    for number in (f"{whole['accuracy']:.3f}", f"{whole['log_loss']:.3f}", "24 rows"):
        assert number in said
