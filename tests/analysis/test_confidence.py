import numpy as np
import pandas as pd
import pytest
from made_up_probabilities import RIGHT, WRONG, probabilities

from vqa_utils.analysis.confidence import (
    confidence_table,
    confidences,
    describe_confidence,
    least_certain,
)


def test_bands_of_confidence_without_empty_ones():
    probs = probabilities("pqr", (0.4, 0.2, 0.2, 0.2), (0.5, 0.5, 0, 0), (1, 0, 0, 0))
    table = confidence_table(probs, np.array([True, False, True]))
    assert table["confidence"].tolist() == ["up to 0.5", "above 0.99"]
    assert table["rows"].tolist() == [2, 1] and table["accuracy"].tolist() == [0.5, 1]
    said = describe_confidence(table)
    for datum in ("33.3%", "above 0.99", "100.0%", "up to 0.5", "50.0%", "2 rows"):
        assert datum in said
    alone = describe_confidence(table.tail(1))
    assert "above 0.99" in alone and "up to 0.5" not in alone


def test_confidences_are_summarised_by_set():
    test = probabilities("pqr", RIGHT, WRONG, (0.4, 0.2, 0.2, 0.2))
    table = confidences({"oof": test.head(1), "test": test})
    assert table.index.tolist() == ["oof", "test"]
    assert table["rows"].tolist() == [1, 3]
    assert table["mean"].tolist() == pytest.approx([0.7, 0.65])
    assert table["min"].tolist() == [0.7, 0.4]
    assert table["median"].tolist() == [0.7, 0.7]


def test_the_least_certain_rows_come_first():
    rows = pd.DataFrame({"id": list("pqr")}, index=[7, 8, 9])
    least = least_certain(rows, probabilities("pqr", RIGHT, WRONG, (0.2, 0.4, 0.2, 0.2)), count=2)
    assert least.to_numpy().tolist() == [["r", "b", 0.4], ["p", "a", 0.7]]
    assert least.columns.tolist() == ["id", "chosen", "p_chosen"]
