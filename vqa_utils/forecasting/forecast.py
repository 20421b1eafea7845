"""Expect the minutes of an epoch and of a whole run, before anything is loaded.

A model, not a measurement: how it was checked is in tests/bench/README.md.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vqa_utils.config import Config
from vqa_utils.forecasting._work import Pass, work_of
from vqa_utils.forecasting.rates import Rates, Seconds, rates_of, seconds_of
from vqa_utils.planning.activations import OPTION_TOKENS, TEXT_TOKENS, batch_of
from vqa_utils.planning.gpus import Gpu, gpu_limits
from vqa_utils.planning.memory import FP16, weights_by_module
from vqa_utils.planning.placement import Plan
from vqa_utils.planning.plan import fold_gpus, make_plan, resolve_batches
from vqa_utils.planning.shapes import ModelShape

# Bytes a second from the disk with the weights; assumed
READING = 0.2e9
# Seconds of a notebook until it loads: 10 to 14 were recorded on two cores, and Kaggle's are slow
STARTING = 25


class RowCounts(NamedTuple):
    """Rows of a run's tables."""

    train: int
    test: int
    extra: int = 0


# Where the data is not there yet
ASSUMED_ROWS = RowCounts(train=1000, test=1000)


@dataclass(frozen=True)
class Forecast:
    """Seconds of a run."""

    training: Seconds
    """Of a row, forward and backward."""
    scoring: Seconds
    """Of a row."""
    epoch_s: float
    """Of one fold: its training rows, and the evaluation of the held-out ones."""
    run_s: float
    """All folds, and the refit if there is one: loading, training, evaluation, scoring."""
    side_by_side: int
    """Adapters at a time."""


@dataclass(frozen=True)
class _Machine:
    """The GPUs of a run."""

    gpus: list[Gpu]
    """Those of one adapter."""
    rates: list[Rates]
    """Of each of these."""
    side_by_side: int
    """Adapters at a time, each on GPUs of its own."""


def forecast(
    config: Config, shape: ModelShape, gpus: Sequence[Gpu], rows: RowCounts
) -> Forecast | None:
    """Expect the time of a run; None if the rates of one of its GPUs are not known.

    All extra rows are taken to join each fold's training.
    """
    machine = _machine(config, gpus)
    if machine is None:
        return None
    limits = gpu_limits(config, machine.gpus)
    config = resolve_batches(config, shape, limits)
    a_row = _RowTimes(config, shape, make_plan(config, shape, limits), machine.rates)
    training = a_row.training()
    evaluating = a_row.evaluating()
    scoring = a_row.scoring()

    held_out_share = 1 / config.n_folds if config.use_kfold else config.holdout_fraction
    held_out = rows.train * held_out_share
    trained_on = rows.train - held_out + rows.extra
    epoch = trained_on * training.wall + held_out * evaluating.wall
    first_start, later_start = _start_seconds(config, shape)

    held_out_scorings = 3 if config.baselines else 1  # the base too, and blank pictures
    scored = held_out * held_out_scorings + rows.test
    folds = len(config.fold_numbers)
    train_seconds = [later_start + config.epochs * epoch] * folds
    score_seconds = [later_start + scored * scoring.wall] * folds
    if config.refit:  # trains on all rows, and scores the test set alone
        all_rows = rows.train + rows.extra
        train_seconds.append(later_start + config.epochs * all_rows * training.wall)
        score_seconds.append(later_start + rows.test * scoring.wall)
    run = _last_end(train_seconds, score_seconds, machine.side_by_side)
    run += first_start - later_start
    return Forecast(training, scoring, epoch, run, machine.side_by_side)


def _machine(config: Config, gpus: Sequence[Gpu]) -> _Machine | None:
    """Choose the GPUs as a run does; None if the rates of one are not known.

    If folds run side by side, each has a GPU, and all are taken for as fast as the first.
    """
    places = fold_gpus(config, len(config.adapter_numbers), gpus)
    runs_side_by_side = len(places) > 1
    used = list(gpus[: len(gpu_limits(config, gpus))])
    if runs_side_by_side:
        used = [gpus[place] for place in places]
    rates = []
    for gpu in used:
        known = rates_of(gpu.name)
        if known is None:
            return None
        rates.append(known)
    if runs_side_by_side:
        return _Machine(used[:1], rates[:1], len(places))
    return _Machine(used, rates, 1)


@dataclass(frozen=True)
class _RowTimes:
    """Expect the seconds of a row in the passes of a run."""

    config: Config
    shape: ModelShape
    plan: Plan
    rates: list[Rates]

    def training(self) -> Seconds:
        return self._row(self.config.micro_batch_rows, training=True)

    def evaluating(self) -> Seconds:
        """Expect the evaluation after an epoch: one option order."""
        return self._row(self.config.score_batch_rows)

    def scoring(self) -> Seconds:
        """Expect all option orders.

        They share a pass. Linear attention hands a state from token to token, so there each order
        takes a pass.
        """
        config = self.config
        if any("linear_attn" in name for name in self.shape.parameters):
            return self._row(config.score_batch_rows, passes=config.tta)
        return self._row(config.score_batch_rows, orders=config.tta)

    def _row(
        self, rows: int, *, orders: int = 1, passes: int = 1, training: bool = False
    ) -> Seconds:
        """Expect the seconds of a row.

        Args:
            rows: in a pass.
            orders: option orders of a row in a pass.
            passes: of a row.
            training: True if the pass has a backward.
        """
        text_tokens = TEXT_TOKENS + (orders - 1) * OPTION_TOKENS
        batch = batch_of(self.shape, self.config, rows, text_tokens, training=training)
        one_pass = Pass(batch, training, causal=orders == 1)
        works = []
        for gpu, rates in zip(self.plan.gpus, self.rates, strict=True):
            work = work_of(gpu, self.shape, self.config, one_pass, rates.padding_worth)
            works.append(work * (passes / rows))
        return seconds_of(works, self.rates)


def _last_end(train: Sequence[float], score: Sequence[float], side_by_side: int) -> float:
    """Compute when all adapters are trained and have scored, as `Runner.run` starts the steps.

    Each step, in its order, goes to the next free process. An adapter scores after its training.

    Args:
        train: seconds of each adapter's training.
        score: seconds of its scoring.
        side_by_side: processes.
    """
    free_at = [0.0] * side_by_side  # a heap: the earliest first
    trained_at = []
    for seconds in train:
        end = heapq.heappop(free_at) + seconds
        trained_at.append(end)
        heapq.heappush(free_at, end)
    for earliest, seconds in zip(trained_at, score, strict=True):
        start = max(heapq.heappop(free_at), earliest)
        heapq.heappush(free_at, start + seconds)
    return max(free_at)


def _start_seconds(config: Config, shape: ModelShape) -> tuple[float, float]:
    """Expect the seconds until a model is loaded: the first time, and from its quantised copy."""
    whole = FP16 * sum(math.prod(size) for size in shape.parameters.values())
    copy = whole
    if config.quantization == "nf4" and config.cache_dir != "":
        modules = weights_by_module(shape, config).values()
        copy = sum(sum(groups.values()) for groups in modules)
    return STARTING + whole / READING, STARTING + copy / READING
