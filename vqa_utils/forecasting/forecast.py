"""Estimate the minutes of an epoch and of a complete run, before anything is loaded.

An estimate, not a measurement; tests/bench/README.md says how it was checked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vqa_utils.config import Config
from vqa_utils.forecasting._work import Pass, vision_work, work_of
from vqa_utils.forecasting.rates import Rates, Seconds, rates_of, seconds_of
from vqa_utils.planning.batches import batch_of, of_second_look
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.machine.gpus import Gpu, gpu_limits
from vqa_utils.planning.memory import FP16, weights_by_module
from vqa_utils.planning.plan import can_lend, fold_gpus, make_plan, resolve_batches
from vqa_utils.planning.shapes import ModelShape

DISK_BYTES_PER_SECOND = 0.2e9  # assumed, reading weights
# Until a notebook loads the model: 10 to 14 were recorded on two cores, and Kaggle's are slow
NOTEBOOK_START_SECONDS = 25
# Four orders in one pass, by the wall time of one: tests/bench/README.md
ORDERS_IN_ONE_PASS = 1.5
# Until it has attached a lent base and compared its bytes: 2.2 to 3.1 were recorded
ATTACH_SECONDS = 5


class RowCounts(NamedTuple):
    """Rows of a run's tables."""

    train: int
    test: int
    extra: int = 0


# Until the data is there
ASSUMED_ROWS = RowCounts(train=1000, test=1000)


@dataclass(frozen=True)
class Forecast:
    """Seconds of a run."""

    training: Seconds
    """Per row, forward and backward."""
    scoring: Seconds
    """Per row."""
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
    """One for each of `gpus`."""
    side_by_side: int
    """Adapters at a time."""
    lends: bool
    """A base is loaded once for all adapters; else each has GPUs, and a base, of its own."""


def forecast(
    config: Config, shape: ModelShape, gpus: Sequence[Gpu], rows: RowCounts
) -> Forecast | None:
    """Estimate the time of a run; None if it does not fit, or has a GPU of unknown rates.

    All extra rows are assumed to join each fold's training.
    """
    machine = _machine(config, gpus)
    if machine is None:
        return None
    limits = gpu_limits(config, machine.gpus)
    config = resolve_batches(config, shape, limits)
    plan = make_plan(config, shape, limits)
    if not plan.fits:
        return None
    row_times = _RowTimes(config, shape, plan, machine.rates)
    training = row_times.training()
    evaluating = row_times.evaluating()
    scoring = row_times.scoring()

    in_flight = plan.batches_in_flight if machine.side_by_side == 1 else 1
    row_seconds = training.wall, evaluating.wall, scoring.wall / scoring.gain(in_flight)
    epoch, train_seconds, score_seconds = _adapter_seconds(config, rows, *row_seconds)
    lends = machine.lends and len(config.adapter_numbers) > 1 and can_lend(config, plan)
    starts = _start_seconds(config, shape, lends=lends)
    run = _run_seconds(machine, starts, train_seconds, score_seconds, training, scoring)
    run += sum(rows) * row_times.encoding()  # a picture a row, at most
    return Forecast(training, scoring, epoch, run, machine.side_by_side)


def held_out_rows(config: Config, rows: RowCounts) -> float:
    """Return a fold's held-out rows."""
    return rows.train * (1 / config.n_folds if config.use_kfold else config.holdout_fraction)


def scored_rows(config: Config, rows: RowCounts) -> float:
    """Return how many rows a fold scores: with `baselines`, held-out ones three times."""
    pixels = config.prompt.images * config.image_side**2
    look_pixels = config.look_prompt.images * config.look_side**2
    look = config.second_look * ORDERS_IN_ONE_PASS * look_pixels / pixels
    held_out_scorings = 1 + (config.baselines or config.base_member) + config.baselines + look
    test_scorings = (
        1 + config.base_member / len(config.fold_numbers) + look
    )  # in one fold's notebook
    return held_out_rows(config, rows) * held_out_scorings + rows.test * test_scorings


def has_linear_attention(shape: ModelShape) -> bool:
    """Tell whether a state goes from token to token, past any mask."""
    return any("linear_attn" in name for name in shape.parameters)


def _adapter_seconds(
    config: Config, rows: RowCounts, training: float, evaluating: float, scoring: float
) -> tuple[float, list[float], list[float]]:
    """Return the seconds of a fold's epoch, and of each adapter's training and scoring, alone.

    Args:
        config: the run's settings.
        rows: of the run's tables.
        training: seconds of a row.
        evaluating: seconds of a row.
        scoring: seconds of a row.
    """
    held_out = held_out_rows(config, rows)
    trained_on = rows.train - held_out + rows.extra
    epoch = trained_on * training + held_out * config.evaluations_per_epoch * evaluating
    scored = scored_rows(config, rows)
    folds = len(config.fold_numbers)
    train_seconds = [config.epochs * epoch] * folds
    score_seconds = [scored * scoring] * folds
    if config.refit:  # trains on all rows, and scores the test set alone
        all_rows = rows.train + rows.extra
        train_seconds.append(config.epochs * all_rows * training)
        score_seconds.append(rows.test * scoring)
    return epoch, train_seconds, score_seconds


def _run_seconds(
    machine: _Machine,
    starts: tuple[float, float],
    train: Sequence[float],
    score: Sequence[float],
    training: Seconds,
    scoring: Seconds,
) -> float:
    """Add up a run: its notebooks, side by side or in turns, and one load of the checkpoint.

    Args:
        machine: the GPUs.
        starts: seconds until a model is loaded, first and later.
        train: seconds of each adapter's training alone.
        score: seconds of each adapter's scoring alone.
        training: of a row.
        scoring: of a row.
    """
    first_start, later_start = starts
    at_once = machine.side_by_side
    gain = training.gain if machine.lends else float
    # `_finish_time` goes at the pace of training
    of_pace = training.gain(at_once) / scoring.gain(at_once) if machine.lends else 1
    trainings = [later_start + seconds for seconds in train]
    scorings = [later_start + seconds * of_pace for seconds in score]
    run = _finish_time(trainings, scorings, at_once, gain)
    return run + first_start - later_start  # one load reads the unquantised checkpoint


def _machine(config: Config, gpus: Sequence[Gpu]) -> _Machine | None:
    """Choose the GPUs as a run does; None if the rates of one are not known.

    If folds run side by side, each has one GPU; all are assumed as fast as the first.
    """
    places = fold_gpus(config, len(config.adapter_numbers), gpus)
    runs_side_by_side = len(places) > 1
    # `max_memory` may name fewer GPUs than there are
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
        return _Machine(used[:1], rates[:1], len(places), lends=False)
    sharing = min(config.sharing_folds, len(config.adapter_numbers))
    return _Machine(used, rates, sharing, lends=True)


@dataclass(frozen=True)
class _RowTimes:
    """Estimate the seconds per row in the passes of a run."""

    config: Config
    shape: ModelShape
    plan: Plan
    rates: list[Rates]

    def training(self) -> Seconds:
        """Estimate a forward and a backward, with one option order."""
        return self._row(self.config.micro_batch_rows, training=True)

    def evaluating(self) -> Seconds:
        """Estimate the evaluation after an epoch, with one option order."""
        return self._row(self.config.score_batch_rows)

    def scoring(self) -> Seconds:
        """Estimate the scoring in all option orders.

        They share a pass. With linear attention, each order takes a pass of its own: the state goes
        from token to token, past any mask.
        """
        config = self.config
        if has_linear_attention(self.shape):
            return self._row(config.score_batch_rows, passes=config.tta)
        return self._row(config.score_batch_rows, orders=config.tta)

    def encoding(self) -> float:
        """Estimate the seconds of a picture in the vision tower, if it runs once for each."""
        if not self.config.caches_features:
            return 0.0
        views = [self.config]
        if self.config.looks_closer:
            views.append(of_second_look(self.config))
        alone = [batch_of(self.shape, view, 1) for view in views]
        works = [vision_work(self.shape, batch) for batch in alone]
        return sum(seconds_of([work], self.rates[:1]).wall for work in works)

    def _row(
        self, rows: int, *, orders: int = 1, passes: int = 1, training: bool = False
    ) -> Seconds:
        """Estimate the seconds per row.

        Args:
            rows: per pass.
            orders: option orders per row and pass.
            passes: per row.
            training: True if the pass has a backward.
        """
        batch = batch_of(self.shape, self.config, rows, orders=orders, training=training)
        one_pass = Pass(batch, training, causal=orders == 1)
        works = []
        for gpu, rates in zip(self.plan.gpus, self.rates, strict=True):
            work = work_of(gpu, self.shape, self.config, one_pass, rates.padding_worth)
            works.append(work * (passes / rows))  # per row
        return seconds_of(works, self.rates)


def _finish_time(
    train: Sequence[float],
    score: Sequence[float],
    side_by_side: int,
    gain: Callable[[int], float] = float,
) -> float:
    """Compute the seconds until all adapters have trained and scored.

    As in `Runner.run`, each step, in its order, goes to the next free process. An adapter scores
    after its training.

    Args:
        train: seconds of training, per adapter, if it is alone.
        score: seconds of scoring, per adapter, if it is alone.
        side_by_side: number of processes.
        gain: the work of so many steps at a time, in that of one. By default, each step goes on as
            if it were alone.
    """
    waiting = [("train", adapter) for adapter in range(len(train))]
    waiting += [("score", adapter) for adapter in range(len(score))]
    seconds = {"train": train, "score": score}
    left: dict[tuple[str, int], float] = {}  # seconds of each step at work, if it were alone
    now = 0.0
    while waiting or left:
        while waiting and len(left) < side_by_side:
            kind, adapter = waiting[0]
            if kind == "score" and ("train", adapter) in left:
                break  # a process waits with it for its training
            left[waiting.pop(0)] = seconds[kind][adapter]
        pace = gain(len(left)) / len(left)
        first = min(left, key=lambda step: left[step])
        passed = left.pop(first)
        now += passed / pace
        left = {step: remaining - passed for step, remaining in left.items()}
    return now


def _start_seconds(config: Config, shape: ModelShape, *, lends: bool) -> tuple[float, float]:
    """Estimate the seconds until a model is loaded: first, and later.

    Later ones take it from its quantised copy. If it is lent, kernels start while it is loaded or
    while other folds are at work: but for the last scoring, which waits for its training.
    """
    parameters = sum(math.prod(size) for size in shape.parameters.values())
    checkpoint_bytes = copy_bytes = FP16 * parameters  # as it is published
    if config.quantization == "nf4" and config.cache_dir != "":
        modules = weights_by_module(shape, config).values()
        copy_bytes = sum(sum(groups.values()) for groups in modules)
    first_start = NOTEBOOK_START_SECONDS + checkpoint_bytes / DISK_BYTES_PER_SECOND
    if lends:
        return first_start + NOTEBOOK_START_SECONDS, ATTACH_SECONDS
    return first_start, NOTEBOOK_START_SECONDS + copy_bytes / DISK_BYTES_PER_SECOND
