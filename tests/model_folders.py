"""Small folders as the hub has them, and what is said of them: for the tests of sources."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vqa_utils.planning._source import SourceError, check_source

SHARDS = [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
NO_FILE = "found no such file; get a whole model in the format of transformers"
CONVERT = "convert them: AutoModelForImageTextToText.from_pretrained({!r}).save_pretrained(NEW_DIR), and copy the"


def write_model(folder, shards=("model.safetensors",)):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    for i, shard in enumerate(shards):
        save_file(
            {f"layer{i}": np.ones((4, 4), np.float16), f"bias{i}": np.ones(4, np.float16)},
            folder / shard,
        )
    if len(shards) > 1:
        weight_map = {
            f"{kind}{i}": shard for i, shard in enumerate(shards) for kind in ("layer", "bias")
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def problem(model, check=check_source):
    with pytest.raises(SourceError) as caught:
        check(str(model))
    return str(caught.value)
