import itertools

import numpy as np
import pandas as pd
import pytest

from run_all import STAGES
from vqa_utils.artifacts.files import ArtifactError, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.ensembling.combining import agreement, combined, submission
from vqa_utils.ensembling.ensemble import of_folds
from vqa_utils.ensembling.members import pooled, read_members, scored_folds
from vqa_utils.metrics import predictions, tied
from vqa_utils.presets import preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps


def frame(ids, *rows):
    return pd.concat([pd.DataFrame({"id": ids}), pd.DataFrame(rows, columns=list("abcd"))], axis=1)


FIRST = frame(["x", "y"], (0.6, 0.4, 0, 0), (0.1, 0.2, 0.3, 0.4))
SECOND = frame(["x", "y"], (0.1, 0.9, 0, 0), (0.1, 0.2, 0.3, 0.4))


def test_the_mean_can_change_the_answer():
    mean = combined([FIRST, SECOND], "mean")
    assert mean.loc[0, list("abcd")].tolist() == pytest.approx([0.35, 0.65, 0, 0])
    assert submission(pd.DataFrame({"id": ["y", "x"]}), mean).to_dict("list") == {
        "id": ["y", "x"],
        "answer": ["d", "b"],
    }


def test_members_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same ids in the same order"):
        combined([FIRST, SECOND.iloc[::-1]], "mean")


def test_the_geometric_mean_is_the_normalised_one_and_survives_zeros():
    probs = combined([FIRST, SECOND], "geometric")[list("abcd")].to_numpy()
    products = np.sqrt(np.array([0.6 * 0.1, 0.4 * 0.9]))
    assert (
        probs[0, :2] == pytest.approx(products / products.sum(), abs=1e-9)
        and probs[0, 2:].max() < 1e-9
    )
    assert probs[1] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    opposed = [frame(["x"], (1, 0, 0, 0)), frame(["x"], (0, 1, 0, 0))]
    assert combined(opposed, "geometric").iloc[0, 1:].tolist() == pytest.approx(
        [0.5, 0.5, 0, 0], abs=1e-5
    )


def test_a_vote_counts_letters_and_the_mean_decides_between_equal_counts():
    ones = [frame(["x"], row) for row in ((0.4, 0.3, 0.3, 0), (0.4, 0.3, 0.3, 0), (0, 0, 0, 1))]
    shares = combined(ones, "vote")
    assert (
        shares.iloc[0, 1:].tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-3)
        and shares.iloc[0, 1:].sum() == 1
    )
    assert combined(ones, "mean").iloc[0, 1:].idxmax() == "d"
    assert predictions(combined([FIRST, SECOND], "vote")).tolist() == [
        "b",
        "d",
    ]  # one vote each, and b has the higher mean


def test_tied_letters_give_the_first_one_in_any_order_of_the_members():
    clear = (0.7, 0.1, 0.1, 0.1)
    members = [
        frame(["x", "y"], row, clear)
        for row in ((0.6, 0.2, 0.2, 0), (0.4, 0.4, 0.2, 0), (0.2, 0.6, 0.2, 0))
    ]
    assert (0.6 + 0.4) + 0.2 != (0.2 + 0.4) + 0.6  # what b would win by
    for order in itertools.permutations(members):
        probs = combined(order, "mean")
        assert predictions(probs).tolist() == ["a", "a"] and tied(probs).tolist() == [True, False]


def test_the_mean_decides_a_vote_that_three_folds_cast_for_three_letters(
    stand_in, console, korean_folder
):
    config, paths = (
        preset("demo", data=str(korean_folder), ensemble="vote", calibrate=False),
        RunPaths("three-letters"),
    )
    start_run(paths, config)
    Runner(paths, config, console, reuse=True).run(select_steps(STAGES, config.fold_numbers)[:-2])
    split = ((0.6, 0.3, 0.1, 0), (0, 0.9, 0.1, 0), (0.1, 0.3, 0.6, 0))
    even = ((0.6, 0.2, 0.2, 0), (0.2, 0.6, 0.2, 0), (0.2, 0.2, 0.6, 0))
    for k in config.fold_numbers:
        probs = read_probabilities(paths.fold(k).probs("test"))
        probs.loc[0, list("abcd")], probs.loc[1, list("abcd")] = split[k], even[k]
        write_probabilities(paths.fold(k).probs("test"), probs)
    ensemble = of_folds("three-letters")
    assert (
        ensemble.submission["answer"].head(2).tolist() == ["b", "a"]
        and "combined by: vote" in ensemble.who
    )
    assert ensemble.describe_ties() == "Rows with a tie, which the first letter gets: 1 of 8."


def test_a_row_without_probabilities_is_an_error():
    with pytest.raises(ValueError, match=r"found none for \['z'\]"):
        submission(pd.DataFrame({"id": ["x", "z"]}), FIRST)


def test_agreement_of_two_members():
    table = agreement({"fold 0": FIRST, "fold 2": SECOND})
    assert table.loc["fold 0", "fold 2"] == 0.5 and table.loc["fold 0", "fold 0"] == 1


def test_folds_that_are_there_are_used_and_the_missing_named():
    paths, config = RunPaths("ensemble-test"), preset("demo")
    folds = pd.DataFrame({"id": ["p", "q", "r"], "fold": [0, 1, 2]})
    with pytest.raises(ArtifactError, match="run notebooks 03_train_fold and 04_infer first"):
        scored_folds(paths, config)
    for k, row in ((0, "p"), (2, "r")):
        write_probabilities(paths.fold(k).probs("oof"), frame([row], (1, 0, 0, 0)))
        write_probabilities(paths.fold(k).probs("test"), FIRST)
    assert scored_folds(paths, config) == ([0, 2], [1])
    assert [member.number for member in read_members(paths, config, ["x", "y"])] == [0, 2]
    assert pooled(paths, config, folds, "oof")[["id", "fold"]].to_numpy().tolist() == [
        ["p", 0],
        ["r", 2],
    ]
    assert pooled(paths, config, folds, "blank") is None


def test_a_fold_of_other_settings_is_no_member():
    paths, config = RunPaths("mixed-test"), preset("demo")
    for k in (0, 1, 2):
        write_probabilities(paths.fold(k).probs("test"), FIRST)
        write_json(
            paths.fold(k).adapter_config,
            to_dict(preset("demo", lora_r=4) if k == 1 else preset("demo", score_batch=k + 1)),
        )
    assert scored_folds(paths, config) == ([0, 2], [1])
