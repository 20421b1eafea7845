import numpy as np
import pandas as pd
import pytest
import torch

from vqa_utils.prompts import LETTERS, cyclic_order, reorder_options
from vqa_utils.scoring._orders import in_one_sequence, shifts_of, tree_mask
from vqa_utils.scoring.options import score_options


@pytest.fixture(scope="module")
def rows(challenge):
    """Questions and options of uneven lengths."""
    rows = challenge.train.head(7)
    more = [" 자세히 보세요." * (number % 3) for number in range(len(rows))]
    return rows.assign(
        question=rows["question"] + more,
        c=rows["c"] + [" 아니요" * (number % 2) for number in range(len(rows))],
    )


def turned_rows(rows, shift):
    return pd.DataFrame(
        [reorder_options(row, cyclic_order(shift)) for row in rows.to_dict("records")]
    )


@pytest.mark.parametrize("orders", [2, 4])
def test_orders_that_share_a_pass_equal_full_passes(base, encoder, rows, orders, monkeypatch):
    full = np.zeros((len(rows), 4))
    for shift in shifts_of(orders):
        probs = score_options(base, encoder, turned_rows(rows, shift), batch_size=3)
        for place in range(4):
            full[:, (place + shift) % 4] += probs[LETTERS[place]] / orders
    forward, lengths = type(base).forward, []

    def count(self, input_ids, **inputs):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(base), "forward", count)
    together = score_options(base, encoder, rows, batch_size=3, orders=orders)
    np.testing.assert_allclose(together[list(LETTERS)], full, atol=1e-4)
    assert len(lengths) == 3  # one pass a batch
    alone = score_options(base, encoder, rows, batch_size=3)[list(LETTERS)].to_numpy()
    assert np.abs(alone - full).max() > 1e-3


def test_turning_a_rows_options_changes_no_mean_over_all_orders(base, encoder, rows):
    as_asked, turned_once = (
        score_options(base, encoder, r, batch_size=4, orders=4)
        for r in (rows, turned_rows(rows, 1))
    )
    np.testing.assert_allclose(
        turned_once[list(LETTERS)], as_asked[["b", "c", "d", "a"]], atol=1e-4
    )


def test_an_order_sees_what_is_shared_and_itself():
    mask = tree_mask(torch.tensor([[0, 1, 1, 2, 0, 3]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]


def test_the_sequence_of_two_orders():
    batch = {
        "input_ids": torch.tensor([[0, 5, 6, 7, 8], [5, 5, 6, 9, 8]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 0, 1, 2, 3], [0, 0, 2, 3, 4]]).expand(3, 2, 5),
        "pixel_values": torch.zeros(3),
    }
    joined = in_one_sequence(
        batch, [[[5, 6, 7, 8], [5, 5, 6, 9, 8]], [[5, 6, 8, 7], [5, 5, 6, 8]]], pad=0
    )
    assert joined["input_ids"].tolist() == [[0, 5, 6, 7, 8, 8, 7], [5, 5, 6, 9, 8, 0, 8]]
    assert joined["segments"].tolist() == [[0, 1, 1, 2, 2, 3, 3], [1, 1, 1, 2, 2, 0, 3]]
    assert joined["position_ids"][2].tolist() == [[0, 0, 1, 2, 3, 2, 3], [0, 0, 2, 3, 4, 0, 3]]
    assert joined["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    assert joined["logits_to_keep"] == [
        4,
        6,
    ]  # not a tensor, which accelerate would put on the first of two GPUs
    assert "attention_mask" not in joined and "pixel_values" in joined
