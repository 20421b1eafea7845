"""The layout of bars and lines."""

import pytest

from vqa_utils.analysis.page.charts import Scale, averaged, axes_of


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.938, 0.978, [0.94, 0.95, 0.96, 0.97]),
        (0, 2.2, [0, 0.5, 1, 1.5, 2]),
        (1, 3, [1, 1.5, 2, 2.5, 3]),
    ],
)
def test_ticks_are_round_and_between_the_ends(low, high, ticks):
    assert Scale(low, high).ticks() == ticks


def test_places_stay_within_the_drawing():
    assert Scale(0, 2).percent(1) == 50 and Scale(0, 2).percent(5) == 100
    axes = axes_of([(1.0, 0.3), (1.0, 0.3)])  # one value alone
    x, y = axes.place((1.0, 0.3))
    assert 0 < x < 360 and 0 < y < 220
    assert axes.path([(1.0, 0.3)]) == f"M{x} {y}"


def test_a_long_line_is_averaged():
    points = [(float(i), float(i % 2)) for i in range(400)]
    few = averaged(points)
    assert len(few) == 40 and few[0] == (4.5, 0.5)
    assert averaged(points[:7]) == points[:7] and averaged([]) == []
