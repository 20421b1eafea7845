import torch

from vqa_utils.ops.token_rows import spread_rows, sum_rows


def test_tokens_are_copied_to_each_of_their_slots(device, dtype):
    torch.manual_seed(0)
    tokens = torch.randn(9, 24, device=device).to(dtype)
    index = torch.randperm(40, device=device)[:36].view(9, 4)  # four slots are padding
    rows = spread_rows(tokens, index, 40)
    assert rows.shape == (40, 24) and rows.dtype == dtype
    assert torch.equal(rows[index], tokens[:, None].expand(9, 4, 24))
    # A view of each second row, as a gradient may be
    assert torch.equal(spread_rows(tokens[::2], index[::2], 40)[index[::2]], rows[index[::2]])


def test_the_rows_of_each_token_are_added(device, dtype):
    torch.manual_seed(0)
    rows = torch.randn(50, 24, device=device).to(dtype)
    index = torch.randint(50, (9, 4), device=device)
    expected = rows.float()[index].sum(1)
    torch.testing.assert_close(sum_rows(rows, index).float(), expected, rtol=1e-5, atol=1e-5)


def test_rows_are_added_onto_a_residual_stream(device, dtype):
    torch.manual_seed(0)
    rows = torch.randn(50, 24, device=device).to(dtype)
    stream = torch.randn(9, 24, device=device)
    index = torch.randint(50, (9, 4), device=device)
    before = stream.clone()
    found = sum_rows(rows, index, onto=stream)
    expected = stream + rows.float()[index].sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(stream, before)
