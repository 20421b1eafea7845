"""Small folders of models as the hub has them, for the tests of sources."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vqa_utils.planning.source.check import SourceError, check_source

SHARDS = [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]


def write_model(folder, shards=("model.safetensors",)):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    weight_map = {}
    for i, shard in enumerate(shards):
        tensors = {f"layer{i}": np.ones((4, 4), np.float16), f"bias{i}": np.ones(4, np.float16)}
        save_file(tensors, folder / shard)
        weight_map.update(dict.fromkeys(tensors, shard))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def problem(model, check=check_source):
    """The message with which a check refuses a model; it begins with the model's name."""
    with pytest.raises(SourceError) as caught:
        check(str(model))
    message = str(caught.value)
    assert str(model) in message.partition("\n")[0]
    return message
