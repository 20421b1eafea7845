import numpy as np
import pandas as pd
import pytest
import torch

from vqa_utils.model import add_lora, load_base
from vqa_utils.paths import FoldPaths
from vqa_utils.prompts import LETTERS, chat
from vqa_utils.score import score_fold, score_options


def test_probabilities_do_not_depend_on_the_batch(base, encoder, challenge):
    rows = challenge.train.assign(question=[q + " 자세히 보세요." * (i % 3) for i, q in enumerate(challenge.train["question"])])
    one, many = (score_options(base, encoder, rows, batch_size=size) for size in (1, 7))
    assert list(one["id"]) == list(many["id"]) == list(rows["id"])
    alone = pd.concat([score_options(base, encoder, rows.iloc[[i]], batch_size=1) for i in range(len(rows))])
    np.testing.assert_allclose(one[list(LETTERS)], many[list(LETTERS)], atol=1e-4)
    np.testing.assert_allclose(alone[list(LETTERS)], many[list(LETTERS)], atol=1e-4)
    assert np.allclose(one[list(LETTERS)].sum(axis=1), 1)


def test_rows_of_like_length_are_scored_together(base, encoder, challenge, monkeypatch):
    rows = challenge.train.assign(question=[q + " 자세히 보세요." * (i % 3) for i, q in enumerate(challenge.train["question"])])
    masks, questions = [], encoder.questions
    monkeypatch.setattr(encoder, "questions", lambda *a, **k: masks.append((b := questions(*a, **k))["attention_mask"]) or b)
    score_options(base, encoder, rows, batch_size=4)
    assert sum(int((mask == 0).sum()) for mask in masks) == 30
    assert [mask.shape[1] for mask in masks] == sorted((mask.shape[1] for mask in masks), reverse=True)


def test_probabilities_are_the_softmax_of_the_four_letters_logits(base, encoder, challenge, processor):
    row = challenge.test.iloc[0]
    image = encoder.questions([row.to_dict()])
    text = processor.apply_chat_template(chat(row, None), tokenize=False, add_generation_prompt=True)
    ids = processor.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * 16), return_tensors="pt")
    with torch.no_grad():
        logits = base(**{**image, **ids}).logits[0, -1]
    expected = logits[processor.tokenizer.convert_tokens_to_ids(list(LETTERS))].double().softmax(-1)
    found = score_options(base, encoder, challenge.test.head(1), batch_size=4)[list(LETTERS)].to_numpy()[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_worker_processes_change_nothing(base, encoder, challenge):
    here, workers = (score_options(base, encoder, challenge.test, batch_size=3, num_workers=n) for n in (0, 2))
    pd.testing.assert_frame_equal(here, workers)


def test_answers_are_not_looked_at(base, encoder, challenge):
    rows = challenge.train.head(6)
    with_answers, without, wrong = (
        score_options(base, encoder, r, batch_size=3) for r in (rows, rows.drop(columns="answer"), rows.assign(answer="a"))
    )
    pd.testing.assert_frame_equal(with_answers, without)
    pd.testing.assert_frame_equal(with_answers, wrong)


def test_baselines_are_the_base_alone_and_the_adapter_without_pictures(base, config, encoder, challenge, tmp_path):
    model = add_lora(load_base(config), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    rows = challenge.train.head(6).drop(columns="answer")
    probs = score_fold(model.eval(), encoder, {"oof": rows}, config, FoldPaths(tmp_path))
    alone = score_options(base, encoder, rows, batch_size=32)[list(LETTERS)]
    blank = score_options(model, encoder, rows, batch_size=32, blank=True)[list(LETTERS)]
    np.testing.assert_allclose(probs["zero_shot"][list(LETTERS)], alone, atol=1e-6)
    np.testing.assert_allclose(probs["blank"][list(LETTERS)], blank, atol=1e-6)
    assert abs(probs["oof"][list(LETTERS)] - alone).to_numpy().max() > 0.05
    assert {path.name for path in tmp_path.iterdir()} == {f"probs_{name}.csv" for name in ("oof", "zero_shot", "blank")}


def test_the_picture_matters(base, encoder, challenge):
    seen, blank = (score_options(base, encoder, challenge.train, batch_size=8, blank=blank) for blank in (False, True))
    assert (seen[list(LETTERS)] - blank[list(LETTERS)]).abs().to_numpy().max() > 0.1


def test_an_image_that_is_gone_stops_the_scoring(base, encoder, challenge):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        score_options(base, encoder, challenge.test.head(2).assign(path="nothing.png"), batch_size=2)
