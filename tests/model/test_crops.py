"""Parts of each picture, shown after it at its size."""

import dataclasses

import numpy as np
import pytest
import torch
from bases import base_with_lora
from PIL import Image

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.probabilities import option_matrix
from vqa_utils.data.pictures.crops import crop_boxes
from vqa_utils.metrics import log_loss
from vqa_utils.model.adapter import load_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.planning.batches import batch_of, batches_of
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset
from vqa_utils.prompts import Prompt
from vqa_utils.scoring import options
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.training.fold import train_fold

QUARTERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]  # of a picture, row by row


@pytest.fixture
def folder(tmp_path):
    """A folder with a wide picture in four colours."""
    picture = Image.new("RGB", (160, 80))
    for number, colour in enumerate(QUARTERS):
        row, column = divmod(number, 2)
        picture.paste(colour, (80 * column, 40 * row, 80 * column + 80, 40 * row + 40))
    picture.save(tmp_path / "quarters.png")
    return tmp_path


@pytest.fixture
def row(challenge):
    return {**challenge.train.iloc[0].to_dict(), "path": "quarters.png"}


@pytest.fixture
def cropped(config):
    return dataclasses.replace(config, crops=2)


@pytest.fixture
def encoder(cropped, processor, challenge):
    return Encoder(processor, challenge.folder, cropped.image_side, cropped.prompt)


def colours_of(pixels, images):
    """The middle colour of each of an encoded row's images, 0 to 255."""
    of_images = pixels.unflatten(1, (3, -1)).chunk(images)  # each [patches, 3, values]
    values = [((image + 1) * 127.5).transpose(0, 1).flatten(1).median(1) for image in of_images]
    return [tuple(value.values.round().int().tolist()) for value in values]


def test_each_part_is_as_large_as_the_whole(folder, processor, row):
    batch = Encoder(processor, folder, 64, Prompt(crops=2)).questions([row])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 10]] * 5  # patches of 8 px
    whole, *parts = colours_of(batch["pixel_values"], 5)
    assert parts == QUARTERS and whole not in QUARTERS


def test_the_whole_is_what_it_is_without_them(folder, processor, row):
    whole, seen = (
        Encoder(processor, folder, 64, Prompt(crops=crops)).questions([row]) for crops in (0, 2)
    )
    patches = len(whole["pixel_values"])
    assert torch.equal(seen["pixel_values"][:patches], whole["pixel_values"])


def test_parts_leave_nothing_out():
    boxes = crop_boxes(100, 70, 3)
    assert len(boxes) == 9 and boxes[0][:2] == (0, 0) and boxes[-1][2:] == (100, 70)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    assert sum(areas) == pytest.approx(7000) and min(areas) == pytest.approx(max(areas))


@pytest.mark.parametrize("crops", [2, 3])
def test_the_tokens_are_those_that_are_counted(encoder, challenge, crops):
    encoder = encoder.closer(encoder.image_side, crops)
    rows = challenge.train.head(4).to_dict("records")
    frame = set()  # what the tiny base's chat lacks of `TEMPLATE_TOKENS`
    for one in (encoder, encoder.closer(encoder.image_side, 0)):
        encoded = one.questions(rows)["attention_mask"].sum(1)
        frame |= set((torch.tensor(one.lengths(rows)) - encoded).tolist())
    assert len(frame) == 1
    images = 1 + crops**2
    assert encoder.most_image_tokens == images * 16 + 2 * (images - 1)


def test_an_encoder_that_looks_closer_leaves_the_first_as_it_was(encoder):
    closer = encoder.closer(96, 3)
    assert (closer.image_side, closer.prompt.crops) == (96, 3)
    assert (encoder.image_side, encoder.prompt.crops) == (64, 2)


@pytest.mark.slow
def test_orders_that_share_a_pass_equal_full_passes(base, encoder, challenge, monkeypatch):
    settings, rows = ScoringSettings(batch_size=3, orders=4), challenge.train.head(6)
    together = score_options(base, encoder, rows, settings)
    monkeypatch.setattr(options, "can_share", lambda model: False)
    apart = score_options(base, encoder, rows, settings)
    np.testing.assert_allclose(option_matrix(together), option_matrix(apart), atol=1e-4)


@pytest.mark.slow
def test_a_fold_is_trained_and_scored_with_them(cropped, encoder, challenge, tmp_path):
    rows = challenge.train.head(8), challenge.train.tail(4)
    paths = FoldPaths(tmp_path / "fold0")
    meta = train_fold(base_with_lora(cropped), cropped, encoder, *rows, paths)
    model, _, found = load_adapter(paths.adapter, cropped)
    assert meta["steps"] == 2 and found.crops == 2
    with_crops, without = (
        log_loss(
            score_options(model, one, rows[1], ScoringSettings(batch_size=4)), rows[1]["answer"]
        )
        for one in (encoder, encoder.closer(encoder.image_side, 0))
    )
    assert with_crops == pytest.approx(meta["epochs"][0]["log_loss"], abs=1e-3)
    assert abs(without - with_crops) > 1e-2


@pytest.mark.parametrize("crops", [2, 3])
def test_the_plan_counts_them(crops):
    images = 1 + crops**2
    config = preset("safe", crops=crops, score_batch=8, text_tokens=100, longest_test=700)
    shape = shape_of(config)
    batch = batch_of(shape, config, 4)
    whole = batch_of(shape, preset("safe", text_tokens=100), 4)
    assert batch.image_tokens == images * whole.image_tokens == images * 144
    assert batch.text_tokens == whole.text_tokens + 2 * (images - 1)
    assert [one.images for one in batches_of(shape, config, 1)] == [images] * 2
