import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.vision_utils import get_vision_position_ids

from vqa_utils.model.fast._shared import one_forward, shared
from vqa_utils.model.fast._vision import Rows, patch_positions
from vqa_utils.model.fast.table import When, use_fast_forwards

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
}


def tower(name):
    torch.manual_seed(0)
    if name == "qwen3_vl":
        vision = {
            **VISION,
            "out_hidden_size": 24,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 64,
        }
        return Qwen3VLModel._from_config(
            Qwen3VLConfig(vision_config=vision, text_config=TEXT)
        ).eval()
    vision = {**VISION, "out_hidden_size": 24, "window_size": 32, "fullatt_block_indexes": [1, 3]}
    return Qwen2_5_VLModel._from_config(
        Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT)
    ).eval()


TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 64}  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("grids", [[(6, 8)], [(4, 4), (4, 4)], [(6, 8), (4, 2), (2, 12)]])
def test_all_images_at_once_are_each_alone(name, grids):
    model = tower(name)
    grid = torch.tensor([(1, *sides) for sides in grids])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8)
    with torch.no_grad():
        expected = model.visual(pixels, grid_thw=grid)
        use_fast_forwards(model, When.ON_THE_BASE)
        for _ in range(2):  # the second has tensors of its own
            found = model.visual(pixels, grid_thw=grid.clone())
            torch.testing.assert_close(
                found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5
            )
    assert all("forward" in vars(block.attn) for block in model.visual.blocks)


def test_the_positions_of_patches_are_transformers_own():
    grids = torch.tensor([(1, 6, 8), (2, 4, 2), (1, 2, 12)])
    expected = get_vision_position_ids(grids, 2)
    assert torch.equal(patch_positions(grids, 2, len(expected)), expected)


def test_rows_of_uneven_images_and_back():
    rows = Rows(torch.tensor([0, 2, 5]))
    patches = torch.arange(5.0)[:, None, None]
    batch = rows.batch(patches)
    assert batch.shape == (2, 1, 3, 1) and rows.mask[:, 0, 0].tolist() == [
        [True, True, False],
        [True, True, True],
    ]
    assert rows.flatten(batch).flatten().tolist() == [0, 1, 2, 3, 4]


def test_layers_share_what_one_batch_needs(monkeypatch):
    made = []
    monkeypatch.setattr(
        "vqa_utils.model.fast._vision.Rows", lambda ends: made.append(len(ends)) or Rows(ends)
    )
    model = tower("qwen3_vl")
    use_fast_forwards(model, When.ON_THE_BASE)
    grid = torch.tensor([(1, 4, 4), (1, 2, 2)])
    with torch.no_grad():
        model.visual(torch.randn(20, 384), grid_thw=grid)
    assert made == [3]


def test_lengths_changed_in_place_are_seen_by_the_next_forward():
    ends, patches = torch.tensor([0, 2, 5]), torch.arange(5.0)[:, None, None]
    with one_forward():
        assert shared(ends, "rows", Rows).longest == 3
    ends[1] = 1
    with one_forward():
        rows = shared(ends, "rows", Rows)
        assert shared(ends, "rows", Rows) is rows
    assert rows.batch(patches)[:, 0, :, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert rows.mask[:, 0, 0].tolist() == [[True, False, False, False], [True] * 4]
