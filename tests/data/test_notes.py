"""Odd pictures are named by the ids of the rows that show them."""

import numpy as np
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from PIL import Image

from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.pictures.notes import SHOWN, describe_notes
from vqa_utils.presets import preset


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=9, test=3)


def described(folder):
    config = preset("demo", data=str(folder))
    return describe_notes(load_challenge(config, images=folder.parent / "images.csv"))


def test_plain_pictures_have_no_ids(folder):
    said = described(folder)
    ids = pd.read_csv(folder / "train.csv", dtype=str)["id"]
    assert said and not any(id_ in said for id_ in ids)


def test_pictures_of_one_colour_and_of_12_bits_are_named(folder):
    Image.new("RGB", (64, 64), "red").save(folder / "images/train_0002.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "images/test_0010.png")
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "images/train_0004.png")
    for _ in range(2):  # read, and from images.csv
        deep, plain = sorted(described(folder).splitlines())
        assert "12 bits" in deep and "train_0004" in deep and "train_0002" not in deep
        assert "one colour" in plain and "train_0002" in plain and "test_0010" in plain
        assert "train_0003" not in plain


def test_of_many_ids_some_are_named_and_all_counted(folder):
    for path in (folder / "images").iterdir():
        Image.new("RGB", (64, 64), "red").save(path)
    [line] = described(folder).splitlines()
    assert "12 rows" in line and line.count("train_") == SHOWN
