"""A vision tower that has run before all else, in fp16. `python -m pytest -m gpu` where there is a GPU."""

import dataclasses
import gc

import pytest
import torch
from lending import lent_here

from vqa_utils.model.features.encoding import pictures_of
from vqa_utils.model.features.stand_in import store_of
from vqa_utils.model.lending import lender
from vqa_utils.model.loading import (
    base_key,
    compute_dtype,
    feature_store,
    load_base,
    load_packed,
    with_features,
)
from vqa_utils.planning.plan import memory_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def cached(config, tmp_path):
    kept = str(tmp_path / "kept")
    return dataclasses.replace(config, max_memory=("10GB",), cache_features=True, cache_dir=kept)


@pytest.fixture
def pictures(challenge):
    return pictures_of(challenge.folder, [challenge.train, challenge.test])


def answers(model, encoder, challenge):
    batch = encoder.for_model(model).questions(challenge.train.to_dict("records"))
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        return model(**batch.to("cuda"), logits_to_keep=1).logits.float()


def test_features_answer_as_the_tower_does_in_fp16(cached, encoder, challenge, pictures):
    with_tower = dataclasses.replace(cached, cache_features=False)
    wanted = answers(load_base(with_tower, memory_plan(with_tower)), encoder, challenge)
    model = load_base(cached, memory_plan(cached), pictures)
    features = store_of(model).read(pictures.folder / pictures.paths[0], encoder.view).tokens
    assert features.dtype == torch.float16 and features.isfinite().all()
    found = answers(model, encoder, challenge)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=5e-2)


def test_the_tower_leaves_no_memory_behind(cached, pictures):
    with_tower = dataclasses.replace(cached, cache_features=False)
    taken = []
    for config in (with_tower, cached) * 2:  # the first loads allocate what stays for all
        gc.collect()  # a model's hooks make cycles
        before = torch.cuda.memory_allocated()
        model = load_base(config, memory_plan(config), pictures)
        taken.append(torch.cuda.memory_allocated() - before)
        tower = [p for name, p in model.named_parameters() if "visual" in name]
        if tower:
            size = sum(p.numel() * p.element_size() for p in tower)
        del model, tower
    assert taken[2] - taken[3] == pytest.approx(size, rel=0.05)


def test_a_base_is_lent_without_its_tower(cached, encoder, challenge, pictures):
    plan, dtype = memory_plan(cached), compute_dtype(cached)
    key = base_key(cached, dtype, feature_store(cached, dtype, pictures))
    base, memories = lender.lend(with_features(load_packed(cached, plan), cached, pictures), key)
    with lent_here(base, memories) as server:
        found = answers(load_base(cached, plan, pictures), encoder, challenge)
        assert server.lent == 1
    wanted = answers(load_base(cached, plan, pictures), encoder, challenge)
    assert torch.equal(found, wanted)
