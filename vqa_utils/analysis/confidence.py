"""Compare the model's confidence, the probability of its choice, with its accuracy."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vqa_utils.analysis.error_analysis import accuracy_line
from vqa_utils.language import called, said
from vqa_utils.metrics import option_matrix, predictions, reliability

BAND_EDGES = (0, 0.5, 0.7, 0.9, 0.99, 2)  # the last one above 1: rounding may lift a sure row
BANDS = ("up to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 0.99", "above 0.99")


def reliability_table(sets: Mapping[str, pd.DataFrame], answers: pd.Series) -> pd.DataFrame:
    """Compare confidence with accuracy in several sets of probabilities of the same rows.

    Returns:
        `probabilities` (the set), `confidence`, `accuracy`, `rows`: one line per set and bin.
    """
    tables = []
    for name, probs in sets.items():
        table = reliability(probs, answers)
        table.insert(0, "probabilities", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def confidence_table(probs: pd.DataFrame, right: np.ndarray) -> pd.DataFrame:
    """Accuracy by band of confidence, without empty bands.

    Returns:
        `confidence` (the band), `rows`, `accuracy`, `low`, `high`.
    """
    confidence = option_matrix(probs).max(axis=1)  # [N]
    band_of_row = pd.cut(confidence, BAND_EDGES, labels=BANDS)  # closed above: 0.9 is in 0.7 to 0.9
    lines = []
    for band in BANDS:
        in_band = band_of_row == band
        if in_band.any():
            lines.append({"confidence": band, **accuracy_line(right[in_band])})
    return pd.DataFrame(lines)


def describe_confidence(table: pd.DataFrame) -> str:
    """Compare the most with the least confident rows, in words."""
    least, most = table.iloc[0], table.iloc[-1]
    if len(table) == 1:
        return said(
            "All rows have a confidence of {band}; {right:.1%} of them are right.",
            band=called(least["confidence"]),
            right=least["accuracy"],
        )
    return said(
        "{share:.1%} of the rows have a confidence of {most}, and {right:.1%} of these are right; "
        "at {least} it is {least_right:.1%} of {rows} rows.",
        share=most["rows"] / table["rows"].sum(),
        most=called(most["confidence"]),
        right=most["accuracy"],
        least=called(least["confidence"]),
        least_right=least["accuracy"],
        rows=least["rows"],
    )


def confidences(probs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Summarise the confidence in each set of rows.

    Args:
        probs: `a` to `d`, by set.

    Returns:
        `rows`, and the `mean`, `min` and `median` probability of the chosen option; a line for each
        set.
    """
    lines = {}
    for name, frame in probs.items():
        confidence = option_matrix(frame).max(axis=1)  # [N]
        lines[name] = {
            "rows": len(confidence),
            "mean": confidence.mean(),
            "min": confidence.min(),
            "median": np.median(confidence),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def least_certain(rows: pd.DataFrame, probs: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the rows with the lowest confidence, at most `count`, the lowest first.

    Args:
        rows: such as those of test.csv.
        probs: `a` to `d`, in the order of `rows`.
        count: of rows at most.

    Returns:
        The rows' columns, the `chosen` letter and `p_chosen` (the confidence).
    """
    chosen = predictions(probs).to_numpy()
    confidence = option_matrix(probs).max(axis=1)  # [N]
    return rows.assign(chosen=chosen, p_chosen=confidence).nsmallest(count, "p_chosen")
