"""Join several option orders of a row into one forward pass.

Image and question come first in the prompt and are the same in every order, so a row costs them
once. A batch costs the launches and the weights' bytes of one pass, for any number of orders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature

from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.prompts import LETTERS, cyclic_order, reorder_options

TokenIds = list[int]

# A token's segment: padding, the shared prefix, or an order (FIRST_ORDER + its number)
PADDING, PREFIX, FIRST_ORDER = 0, 1, 2


def shifts_of(orders: int) -> tuple[int, ...]:
    """Return by how many positions each of 1, 2 or 4 cyclic orders rotates the options."""
    step = len(LETTERS) // orders
    return tuple(range(0, len(LETTERS), step))  # (0,), (0, 2) or (0, 1, 2, 3)


def in_order(rows: Sequence[Row], shift: int) -> list[Row]:
    """Return the rows with their options rotated by `shift` positions."""
    order = cyclic_order(shift)
    return [reorder_options(row, order) for row in rows]


def can_share(model: nn.Module) -> bool:
    """Tell whether a mask alone keeps tokens apart in every layer.

    Linear attention passes a state from token to token, past any mask.
    """
    # A config without layer_types has attention in every layer
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return "linear_attention" not in layer_types


def encode_orders(encoder: Encoder, rows: Sequence[Row], shifts: Sequence[int]) -> BatchFeature:
    """Encode the rows like `Encoder.questions`, once for all the orders in `shifts`."""
    prompts = [encoder.prompt_ids(in_order(rows, shift)) for shift in shifts]  # [orders][B] ids
    first_order = encoder.questions(in_order(rows, shifts[0]))
    pad = encoder.processor.tokenizer.pad_token_id
    return BatchFeature(in_one_sequence(first_order, prompts, pad))


def in_one_sequence(
    batch: Mapping[str, torch.Tensor], prompts: Sequence[Sequence[TokenIds]], pad: int
) -> dict[str, Any]:
    r"""Join the orders of each row after their common prefix.

    A row is a tree: one trunk (the prefix: chat, image, question) and one branch per order (its
    suffix: the options).

                                  .- a. red  b. blue ...     order 0
        <chat> <image> <question> +
                                  '- a. blue b. red  ...     order 1

    The joined sequence lays the tree flat. P is the longest prefix of the batch, S the longest
    suffix. Every part is left-padded, so that an order's suffixes end in the same column. Two rows
    in two orders, with P = 5 and S = 3:

                    prefix       order 0    order 1
        row 0     . p p p p  |   s s s   |  . s s        . is padding
        row 1     p p p p p  |   . s s   |  s s s
        segment   0 1 1 1 1  |   2 2 2   |  0 3 3        of row 0
        position  0 0 1 2 3  |   4 5 6   |  0 4 5        of row 0: branches go on from the trunk
        kept                         ^          ^        logits of the next token, the letter

    Args:
        batch: the rows in the first order from the encoder, left-padded, with `position_ids`
            [3, B, L].
        prompts: [orders][B] token ids without padding; an image is one token there.
        pad: the padding token.

    Returns:
        The batch, with T = P + orders * S: input_ids, mm_token_type_ids [B, T], position_ids
        [3, B, T], `segments` [B, T] in place of the attention mask, and `logits_to_keep`, the last
        column of each order.
    """
    suffixes = []  # [B][orders] token ids
    for prompts_of_row in zip(*prompts, strict=True):
        common = common_prefix_length(prompts_of_row)
        suffixes.append([ids[common:] for ids in prompts_of_row])

    # The prefix comes from the encoded row in the first order: there an image has all its tokens
    length = batch["input_ids"].shape[1]
    prefix_columns = [length - len(of_row[0]) for of_row in suffixes]  # [B], padding included
    longest_suffix = max(len(ids) for of_row in suffixes for ids in of_row)
    tree = OrderTree(
        rows=len(suffixes),
        orders=len(prompts),
        prefix_length=max(prefix_columns),
        suffix_length=longest_suffix,
        pad=pad,
    )
    for row, of_row in enumerate(suffixes):
        tree.place_prefix(row, batch, prefix_columns[row])
        for order, ids in enumerate(of_row):
            tree.place_suffix(row, order, ids)

    rest = {name: value for name, value in batch.items() if name != "attention_mask"}
    return rest | tree.as_inputs()


def common_prefix_length(prompts: Sequence[TokenIds]) -> int:
    """Count the tokens shared by all prompts' starts; leave each prompt at least one token."""
    shortest = min(len(ids) for ids in prompts)
    for position in range(shortest - 1):
        tokens = {ids[position] for ids in prompts}
        if len(tokens) > 1:
            return position
    return shortest - 1


class OrderTree:
    """The joined sequences of a batch, filled row by row; see `in_one_sequence` for a drawing."""

    def __init__(self, *, rows: int, orders: int, prefix_length: int, suffix_length: int, pad: int):
        """Make sequences of padding alone."""
        self.orders = orders
        self.prefix_length = prefix_length  # P
        self.suffix_length = suffix_length  # S
        total = prefix_length + orders * suffix_length  # T
        self.input_ids = torch.full((rows, total), pad)  # [B, T]
        self.token_types = torch.zeros(rows, total, dtype=torch.long)  # [B, T], 1 at image tokens
        self.segments = torch.full((rows, total), PADDING)  # [B, T]
        self.positions = torch.zeros(3, rows, total, dtype=torch.long)  # [3, B, T]

    def place_prefix(self, row: int, batch: Mapping[str, torch.Tensor], columns: int) -> None:
        """Copy the first `columns` of an encoded row to the end of the prefix's columns."""
        target = slice(self.prefix_length - columns, self.prefix_length)
        self.input_ids[row, target] = batch["input_ids"][row, :columns]
        self.token_types[row, target] = batch["mm_token_type_ids"][row, :columns]
        # A mask of 0 becomes PADDING
        self.segments[row, target] = batch["attention_mask"][row, :columns] * PREFIX
        self.positions[:, row, target] = batch["position_ids"][:, row, :columns]

    def place_suffix(self, row: int, order: int, ids: TokenIds) -> None:
        """Put an order's own tokens, all of them text, at the end of that order's columns."""
        end = self.suffix_end(order)
        target = slice(end - len(ids), end)
        self.input_ids[row, target] = torch.tensor(ids)
        self.segments[row, target] = FIRST_ORDER + order
        # The prefix ends in text, after the image: its last position is its highest
        prefix_end = self.positions[:, row, self.prefix_length - 1, None]  # [3, 1]
        # Text: time, row and column count up together, [3, n]
        self.positions[:, row, target] = prefix_end + torch.arange(1, len(ids) + 1)

    def suffix_end(self, order: int) -> int:
        """Return the end of an order's columns (exclusive)."""
        return self.prefix_length + (order + 1) * self.suffix_length

    def as_inputs(self) -> dict[str, Any]:
        """Return the sequences by the model's names for them."""
        last_columns = [self.suffix_end(order) - 1 for order in range(self.orders)]
        return {
            "input_ids": self.input_ids,
            "mm_token_type_ids": self.token_types,
            "position_ids": self.positions,
            "segments": self.segments,
            # No tensor: accelerate would move it to the first GPU, and the head is on the last
            "logits_to_keep": last_columns,
        }


def tree_mask(segments: torch.Tensor) -> torch.Tensor:
    """Make the attention mask [B, 1, T, T] (query, key) from `segments` [B, T].

    A token sees the prefix and its own order, up to itself. Padding sees only itself, since a
    softmax over nothing is NaN.
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]  # [B, T, 1], [B, 1, T]
    same_branch = (key == query) | (key == PREFIX)  # [B, T, T]
    square = torch.ones(length, length, dtype=torch.bool, device=segments.device)  # [T, T]
    visible = same_branch & (key != PADDING) & square.tril()  # [B, T, T]
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)  # [T, T]
    return (visible | itself)[:, None]  # [B, 1, T, T]
