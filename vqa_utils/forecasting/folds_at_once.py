"""Choose how many folds share the base at a time: those with the shortest expected run."""

from collections.abc import Sequence
from dataclasses import replace

from joblib import cpu_count

from vqa_utils.config import MOST_AT_ONCE, Config
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, RowCounts, forecast
from vqa_utils.planning.machine.gpus import Gpu, gpu_limits
from vqa_utils.planning.machine.host import host_memory
from vqa_utils.planning.plan import can_lend, fold_gpus, make_plan, resolve_batches
from vqa_utils.planning.shapes import ModelShape, shape_of
from vqa_utils.setting_types import AUTO

# A further fold at a time is another process to go wrong, so it has to save this share of the time
LEAST_SAVING = 0.05


def with_folds_at_once(
    config: Config,
    gpus: Sequence[Gpu],
    rows: RowCounts | None,
    host_bytes: int | None = None,
) -> Config:
    """Replace "auto" by a number of folds at a time.

    With unknown GPUs, these are as many as GPUs if that leaves the rows per pass as they are.

    Args:
        config: the run's settings; its batches may be "auto".
        gpus: the machine's; at least one.
        rows: of the run; None before its data is there.
        host_bytes: free memory of the machine itself; None if it is not known.
    """
    if config.folds_at_once != AUTO:
        return config
    best = replace(config, folds_at_once=1)
    adapters = len(config.adapter_numbers)
    # Small models do better with a GPU for each fold
    if not can_lend(config, None) or len(fold_gpus(best, adapters, gpus)) > 1:
        return best
    shape = shape_of(config)
    rows = rows or ASSUMED_ROWS
    least = forecast(best, shape, gpus, rows)
    # Folds on one GPU fill the gaps in which it waits for a host: each needs a core of it
    most = adapters if len(gpu_limits(best, gpus)) > 1 else min(adapters, cpu_count())
    for count in range(2, min(most, MOST_AT_ONCE) + 1):
        candidate = replace(config, folds_at_once=count)
        if not _has_room(candidate, shape, gpus, host_bytes):
            continue
        expected = forecast(candidate, shape, gpus, rows)
        if expected is None or least is None:
            if count <= len(gpus) and _keeps_rows(candidate, best, shape, gpus):
                best = candidate
        elif expected.run_s < (1 - LEAST_SAVING) * least.run_s:
            best, least = candidate, expected
    return best


def _has_room(
    config: Config, shape: ModelShape, gpus: Sequence[Gpu], host_bytes: int | None
) -> bool:
    """Tell whether the folds fit, with the reserve, and nothing is offloaded."""
    plan = make_plan(config, shape, gpu_limits(config, gpus))
    if host_bytes is not None:
        needed = host_memory(config, shape, plan, config.sharing_folds)
        if sum(needed.values()) > host_bytes:
            return False
    return plan.fits and plan.leaves_reserve and can_lend(config, plan)


def _keeps_rows(config: Config, other: Config, shape: ModelShape, gpus: Sequence[Gpu]) -> bool:
    """Tell whether two settings lead to the same rows per pass of training."""
    rows = []
    for settings in (config, other):
        limits = gpu_limits(settings, gpus)
        rows.append(resolve_batches(settings, shape, limits).micro_batch_rows)
    return rows[0] == rows[1]
