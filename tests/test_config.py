import dataclasses
import json
import math
import re

import pytest

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT
from vqa_utils.config import (
    NO_NOTEBOOK,
    NOT_OF_THE_ADAPTER,
    SETTINGS,
    TRACKERS,
    USED_FROM,
    Config,
    from_dict,
    parse_settings,
    to_dict,
)
from vqa_utils.presets import PRESETS, preset
from vqa_utils.setting_types import ConfigError, setting_text, size_in_bytes

B30, B32, B8, B3 = (
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3-VL-32B-Instruct",
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
    "dense_32b": (B32, 384, 8, 16, "auto", 16, 2, 5e-5, ("14GB", "14GB")),
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


CHOICES = {
    "cache_features": True,"quantization": "none", "folds_at_once": 2, "micro_batch": 4, "score_batch": 4, "tta": 2,
           "text_tokens": 90, "longest_text": 700, "longest_test": 700,
           "use_gradient_checkpointing": True, "calibrate": False, "ensemble": "vote",
           "report_to": ("wandb",), "lang": "ko", "second_look": 0.1, "second_look_side": 512, "crops": 2,
           "second_look_crops": 2}  # fmt: skip
# Settings that mean something with others alone
NEEDS = {
    "second_look": {"tta": 1},
    "second_look_side": {"tta": 1, "second_look": 0.1},
    "second_look_crops": {"tta": 1, "second_look": 0.1},
}
OTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 4,
    float: lambda value: value / 2,
    str: lambda value: value + "x",
    tuple: lambda value: (*value, "9GB"),
}


def changed(name):
    """The settings of `safe` with another value of one."""
    value = getattr(preset("safe"), name)
    other = CHOICES.get(name, OTHER[type(value)](value))
    return preset("safe", **NEEDS.get(name, {}), **{name: other})


@pytest.mark.parametrize("name", SETTINGS)
def test_the_hashes_change_with_a_setting_as_far_as_it_counts(name):
    base, other = preset("safe", **NEEDS.get(name, {})), changed(name)
    used_from = SETTINGS[name].used_from
    counts = other.hash_for("06_analysis") != base.hash_for("06_analysis")
    assert counts == (used_from != NO_NOTEBOOK)
    before_its_use = {"04_infer": "03_train_fold", "05_ensemble": "04_infer"}
    if used_from:
        earlier = before_its_use.get(used_from, "06_analysis")
        assert other.hash_for(earlier) == base.hash_for(earlier)
    is_of_adapter = other.training_hash != base.training_hash
    assert is_of_adapter == SETTINGS[name].of_adapter == (name not in NOT_OF_THE_ADAPTER)


def test_every_setting_says_its_meaning_and_from_which_notebook_on_it_counts():
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(Config)]
    assert all(about.meaning for about in SETTINGS.values())
    notebooks = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert set(USED_FROM.values()) <= {NO_NOTEBOOK, *notebooks}


def test_defaults_keep_their_own_rules():
    for name, about in SETTINGS.items():
        assert about.default == getattr(Config(), name)
        assert about.rule is None or about.rule.holds(about.default)


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
    # As fold_numbers, trained_text and scored_text
    read_by_config_itself = {"use_kfold", "n_folds", "longest_text", "longest_test"}
    read_by_config_itself |= {"instruction", "ask_twice", "second_look_side", "second_look_crops"}
    assert set(unread) <= read_by_config_itself


def test_a_micro_batch_is_a_number_or_auto():
    assert parse_settings(["micro_batch=auto"]) == {"micro_batch": "auto"}
    assert parse_settings(["micro_batch=4"]) == {"micro_batch": 4}
    assert preset("safe").effective_batch == 16
    assert preset("safe", micro_batch=4, accumulation=4).effective_batch == 16
    assert preset("safe").with_micro_batch(8) == preset("safe", micro_batch=8, accumulation=2)
    with pytest.raises(ConfigError, match=r"micro_batch: .*'many'"):
        parse_settings(["micro_batch=many"])
    for wrong in ("many", 0, 1.5):
        with pytest.raises(ConfigError, match="micro_batch:"):
            preset("safe", micro_batch=wrong)


def test_a_batch_that_is_still_auto_has_no_rows_yet():
    with pytest.raises(ConfigError, match="micro_batch"):
        _ = preset("safe").micro_batch_rows
    with pytest.raises(ConfigError, match="score_batch"):
        _ = preset("safe").score_batch_rows
    resolved = preset("safe", micro_batch=4, score_batch=32)
    assert (resolved.micro_batch_rows, resolved.score_batch_rows) == (4, 32)
    assert resolved.is_resolved and not preset("safe", micro_batch=4).is_resolved


BROKEN = {
    "image_side": 31, "quantization": "int8", "max_memory": ("14 gigs",), "limit": -1, "lora_r": 0,
    "lora_alpha": 0, "lora_dropout": 1.0, "target_modules": (), "folds_at_once": 5, "micro_batch": 0, "accumulation": 0,
    "epochs": 0, "learning_rate": 0.0, "warmup_ratio": 1.0, "max_grad_norm": 0.0, "n_folds": 1,
    "holdout_fraction": 0.6, "near_duplicates": 11, "score_batch": 0, "tta": 3, "ensemble": "sum",
    "num_workers": -1, "text_tokens": 0, "longest_text": 10**7, "longest_test": 0,
}  # fmt: skip


def test_all_broken_rules_come_in_one_error_with_the_values_found():
    with pytest.raises(ConfigError) as error:
        preset("safe", **BROKEN)
    lines = str(error.value).splitlines()[1:]
    for name, value in BROKEN.items():
        (line,) = (line for line in lines if line.startswith(f"  - {name}: expected "))
        assert line.endswith(f", found {value!r}")
    assert len(lines) == len(BROKEN)


def test_a_single_split_asks_for_no_number_of_folds():
    assert preset("safe", use_kfold=False, n_folds=1).fold_numbers == (0,)


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"image_side": "448"}, "image_side: .*'448'"), ({"use_amp": 1}, "use_amp: .*1")],
)
def test_a_value_of_the_wrong_type_is_named(changes, found):
    with pytest.raises(ConfigError, match=found):
        preset("safe", **changes)


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


@pytest.mark.parametrize("name", SETTINGS)
def test_the_text_of_a_value_is_read_as_that_value(name):
    value = getattr(changed(name), name)
    assert parse_settings([f"{name}={setting_text(value)}"]) == {name: value}


def test_unknown_settings_and_wrong_values_are_listed_together():
    with pytest.raises(ConfigError) as error:
        parse_settings(["image_sid=3", "lora_r=many", "use_amp=perhaps"])
    lines = str(error.value).splitlines()[1:]
    for line, name, found in zip(
        lines,
        ("image_sid", "lora_r", "use_amp"),
        ("image_side", "'many'", "'perhaps'"),
        strict=True,
    ):
        assert line.startswith(f"  - {name}") and found in line


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ConfigError, match=r"safe, balanced, performance.*'fast'"):
        preset("fast")


def test_a_saved_config_of_another_version_is_refused():
    values = to_dict(preset("demo"))
    of_another = {name: value for name, value in values.items() if name != "seed"} | {"colour": 1}
    with pytest.raises(ConfigError, match=r"has colour.* lacks seed.*git_commit"):
        from_dict(of_another)
    del values["seed"], values["calibrate"]
    with pytest.raises(ConfigError, match="lacks calibrate, seed,") as error:
        from_dict(values)
    assert "it has" not in str(error.value)


def test_a_run_of_a_version_without_an_added_setting_goes_on():
    """Its markers have the hashes of that time."""
    values = to_dict(preset("demo"))
    added = [name for name, about in SETTINGS.items() if about.is_added]
    assert "drop" in added
    config = from_dict({name: value for name, value in values.items() if name not in added})
    assert config == preset("demo")
    hashes = config.hash_for("03_train_fold"), config.hash_for("06_analysis"), config.training_hash
    assert hashes == ("b651e72c32179dbd", "f14dcfd0a86c4fdb", "c1191f1d9a09adab")


def test_gb_is_decimal_and_gib_binary():
    assert size_in_bytes("14GB") == 14_000_000_000
    assert size_in_bytes("13.5GiB") == int(13.5 * 2**30)
    with pytest.raises(ValueError, match="'14 gigs'"):
        size_in_bytes("14 gigs")


def test_a_single_split_trains_one_fold():
    assert preset("demo", use_kfold=False).fold_numbers == (0,)
    assert preset("demo", n_folds=5).fold_numbers == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", [-1, 2**32]),
        ("learning_rate", [math.inf, math.nan, 0.0, -1e-5]),
        ("epochs", [math.inf, math.nan, 0.0, 1001.0]),
        ("max_grad_norm", [math.inf, 0.0]),
        ("report_to", [("wandbb",), ("wandb", "tensorbord")]),
        ("second_look_side", [16, 31, -1, 8193]),
        ("instruction", [" ", "\n\t", "a" * 4001]),
    ],
)
def test_what_would_fail_after_the_base_is_loaded_is_refused_at_once(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"{name}: expected"):
            preset("safe", **{name: value})


@pytest.mark.slow
def test_the_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)
