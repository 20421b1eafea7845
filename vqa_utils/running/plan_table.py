"""The memory plan and the expected minutes in the terminal. Apart from the other tables, so that it comes at once."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from vqa_utils.config import Config
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, RowCounts, forecast
from vqa_utils.forecasting.rates import RATES
from vqa_utils.planning.gpus import CONTEXT_GIB, Gpu, gpu_limits
from vqa_utils.planning.memory import LORA
from vqa_utils.planning.placement import GpuPlan
from vqa_utils.planning.plan import Plan, largest_micro_batch, make_plan, resolve_batches
from vqa_utils.planning.shapes import GROUPS, LAYERS, shape_of

GIB = 2**30


def print_plan(console: Console, config: Config, gpus: Sequence[Gpu]) -> Plan:
    """Each GPU's memory by group of weights and by phase, the largest micro-batch, and whether it all fits."""
    shape, limits = shape_of(config), gpu_limits(config, gpus)
    config = resolve_batches(config, shape, limits)
    plan = make_plan(config, shape, limits)
    table = Table(
        title=f"{config.preset}: {config.model}, {config.image_side} px, micro-batch {config.micro_batch}",
        title_justify="left",
    )
    table.add_column("GiB")
    for number, _ in enumerate(plan.gpus):
        table.add_column(f"GPU {number}: {gpus[number].name}", justify="right")
    for name, sizes in _lines(plan.gpus):
        table.add_row(
            name,
            *(f"{size / GIB:.2f}" for size in sizes),
            end_section=name in (LORA, "logits", "peak"),
        )
    console.print(table)
    for number, gpu in enumerate(plan.gpus):
        layers = sum(module.startswith(LAYERS) for module in gpu.modules)
        streamed = (
            f", the experts of {len(gpu.offloaded_layers)} streamed from host memory at each pass"
            if gpu.offloaded_layers
            else ""
        )
        kept = len(gpu.uncheckpointed_layers)
        again = (
            f", {kept} of them kept for the backward, {layers - kept} computed again"
            if kept
            else ""
        )
        console.print(f"GPU {number}: {layers} decoder layers{streamed}{again}")
    largest = largest_micro_batch(config, shape, limits)
    console.print(
        f"largest micro-batch: {largest} of {config.effective_batch} rows an optimizer step"
    )
    verdict = "fits" if plan.fits else "does not fit"
    can_stream = shape.experts and not config.offload_experts
    hint = (
        " (--set offload_experts=true streams what is too much)"
        if can_stream and not plan.fits
        else ""
    )
    console.print(
        f"{config.preset} {verdict} on {len(plan.gpus)} x {gpus[0].name}{hint}",
        style="green" if plan.fits else "red",
    )
    return plan


def print_forecast(
    console: Console, config: Config, gpus: Sequence[Gpu], rows: RowCounts | None
) -> None:
    """The minutes that a run will take by the model of the cost.

    Args:
        rows: None where the data is not there.
    """
    counts = rows or ASSUMED_ROWS
    found = forecast(config, shape_of(config), gpus, counts)
    if found is None:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
        console.print(
            f"minutes: no rates are known for {names}, only for {', '.join(RATES)} (vqa_utils/forecasting/rates.py)"
        )
        return
    extra = f", {counts.extra:,} extra" if counts.extra else ""
    assumed = "" if rows else " (assumed, as the data is not there)"
    folds, refit = len(config.fold_numbers), " and the refit" if config.refit else ""
    beside = f", {found.side_by_side} at a time" if found.side_by_side > 1 else ""
    console.print(
        f"expected for {counts.train:,} train{extra} and {counts.test:,} test rows{assumed}: {found.epoch_s / 60:.1f} minutes per epoch of a fold, "
        f"{found.run_s / 60:.0f} for the whole run ({folds} fold{'s' * (folds > 1)}{refit}{beside}, {config.epochs:g} epochs)"
    )
    console.print(
        f"a model, not a measurement: {found.training.wall:.2f} s a row in training, bound by {found.training.bound}, and "
        f"{found.scoring.wall:.2f} s in scoring, bound by {found.scoring.bound}; its check is in tests/bench/README.md"
    )


def _lines(gpus: Sequence[GpuPlan]) -> Iterator[tuple[str, list[int]]]:
    """Names with a size for each GPU; without those that are zero everywhere."""
    weights = {name: [gpu.weights.get(name, 0) for gpu in gpus] for name in (*GROUPS, LORA)}
    training = {name: [gpu.training[name] for gpu in gpus] for name in gpus[0].training}
    phases = {name: [gpu.peaks.get(name, 0) for gpu in gpus] for name in gpus[0].peaks}
    sums = {
        "peak": [gpu.total for gpu in gpus],
        "limit": [gpu.limit for gpu in gpus],
        "left": [gpu.left for gpu in gpus],
        "CUDA itself, beside the limit": [int(CONTEXT_GIB * GIB)] * len(gpus),
    }
    for name, sizes in {
        **weights,
        **training,
        **{f"in all, {name}": sizes for name, sizes in phases.items()},
        **sums,
    }.items():
        if any(sizes):
            yield name, sizes
