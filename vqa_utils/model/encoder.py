"""Turn rows and images into the model's tensors, with labels where the model learns."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from tokenizers.decoders import DecodeStream
from torch import nn
from transformers import BatchFeature, ProcessorMixin

from vqa_utils.data.pictures.copies import open_picture, picture_size
from vqa_utils.data.pictures.crops import crop_boxes
from vqa_utils.data.pictures.prepared import PreparedPictures
from vqa_utils.data.plain_text import as_plain_text, marks_of
from vqa_utils.model.features.stand_in import store_of
from vqa_utils.model.features.store import FeatureStore
from vqa_utils.ops.rotary import rope_positions
from vqa_utils.prompts import (
    LETTERS,
    TEMPLATE_TOKENS,
    USUAL,
    Prompt,
    chat,
    instruction_of,
    question_text,
    text_before_image,
)

IGNORED = -100  # the label that the loss passes over
PIECE = "…"  # shown for a token that begins a character, which a later token completes
NO_WORDS = {"question": "", **dict.fromkeys(LETTERS, "")}  # a row
BLANK = (128, 128, 128)  # the picture of the no-image baseline: mid-grey
Row = dict[str, Any]


class Encoder:
    """Makes batches of rows: `questions` for scoring, `examples` for training.

    A mark of the chat's own in a row's words, such as <|im_end|>, is text.

    Picklable, for DataLoader workers.
    """

    def __init__(
        self, processor: ProcessorMixin, folder: Path, image_side: int, prompt: Prompt = USUAL
    ):
        """Make an encoder.

        Args:
            processor: of the base.
            folder: the rows' `path` is relative to it.
            image_side: an image gets at most its square in pixels.
            prompt: of the run; its crops are shown at the size of the whole picture.

        Raises:
            ValueError: a letter is not one token.
        """
        self.processor = processor
        self.folder = folder
        self.image_side = image_side
        self.prompt = prompt
        self.blank = False  # see `blanked`
        self._store: FeatureStore | None = None  # see `for_model`
        self._prepared = self.prepared_in(processor.tokenizer.name_or_path)
        self._marks = marks_of(processor.tokenizer.get_added_vocab())
        letter_token_ids(processor)  # for its check, before any batch is made

    def blanked(self) -> "Encoder":
        """Return an encoder that shows a grey picture of the same size in place of each."""
        other = copy.copy(self)
        other.blank = True
        return other

    def closer(self, image_side: int, crops: int) -> "Encoder":
        """Return an encoder that shows images with at most this side's square in pixels, and crops."""
        other = copy.copy(self)
        other.image_side = image_side
        other.prompt = self.prompt._replace(crops=crops)
        other._prepared = other.prepared_in(self.processor.tokenizer.name_or_path)
        return other

    def for_model(self, model: nn.Module) -> "Encoder":
        """Return an encoder of what a model takes: pixels, or features of its store."""
        other = copy.copy(self)
        other._store = store_of(model)
        return other

    def questions(self, rows: Sequence[Row]) -> BatchFeature:
        """Encode prompts, padded on the left, that end where the answer's letter follows.

        Args:
            rows: `path`, `question`, `a` to `d`.

        Returns:
            input_ids, attention_mask, mm_token_type_ids [B, L], position_ids [3, B, L],
            pixel_values (see `pixels`, or of a store [image tokens of all rows, 1 + D, H]) and
            image_grid_thw [B * images, 3].
        """
        return self._encode(rows, [None] * len(rows))

    def pixels(self, paths: Sequence[str]) -> BatchFeature:
        """Return pictures as the vision tower takes them, each with its crops after it.

        Returns:
            pixel_values [patches of all images, pixels of a patch] and image_grid_thw [images, 3],
            their frames (1), rows and columns of patches.
        """
        images = [image for path in paths for image in self._images(path)]  # of their size by now
        return self.processor.image_processor(images=images, do_resize=False, return_tensors="pt")

    def prepared_in(self, base: str | Path) -> PreparedPictures:
        """Name the place of pictures as they are shown in the folder of a base."""
        return PreparedPictures.of(base, self.image_side, self._factor)

    def prepare(self, path: str, pictures: PreparedPictures) -> None:
        """Keep a picture as it is shown, and its crops."""
        pictures.write(self.folder / path, self._resized(self.folder / path))

    def prompt_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the token ids of the rows' prompts without padding; an image is one token."""
        chats = [chat(self._plain(row), prompt=self.prompt) for row in rows]
        texts = [self._render(messages, add_generation_prompt=True) for messages in chats]
        return self.processor.tokenizer(texts)["input_ids"]

    def examples(self, rows: Sequence[Row]) -> BatchFeature:
        """Encode prompts as `questions` does, with the answer's turn after them.

        Returns:
            Also `labels` [B, L], -100 but for the letter, and `logits_to_keep`: how many last
            positions the loss needs, which are the one before the letter and all that follow.

        Raises:
            ValueError: the label of the batch's first row does not decode to its answer.
        """
        batch = self._encode(rows, [row["answer"] for row in rows])
        from_end = len(self._after_letter()) + 1  # the letter's position
        labels = torch.full_like(batch["input_ids"], IGNORED)
        # Rows are padded on the left, so the letters of all rows are in one column
        labels[:, -from_end] = batch["input_ids"][:, -from_end]
        decoded = self.processor.tokenizer.decode(labels[0][labels[0] != IGNORED])
        if decoded != rows[0]["answer"]:
            raise ValueError(
                f"id {rows[0].get('id')}: expected the label {rows[0]['answer']!r}, "
                f"found {decoded!r}; the chat template does not put the assistant's text "
                "right before its end marker"
            )
        batch["labels"] = labels
        batch["logits_to_keep"] = from_end + 1  # logits at a position predict the next one
        return batch

    def example_tokens(self, row: Row) -> tuple[list[str], list[bool]]:
        """Return the tokens of a row's example as text, and for each if it has a label.

        Rare syllables of Hangul are several tokens: all but the last are `PIECE`.
        """
        example = self.examples([row])
        tokenizer = self.processor.tokenizer.backend_tokenizer
        stream = DecodeStream(skip_special_tokens=False)
        ids = example["input_ids"][0].tolist()
        tokens = [stream.step(tokenizer, token) or PIECE for token in ids]
        is_label = example["labels"][0] != IGNORED  # [L]
        return tokens, is_label.tolist()

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Count each row's tokens: images, words, chat template. Reads image headers only."""
        if not rows:
            return []  # the tokenizer cannot take none
        tokenizer = self.processor.tokenizer
        rows = [self._plain(row) for row in rows]
        before = [text_before_image(row, self.prompt) for row in rows]
        after = [question_text(row) for row in rows]
        texts = tokenizer([a + b for a, b in zip(before, after, strict=True)])["input_ids"]
        instructions = tokenizer([instruction_of(row) for row in rows])["input_ids"]
        image_tokens: dict[str, int] = {}
        lengths = []
        for row, text, instruction in zip(rows, texts, instructions, strict=True):
            path = row["path"]
            if path not in image_tokens:
                image_tokens[path] = self._image_tokens(self.folder / path)
            lengths.append(image_tokens[path] + len(text) + len(instruction) + TEMPLATE_TOKENS)
        return lengths

    def measured(self, rows: Sequence[Row]) -> list[Row]:
        """Add to each row its `length` in tokens."""
        lengths = self.lengths(rows)
        return [{**row, "length": length} for row, length in zip(rows, lengths, strict=True)]

    @property
    def view(self) -> str:
        """Name how pictures are shown."""
        return f"{self.image_side} px, crops {self.prompt.crops}"

    @property
    def most_image_tokens(self) -> int:
        """The most tokens of a row's images, with the marks between them."""
        return self._of_all_images(math.ceil(self.image_side**2 / self._factor**2))

    def _image_tokens(self, path: Path) -> int:
        """Count the tokens of a row's images after resizing: one for each merged patch."""
        return self._of_all_images(math.prod(self._size(*picture_size(path))) // self._factor**2)

    def _of_all_images(self, of_one: int) -> int:
        return self.prompt.images * of_one + self.prompt.image_marks

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height in px that an image is resized to, multiples of the factor.

        One too long for its share of the pixels becomes a row of patches; qwen_vl_utils would make
        it 0 px high.
        """
        most = self.image_side**2
        sides = smart_resize(
            height, width, self._factor, min_pixels=self._factor**2, max_pixels=most
        )
        if 0 not in sides:
            return sides[1], sides[0]
        longest = most // self._factor**2 * self._factor
        return (longest, self._factor) if width > height else (self._factor, longest)

    def _images(self, path: str) -> list[Image.Image]:
        """Open a picture as it is shown, and its crops; `blanked`, grey ones of that size."""
        picture = self.folder / path
        shown = self._prepared.read(picture, self.prompt.crops) or self._resized(picture)
        if self.blank:
            return [Image.new("RGB", image.size, BLANK) for image in shown]
        return shown

    def _resized(self, path: Path) -> list[Image.Image]:
        """Open a picture at the size in which it is shown, and its crops at the same size."""
        picture = open_picture(path, self.image_side * max(1, self.prompt.crops))
        # As qwen_vl_utils would, but to the size for the whole picture, if this is a reduced copy
        size = self._size(picture.width, picture.height)
        whole = picture.image
        boxes = crop_boxes(*whole.size, self.prompt.crops)
        return [whole.resize(size), *(whole.resize(size, box=box) for box in boxes)]

    def _encode(self, rows: Sequence[Row], answers: Sequence[str | None]) -> BatchFeature:
        """Encode rows with their answers, or without any.

        As the processor would, which takes no features in place of images.
        """
        images = self._pictures([row["path"] for row in rows])
        merge = self.processor.image_processor.merge_size
        # [B, 2]; all images of a row have the same
        grids = images["image_grid_thw"][:: self.prompt.images, 1:] // merge
        mark = self.processor.image_token
        texts = []
        for row, answer, image_tokens in zip(rows, answers, grids.prod(1).tolist(), strict=True):
            messages = chat(self._plain(row), answer, self.prompt)
            text = self._render(messages, add_generation_prompt=answer is None)
            # Its words have no marks
            texts.append(text.replace(mark, mark * image_tokens))
        words = self.processor.tokenizer(
            texts, padding=True, padding_side="left", return_tensors="pt"
        )
        batch = BatchFeature({**words, **images})
        is_image = batch["input_ids"] == self.processor.image_token_id
        batch["mm_token_type_ids"] = is_image.long()
        batch["position_ids"] = rope_positions(is_image.long(), batch["attention_mask"], grids)
        return batch

    def _plain(self, row: Row) -> Row:
        """Return a row with its instruction, and no mark in its words."""
        return as_plain_text({"instruction": self.prompt.instruction, **row}, self._marks)

    def _pictures(self, paths: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Return pictures' pixels, or their features of the store, and the grids of all images."""
        if self._store is None:
            return self.pixels(paths)
        files = [self.folder / path for path in paths]
        features = [self._store.read(file, self.view, grey=self.blank) for file in files]
        tokens = torch.cat([picture.tokens for picture in features])
        grids = torch.cat([picture.grids for picture in features])
        # Under the names that the model has for pixels: a `StoredFeatures` gets them
        return {"pixel_values": tokens, "image_grid_thw": grids}

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _after_letter(self) -> list[int]:
        """Return the token ids that end the assistant's turn, after the letter."""
        prompt = self._render(chat(NO_WORDS), add_generation_prompt=True)
        full = self._render(chat(NO_WORDS, answer="a"), add_generation_prompt=False)
        if not full.startswith(prompt + "a"):
            raise ValueError(
                "expected the chat with an answer to go on from the prompt "
                f"{prompt!r}, found {full!r}"
            )
        ending = full[len(prompt) + 1 :]
        return self.processor.tokenizer(ending, add_special_tokens=False)["input_ids"]

    @property
    def _factor(self) -> int:
        """The sides of images are multiples of this many px: a merged patch."""
        images = self.processor.image_processor
        return images.patch_size * images.merge_size


def letter_token_ids(processor: ProcessorMixin) -> list[int]:
    """Return the tokens of the letters a to d.

    Raises:
        ValueError: a letter is not one token of the tokenizer.
    """
    ids = [processor.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(
            f"expected one token for each of the letters {LETTERS}, found {ids}; "
            "use another tokenizer"
        )
    return [tokens[0] for tokens in ids]
