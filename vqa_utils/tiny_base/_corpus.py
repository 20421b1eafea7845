"""Draw the tiny base's corpus, scenes and questions, and tokenize it before the training."""

import itertools
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import Qwen3VLProcessor

from vqa_utils.data.groups import same_words
from vqa_utils.data.known.easy_vqa import all_questions
from vqa_utils.prompts import INSTRUCTION, chat, question_text
from vqa_utils.tiny_base._architecture import PATCH_PX, train_processor
from vqa_utils.tiny_base.scenes import SIDE_PX, ask, draw_scene

QUESTIONS = 4  # per scene
TOKENIZER_SCENES = 20_000  # the tokenizer learns from a question about each of these
IMAGE_TOKENS = (SIDE_PX // PATCH_PX // 2) ** 2  # patches are merged 2 x 2


class Example(NamedTuple):
    """A scene with its questions, ready for the model."""

    pixels: np.ndarray
    """uint8 [64, 64, 3]."""
    ids: list[list[int]]
    """The token ids of each question, up to its answer."""
    letters: list[int]
    """The token id of each answer's letter."""
    questions: list[str]


class Corpus(NamedTuple):
    """All scenes (S) with their questions (Q), on the device that trains."""

    pixels: torch.Tensor
    """uint8 [S, 64, 64, 3]."""
    ids: torch.Tensor
    """int16 [S, Q, L], padded on the left."""
    letters: torch.Tensor
    """The token ids of the right letters, [S, Q]."""


def make_processor(seed: int) -> Qwen3VLProcessor:
    """Train the tokenizer on questions as a chat has them, and join it with the image processor."""
    rng = random.Random(seed)
    texts = []
    for scene in range(TOKENIZER_SCENES):
        _, items = draw_scene(scene)
        text = question_text(ask(items, rng))
        # With the words of the chat template, so that they get tokens too
        texts.append(f"{INSTRUCTION}\nsystem\nuser\nassistant\n{text}")
    return train_processor(texts)


def make_example(processor: Qwen3VLProcessor, seed: int) -> Example:
    """Draw a scene, ask `QUESTIONS` about it, and tokenize them."""
    pixels, items = draw_scene(seed)
    rng = random.Random(seed)
    rows = [ask(items, rng) for _ in range(QUESTIONS)]
    chats = [chat(row) for row in rows]
    texts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    image_tokens = "<|image_pad|>" * IMAGE_TOKENS
    texts = [text.replace("<|image_pad|>", image_tokens) for text in texts]
    letters = processor.tokenizer.convert_tokens_to_ids([row["answer"] for row in rows])
    questions = [row["question"] for row in rows]
    return Example(pixels, processor.tokenizer(texts)["input_ids"], letters, questions)


def make_corpus(processor: Qwen3VLProcessor, scenes: int, device: str) -> Corpus:
    """Draw and tokenize all scenes.

    Raises:
        ValueError: some question has the words of one of easy-VQA's.
    """
    with ProcessPoolExecutor() as pool:
        seeds = range(scenes)
        examples = list(pool.map(make_example, itertools.repeat(processor), seeds, chunksize=500))
    refuse_shared_questions(itertools.chain.from_iterable(made.questions for made in examples))
    length = max(len(ids) for made in examples for ids in made.ids)
    pad = processor.tokenizer.pad_token_id
    # [S, Q, L]; int16 is enough for the vocabulary, and takes a quarter of int64
    padded = np.full((scenes, QUESTIONS, length), pad, np.int16)
    for scene, made in enumerate(examples):
        for question, ids in enumerate(made.ids):
            # Left padding: the last position predicts the letter in every row
            padded[scene, question, -len(ids) :] = ids
    return Corpus(
        # 12,288 bytes per scene: 2.3 GiB of GPU memory for 200,000
        torch.from_numpy(np.stack([made.pixels for made in examples])).to(device),
        torch.from_numpy(padded).to(device),
        torch.tensor([made.letters for made in examples]).to(device),
    )


def refuse_shared_questions(questions: Iterable[str]) -> None:
    """Check that no question has the words of one of easy-VQA's, which the demo tests with.

    Raises:
        ValueError: with some that do.
    """
    theirs = set(same_words(pd.Series(all_questions())))
    mine = pd.Series(sorted(set(questions)))
    shared = mine[same_words(mine).isin(theirs)]
    if len(shared):
        raise ValueError(
            f"expected questions in other words than easy-VQA's, found {len(shared)} of its own, "
            f"such as {list(shared[:3])}; change their texts in scenes.py"
        )
