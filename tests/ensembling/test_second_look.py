"""The second look at uncertain rows: judged out of fold, taken for the test rows."""

import numpy as np
import pandas as pd
import pytest
from finished_run import distributions

from run_all import STAGES
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import SECOND_LOOK, read_probabilities, write_probabilities
from vqa_utils.config import ConfigError
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.members import pooled, read_members, rows_of
from vqa_utils.ensembling.second_look import members_with_look, uses_second_look
from vqa_utils.ensembling.temperature import before_and_after, describe_calibration_effect
from vqa_utils.metrics import option_matrix
from vqa_utils.presets import preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps

LETTERS = list("abcd")


@pytest.fixture
def scored(stand_in, console, korean_folder):
    """Makes a run of three folds with a second look at two rows of each set."""

    def make(run_id, is_right, **changes):
        changes = {"second_look": 0.25, **changes}
        config, paths = preset("demo", data=str(korean_folder), **changes), RunPaths(run_id)
        start_run(paths, config)
        stand_in.right[run_id] = 3
        steps = select_steps(STAGES, config.fold_numbers)[:-2]
        Runner(paths, config, console, reuse=True).run(steps)
        answers = pd.read_csv(korean_folder / "train.csv", dtype=str).set_index("id")["answer"]
        for number in config.fold_numbers:
            fold = paths.fold(number)
            for split in ("oof", "test"):
                rows = read_probabilities(fold.probs(split)).head(2)
                chosen = answers.loc[rows["id"]] if split == "oof" else ["b", "c"]
                logits = np.zeros((2, 4))
                for row, letter in enumerate(chosen):
                    logits[row, LETTERS.index(letter)] = 5 if is_right else -5
                looked = distributions(rows["id"], logits)
                write_probabilities(fold.probs(f"{split}_{SECOND_LOOK}"), looked)
        return paths, config

    return make


def test_a_look_that_lowers_the_loss_answers_its_rows_and_no_others(scored):
    paths, config = scored("better", is_right=True, calibrate=False)
    ensemble = of_folds("better")
    assert "so it is used" in ensemble.fit.decision
    assert ensemble.outcome.record["second_look"] == {"rows": 6, "is_used": True}
    first = read_probabilities(paths.fold(0).probs("test"))
    looked = read_probabilities(paths.fold(0).probs(f"test_{SECOND_LOOK}"))
    for member in ensemble.members.values():  # all folds of the stand-in answer alike
        both = (option_matrix(first)[:2] + option_matrix(looked)) / 2
        np.testing.assert_allclose(option_matrix(member)[:2], both)
        np.testing.assert_allclose(option_matrix(member)[2:], option_matrix(first)[2:])
    assert list(ensemble.outcome.submission["answer"].head(2)) == ["b", "c"]
    assert ensemble.outcome.oof["id"].is_unique and len(ensemble.outcome.oof) == 24

    ensemble.outcome.write(paths)
    assert uses_second_look(paths)
    out = RunPaths("better/predict/hidden")
    for number in config.fold_numbers:
        write_probabilities(out.fold(number).probs(f"test_{SECOND_LOOK}"), looked)
    (member, *_) = members_with_look(read_members(paths, config, first["id"]), out)
    np.testing.assert_allclose(option_matrix(member.test)[:2], both)


def test_a_look_that_does_not_is_left_out(scored):
    paths, _ = scored("worse", is_right=False)
    ensemble = of_folds("worse")
    assert "so it is not used" in ensemble.fit.decision
    assert not ensemble.outcome.record["second_look"]["is_used"]
    ensemble.outcome.write(paths)
    assert not uses_second_look(paths)
    first = read_probabilities(paths.fold(0).probs("test"))
    for member in ensemble.members.values():
        np.testing.assert_array_equal(option_matrix(member), option_matrix(first))


def test_without_the_setting_nothing_is_looked_at(scored):
    scored("off", is_right=True, second_look=0.0)
    assert "second_look" not in of_folds("off").outcome.record


@pytest.mark.parametrize("calibrate", [True, False])
def test_probabilities_with_it_are_called_as_answered(scored, calibrate):
    paths, config = scored("named", is_right=True, calibrate=calibrate)
    ensemble = of_folds("named")
    ensemble.outcome.write(paths)
    train = load_challenge(config).train
    oof = pooled(paths, config, read_folds(paths.folds, train), "oof")
    sets = before_and_after(paths, oof)
    assert list(sets) == ["as scored", "as answered"]
    found, wanted = (
        option_matrix(frame.set_index("id").loc[oof["id"]].reset_index())
        for frame in (sets["as answered"], ensemble.outcome.oof)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    words = describe_calibration_effect(sets, rows_of(oof, train)["answer"])
    assert words.endswith("As answered: with all that 05_ensemble has in use.")
    assert "No calibration" not in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"second_look": 0.1, "tta": 4}, "second_look: expected tta below 4, second_look_side"),
        ({"second_look": 0.1, "tta": 4, "second_look_side": 32}, "tta=4, 32 px and 0 crops"),
        ({"second_look": 0.1, "tta": 4, "crops": 2, "second_look_crops": 2}, "and 2 crops"),
        ({"second_look_side": 96}, "expected second_look above 0"),
        ({"second_look_crops": 2}, "expected second_look above 0"),
    ],
)
def test_settings_that_leave_no_second_look_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        preset("demo", **changes)
    preset("demo", second_look=0.1, tta=4, second_look_side=96)
    preset("demo", second_look=0.1, tta=4, second_look_crops=2)
