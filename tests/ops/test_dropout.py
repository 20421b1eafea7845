import pytest
import torch

from vqa_utils.ops.dropout import dropout

P = 0.25


@pytest.fixture
def ones(device, dtype):
    return torch.ones(64, 4096, device=device, dtype=dtype)


def test_a_seed_draws_the_same_mask_again(ones, dtype):
    first = dropout(ones, P, 5)
    assert torch.equal(first, dropout(ones, P, 5))
    scale = torch.tensor(1 / (1 - P), dtype=dtype).item()
    assert set(first.unique().tolist()) == {0.0, scale}


def test_values_are_dropped_with_the_probability_and_independently(ones):
    kept, of_other_seed = dropout(ones, P, 5) > 0, dropout(ones, P, 6) > 0
    assert kept.float().mean().item() == pytest.approx(1 - P, abs=0.005)
    both = (kept & of_other_seed).float().mean().item()
    assert both == pytest.approx((1 - P) ** 2, abs=0.005)
    for shift in (1, 8, 4096):  # neighbours in a row, in a thread, in a column
        pairs = kept.flatten()[shift:] & kept.flatten()[:-shift]
        assert pairs.float().mean().item() == pytest.approx((1 - P) ** 2, abs=0.005)


def test_the_result_is_added_in_place(ones):
    onto = torch.full_like(ones, 2.0)
    assert dropout(ones, P, 5, onto=onto) is onto
    torch.testing.assert_close(onto, dropout(ones, P, 5) + 2)


def test_nothing_is_dropped_with_probability_0(ones):
    assert torch.equal(dropout(ones, 0.0, 5), ones)
