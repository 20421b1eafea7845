"""A run's settings: one frozen dataclass that checks itself, from the command line and to JSON and back."""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vqa_utils.setting_types import (
    BOOL_OR_AUTO,
    COUNT_OR_AUTO,
    ConfigError,
    is_size,
    kind_name,
    listed,
    parse,
    type_problem,
)

DEMO_DATA = "easy-vqa"  # the value of `data` that stands for the demo's challenge
DEMO_MODEL_NAME = (
    "demo"  # the value of `model` that stands for the tiny base in vqa_utils/tiny_base/model
)
QWEN3_30B = "Qwen/Qwen3-VL-30B-A3B-Instruct"


# The notebook that uses a setting first: for those before it, it may change. One that is not named here counts for all of them
USED_FROM = {
    "score_batch": "04_infer", "tta": "04_infer", "baselines": "04_infer",
    "calibrate": "05_ensemble", "ensemble": "05_ensemble", "refit": "05_ensemble",
}  # fmt: skip

# What may differ between the run that trained an adapter and the one that uses it: where the data and the machine's
# limits are, what is reported, and what is first used after the training
NOT_OF_THE_ADAPTER = (
    "preset", "data", "limit", "device_map", "max_memory", "offload_experts", "cache_dir", "num_workers", "report_to", *USED_FROM,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run. Saved as `config.json` and beside each adapter.

    The defaults are those of the preset `safe`.

    Raises:
        ConfigError: with every problem of the values at once.
    """

    preset: str = "safe"
    model: str = QWEN3_30B
    """A model's name on the hub, a local folder, or "demo"."""
    data: str = ""
    """A folder with train.csv, test.csv, sample_submission.csv and the images, or "easy-vqa"."""
    limit: int = 0
    """Use only the first rows of train.csv, test.csv and extra_train, this many; 0 uses all."""
    extra_train: str = ""
    """A CSV of more rows to train on, with the columns of train.csv: they join every fold's training and are never held out. Images
    are looked for beside the CSV, then in the data folder."""

    image_side: int = 384
    """px; an image gets at most image_side squared pixels, its aspect ratio is kept."""

    quantization: str = "nf4"
    """"nf4" (bitsandbytes, experts included) or "none"."""
    use_double_quant: bool = True
    """Quantise the scales of the 4-bit blocks too: 0.37 bits a weight less."""
    offload_experts: bool = False
    """Keep the experts of the layers that do not fit in host memory, and stream them in layer by layer: slow, and it works."""
    cache_dir: str = "auto"
    """Where quantised weights are kept for the next fold; "auto" takes a disk with room (on Kaggle a temporary one), "" none."""
    device_map: str = "plan"
    """"plan" (by the memory plan) or one of accelerate's, such as "auto"."""
    max_memory: tuple[str, ...] = ()
    """One limit a GPU, such as "14GB" (10^9 bytes) or "13GiB"; empty sets none."""

    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Layers of the language model that get LoRA; the vision tower's layers of the same name do not."""

    micro_batch: COUNT_OR_AUTO = "auto"
    """Rows a forward and backward pass; "auto" takes the most that the memory plan allows, at `accumulation` rows a step."""
    accumulation: int = 16
    """Passes an optimizer step; with micro_batch "auto", rows an optimizer step."""
    epochs: float = 2
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises, before its cosine decay."""
    shuffle_options: bool = False
    """Train on the options in a new order each epoch, with the right letters balanced within each optimizer step."""
    paraphrase: bool = False
    """Train on each row in newly drawn words each epoch: its question's, from paraphrases.csv beside train.csv, or else, from a
    built-in list, its instruction's."""
    max_grad_norm: float = 0.5
    use_amp: bool = True
    """fp16 with loss scaling on a GPU; a CPU computes in fp32 either way."""
    use_gradient_checkpointing: BOOL_OR_AUTO = "auto"
    """Compute a layer again in the backward, where memory for what it would keep is short ("auto", by the memory plan), in all
    layers (true) or in none; a CPU has memory."""
    use_cpu_offload: bool = False
    """Optimizer state in pageable host memory (bitsandbytes' paged AdamW); needs a GPU."""

    use_kfold: bool = True
    """False trains once, on a stratified split."""
    n_folds: int = 3
    holdout_fraction: float = 0.2
    """The held-out share of the rows where use_kfold is False."""
    near_duplicates: int = 0
    """Rows whose pictures' perceptual hashes differ from a group's first in so many of 64 bits stay in one fold; 0 groups equal
    files alone."""
    group_questions: bool = False
    """Rows that ask the same question stay in one fold too, whatever their pictures."""

    score_batch: COUNT_OR_AUTO = "auto"
    """Rows a forward pass when options are scored; "auto" takes as many, up to 128, as need no more memory than training."""
    tta: int = 4
    """Cyclic orders of the options that are scored and averaged, 1, 2 or 4; image and question are computed once for all."""
    baselines: bool = False
    """Score the held-out rows without the adapter and with blank images too."""

    calibrate: BOOL_OR_AUTO = "auto"
    """Scale each fold's probabilities by a temperature that was fitted on the rows that it held out; "auto" does so where this
    lowers the log loss of rows that the fit did not see."""
    ensemble: str = "mean"
    """How the folds' probabilities become one answer: "mean", "geometric" (mean) or "vote"."""
    refit: bool = False
    """Train one more adapter, on all rows of train.csv and extra_train, that joins the test answers. No out-of-fold score judges
    it."""

    num_workers: int = 2
    """Processes that decode images; 0 decodes in the training process."""
    report_to: tuple[str, ...] = ()
    """Trackers that the Trainer reports to, such as "tensorboard" or "wandb"."""
    seed: int = 42

    def __post_init__(self) -> None:
        problems = [
            problem
            for name, kind in field_types().items()
            if (problem := type_problem(name, getattr(self, name), kind))
        ]
        if problems:
            raise ConfigError(listed(problems))
        checks = {
            "image_side: expected at least 32 px (one merged patch of Qwen3-VL)": self.image_side
            >= 32,
            'quantization: expected "nf4" or "none"': self.quantization in ("nf4", "none"),
            "max_memory: expected sizes such as 14GB or 13GiB": all(map(is_size, self.max_memory)),
            "limit: expected 0 or more rows": self.limit >= 0,
            "lora_r: expected at least 1": self.lora_r >= 1,
            "lora_alpha: expected at least 1": self.lora_alpha >= 1,
            "lora_dropout: expected 0 to below 1": 0 <= self.lora_dropout < 1,
            "target_modules: expected at least one": len(self.target_modules) > 0,
            'micro_batch: expected at least 1, or "auto"': self.micro_batch == "auto"
            or self.micro_batch >= 1,
            "accumulation: expected at least 1": self.accumulation >= 1,
            "epochs: expected more than 0": self.epochs > 0,
            "learning_rate: expected more than 0": self.learning_rate > 0,
            "warmup_ratio: expected 0 to below 1": 0 <= self.warmup_ratio < 1,
            "max_grad_norm: expected more than 0": self.max_grad_norm > 0,
            "n_folds: expected at least 2 (or use_kfold=false)": not self.use_kfold
            or self.n_folds >= 2,
            "holdout_fraction: expected more than 0 and at most 0.5": 0
            < self.holdout_fraction
            <= 0.5,
            "near_duplicates: expected 0 to 10 bits": 0 <= self.near_duplicates <= 10,
            'score_batch: expected at least 1, or "auto"': self.score_batch == "auto"
            or self.score_batch >= 1,
            "tta: expected 1, 2 or 4": self.tta in (1, 2, 4),
            'ensemble: expected "mean", "geometric" or "vote"': self.ensemble
            in ("mean", "geometric", "vote"),
            "num_workers: expected 0 or more": self.num_workers >= 0,
        }
        problems = [
            f"{rule}, found {getattr(self, rule.split(':')[0])!r}"
            for rule, holds in checks.items()
            if not holds
        ]
        if problems:
            raise ConfigError(listed(problems))

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds, each of which holds out rows."""
        return tuple(range(self.n_folds)) if self.use_kfold else (0,)

    @property
    def adapter_numbers(self) -> tuple[int, ...]:
        """The adapters that are trained: one a fold, and with `refit` one more that holds out nothing."""
        return (*self.fold_numbers, len(self.fold_numbers)) if self.refit else self.fold_numbers

    def adapter_name(self, number: int) -> str:
        """What people are told of an adapter: "fold 2", or "refit (fold 3)" for the one whose files are in fold3/."""
        return f"fold {number}" if number in self.fold_numbers else f"refit (fold {number})"

    @property
    def effective_batch(self) -> int:
        """Rows an optimizer step."""
        return self.accumulation * (1 if self.micro_batch == "auto" else self.micro_batch)

    @property
    def is_resolved(self) -> bool:
        """Whether both batches are numbers."""
        return "auto" not in (self.micro_batch, self.score_batch)

    def with_micro_batch(self, rows: int) -> "Config":
        """These settings with so many rows a pass, at the same rows an optimizer step."""
        return dataclasses.replace(
            self, micro_batch=rows, accumulation=self.effective_batch // rows
        )

    def hash_for(self, notebook: str) -> str:
        """16 hex digits that change with any setting but those that later notebooks use first (see USED_FROM)."""
        return _hash(
            {
                key: value
                for key, value in to_dict(self).items()
                if USED_FROM.get(key, "") <= notebook
            }
        )

    @property
    def training_hash(self) -> str:
        """16 hex digits that change with the settings that an adapter depends on."""
        return _hash(
            {key: value for key, value in to_dict(self).items() if key not in NOT_OF_THE_ADAPTER}
        )


def field_types() -> dict[str, Any]:
    """Each setting's name and type."""
    hints = typing.get_type_hints(Config)
    return {f.name: hints[f.name] for f in dataclasses.fields(Config)}


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`["image_side=448", "max_memory=12GB,15GB"]` as values of the settings' types.

    Raises:
        ConfigError: with every unknown name and every value of the wrong type.
    """
    values, problems, types = {}, [], field_types()
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in types:
            problems.append(
                f"{setting}: expected NAME=VALUE with one of the names {', '.join(types)}"
            )
            continue
        try:
            values[name] = parse(text, types[name])
        except ValueError:
            problems.append(f"{name}: expected {kind_name(types[name])}, found {text!r}")
    if problems:
        raise ConfigError(listed(problems))
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """JSON values; `from_dict` reads them back."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: settings of another version of the code, from which those of this one do not follow.
    """
    types = field_types()
    unknown, missing = sorted(values.keys() - types.keys()), sorted(types.keys() - values.keys())
    problems = [
        f"it has {', '.join(unknown)}, which this version does not know: a later one made it, or an earlier one"
    ] * bool(unknown)
    problems += [
        f"it lacks {', '.join(missing)}, and what it did instead is not known: an earlier version made it"
    ] * bool(missing)
    if problems:
        raise ConfigError(
            f"settings of another version of the code: {'; '.join(problems)}. Start the run anew under another name, or go on with "
            "the version that provenance.json names as git_commit"
        )
    return Config(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
