import re

import pytest
import torch
from bases import base_of
from bitsandbytes.nn import Linear4bit
from torch import nn

from vqa_utils.model.loading_check import LoadError, check_loaded, loaded_weights
from vqa_utils.model.nf4 import quantizer
from vqa_utils.planning.shapes import GROUPS


def test_the_loaded_weights_are_the_planned_ones(config, base):
    table = loaded_weights(base, config).set_index("weights")
    assert list(table.index) == [group for group in GROUPS if group != "mlp"]
    assert set(table["on"]) == {"cpu"}
    assert table.loc[["experts", "attention"], "kept as"].tolist() == ["NF4", "NF4"]
    kept_wide = table.loc[["vision", "head", "embeddings"], "kept as"]
    assert kept_wide.unique().tolist() == ["float32"]  # a CPU has no fp16
    assert (table["loaded GiB"] - table["planned GiB"]).abs().max() < 0.001


def test_an_fp16_base_has_fp32_norms(config):
    table = loaded_weights(base_of(config, torch.float16), config).set_index("weights")
    assert table.loc["vision", "kept as"] == "float16 + float32"
    assert table.loc["norms and router", "kept as"] == "float32"


def test_experts_that_stay_in_16_bits_are_an_error(config, monkeypatch):
    # What bitsandbytes' own config does
    monkeypatch.setattr(quantizer, "_is_fused_experts", lambda module: False)
    with pytest.raises(LoadError) as error:
        base_of(config)
    first, *_, last = str(error.value).splitlines()[1:]
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert name in first and "4 bits" in first and "float32" in first
    assert re.search(r"\b4\b", last)  # of eight tensors and the group, five are named


def test_an_attention_in_16_bits_is_an_error(config):
    model = base_of(config)
    layer = model.model.language_model.layers[1].self_attn
    assert isinstance(layer.q_proj, Linear4bit)
    layer.q_proj = nn.Linear(256, 256, bias=False)
    with pytest.raises(LoadError, match=r"layers\.1\.self_attn\.q_proj\.weight: .*float32"):
        check_loaded(model, config, None)


def test_a_weight_on_another_device_than_the_maps_is_an_error(config):
    model = base_of(config)
    model.hf_device_map = {"model.visual": "cpu", "model.language_model": 1, "lm_head": "cpu"}
    with pytest.raises(LoadError, match=r"embed_tokens\.weight: .*cuda:1.*cpu") as error:
        check_loaded(model, config, None)
    assert "model.visual" not in str(error.value)


def test_a_planned_weight_that_is_missing_is_an_error(config):
    model = base_of(config)
    del model.model.language_model.layers[0].self_attn.q_norm
    with pytest.raises(LoadError, match=r"layers\.0\.self_attn\.q_norm\.weight"):
        check_loaded(model, config, None)


def test_a_group_of_another_size_is_an_error(config):
    model = base_of(config)
    model.lm_head = nn.Linear(256, 640 * 8, bias=False)
    with pytest.raises(LoadError, match=r"head: .*0\.\d+ GiB.*0\.\d+ GiB"):
        check_loaded(model, config, None)
