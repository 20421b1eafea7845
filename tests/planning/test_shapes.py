import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.planning.shapes import (
    FAMILIES,
    GROUPS,
    ShapeError,
    group_of,
    published_config,
    read_shape,
)

PUBLISHED = (
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3-VL-32B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "Qwen/Qwen2.5-VL-3B-Instruct",
)


def parameters_of(config):
    """What transformers builds: names and shapes, on no device."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_every_family_is_known(family, tmp_path):
    config = CONFIG_MAPPING[family]()
    config.text_config.num_hidden_layers = 5
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:5]
    config.save_pretrained(tmp_path)
    shape = read_shape(json.loads((tmp_path / "config.json").read_text()))
    assert shape.parameters == parameters_of(config)


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_shipped_shapes_build_the_model_that_they_describe(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published_config(model)))
    built = parameters_of(AutoConfig.from_pretrained(tmp_path))
    assert read_shape(published_config(model)).parameters == built


def test_parameter_counts_are_the_published_ones():
    counts = {}
    for model in PUBLISHED:
        counts[model] = dict.fromkeys(GROUPS, 0)
        for name, shape in read_shape(published_config(model)).parameters.items():
            counts[model][group_of(name)] += torch.Size(shape).numel()
    billions = [round(sum(groups.values()) / 1e9, 2) for groups in counts.values()]
    assert billions == [31.07, 33.36, 8.77, 3.75]
    assert counts[PUBLISHED[0]]["experts"] == 48 * 128 * 3 * 2048 * 768  # 28.99 billion


def test_the_demo_is_a_small_mixture_of_experts():
    shape = read_shape(json.loads((DEMO_MODEL / "config.json").read_text()))
    assert (shape.experts, shape.experts_per_token, shape.deepstack_layers) == (8, 2, 2)


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"model_type": "llava"}, "llava"),
        ({"model_type": "qwen3_vl", "text_config": {}, "vision_config": {}}, "hidden_size"),
        ({"model_type": "qwen3_vl", "text_config": {}}, "vision_config"),
    ],
)
def test_a_config_without_a_plan_is_refused_by_name(config, missing):
    with pytest.raises(ShapeError, match=missing):
        read_shape(config)


def test_only_qwens_own_models_are_shipped():
    assert published_config("Qwen/Qwen3-VL-8B-Instruct")["model_type"] == "qwen3_vl"
    assert published_config("someone/Qwen3-VL-8B-Instruct") is None
