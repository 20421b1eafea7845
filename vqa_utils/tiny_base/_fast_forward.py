"""Compute a batch of equal images without loops over images and experts."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen

from vqa_utils.tiny_base._architecture import PATCH_PX
from vqa_utils.tiny_base.scenes import SIDE_PX

GRID = SIDE_PX // PATCH_PX  # patches along a side
CELLS = GRID // 2  # along a side, after patches are merged 2 x 2: an image has 4 * 4 tokens


def use_fast_forward(model: PreTrainedModel) -> None:
    """Replace the forward of the experts of this model, and of every vision tower's attention."""
    ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
    model.set_experts_implementation("dense")
    attention: Any = qwen.Qwen3VLMoeVisionAttention
    attention.forward = equal_images_attention


def dense_experts(
    module: Any, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Compute all experts for every token, weighted by the router.

    Eight small experts are faster so than with tokens sorted by expert.

    Args:
        module: the model's experts.
        x: [T, H].
        top_k_index: the router's choice, [T, k].
        top_k_weights: [T, k].

    Returns:
        [T, H].
    """
    # t: token, h: hidden, e: expert, o: gate and up (2 I), i: intermediate (I)
    gate, up = torch.einsum("th,eoh->eto", x, module.gate_up_proj).chunk(2, -1)  # [E, T, I] each
    y = torch.einsum("eti,ehi->eth", module.act_fn(gate) * up, module.down_proj)  # [E, T, H]
    none = torch.zeros(len(x), module.num_experts, device=x.device, dtype=y.dtype)
    share = none.scatter(1, top_k_index, top_k_weights.to(y.dtype))  # [T, E]
    return torch.einsum("eth,te->th", y, share)


def equal_images_attention(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, ...],
    **kwargs: Any,
) -> torch.Tensor:
    """Attend within each image of one batch of equal sizes, in one call instead of a loop.

    Takes the place of the forward of the vision tower's attention.
    """
    qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # [N, 3, heads, d]
    q, k, v = qkv.unbind(1)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    by_image = []
    for x in (q, k, v):
        images = x.to(v.dtype).unflatten(0, (-1, GRID * GRID))  # [B, patches, heads, d]
        by_image.append(images.transpose(1, 2))
    out = F.scaled_dot_product_attention(*by_image)  # [B, heads, patches, d]
    return self.proj(out.transpose(1, 2).flatten(2).flatten(0, 1))


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """Cut images as Qwen2VLImageProcessor does: uint8 [B, 64, 64, 3] -> [B * 64, 3 * 2 * 8 * 8].

    A patch's values are in the order channel, frame, row, column; the four patches of a cell follow
    each other, since the model merges them to one token:

        0  1 | 4  5 | ...
        2  3 | 6  7 | ...
    """
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, 64, 64], -1 to 1
    # [B, channel, cell row, patch row, px row, cell column, patch column, px column]
    x = x.reshape(len(x), 3, CELLS, 2, PATCH_PX, CELLS, 2, PATCH_PX)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, cell row, cell column, 2, 2, 3, 8, 8]
    x = x.unsqueeze(6).expand(*[-1] * 6, 2, -1, -1)  # a still image is a clip of two equal frames
    return x.reshape(len(pixels) * GRID * GRID, -1)


def rope_positions(ids: torch.Tensor, pad: int, image: int) -> torch.Tensor:
    """Compute multimodal positions without a loop: [3, B, L], for time, row and column.

    Text counts on in all three. An image of 4 x 4 tokens that starts at position p is at time p, in
    rows p to p + 3 and columns p to p + 3; the text after it goes on at p + 4.

    Args:
        ids: [B, L], padded on the left; each row has one image of one size.
        pad: the token id of the padding.
        image: the token id of an image's tokens.
    """
    is_image = ids == image
    index = (ids != pad).long().cumsum(1) - 1  # [B, L], among the tokens without padding
    first = torch.where(is_image, index, index.shape[1]).min(1, keepdim=True).values  # [B, 1]
    is_after = index >= first + CELLS**2
    # An image has CELLS**2 tokens, but moves the text on by CELLS positions
    text = torch.where(is_after, index - CELLS**2 + CELLS, index)
    cell = (index - first).clamp(0, CELLS**2 - 1)  # [B, L]; of image tokens, row by row
    grid = torch.stack([first + 0 * cell, first + cell // CELLS, first + cell % CELLS])
    return torch.where(is_image, grid, text.clamp(min=0))  # padding is at -1, masked anyway


def forward(model: PreTrainedModel, pixels: torch.Tensor, ids: torch.Tensor, pad: int) -> Any:
    """Run the model; its output has logits [B, 1, V] at the last position, and the router's loss.

    The images go to the vision tower as one clip of B frames: it treats frames alike, and computes
    them without a loop.
    """
    return model(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        position_ids=rope_positions(ids, pad, model.config.image_token_id),
        pixel_values=patches(pixels),
        # [1, 3]: frames, rows and columns, in patches
        image_grid_thw=torch.tensor([[len(pixels), GRID, GRID]], device=ids.device),
        logits_to_keep=1,
        output_router_logits=True,
    )
