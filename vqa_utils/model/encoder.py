"""Rows and images -> the model's tensors, with labels where the model learns."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from qwen_vl_utils.vision_process import smart_resize
from transformers import BatchFeature, ProcessorMixin

from vqa_utils.data.images import open_image
from vqa_utils.prompts import LETTERS, chat, instruction_of, question_text

IGNORED = -100  # the label that the loss passes over
BLANK = (
    128,
    128,
    128,
)  # the picture of the no-image baseline: mid-grey, of the size of the one it stands for
Row = dict[str, Any]


class Encoder:
    """Makes batches of rows: `questions` for scoring, `examples` for training. Picklable, for DataLoader workers."""

    def __init__(self, processor: ProcessorMixin, folder: Path, image_side: int):
        """`folder` is what the rows' `path` is relative to; an image gets at most `image_side` squared pixels."""
        self.processor, self.folder, self.image_side = processor, folder, image_side
        self.blank = False  # see `blanked`
        letter_token_ids(processor)  # raises where a letter is not one token

    def blanked(self) -> "Encoder":
        """One that shows a grey picture of the same size in place of each."""
        other = copy.copy(self)
        other.blank = True
        return other

    def questions(self, rows: Sequence[Row]) -> BatchFeature:
        """Left-padded prompts that end where the answer's letter follows.

        Args:
            rows: `path`, `question`, `a` to `d`.

        Returns:
            input_ids, attention_mask [B, L], pixel_values, image_grid_thw and what else the processor gives.
        """
        return self._encode([self._chat(row, None) for row in rows], add_generation_prompt=True)

    def prompt_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids of the rows' prompts without padding; an image is one token."""
        texts = [self._render(chat(row, None), True) for row in rows]
        return self.processor.tokenizer(texts)["input_ids"]

    def examples(self, rows: Sequence[Row]) -> BatchFeature:
        """Like `questions`, with the answer's turn appended, and `labels` [B, L] that are -100 but on the letter.

        `logits_to_keep` says how many last positions the loss needs: the one before the letter and what follows.

        Raises:
            ValueError: the label of the batch's first row does not decode to its answer.
        """
        batch = self._encode(
            [self._chat(row, row["answer"]) for row in rows], add_generation_prompt=False
        )
        from_end = len(self._after_letter()) + 1
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[:, -from_end] = batch["input_ids"][:, -from_end]
        decoded = self.processor.tokenizer.decode(labels[0][labels[0] != IGNORED])
        if decoded != rows[0]["answer"]:
            raise ValueError(
                f"id {rows[0].get('id')}: expected the label {rows[0]['answer']!r}, found {decoded!r}; the chat template does "
                "not put the assistant's text right before its end marker"
            )
        batch["labels"], batch["logits_to_keep"] = labels, from_end + 1
        return batch

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """How many tokens each row becomes, but for the chat's frame, which all have; of an image, only the header is read."""
        if not rows:  # which the tokenizer cannot take
            return []
        images = {
            path: self._image_tokens(self.folder / path) for path in {row["path"] for row in rows}
        }
        texts = self.processor.tokenizer([question_text(row) for row in rows])["input_ids"]
        instructions = self.processor.tokenizer([instruction_of(row) for row in rows])["input_ids"]
        parts = zip(rows, texts, instructions, strict=True)
        return [
            images[row["path"]] + len(text) + len(instruction) for row, text, instruction in parts
        ]

    def _image_tokens(self, path: Path) -> int:
        with Image.open(path) as image:
            width, height = image.size
        sides = smart_resize(
            height, width, self._factor, min_pixels=self._factor**2, max_pixels=self.image_side**2
        )
        return math.prod(sides) // self._factor**2

    def _chat(self, row: Row, answer: str | None) -> list[dict]:
        image = open_image(self.folder / row["path"])
        if self.blank:
            image = Image.new("RGB", image.size, BLANK)
        return chat(
            row, image, answer=answer, max_pixels=self.image_side**2, min_pixels=self._factor**2
        )

    def _encode(self, chats: list[list[dict]], *, add_generation_prompt: bool) -> BatchFeature:
        images, _ = process_vision_info(
            chats, image_patch_size=self.processor.image_processor.patch_size
        )
        texts = [self._render(messages, add_generation_prompt) for messages in chats]
        batch = self.processor(
            text=texts,
            images=images,
            do_resize=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        grids = batch["image_grid_thw"][:, 1:] // self.processor.image_processor.merge_size
        batch["position_ids"] = rope_positions(
            batch["mm_token_type_ids"], batch["attention_mask"], grids
        )
        return batch

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _after_letter(self) -> list[int]:
        """The token ids that end the assistant's turn, behind the letter."""
        row = {"question": "", **dict.fromkeys(LETTERS, "")}
        prompt = self._render(chat(row, None), True)
        full = self._render(chat(row, None, answer="a"), False)
        if not full.startswith(prompt + "a"):
            raise ValueError(
                f"expected the chat with an answer to go on from the prompt {prompt!r}, found {full!r}"
            )
        return self.processor.tokenizer(full[len(prompt) + 1 :], add_special_tokens=False)[
            "input_ids"
        ]

    @property
    def _factor(self) -> int:
        """Images have sides of a multiple of this many px: a merged patch."""
        images = self.processor.image_processor
        return images.patch_size * images.merge_size


def rope_positions(types: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """The multimodal rotary positions of rows with one image each, as the models' `get_rope_index` has them.

    That one goes through the rows in Python on the GPU, with synchronisations; this one runs where batches are made.

    Args:
        types: [B, L], 1 at image tokens.
        mask: [B, L], 0 at the padding on the left.
        grids: [B, 2], the image tokens' rows and columns.

    Returns:
        [3, B, L]: time, row and column. Text counts up in all three, an image's rows and columns count from where it starts,
        and the text behind goes on from the longer side; 0 at padding.
    """
    is_image = types.bool() & mask.bool()
    nth_image, nth_text = is_image.cumsum(1) - 1, (mask.bool() & ~is_image).cumsum(1) - 1
    start = (mask.bool() & ~is_image & (nth_image < 0)).sum(
        1, keepdim=True
    )  # of the image: the text before it
    columns = grids[:, 1:]
    text = nth_text + torch.where(nth_image < 0, 0, grids.amax(1, keepdim=True))
    image = torch.stack(
        [start.expand_as(types), start + nth_image // columns, start + nth_image % columns]
    )
    return torch.where(is_image, image, text).masked_fill(mask == 0, 0)


def letter_token_ids(processor: ProcessorMixin) -> list[int]:
    """The tokens of the letters a to d.

    Raises:
        ValueError: a letter is not one token of the tokenizer.
    """
    ids = [processor.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(
            f"expected one token for each of the letters {LETTERS}, found {ids}; use another tokenizer"
        )
    return [tokens[0] for tokens in ids]
