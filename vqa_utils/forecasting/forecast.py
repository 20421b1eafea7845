"""How long a run will take on GPUs whose rates are known, before anything is loaded: a model, not a measurement."""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vqa_utils.config import Config
from vqa_utils.forecasting._work import work_of
from vqa_utils.forecasting.rates import Rates, Seconds, rates_of, seconds_of
from vqa_utils.planning.gpus import Gpu, gpu_limits
from vqa_utils.planning.memory import OPTION_TOKENS, TEXT_TOKENS, batch_of, weights_by_module
from vqa_utils.planning.plan import Plan, fold_gpus, make_plan, resolve_batches
from vqa_utils.planning.shapes import ModelShape

READING = 0.2e9  # bytes a second from the disk with the weights; assumed
STARTING = 25  # seconds of a notebook until it loads: 10 to 14 s were recorded on two cores, and Kaggle's are slow


class RowCounts(NamedTuple):
    """How many rows a run is about."""

    train: int
    test: int
    extra: int = 0


ASSUMED_ROWS = RowCounts(train=1000, test=1000)  # where the data is not there yet


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
    """All folds, and the refit where there is one: loading, training, evaluation, scoring."""
    side_by_side: int
    """Adapters at a time."""


def forecast(
    config: Config, shape: ModelShape, gpus: Sequence[Gpu], rows: RowCounts
) -> Forecast | None:
    """The time of a run that fits; None where the rates of one of its GPUs are not known.

    All extra rows are taken to join each fold's training.
    """
    places = fold_gpus(config, len(config.adapter_numbers), gpus)
    used = (
        [gpus[place] for place in places]
        if len(places) > 1
        else list(gpus[: len(gpu_limits(config, gpus))])
    )
    if any(rates_of(gpu.name) is None for gpu in used):
        return None
    used = used[:1] if len(places) > 1 else used  # a fold has one; the others are taken for as fast
    rates = [rates_of(gpu.name) for gpu in used]
    config = resolve_batches(config, shape, gpu_limits(config, used))
    a_row = functools.partial(
        _a_row, make_plan(config, shape, gpu_limits(config, used)), rates, shape, config
    )
    training, evaluating = a_row(config.micro_batch, training=True), a_row(config.score_batch)
    # Linear attention passes a state from token to token, so that each option order takes a pass
    shares = not any("linear_attn" in name for name in shape.parameters)
    orders, passes = (config.tta, 1) if shares else (1, config.tta)
    scoring = a_row(config.score_batch, orders, passes=passes)
    held_out = rows.train * (1 / config.n_folds if config.use_kfold else config.holdout_fraction)
    epoch = (rows.train - held_out + rows.extra) * training.wall + held_out * evaluating.wall
    first, later = (STARTING + size / READING for size in _sizes(config, shape))
    again = 2 if config.baselines else 0  # the base, and blank pictures
    train = [later + config.epochs * epoch for _ in config.fold_numbers]
    score = [
        later + scoring.wall * (held_out * (1 + again) + rows.test) for _ in config.fold_numbers
    ]
    if config.refit:  # it trains on all rows, and scores the test set alone
        train.append(later + config.epochs * (rows.train + rows.extra) * training.wall)
        score.append(later + scoring.wall * rows.test)
    side = max(1, len(places))
    return Forecast(training, scoring, epoch, first - later + _last_end(train, score, side), side)


def _last_end(train: Sequence[float], score: Sequence[float], side: int) -> float:
    """Seconds until all is trained and scored: each step in its order by the next free of `side` processes (see `Runner.run`)."""
    free, trained = [0.0] * side, []
    for seconds in train:
        trained.append(heapq.heappop(free) + seconds)
        heapq.heappush(free, trained[-1])
    for earliest, seconds in zip(trained, score, strict=True):
        heapq.heappush(free, max(heapq.heappop(free), earliest) + seconds)
    return max(free)


def _a_row(
    plan: Plan,
    rates: Sequence[Rates],
    shape: ModelShape,
    config: Config,
    rows: int,
    orders: int = 1,
    *,
    passes: int = 1,
    training: bool = False,
) -> Seconds:
    """Seconds of one of the `rows` of a pass, which has some option orders; of so many passes."""
    batch = batch_of(
        shape, config, rows, TEXT_TOKENS + (orders - 1) * OPTION_TOKENS, training=training
    )
    pairs = zip(plan.gpus, rates, strict=True)
    kind = {"training": training, "causal": orders == 1}
    works = [work_of(gpu, shape, config, batch, each.padding_worth, **kind) for gpu, each in pairs]
    return seconds_of([work * (passes / rows) for work in works], rates)


def _sizes(config: Config, shape: ModelShape) -> tuple[int, int]:
    """Bytes that are read when the model is loaded first, and when it is loaded again, which may be from a quantised copy."""
    whole = 2 * sum(math.prod(size) for size in shape.parameters.values())
    if config.quantization != "nf4" or config.cache_dir == "":
        return whole, whole
    return whole, sum(sum(groups.values()) for groups in weights_by_module(shape, config).values())
