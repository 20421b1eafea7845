import numpy as np
import pandas as pd
import pytest
import torch

from vqa_utils.metrics import option_matrix
from vqa_utils.prompts import cyclic_order
from vqa_utils.scoring._orders import (
    common_prefix_length,
    in_one_sequence,
    in_order,
    shifts_of,
    tree_mask,
)
from vqa_utils.scoring.options import ScoringSettings, score_options


@pytest.fixture(scope="module")
def rows(challenge):
    """Questions and options of uneven lengths."""
    rows = challenge.train.head(7)
    more = [" 자세히 보세요." * (number % 3) for number in range(len(rows))]
    longer = [" 아니요" * (number % 2) for number in range(len(rows))]
    return rows.assign(question=rows["question"] + more, c=rows["c"] + longer)


def turned_rows(rows, shift):
    return pd.DataFrame(in_order(rows.to_dict("records"), shift))


def test_orders_are_spread_evenly_over_the_letters():
    assert shifts_of(1) == (0,)
    assert shifts_of(2) == (0, 2)
    assert shifts_of(4) == (0, 1, 2, 3)


@pytest.mark.parametrize("orders", [2, 4])
@pytest.mark.slow
def test_orders_that_share_a_pass_equal_full_passes(base, encoder, rows, orders, monkeypatch):
    one_order = ScoringSettings(batch_size=3)
    full = np.zeros((len(rows), 4))
    for shift in shifts_of(orders):
        probs = option_matrix(score_options(base, encoder, turned_rows(rows, shift), one_order))
        full[:, cyclic_order(shift)] += probs / orders

    forward = type(base).forward
    lengths = []

    def count(self, input_ids, **inputs):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(base), "forward", count)
    together = score_options(base, encoder, rows, ScoringSettings(batch_size=3, orders=orders))
    np.testing.assert_allclose(option_matrix(together), full, atol=1e-4)
    assert len(lengths) == 3  # one pass per batch
    alone = option_matrix(score_options(base, encoder, rows, one_order))
    assert np.abs(alone - full).max() > 1e-3  # more than the tolerance: orders differ


def test_turning_a_rows_options_changes_no_mean_over_all_orders(base, encoder, rows):
    settings = ScoringSettings(batch_size=4, orders=4)
    as_asked = score_options(base, encoder, rows, settings)
    turned_once = score_options(base, encoder, turned_rows(rows, 1), settings)
    expected = option_matrix(as_asked)[:, cyclic_order(1)]
    np.testing.assert_allclose(option_matrix(turned_once), expected, atol=1e-4)


def test_an_order_sees_the_prefix_and_itself():
    mask = tree_mask(torch.tensor([[0, 1, 1, 2, 0, 3]]))  # [1, 1, 6, 6]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[5, 6, 7, 8], [5, 6, 8, 7]], 2),
        ([[5, 6, 7], [5, 6]], 1),  # a token of its own is left to the shorter
        ([[5, 6, 7], [5, 6, 7]], 2),  # and to equal ones
        ([[5, 6], [7, 6]], 0),
    ],
)
def test_the_common_prefix_leaves_each_prompt_a_token(prompts, expected):
    assert common_prefix_length(prompts) == expected


def test_two_rows_in_two_orders_are_joined_as_drawn():
    batch = {
        "input_ids": torch.tensor([[0, 5, 6, 7, 8], [5, 5, 6, 9, 8]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 0, 1, 2, 3], [0, 0, 2, 3, 4]]).expand(3, 2, 5),
        "pixel_values": torch.zeros(3),
    }
    first_order = [[5, 6, 7, 8], [5, 5, 6, 9, 8]]
    second_order = [[5, 6, 8, 7], [5, 5, 6, 8]]
    joined = in_one_sequence(batch, [first_order, second_order], pad=0)
    #                        prefix  | 1st | 2nd order
    assert joined["input_ids"].tolist() == [
        [0, 5, 6, 7, 8, 8, 7],
        [5, 5, 6, 9, 8, 0, 8],
    ]
    assert joined["segments"].tolist() == [
        [0, 1, 1, 2, 2, 3, 3],
        [1, 1, 1, 2, 2, 0, 3],
    ]
    assert joined["position_ids"][2].tolist() == [
        [0, 0, 1, 2, 3, 2, 3],
        [0, 0, 2, 3, 4, 0, 3],
    ]
    assert joined["mm_token_type_ids"].tolist() == [
        [0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
    ]
    # No tensor, since accelerate would move it to the first of two GPUs
    assert joined["logits_to_keep"] == [4, 6]
    assert "attention_mask" not in joined
    assert "pixel_values" in joined
