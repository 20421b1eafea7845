"""Rows in passes of like length, and outliers in passes of their own."""

from types import SimpleNamespace

import pytest

from vqa_utils.model.pass_size import PassSize, row_tokens


@pytest.mark.parametrize(
    ("lengths", "passes"),
    [
        ([], []),
        ([100, 80, 90], [[100, 90, 80]]),
        ([50] * 9, [[50] * 4, [50] * 4, [50]]),
        ([100, 800, 90], [[800], [100, 90]]),  # more than a pass may have: alone
        ([110, 100, 120, 100, 100], [[120, 110], [100] * 3]),  # no row is padded to an outlier
        ([130, 140, 135, 100], [[140, 135], [130], [100]]),  # 3 x 140 tokens are more than 400
    ],
)
def test_passes_hold_the_longest_rows_first_and_outliers_apart(lengths, passes):
    found = PassSize(rows=4, row_tokens=100).passes(lengths)
    assert [[lengths[row] for row in one] for one in found] == passes
    assert sorted(row for one in found for row in one) == list(range(len(lengths)))


def test_without_outliers_passes_are_cut_by_the_number_of_rows_alone():
    lengths = [number * 7 % 100 for number in range(50)]
    longest_first = sorted(range(50), key=lambda row: lengths[row], reverse=True)
    expected = [longest_first[start : start + 8] for start in range(0, 50, 8)]
    assert PassSize(rows=8, row_tokens=100).passes(lengths) == expected


def test_the_tokens_of_a_row_are_those_of_the_plan_or_of_the_rows():
    encoder = SimpleNamespace(most_image_tokens=144, lengths=lambda rows: rows)
    assert row_tokens(60, encoder, [1000]) == 204
    assert row_tokens("auto", encoder, [160, 170, 150, 1000]) == 170
