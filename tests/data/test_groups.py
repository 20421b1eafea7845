"""Rows that stay together, and notebook 02, which notices if they do not."""

import dataclasses
import io
import runpy
import shutil

import numpy as np
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from PIL import Image
from sklearn.datasets import load_sample_image

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import NOTEBOOKS, RunPaths
from vqa_utils.config import to_dict
from vqa_utils.data import folds as folds_module
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import FoldError, leaks, make_folds
from vqa_utils.data.groups import (
    HINT_BITS,
    describe_groups,
    describe_near_leaks,
    near_groups,
    near_leaks,
    row_groups,
    same_words,
)
from vqa_utils.data.pictures.images import perceptual_hash, read_images
from vqa_utils.presets import preset
from vqa_utils.setting_types import ConfigError


def with_bits(*bits):
    return f"{sum(1 << bit for bit in bits):016x}"


def differ(a, b):
    return (int(a, 16) ^ int(b, 16)).bit_count()


@pytest.fixture(scope="module")
def photos():
    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_copies_of_a_photograph_are_near_and_others_are_far(photos):
    china, flower = (perceptual_hash(photo) for photo in photos.values())
    assert differ(china, flower) > 20
    for photo, found in zip(photos.values(), (china, flower), strict=True):
        assert differ(found, perceptual_hash(as_jpeg(photo, 50))) <= HINT_BITS
        assert (
            differ(found, perceptual_hash(photo.resize((photo.width // 3, photo.height // 3))))
            <= HINT_BITS
        )
    assert perceptual_hash(Image.new("RGB", (9, 9), "red")) == perceptual_hash(
        Image.new("L", (50, 40), 200)
    )


def test_a_file_gets_both_hashes_as_the_model_sees_it(photos, tmp_path):
    photo = photos["china"]
    photo.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=90)
    images = read_images(tmp_path, ["plain.png", "turned.jpg"])
    assert (
        images["perceptual_hash"]["plain.png"] == perceptual_hash(photo)
        and images["problem"].eq("").all()
    )
    assert differ(*images["perceptual_hash"]) <= HINT_BITS and images["hash"].nunique() == 2


def test_groups_do_not_chain():
    steps = [
        with_bits(*range(n)) for n in range(0, 41, 2)
    ]  # each 2 bits from the next, the last 40 from the first
    groups = near_groups(steps, 4)
    assert len(set(groups)) == 7
    for group in set(groups):
        inside = [h for h, g in zip(steps, groups, strict=True) if g == group]
        assert all(differ(a, b) <= 8 for a in inside for b in inside) and all(
            differ(inside[0], h) <= 4 for h in inside
        )


def test_a_tie_goes_to_the_first_leader():
    first, second, between = with_bits(), with_bits(0, 1, 2, 3), with_bits(0, 1)
    assert near_groups([first, second, between], 2).tolist() == [0, 1, 0]
    assert near_groups([second, first, between, between], 2).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bits", [0, 1, 3, 8, 10])
def test_bands_find_what_comparing_all_pairs_does(bits):
    rng = np.random.default_rng(bits)
    centres = rng.integers(0, 2**63, 30)
    hashes = []
    for centre in centres:
        for count in range(12):
            flipped = sum(1 << int(bit) for bit in rng.choice(64, count, replace=False))
            hashes.append(f"{int(centre) ^ flipped:016x}")
    folds = pd.DataFrame(
        {"id": [str(i) for i in range(len(hashes))], "fold": rng.integers(0, 3, len(hashes))}
    )
    expected = [
        i for i, h in enumerate(hashes) if any(differ(h, o) <= bits and folds["fold"][i] != folds["fold"][j] for j, o in enumerate(hashes))
    ]  # fmt: skip
    assert near_leaks(folds, pd.Series(hashes), bits).tolist() == [str(i) for i in expected]


@pytest.fixture
def folder(tmp_path, photos):
    """24 rows; the pictures of rows 0 and 1 are equal, that of row 2 is their copy in another size, all three a photograph's."""
    folder = write_korean_challenge(tmp_path / "data")
    photos["china"].save(folder / "images/train_0000.png")
    shutil.copy(folder / "images/train_0000.png", folder / "images/train_0001.png")
    photos["china"].resize((300, 200)).save(folder / "images/train_0002.png")
    return folder


def groups_of(folder, **changes):
    config = preset("demo", data=str(folder), **changes)
    return row_groups(load_challenge(config, images=folder / "images.csv"), config)


def test_rows_are_grouped_by_file_by_look_or_by_question(folder):
    exact, near = groups_of(folder), groups_of(folder, near_duplicates=2)
    assert exact[0] == exact[1] != exact[2] and len(set(exact)) == 23
    assert near[0] == near[1] == near[2] == exact[0]
    assert len(set(groups_of(folder, group_questions=True))) == 1  # all ask for the colour
    train = pd.read_csv(folder / "train.csv")
    train["question"] = [f"{i}?" for i in range(3)] + [
        ["X  y", "x Y?"][i % 2] if i < 9 else f"{i}" for i in range(3, 24)
    ]
    train.to_csv(folder / "train.csv", index=False)
    asked = groups_of(folder, group_questions=True)
    assert len(set(asked[3:9])) == 1 and asked[0] == asked[1] and len(set(asked)) == 23 - 5


def test_questions_and_pictures_join_rows_on_and_on(folder):
    train = pd.read_csv(folder / "train.csv")
    train["question"] = [str(i) for i in range(24)]
    train.loc[[1, 5], "question"] = "same"  # row 1 has row 0's picture
    train.to_csv(folder / "train.csv", index=False)
    groups = groups_of(folder, group_questions=True)
    assert groups[0] == groups[1] == groups[5] and len(set(groups)) == 22


def test_rows_are_joined_by_the_words_that_they_are_trained_in_too(folder):
    train = pd.read_csv(folder / "train.csv")
    train["question"] = [str(i) for i in range(24)]
    train.to_csv(folder / "train.csv", index=False)
    pd.DataFrame({"id": ["train_0002", "train_0007"], "question": ["9?", "so?"]}).to_csv(
        folder / "paraphrases.csv", index=False
    )
    groups = groups_of(folder, group_questions=True, paraphrase=True)
    assert groups[2] == groups[9] and len(set(groups)) == 22
    assert (
        len(set(groups_of(folder, group_questions=True)))
        == len(set(groups_of(folder, paraphrase=True)))
        == 23
    )


def test_questions_are_compared_without_spelling():
    decomposed = "\u1100\u1161?"  # the same syllable, in two code points
    words = same_words(
        pd.Series(
            ["What COLOUR is it?", " what colour_is it", "가", decomposed, "what colour was it?"]
        )
    )
    assert words[0] == words[1] and words[2] == words[3] and words.nunique() == 3


def test_a_large_group_is_warned_of():
    small = describe_groups(["x", "x", *map(str, range(98))])
    assert "2 rows (2.0%)" in small and "Warning" not in small
    assert "\nWarning" in describe_groups(["x"] * 6 + [str(i) for i in range(94)])
    assert "Warning" not in describe_groups([str(i) for i in range(12)])  # a row alone is no group


def test_near_copies_in_other_folds_are_a_hint_or_a_rest():
    folds = pd.DataFrame({"id": ["r0", "r1", "r2"], "fold": [0, 1, 1]})
    found = near_leaks(folds, pd.Series([with_bits(), with_bits(3), with_bits(*range(30))]), 4)
    assert found.tolist() == ["r0", "r1"]
    hint = describe_near_leaks(found, 4, preset("demo"))
    assert hint.startswith("2 rows") and "r0, r1" in hint and "near_duplicates=4" in hint
    rest = describe_near_leaks(found, 4, preset("demo", near_duplicates=4))
    assert "r0, r1" in rest and "near_duplicates" not in rest


def test_only_few_bits_can_be_asked_for():
    with pytest.raises(ConfigError, match=r"near_duplicates.* 10 .* 11"):
        preset("demo", near_duplicates=11)


def run_02(folder, tmp_path, monkeypatch, make=make_folds, **changes):
    """Run notebook 02 in this process, with `make` in place of make_folds."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(folds_module, "make_folds", make)
    write_json(RunPaths("interactive").config, to_dict(preset("demo", data=str(folder), **changes)))
    runpy.run_path(str(NOTEBOOKS / "02_folds.py"))
    return pd.read_csv(RunPaths("interactive").folds)


def test_notebook_02_names_the_rows_of_a_picture_in_two_folds(
    folder, tmp_path, monkeypatch, capsys
):
    folds = run_02(folder, tmp_path, monkeypatch)
    assert leaks(folds).empty and folds["fold"][0] == folds["fold"][1]
    assert "within 4 of 64 bits" in capsys.readouterr().out

    def moved(train, groups, config):
        made = make_folds(train, groups, config)
        made.loc[0, "fold"] = (made.loc[1, "fold"] + 1) % 3
        return made

    with pytest.raises(FoldError, match=r"group.*\['train_0000', 'train_0001'\]"):
        run_02(folder, tmp_path, monkeypatch, moved)

    def without_groups(train, groups, config):
        return moved(train, [str(i) for i in range(len(train))], config)

    with pytest.raises(FoldError, match=r"contents.*\['train_0000', 'train_0001'\]"):
        run_02(folder, tmp_path, monkeypatch, without_groups)


def test_notebook_02_keeps_near_copies_together(folder, tmp_path, monkeypatch):
    for seed in range(3):
        folds = run_02(folder, tmp_path, monkeypatch, near_duplicates=2, seed=seed)
        assert folds["fold"][:3].nunique() == 1


def test_the_settings_of_groups_are_the_adapters():
    base = preset("demo")
    for changes in ({"near_duplicates": 4}, {"group_questions": True}):
        assert dataclasses.replace(base, **changes).training_hash != base.training_hash
