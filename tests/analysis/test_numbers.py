"""Numbers as people write them."""

import pytest

from vqa_utils.analysis.page.numbers import (
    as_said,
    cell_text,
    interval,
    minutes,
    p_value,
    percent,
    points,
)


def plain(text):
    return text.replace("\u202f", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.97), "97.0 %"),
        (percent(1), "100.0 %"),
        (p_value(6.651e-162), "p < 0.001"),
        (p_value(0.0236), "p = 0.024"),
        (points(0.0123), "+1.2"),
        (points(-0.0004), "+0.0"),
        (points(-0.02), "-2.0"),
        (interval(0.957, 0.979), "95.7–97.9 %"),
        (interval(-0.02, 0.01, "points"), "-2.0 … +1.0"),
        (minutes(0.5), "30 s"),
        (minutes(125), "2 h 5 min"),
        (
            as_said("97.0% of 5 % (-0.5 to +1), pre-2 x=-1"),
            "97.0 % of 5 % (-0.5 to +1), pre-2 x=-1",
        ),
    ],
)
def test_numbers_have_their_units(written, expected):
    assert plain(written) == expected


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (0.123456, "", "0.1235"),
        (1e-9, "", "1e-09"),
        (None, "percent", ""),
        (None, "", ""),
        (3, "", "3"),
        (12345, "", "12 345"),
        (0.97, "percent", "97.0 %"),
        ("above 0.99", "percent", "above 0.99"),
        (1e-20, "p_value", "< 0.001"),
        (0.5, "p_value", "0.500"),
        ("<y>", "", "<y>"),
    ],
)
def test_cells_are_written_by_their_kind_and_nothing_for_a_missing_one(value, kind, expected):
    assert plain(cell_text(value, kind)) == expected


def test_a_minus_is_one():
    assert "\u2212" in points(-0.1) and as_said("-1") == "\u22121" and as_said("a-1") == "a-1"
