import functools
import random
import re

import easy_vqa
import pytest
import torch
from bases import base_of, base_with_lora
from more_easy_vqa import write_extra
from PIL import Image
from transformers import AutoModelForImageTextToText

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import DEMO_MODEL, FoldPaths
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import make_folds
from vqa_utils.data.known.easy_vqa import write_challenge
from vqa_utils.data.pictures.images import image_hashes
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.metrics import accuracy, correct, mcnemar
from vqa_utils.model.adapter import load_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import load_processor
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS, chat
from vqa_utils.scoring.fold import score_fold
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.tiny_base import _corpus
from vqa_utils.tiny_base import _fast_forward as fast
from vqa_utils.tiny_base._corpus import make_example
from vqa_utils.tiny_base.scenes import SIDE_PX, ask, draw_scene
from vqa_utils.training.fold import train_fold


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    images = tmp_path_factory.mktemp("demo") / "images.csv"
    return load_challenge(preset("demo"), images=images)


def test_the_challenge_is_easy_vqa_with_its_kinds_in_balance(demo):
    assert (len(demo.train), len(demo.test)) == (900, 300)
    kinds = question_kinds(demo.train)
    assert kinds.value_counts().between(290, 310).all() and set(kinds) == {
        "yes/no",
        "shape",
        "colour",
    }
    assert set(demo.train["question"]) <= set(easy_vqa.get_train_questions()[0])
    assert set(demo.test["question"]) <= set(easy_vqa.get_test_questions()[0])
    answers = demo.train[kinds == "yes/no"].apply(lambda row: row[row["answer"]], axis=1)
    assert answers.value_counts().to_dict() == {"yes": len(answers) / 2, "no": len(answers) / 2}
    assert demo.train["answer"].value_counts().between(200, 250).all()


def test_options_are_four_different_ones(demo):
    assert (demo.train[list(LETTERS)].nunique(axis=1) == 4).all()


def test_the_challenge_is_the_same_each_time(demo, tmp_path):
    folder = write_challenge(tmp_path)
    assert (folder / "train.csv").read_bytes() == (demo.folder / "train.csv").read_bytes()
    assert len(list(folder.glob("t*/*.png"))) == 1200


@pytest.mark.slow
def test_more_rows_to_train_on_are_training_questions_with_names_of_their_own(tmp_path, demo):
    config = preset("demo", extra_train=str(write_extra(tmp_path, count=30)))
    extra = load_challenge(config, images=tmp_path / "images.csv").extra
    assert len(extra) == 30 and question_kinds(extra).value_counts().between(8, 12).all()
    known = set(zip(*easy_vqa.get_train_questions()[:2], strict=True))
    assert {(row["question"], row[row["answer"]]) for row in extra.to_dict("records")} <= known
    pictures = image_hashes(tmp_path, extra["path"])
    assert (
        set(pictures) <= set(image_hashes(tmp_path, easy_vqa.get_train_image_paths().values()))
        and len(set(pictures)) > 10
    )


def test_the_base_never_saw_a_question_of_easy_vqa():
    rng = random.Random(0)
    mine = {ask(draw_scene(seed)[1], rng)["question"] for seed in range(10_000)}
    assert len(mine) > 400
    _corpus.refuse_shared_questions(mine)


def test_pretraining_refuses_a_question_of_easy_vqa(processor, monkeypatch):
    assert len(_corpus.make_corpus(processor, 3, "cpu").ids) == 3
    shared = easy_vqa.get_test_questions()[0][0]
    in_other_spelling = f"  {shared.upper()} !"
    monkeypatch.setattr(_corpus, "make_example", functools.partial(example_with, in_other_spelling))
    with pytest.raises(ValueError, match=re.escape(in_other_spelling)):
        _corpus.make_corpus(processor, 3, "cpu")


def example_with(question, processor, seed):
    """An example of the corpus that asks another question too."""
    made = make_example(processor, seed)
    return made._replace(questions=[*made.questions, question])


def test_questions_about_scenes_have_one_right_answer():
    rng = random.Random(1)
    for seed in range(300):
        _, items = draw_scene(seed)
        row = ask(items, rng)
        options = [row[letter] for letter in LETTERS]
        assert len(set(options)) == 4
        if row["question"].startswith("how many"):
            assert row[row["answer"]] == ("zero", "one", "two", "three")[len(items)]
        named = [item for item in items if f"is the {item.colour} {item.shape}?" in row["question"]]
        for item in named:
            right = {
                "left" if item.x < SIDE_PX / 2 else "right",
                "top" if item.y < SIDE_PX / 2 else "bottom",
            }
            assert len(right & set(options)) == 1 and row[row["answer"]] in right


def test_the_fast_forward_of_the_training_is_the_models_own(processor, monkeypatch):
    scenes = [draw_scene(seed) for seed in range(4)]
    rows = [ask(items, random.Random(seed)) for seed, (_, items) in enumerate(scenes)]
    texts = [
        processor.apply_chat_template(chat(row), tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    images = [Image.fromarray(pixels) for pixels, _ in scenes]
    batch = processor(
        text=texts,
        images=images,
        do_resize=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(**batch, logits_to_keep=1).logits
        attention = fast.qwen.Qwen3VLMoeVisionAttention
        monkeypatch.setattr(attention, "forward", attention.forward)  # undone after the test
        fast.use_fast_forward(model)
        assert attention.forward is fast.equal_images_attention
        pixels = torch.stack([torch.from_numpy(pixels) for pixels, _ in scenes])
        pad = processor.tokenizer.pad_token_id
        found = fast.forward(model, pixels, batch["input_ids"], pad).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_base_is_small_and_its_card_says_what_it_is():
    size = (DEMO_MODEL / "model.safetensors").stat().st_size
    assert 4e6 < size < 12e6
    card, record = (
        (DEMO_MODEL / "README.md").read_text(encoding="utf-8"),
        read_json(DEMO_MODEL / "training.json"),
    )
    assert "not Qwen's weights" in card
    for value in (
        f"{record['steps']:,}",
        f"{record['batch']}",
        f"seed {record['seed']}",
        f"{record['held_out_accuracy']}",
    ):
        assert value in card, value


@pytest.mark.slow
def test_a_fold_of_the_demo_reaches_its_floors(demo, tmp_path):
    config = preset("demo")
    folds = make_folds(demo.train, image_hashes(demo.folder, demo.train["path"]), config)
    held_out = demo.train[(folds["fold"] == 0).to_numpy()].reset_index(drop=True)
    encoder = Encoder(load_processor(config), demo.folder, config.image_side)
    train_fold(
        base_with_lora(config),
        config,
        encoder,
        demo.train[(folds["fold"] != 0).to_numpy()],
        held_out,
        FoldPaths(tmp_path),
    )
    model, _, _ = load_adapter(tmp_path / "adapter", config)
    questions = {"oof": held_out.drop(columns="answer")}
    probs = score_fold(model, encoder, questions, config, FoldPaths(tmp_path), FoldPaths(tmp_path))
    right = {name: correct(frame, held_out["answer"]) for name, frame in probs.items()}
    open_rows = (question_kinds(held_out) != "yes/no").to_numpy()
    assert right["oof"].mean() >= 0.85 and right["oof"][open_rows].mean() >= 0.75
    assert right["oof"].mean() - right["blank"].mean() >= 0.15
    assert (
        right["oof"].mean() > right["zero_shot"].mean()
        and mcnemar(right["oof"], right["zero_shot"]) < 0.01
    )


@pytest.mark.slow
def test_the_cards_zero_shot_accuracy_is_what_the_base_reaches(demo):
    config = preset("demo")
    encoder = Encoder(load_processor(config), demo.folder, config.image_side)
    probs = score_options(base_of(config), encoder, demo.train, ScoringSettings(batch_size=32))
    found = accuracy(probs, demo.train["answer"])
    card = (DEMO_MODEL / "README.md").read_text(encoding="utf-8")
    said = float(re.search(r"zero-shot accuracy of ([\d.]+)", card)[1])
    assert found == pytest.approx(said, abs=0.01) and found > 0.6
