import dataclasses
import json
import re

import pytest

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT
from vqa_utils.config import USED_FROM, Config, from_dict, parse_settings, to_dict
from vqa_utils.presets import PRESETS, preset
from vqa_utils.setting_types import ConfigError, size_in_bytes

B30, B8, B3 = (
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "Qwen/Qwen2.5-VL-3B-Instruct",
)
TABLE = {
    # model, image side, r, alpha, micro-batch, accumulation, epochs, learning rate, max memory
    "safe": (B30, 384, 8, 16, "auto", 16, 2, 5e-5, ("14GB", "14GB")),
    "balanced": (B30, 448, 12, 24, "auto", 12, 3, 5e-5, ("14GB", "14GB")),
    "performance": (B30, 512, 16, 32, "auto", 16, 3, 5e-5, ("20GB", "20GB")),
    "low_memory": (B30, 320, 4, 8, 4, 8, 2, 5e-5, ("12GB", "12GB")),
    "single_gpu": (B3, 512, 16, 32, "auto", 8, 2, 1e-4, ("14GB",)),
    "dense_8b": (B8, 448, 16, 32, "auto", 16, 2, 1e-4, ("14GB",)),
}


@pytest.mark.parametrize("name", TABLE)
def test_presets_have_the_published_values(name):
    c = preset(name)
    found = (
        c.model,
        c.image_side,
        c.lora_r,
        c.lora_alpha,
        c.micro_batch,
        c.accumulation,
        c.epochs,
        c.learning_rate,
        c.max_memory,
    )
    assert found == TABLE[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_share_the_recipe(name):
    c = preset(name)
    assert (c.n_folds, c.quantization, c.use_double_quant, c.max_grad_norm) == (3, "nf4", True, 0.5)
    assert c.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert c.use_amp and c.use_gradient_checkpointing
    assert c.use_cpu_offload == (name == "low_memory")


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_json(name):
    assert from_dict(json.loads(json.dumps(to_dict(preset(name))))) == preset(name)


def test_the_hash_changes_with_every_setting():
    base = preset("safe")
    other = {
        bool: lambda v: not v,
        int: lambda v: v + 4,
        float: lambda v: v / 2,
        str: lambda v: v + "x",
        tuple: lambda v: (*v, "9GB"),
    }
    for field in dataclasses.fields(Config):
        value = getattr(base, field.name)
        others = {"quantization": "none", "micro_batch": 4, "score_batch": 4, "tta": 2,
                  "use_gradient_checkpointing": True, "calibrate": False, "ensemble": "vote"}  # fmt: skip
        if field.name in others:
            changed = dataclasses.replace(base, **{field.name: others[field.name]})
        else:
            changed = dataclasses.replace(base, **{field.name: other[type(value)](value)})
        assert changed.hash_for("06_analysis") != base.hash_for("06_analysis"), field.name


def test_every_setting_that_counts_from_a_notebook_on_is_one_and_the_notebook_is_there():
    assert set(USED_FROM) <= {f.name for f in dataclasses.fields(Config)}
    assert set(USED_FROM.values()) <= {path.stem for path in NOTEBOOKS.glob("*.ipynb")}


def test_no_setting_is_a_flag_that_nothing_reads():
    sources = [*ROOT.glob("vqa_utils/**/*.py"), ROOT / "run_all.py", *ROOT.glob("notebooks/*.py")]
    text = "\n".join(
        p.read_text(encoding="utf-8") for p in sources if p.name not in ("config.py", "presets.py")
    )
    unread = [
        f.name
        for f in dataclasses.fields(Config)
        if not re.search(rf"\b(config|c|base)\.{f.name}\b", text)
    ]
    read_by_config_itself = {"use_kfold", "n_folds"}  # as fold_numbers
    assert set(unread) <= read_by_config_itself


def test_a_micro_batch_is_a_number_or_auto():
    assert parse_settings(["micro_batch=auto"]) == {"micro_batch": "auto"} and parse_settings(
        ["micro_batch=4"]
    ) == {"micro_batch": 4}
    assert (
        preset("safe").effective_batch
        == preset("safe", micro_batch=4, accumulation=4).effective_batch
        == 16
    )
    assert preset("safe").with_micro_batch(8) == preset("safe", micro_batch=8, accumulation=2)
    with pytest.raises(
        ConfigError, match="micro_batch: expected a whole number or \"auto\", found 'many'"
    ):
        parse_settings(["micro_batch=many"])
    for wrong in ("many", 0, 1.5):
        with pytest.raises(ConfigError, match="micro_batch: expected"):
            preset("safe", micro_batch=wrong)


def test_all_problems_come_in_one_error():
    with pytest.raises(ConfigError) as error:
        preset("safe", n_folds=1, lora_dropout=2.0, max_memory=("14 gigs",))
    for name in ("n_folds", "lora_dropout", "max_memory"):
        assert name in str(error.value)


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(ConfigError, match=r"image_side: expected a whole number, found '448'"):
        preset("safe", image_side="448")
    with pytest.raises(ConfigError, match="use_amp: expected true or false, found 1"):
        preset("safe", use_amp=1)


def test_settings_of_the_command_line_have_the_fields_types():
    values = parse_settings(
        [
            "image_side=448",
            "learning_rate=1e-4",
            "use_amp=false",
            "max_memory=12GB, 15GB",
            "model=./m",
        ]
    )
    assert values == {
        "image_side": 448,
        "learning_rate": 1e-4,
        "use_amp": False,
        "max_memory": ("12GB", "15GB"),
        "model": "./m",
    }


def test_unknown_settings_and_wrong_values_are_listed_together():
    with pytest.raises(ConfigError) as error:
        parse_settings(["image_sid=3", "lora_r=many", "use_amp=perhaps"])
    message = str(error.value)
    assert "image_sid=3: expected NAME=VALUE" in message and "image_side" in message
    assert "lora_r: expected a whole number, found 'many'" in message
    assert "use_amp: expected true or false, found 'perhaps'" in message


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match="safe, balanced, performance"):
        preset("fast")


def test_a_saved_config_of_another_version_is_refused():
    values = to_dict(preset("demo"))
    with pytest.raises(
        ConfigError, match="it has colour, which this version does not know"
    ) as error:
        from_dict({k: v for k, v in values.items() if k != "seed"} | {"colour": 1})
    assert "it lacks seed, and what it did instead is not known" in str(
        error.value
    ) and "git_commit" in str(error.value)
    with pytest.raises(ConfigError, match="it lacks calibrate, seed,") as error:
        from_dict({k: v for k, v in values.items() if k not in ("seed", "calibrate")})
    assert "it has" not in str(error.value)


def test_gb_is_decimal_and_gib_binary():
    assert size_in_bytes("14GB") == 14_000_000_000
    assert size_in_bytes("13.5GiB") == int(13.5 * 2**30)


def test_a_single_split_trains_one_fold():
    assert preset("demo", use_kfold=False).fold_numbers == (0,)
    assert preset("demo", n_folds=5).fold_numbers == (0, 1, 2, 3, 4)
