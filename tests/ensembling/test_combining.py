import itertools

import numpy as np
import pandas as pd
import pytest

from vqa_utils.ensembling.combining import (
    agreement,
    combine_members,
    combined,
    describe_agreement,
    describe_unanimity,
    submission,
    unanimity,
)
from vqa_utils.ensembling.members import Member
from vqa_utils.ensembling.temperature import scaled
from vqa_utils.metrics import predictions, tied

LETTERS = list("abcd")


def frame(ids, *rows):
    return pd.DataFrame(rows, columns=LETTERS).assign(id=ids)[["id", *LETTERS]]


def first_row(probs):
    return probs[LETTERS].iloc[0].tolist()


FIRST = frame(["x", "y"], (0.6, 0.4, 0, 0), (0.1, 0.2, 0.3, 0.4))
SECOND = frame(["x", "y"], (0.1, 0.9, 0, 0), (0.1, 0.2, 0.3, 0.4))


def test_the_mean_can_change_the_answer():
    mean = combined([FIRST, SECOND], "mean")
    assert list(mean) == ["id", *LETTERS]
    assert first_row(mean) == pytest.approx([0.35, 0.65, 0, 0])
    assert predictions(FIRST)[0] == "a" and predictions(mean)[0] == "b"


def test_members_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same ids"):
        combined([FIRST, SECOND.iloc[::-1]], "mean")
    with pytest.raises(ValueError, match="none"):
        combined([], "mean")


def test_the_geometric_mean_is_normalised_and_survives_zeros():
    probs = combined([FIRST, SECOND], "geometric")[LETTERS].to_numpy()
    products = np.sqrt(np.array([0.6 * 0.1, 0.4 * 0.9]))
    assert probs[0, :2] == pytest.approx(products / products.sum(), abs=1e-9)
    assert probs[0, 2:].max() < 1e-9
    assert probs[1] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    opposed = [frame(["x"], (1, 0, 0, 0)), frame(["x"], (0, 1, 0, 0))]
    assert first_row(combined(opposed, "geometric")) == pytest.approx([0.5, 0.5, 0, 0], abs=1e-5)


def test_a_vote_counts_letters_and_the_mean_decides_between_equal_counts():
    rows = ((0.4, 0.3, 0.3, 0), (0.4, 0.3, 0.3, 0), (0, 0, 0, 1))
    members = [frame(["x"], row) for row in rows]
    shares = first_row(combined(members, "vote"))
    assert shares == pytest.approx([2 / 3, 0, 0, 1 / 3], abs=1e-3) and sum(shares) == 1
    assert predictions(combined(members, "mean"))[0] == "d"
    one_vote_each = combined([FIRST, SECOND], "vote")
    assert predictions(one_vote_each)[0] == "b"  # has the higher mean


def test_tied_letters_give_the_first_one_in_any_order_of_the_members():
    assert (0.6 + 0.4) + 0.2 != (0.2 + 0.4) + 0.6  # b would win by the rounding error
    clear = (0.7, 0.1, 0.1, 0.1)
    rows = ((0.6, 0.2, 0.2, 0), (0.4, 0.4, 0.2, 0), (0.2, 0.6, 0.2, 0))
    members = [frame(["x", "y"], row, clear) for row in rows]
    for order in itertools.permutations(members):
        probs = combined(order, "mean")
        assert predictions(probs).tolist() == ["a", "a"]
        assert tied(probs).tolist() == [True, False]


@pytest.mark.parametrize("how", ["mean", "geometric", "vote"])
def test_members_are_scaled_before_they_are_combined(how):
    members = [Member(0, "fold 0", FIRST), Member(1, "fold 1", SECOND), Member(2, "refit", FIRST)]
    found = combine_members(members, {0: 1.0, 1: 4.0}, how)
    # The refit has no temperature of its own: it gets the geometric mean of 1 and 4
    expected = combined([FIRST, scaled(SECOND, 4.0), scaled(FIRST, 2.0)], how)
    pd.testing.assert_frame_equal(found, expected)
    unscaled = combine_members(members, {}, how)
    pd.testing.assert_frame_equal(unscaled, combined([FIRST, SECOND, FIRST], how))


def test_a_submission_has_the_rows_of_the_sample_in_its_order():
    sample = pd.DataFrame({"id": ["y", "x"]})
    answers = submission(sample, FIRST)
    assert answers.to_dict("list") == {"id": ["y", "x"], "answer": ["d", "a"]}


def test_a_row_of_the_sample_without_probabilities_is_an_error():
    with pytest.raises(ValueError, match="'z'"):
        submission(pd.DataFrame({"id": ["x", "z"]}), FIRST)


def test_agreement_is_the_share_of_equal_letters():
    table = agreement({"fold 0": FIRST, "fold 2": SECOND})
    assert table.to_numpy().tolist() == [[1, 0.5], [0.5, 1]]
    assert list(table.index) == list(table.columns) == ["fold 0", "fold 2"]
    members = [Member(0, "fold 0", FIRST), Member(2, "fold 2", SECOND)]
    assert unanimity(members) == 0.5
    assert "50.0%" in describe_unanimity(members)


def test_the_two_members_with_the_least_agreement_are_named():
    shares = [[1, 0.9, 0.7], [0.9, 1, 0.8], [0.7, 0.8, 1]]
    table = pd.DataFrame(shares, index=list("xyz"), columns=list("xyz"))
    said = describe_agreement(table)
    assert "x and z" in said and "70.0%" in said and "30.0%" in said


def test_one_member_agrees_with_nobody():
    alone = pd.DataFrame([[1.0]], index=["x"], columns=["x"])
    assert "%" not in describe_agreement(alone)
    assert "%" not in describe_unanimity([Member(0, "fold 0", FIRST)])
