"""Hold a run's settings: one frozen, self-checking dataclass, read from text and JSON."""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vqa_utils.errors import did_you_mean, listed
from vqa_utils.prompts import INSTRUCTION, LETTERS, Prompt
from vqa_utils.setting_types import (
    ABOVE_ZERO,
    AUTO,
    PLACE,
    SHARE,
    SIZES,
    BoolOrAuto,
    ConfigError,
    CountOrAuto,
    Rule,
    Setting,
    auto_or,
    between,
    kind_name,
    one_of,
    parse,
    setting,
    type_problem,
)

DEMO_DATA = "easy-vqa"  # the value of `data` for the demo's challenge
HARD_DATA = "hard-vqa"  # and for the one that tells switches apart
DEMO_MODEL_NAME = "demo"  # the value of `model` for the tiny base in vqa_utils/tiny_base/model
NO_NOTEBOOK = "no notebook"  # sorts after the notebooks' names
MOST_SEED = 2**32 - 1  # of NumPy
UP_TO_A_THOUSAND = Rule("more than 0, up to 1,000", lambda value: 0 < value <= 1000)
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
MOST_ROWS = 10**5  # of a pass or of an optimizer step
MOST_TOKENS = 10**6  # of a row
LONGEST_SHOWN = 120  # characters of a value in a message
LONGEST_INSTRUCTION = 4000  # characters
MOST_AT_ONCE = 4  # folds around one base
# Tokens of a long row's question, four options and chat template, until they are measured. More of
# them cost little
TEXT_TOKENS = 128
QWEN3_30B = "Qwen/Qwen3-VL-30B-A3B-Instruct"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run. Saved as `config.json` and beside each adapter.

    A setting is one field: name, type, default, meaning, rule. Two keywords limit the reach of a
    later change in a run:

    - `used_from`: earlier notebooks do not use it, and their files are kept. `NO_NOTEBOOK` is for
      what no result depends on, and for the place of the data, whose contents count.
    - `of_adapter=False`: an adapter does not depend on it, and trained ones are kept. These are
      the limits of the machine, and all that have a `used_from`.

    The defaults are those of the preset `safe`.

    Raises:
        ConfigError: with every problem of the values at once.
    """

    # Model and data
    preset: str = setting(
        "safe",
        "the preset that the other settings change",
        used_from=NO_NOTEBOOK,
    )
    model: str = setting(QWEN3_30B, 'a model on the hub, a local folder, or "demo"', PLACE)
    model_dir: str = setting(
        "",
        "a folder to read the same model from, if it is not where `model` says",
        PLACE,
        used_from=NO_NOTEBOOK,
    )
    data: str = setting(
        "",
        "a folder with train.csv, test.csv, sample_submission.csv and the images, or "
        f'"{DEMO_DATA}" or "{HARD_DATA}"; "" looks in Kaggle\'s input folder',
        PLACE,
        used_from=NO_NOTEBOOK,
    )
    limit: int = setting(
        0,
        "rows; use this many of train.csv, test.csv and extra_train, their first; 0 uses all",
        between(0, 10**9, "rows"),
        of_adapter=False,
    )
    extra_train: str = setting(
        "",
        "a CSV of more rows to train on, with the columns of train.csv; they join the training of "
        "every fold and are never held out; images lie beside the CSV or in the data folder",
        PLACE,
    )

    drop: str = setting(
        "",
        "a CSV of ids: train.csv and extra_train go without these rows, such as those of an earlier "
        "run's report/suspect_labels.csv",
        PLACE,
        is_added=True,
    )

    # Images
    image_side: int = setting(
        384,
        "px; an image gets at most image_side squared pixels and keeps its aspect ratio",
        between(32, 8192, "px (one merged patch of Qwen3-VL, and the largest of cameras)"),
    )
    crops: int = setting(
        0,
        "a side: show 2 x 2 or 3 x 3 parts of each image after it, each as large as the whole; five "
        "or ten times the image tokens",
        one_of(0, 2, 3),
        is_added=True,
    )

    # The prompt
    instruction: str = setting(
        "",
        'the system\'s words in each prompt, in training and scoring; "" takes the built-in ones',
        Rule(
            f"up to {LONGEST_INSTRUCTION:,} characters, and not spaces alone",
            lambda text: len(text) <= LONGEST_INSTRUCTION and (not text or bool(text.strip())),
        ),
        is_added=True,
    )
    ask_twice: bool = setting(
        False, "put the question before the image too, in training and scoring", is_added=True
    )

    # The frozen base, and its place on the machine
    quantization: str = setting(
        "nf4",
        'of the base: "nf4" (bitsandbytes, experts included) or "none"',
        one_of("nf4", "none"),
    )
    use_double_quant: bool = setting(
        True, "quantise the scales of the 4-bit blocks too; saves 0.37 bits per weight"
    )
    offload_experts: bool = setting(
        False,
        "keep the experts of the layers that do not fit in host memory and copy them in layer by "
        "layer; slow, but it works",
        of_adapter=False,
    )
    cache_dir: str = setting(
        AUTO,
        "a folder that keeps quantised weights and pictures' features for the next fold; "
        '"auto" takes a disk with room (on Kaggle a temporary one), "" keeps none',
        PLACE,
        used_from=NO_NOTEBOOK,
    )
    cache_features: BoolOrAuto = setting(
        AUTO,
        "run the vision tower once for each picture and keep its output in `cache_dir`, so that it "
        'takes no memory and no time in training and scoring; "auto" does so on a GPU, if a disk '
        "has room",
        used_from=NO_NOTEBOOK,
        of_adapter=False,
    )
    device_map: str = setting(
        "plan",
        'places the layers: "plan" (by the memory plan) or one of accelerate\'s, such as "auto"',
        of_adapter=False,
    )
    max_memory: tuple[str, ...] = setting(
        (),
        'one limit per GPU, such as "14GB" (10^9 bytes) or "13GiB"; empty sets none',
        SIZES,
        of_adapter=False,
    )

    folds_at_once: CountOrAuto = setting(
        AUTO,
        "folds at work at a time, around one base that they share; "
        '"auto" takes the number with the shortest expected run',
        auto_or(Rule(f"1 to {MOST_AT_ONCE}", lambda count: 1 <= count <= MOST_AT_ONCE)),
        used_from=NO_NOTEBOOK,
    )

    # The adapter
    lora_r: int = setting(8, "rank of LoRA", between(1, 4096))
    lora_alpha: int = setting(
        16, "LoRA's update is scaled by lora_alpha / lora_r", between(1, 10**5)
    )
    lora_dropout: float = setting(0.05, "share of LoRA's inputs dropped in training", SHARE)
    target_modules: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "layers of the language model that get LoRA; layers of the same name in the vision tower "
        "do not",
        Rule("at least one", lambda names: len(names) > 0),
    )

    # Training
    micro_batch: CountOrAuto = setting(
        AUTO,
        'rows per forward and backward pass; "auto" takes the most that the memory plan allows, at '
        "`accumulation` rows per optimizer step",
        auto_or(between(1, MOST_ROWS)),
    )
    accumulation: int = setting(
        16,
        'passes per optimizer step; with micro_batch "auto", rows per optimizer step',
        between(1, MOST_ROWS),
    )
    text_tokens: CountOrAuto = setting(
        AUTO,
        "tokens of a row's text that passes are planned for; longer rows go through the model in "
        'passes of their own; "auto" takes the longest of the data, but for outliers',
        auto_or(between(1, MOST_TOKENS)),
        used_from=NO_NOTEBOOK,
    )
    longest_text: CountOrAuto = setting(
        AUTO,
        "tokens of the longest text to train on, which has to fit in a pass of its own; "
        '"auto" measures',
        auto_or(between(1, MOST_TOKENS)),
        used_from=NO_NOTEBOOK,
    )
    longest_test: CountOrAuto = setting(
        AUTO,
        'tokens of the longest text of test.csv, which has to fit as it is scored; "auto" measures',
        auto_or(between(1, MOST_TOKENS)),
        used_from=NO_NOTEBOOK,
    )
    epochs: float = setting(2, "passes over the training rows", UP_TO_A_THOUSAND)
    eval_every: float = setting(
        1.0,
        "epochs between two evaluations on the held-out rows, of which the best adapter is kept",
        between(0.01, 1, "epochs"),
        is_added=True,
    )
    patience: int = setting(
        0,
        "evaluations in a row without a lower log loss that end a training; 0 trains to the end",
        between(0, 10_000),
        is_added=True,
    )
    learning_rate: float = setting(5e-5, "the highest, at the end of the warm-up", ABOVE_ZERO)
    warmup_ratio: float = setting(
        0.05, "share of the steps with a rising learning rate, before its cosine decay", SHARE
    )
    shuffle_options: bool = setting(
        False,
        "train on the options in a new order each epoch, with the right letters balanced within "
        "each optimizer step",
    )
    paraphrase: bool = setting(
        False,
        "train on each row in newly drawn words each epoch: its question's, from paraphrases.csv "
        "beside train.csv, or else, from a built-in list, its instruction's",
    )
    max_grad_norm: float = setting(0.5, "larger gradients are scaled to this norm", ABOVE_ZERO)
    use_amp: bool = setting(
        True, "fp16 with loss scaling on a GPU; a CPU computes in fp32 either way"
    )
    use_gradient_checkpointing: BoolOrAuto = setting(
        AUTO,
        "activation checkpointing: true in all decoder layers, false in none, "
        '"auto" where the memory plan is short of memory (a CPU is not)',
    )
    use_cpu_offload: bool = setting(
        False, "optimizer state in pageable host memory (bitsandbytes' paged AdamW); needs a GPU"
    )

    # Folds
    use_kfold: bool = setting(True, "false trains once, on a stratified split")
    n_folds: int = setting(3, "folds; each row is held out by one of them", between(1, 100))
    holdout_fraction: float = setting(
        0.2,
        "share of the rows that is held out if use_kfold is false",
        Rule("more than 0 and at most 0.5", lambda share: 0 < share <= 0.5),
    )
    near_duplicates: int = setting(
        0,
        "bits of 64; pictures whose perceptual hashes differ from a group's first by at most this "
        "stay in one fold; 0 groups equal files only",
        Rule("0 to 10 bits", lambda bits: 0 <= bits <= 10),
    )
    group_questions: bool = setting(
        False, "rows with the same question stay in one fold too, whatever their pictures"
    )

    # Scoring
    score_batch: CountOrAuto = setting(
        AUTO,
        'rows per forward pass of scoring; "auto" takes as many, up to 128, as need no more memory '
        "than training",
        auto_or(between(1, MOST_ROWS)),
        used_from="04_infer",
    )
    tta: int = setting(
        4,
        "cyclic orders of the options that are scored and averaged; image and question are "
        "computed once for all",
        one_of(1, 2, 4),
        used_from="04_infer",
    )
    baselines: bool = setting(
        False,
        "score the held-out rows without the adapter and with blank images too",
        used_from="04_infer",
    )

    second_look: float = setting(
        0.0,
        "share of the rows, those that the model is least sure of, to score again in all four "
        "orders of their options; both looks' mean counts if that lowers the log loss out of fold",
        SHARE,
        used_from="04_infer",
        is_added=True,
    )
    second_look_side: int = setting(
        0,
        "px, as image_side, for the second look; 0 shows pictures as at first",
        Rule("0, or 32 to 8,192 px", lambda side: side == 0 or 32 <= side <= 8192),
        used_from="04_infer",
        is_added=True,
    )
    second_look_crops: int = setting(
        0,
        "as crops, for the second look; 0 shows pictures as at first",
        one_of(0, 2, 3),
        used_from="04_infer",
        is_added=True,
    )
    base_member: bool = setting(
        False,
        "let the base answer without an adapter too, with a weight beside the folds where that "
        "lowers the log loss of rows that the fit did not see",
        used_from="04_infer",
        is_added=True,
    )

    # Ensembling
    calibrate: BoolOrAuto = setting(
        AUTO,
        "scale each fold's probabilities by a temperature, fitted on its held-out rows; "
        '"auto" does so if this lowers the log loss of rows that the fit did not see',
        used_from="05_ensemble",
    )
    ensemble: str = setting(
        "mean",
        'combines the folds\' probabilities: "mean", "geometric" (mean) or "vote"',
        one_of("mean", "geometric", "vote"),
        used_from="05_ensemble",
    )
    refit: bool = setting(
        False,
        "train one more adapter, on all rows of train.csv and extra_train, for the test answers; "
        "no out-of-fold score judges it",
        used_from="05_ensemble",
    )

    # The rest
    num_workers: int = setting(
        2,
        "processes that decode images; 0 decodes in the training process",
        between(0, 256),
        used_from=NO_NOTEBOOK,
    )
    lang: str = setting(
        "en",
        "the language of the run's page",
        one_of("en", "ko"),
        used_from=NO_NOTEBOOK,
    )
    report_to: tuple[str, ...] = setting(
        (),
        "trackers that are told of each step, the scores and the figures",
        Rule(f"some of {', '.join(TRACKERS)}", lambda names: set(names) <= set(TRACKERS)),
        used_from=NO_NOTEBOOK,
    )
    seed: int = setting(
        42, "of folds, weights, dropout, and the order of the rows", between(0, MOST_SEED)
    )

    def __post_init__(self) -> None:
        problems = _type_problems(self) or _rule_problems(self)  # rules compare values of the type
        if problems:
            raise ConfigError(listed("settings that cannot be used:", problems))

    @property
    def look_side(self) -> int:
        """The `image_side` of the second look."""
        return self.second_look_side or self.image_side

    @property
    def look_crops(self) -> int:
        """The `crops` of the second look."""
        return self.second_look_crops or self.crops

    @property
    def look_prompt(self) -> Prompt:
        """How questions are put in the second look."""
        return self.prompt._replace(crops=self.look_crops)

    @property
    def looks_closer(self) -> bool:
        """Tell whether the second look has images of its own, which the vision tower has to see."""
        is_other = (self.look_side, self.look_crops) != (self.image_side, self.crops)
        return self.second_look > 0 and is_other

    @property
    def evaluations_per_epoch(self) -> int:
        """How often the held-out rows are scored in an epoch."""
        return math.ceil(1 / self.eval_every)

    @property
    def ends_at_best(self) -> bool:
        """Tell whether a refit trains for as many steps as the folds' best adapters had.

        Else it trains all epochs, as the folds do.
        """
        return self.patience > 0 or self.eval_every < 1

    @property
    def base_fold(self) -> int:
        """The fold whose notebook has the base answer the test rows too: they need it once."""
        return self.fold_numbers[0]

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds with held-out rows."""
        return tuple(range(self.n_folds)) if self.use_kfold else (0,)

    @property
    def adapter_numbers(self) -> tuple[int, ...]:
        """The adapters to train: one per fold, and with `refit` one more on all rows."""
        if not self.refit:
            return self.fold_numbers
        # The refit comes after the last fold: (0, 1, 2, 3), or (0, 1) with use_kfold=false
        return (*self.fold_numbers, len(self.fold_numbers))

    def adapter_name(self, number: int) -> str:
        """Name an adapter: "fold 2", or "refit (fold 3)" for the refit in fold3/."""
        return f"fold {number}" if number in self.fold_numbers else f"refit (fold {number})"

    @property
    def prompt(self) -> Prompt:
        """How questions are put."""
        return Prompt(self.instruction or INSTRUCTION, self.ask_twice, self.crops)

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        if self.micro_batch == AUTO:
            return self.accumulation  # it counts rows here, not passes
        return self.accumulation * self.micro_batch

    @property
    def is_resolved(self) -> bool:
        """True if both batches are numbers."""
        return AUTO not in (self.micro_batch, self.score_batch)

    @property
    def sharing_folds(self) -> int:
        """Folds at a time around one base; one while `folds_at_once` is still "auto"."""
        return 1 if self.folds_at_once == AUTO else self.folds_at_once

    @property
    def caches_features(self) -> bool:
        """True if the vision tower is run before all else; not while it is still "auto"."""
        return self.cache_features is True

    @property
    def micro_batch_rows(self) -> int:
        """Rows per forward and backward pass.

        Raises:
            ConfigError: `micro_batch` is still "auto".
        """
        return _resolved("micro_batch", self.micro_batch)

    @property
    def score_batch_rows(self) -> int:
        """Rows per forward pass of scoring.

        Raises:
            ConfigError: `score_batch` is still "auto".
        """
        return _resolved("score_batch", self.score_batch)

    @property
    def usual_text(self) -> int:
        """Tokens of a row's text that passes are planned for; `TEXT_TOKENS` before the data is there."""
        return TEXT_TOKENS if self.text_tokens == AUTO else self.text_tokens

    @property
    def trained_text(self) -> int:
        """Tokens of the longest text to train on, an outlier or not."""
        return self.usual_text if self.longest_text == AUTO else self.longest_text

    @property
    def scored_text(self) -> int:
        """Tokens of the longest text to score: of rows that are held out, or of test.csv."""
        test = self.usual_text if self.longest_test == AUTO else self.longest_test
        return max(self.trained_text, test)

    def with_micro_batch(self, rows: int) -> "Config":
        """Set the rows per pass, keeping the rows per optimizer step."""
        # `rows` has to divide the rows per step: the division drops a remainder
        accumulation = self.effective_batch // rows
        return dataclasses.replace(self, micro_batch=rows, accumulation=accumulation)

    def hash_for(self, notebook: str) -> str:
        """Name the settings in use up to a notebook by 16 hex digits."""
        values = to_dict(self)
        # Names compare by their numbers: "04_infer" < "05_ensemble", and "" comes before all
        used = {name: values[name] for name in values if USED_FROM.get(name, "") <= notebook}
        return _hash(_without_added(used))

    @property
    def training_hash(self) -> str:
        """Name the settings of an adapter by 16 hex digits."""
        values = to_dict(self)
        of_adapter = {name: values[name] for name in values if name not in NOT_OF_THE_ADAPTER}
        return _hash(_without_added(of_adapter))


SETTINGS: dict[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(Config)
}
PLACES = (
    "data",
    "model",
    "model_dir",
    "extra_train",
    "drop",
    "cache_dir",
)  # settings that may be paths
# The notebook that uses a setting first. One that is not named here counts for all of them
USED_FROM = {name: about.used_from for name, about in SETTINGS.items() if about.used_from}
# What may differ between the run that trained an adapter and the run that uses it
NOT_OF_THE_ADAPTER = tuple(name for name, about in SETTINGS.items() if not about.of_adapter)


def field_types() -> dict[str, Any]:
    """Each setting's name and type."""
    hints = typing.get_type_hints(Config)
    return {name: hints[name] for name in SETTINGS}


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Read `["image_side=448", "max_memory=12GB,15GB"]` as values of the settings' types.

    Raises:
        ConfigError: with every unknown name and every value of the wrong type.
    """
    types = field_types()
    values = {}
    problems = []
    for assignment in settings:
        name, equals, text = assignment.partition("=")
        if not equals or name not in types:
            problems.append(
                f"{assignment}: expected NAME=VALUE with the name of a setting, as "
                f"python run_all.py settings lists them{did_you_mean(name, types)}"
            )
            continue
        try:
            values[name] = parse(text, types[name])
        except ValueError:
            problems.append(f"{name}: expected {kind_name(types[name])}, found {text!r}")
    if problems:
        raise ConfigError(listed("settings that cannot be used:", problems))
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Convert to JSON values; `from_dict` reads them back."""
    values = dataclasses.asdict(config)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def from_dict(values: dict[str, Any]) -> Config:
    """Invert `to_dict`.

    Raises:
        ConfigError: settings of another version of the code, with other names.
    """
    unknown = sorted(values.keys() - SETTINGS.keys())
    missing = sorted(name for name in SETTINGS if name not in values and not _is_free(name))
    problems = []
    if unknown:
        names = ", ".join(unknown)
        problems.append(
            f"it has {names}, which this version does not know: a later one made it, or an earlier"
        )
    if missing:
        names = ", ".join(missing)
        problems.append(
            f"it lacks {names}, and what it did instead is not known: an earlier version made it"
        )
    if problems:
        raise ConfigError(
            f"settings of another version of the code: {'; '.join(problems)}. Start the run anew "
            "under another name, or go on with the version that provenance.json names as git_commit"
        )
    return Config(**with_tuples(values))


def _is_free(name: str) -> bool:
    """Tell whether a version without a setting did as its default does."""
    return SETTINGS[name].used_from == NO_NOTEBOOK or SETTINGS[name].is_added


def _without_added(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings that a version has added, at their defaults: its hashes are the ones before."""
    kept = {}
    for name, value in values.items():
        about = SETTINGS.get(name)  # None in a subclass
        if not (about and about.is_added and value == about.default):
            kept[name] = value
    return kept


def with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists into the tuples of settings."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _type_problems(config: Config) -> list[str]:
    found = [
        type_problem(name, getattr(config, name), kind) for name, kind in field_types().items()
    ]
    return [problem for problem in found if problem]


def _rule_problems(config: Config) -> list[str]:
    problems = []
    for name, about in SETTINGS.items():
        value = getattr(config, name)
        if about.rule and not about.rule.holds(value):
            found = repr(value)
            shown = found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}..."
            problems.append(f"{name}: expected {about.rule.expected}, found {shown}")
    if config.effective_batch > MOST_ROWS:
        problems.append(
            f"micro_batch and accumulation: expected up to {MOST_ROWS:,} rows per optimizer step, "
            f"found {config.effective_batch:,}"
        )
    sees_more = config.look_side > config.image_side or config.look_crops > config.crops
    if config.second_look and config.tta == len(LETTERS) and not sees_more:
        problems.append(
            "second_look: expected tta below 4, second_look_side above image_side or "
            "second_look_crops above crops, as it scores rows in all four orders, found tta=4, "
            f"{config.look_side} px and {config.look_crops} crops a side"
        )
    for name in ("second_look_side", "second_look_crops"):
        if getattr(config, name) and not config.second_look:
            problems.append(f"{name}: expected second_look above 0 with it, found 0")
    if config.use_kfold and config.n_folds < 2:
        problems.append(
            f"n_folds: expected at least 2 (or use_kfold=false), found {config.n_folds}"
        )
    return problems


def _resolved(name: str, rows: CountOrAuto) -> int:
    if rows == AUTO:
        raise ConfigError(
            f'{name}: expected a number of rows by now, found "auto"; run_all.py resolves it'
        )
    return rows


def _hash(values: dict[str, Any]) -> str:
    # Sorted keys: the order of the fields in `Config` may change. 16 hex digits are 64 bits
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
