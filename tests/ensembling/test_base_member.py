"""The base without an adapter as a member beside the folds."""

import numpy as np
import pandas as pd
import pytest
from finished_run import distributions

from run_all import STAGES
from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import BASE_TEST, read_probabilities, write_probabilities
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.base_member import BASE, NO_ANSWERS, with_base
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.temperature import before_and_after, read_base_weight
from vqa_utils.metrics import one_hot, option_matrix
from vqa_utils.presets import preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps

LETTERS = list("abcd")


@pytest.fixture
def scored(stand_in, console, korean_folder):
    """Makes a run of three folds, whose rows the base gets right in its own way."""

    def make(run_id, base_is_sure, **changes):
        config, paths = preset("demo", data=str(korean_folder), **changes), RunPaths(run_id)
        start_run(paths, config)
        stand_in.right[run_id] = 3
        steps = select_steps(STAGES, config.fold_numbers)[:-2]
        Runner(paths, config, console, reuse=True).run(steps)
        train = pd.read_csv(korean_folder / "train.csv", dtype=str).set_index("id")
        folds = read_folds(paths.folds, train.reset_index())
        rng = np.random.default_rng(0)
        for number in config.fold_numbers:
            ids = folds["id"][folds["fold"] == number]
            right = one_hot(train["answer"].loc[ids])
            logits = rng.normal(size=(len(ids), 4)) + base_is_sure * right
            write_probabilities(paths.fold(number).probs("zero_shot"), distributions(ids, logits))
        test_ids = read_probabilities(paths.fold(0).probs("test"))["id"]
        answers = distributions(test_ids, rng.normal(size=(len(test_ids), 4)))
        write_probabilities(paths.fold(0).probs(BASE_TEST), answers)
        return paths, config

    return make


def test_a_base_that_helps_has_a_weight_for_the_test_rows_and_for_another_set(scored):
    paths, config = scored("helps", 4.0, base_member=True, calibrate=False)
    ensemble = of_folds("helps")
    weight = ensemble.outcome.record["base"]["weight"]
    assert 0 < weight <= 1 and "so the fitted weights are used" in ensemble.fit.decision
    alone = of_folds_alone(paths, config)
    base = read_probabilities(paths.fold(0).probs(BASE_TEST))
    wanted = (1 - weight) * option_matrix(alone.outcome.test) + weight * option_matrix(base)
    np.testing.assert_allclose(option_matrix(ensemble.outcome.test), wanted, atol=1e-12)
    assert list(ensemble.members)[-1] == BASE
    assert list(ensemble.fit.compared) == ["as scored", "calibrated", "with the base"]
    assert ensemble.fit.compared["with the base"] is ensemble.outcome.oof

    ensemble.outcome.write(paths)
    assert read_base_weight(paths) == weight
    out = RunPaths("helps/predict/hidden")
    write_probabilities(out.fold(0).probs(BASE_TEST), base)
    predicted = with_base(paths, config, out, alone.outcome.test)
    np.testing.assert_allclose(option_matrix(predicted), wanted, atol=1e-4)


def test_a_base_that_adds_nothing_has_no_weight_of_rounding(scored):
    """Its fit ends near the bound of 0: on these rows as well as the folds, and no better."""
    ensemble = of_folds(scored("nothing", 0.0, base_member=True)[0].run_id)
    assert ensemble.outcome.record["base"] == {"weight": 0, "p": 1}
    assert "so the folds' answer is used" in ensemble.fit.decision


def of_folds_alone(paths, config):
    settings = read_json(paths.config)
    write_json(paths.config, {**settings, "base_member": False})
    alone = of_folds(paths.run_id)
    write_json(paths.config, settings)
    return alone


def test_a_base_that_does_not_help_leaves_the_folds_answer(scored):
    paths, config = scored("not", -2.0, base_member=True)
    ensemble = of_folds("not")
    assert ensemble.outcome.record["base"]["weight"] == 0
    assert "so the folds' answer is used" in ensemble.fit.decision
    alone = of_folds_alone(paths, config)
    pd.testing.assert_frame_equal(ensemble.outcome.test, alone.outcome.test)
    for frame in (ensemble.outcome.oof, alone.outcome.oof):
        assert list(frame[["id", *LETTERS]]) == ["id", *LETTERS]
    np.testing.assert_array_equal(
        option_matrix(ensemble.outcome.oof), option_matrix(alone.outcome.oof)
    )
    assert with_base(paths, config, RunPaths("not/predict/x"), alone.outcome.test) is (
        alone.outcome.test
    )


def test_without_its_answers_it_is_no_member_and_that_is_said(scored):
    paths, _ = scored("none", 4.0, base_member=True)
    paths.fold(0).probs(BASE_TEST).unlink()
    ensemble = of_folds("none")
    assert NO_ANSWERS in ensemble.fit.decision and "base" not in ensemble.outcome.record
    paths, _ = scored("off", 4.0)
    assert "base" not in of_folds("off").outcome.record


def test_probabilities_with_the_base_are_called_as_answered(scored):
    paths, _ = scored("named", 4.0, base_member=True, calibrate=True)
    of_folds("named").outcome.write(paths)
    oof = read_probabilities(paths.ensemble / "probs_oof.csv")
    assert read_base_weight(paths) > 0
    assert list(before_and_after(paths, oof)) == ["as scored", "as answered"]
