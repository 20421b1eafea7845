"""Print the memory plan and the expected minutes."""

from collections.abc import Iterator, Sequence

from rich.console import Console

from vqa_utils.config import Config
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, Forecast, RowCounts, forecast
from vqa_utils.forecasting.rates import RATES
from vqa_utils.planning.activations import LOGITS
from vqa_utils.planning.gpu_plan import GpuPlan
from vqa_utils.planning.machine.gpus import CONTEXT_GIB, Gpu, gpu_limits
from vqa_utils.planning.memory import LORA
from vqa_utils.planning.plan import Plan, largest_micro_batch, make_plan, resolve_batches
from vqa_utils.planning.shapes import GROUPS, LAYERS, shape_of
from vqa_utils.running.terminal.fitting import Column, print_columns
from vqa_utils.setting_types import AUTO, GIB

PEAK = "peak"
# Rows of the table with a rule below: weights, what training adds, each phase's sum, the limits
LAST_OF_A_SECTION = (LORA, LOGITS, PEAK)


def print_plan(console: Console, config: Config, gpus: Sequence[Gpu]) -> Plan:
    """Print each GPU's memory by group of weights and by phase, and the verdict.

    Returns:
        The plan.
    """
    shape = shape_of(config)
    limits = gpu_limits(config, gpus)
    config = resolve_batches(config, shape, limits)
    plan = make_plan(config, shape, limits)
    _print_memory(console, config, plan, gpus)
    for number, gpu in enumerate(plan.gpus):
        console.print(f"GPU {number}: {_describe_layers(gpu)}")
    # May be more than the run's own micro-batch, if a preset or --set gives that
    largest = largest_micro_batch(config, shape, limits)
    console.print(
        f"largest micro-batch: {largest} of {config.effective_batch} rows per optimizer step"
    )
    machine = f"{len(plan.gpus)} x {gpus[0].name}"
    if plan.fits:
        console.print(f"{config.preset} fits on {machine}", style="green")
        return plan
    hint = ""
    if shape.experts and not config.offload_experts:
        hint = " (--set offload_experts=true keeps the experts that do not fit in host memory)"
    console.print(f"{config.preset} does not fit on {machine}{hint}", style="red")
    return plan


def _print_memory(console: Console, config: Config, plan: Plan, gpus: Sequence[Gpu]) -> None:
    """Print the table of sizes in GiB; a row of zeros is left out."""
    title = (
        f"{config.preset}: {config.model}, {config.image_side} px, "
        f"{_texts(config)}, micro-batch {config.micro_batch}{_at_a_time(plan)}"
    )
    rows = [(name, sizes) for name, sizes in _sizes_by_row(plan.gpus) if any(sizes)]
    names = [name for name, _ in rows]
    columns = [Column("GiB", names)]
    for number in range(len(plan.gpus)):  # `max_memory` may leave later GPUs without a share
        cells = [f"{sizes[number] / GIB:.2f}" for _, sizes in rows]
        columns.append(Column(f"GPU {number}: {gpus[number].name}", cells, is_number=True))
    section_ends = [place for place, name in enumerate(names) if name in LAST_OF_A_SECTION]
    print_columns(console, title, columns, section_ends=section_ends)


def _texts(config: Config) -> str:
    assumed = " (assumed, as they are not measured)" if config.text_tokens == AUTO else ""
    return f"texts of up to {config.usual_text} tokens{assumed}"


def _at_a_time(plan: Plan) -> str:
    folds = plan.gpus[0].folds
    if folds == 1:
        return ""
    giving = ", which give unused memory back after each turn" if plan.gives_back else ""
    return f", {folds} folds at a time around one base{giving}"


def _sizes_by_row(gpus: Sequence[GpuPlan]) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each row with its bytes on each GPU."""
    for group in (*GROUPS, LORA):
        yield group, [gpu.weights.get(group, 0) for gpu in gpus]
    for part in gpus[0].training:
        yield part, [gpu.training[part] for gpu in gpus]
    folds = gpus[0].folds
    if folds > 1:
        yield f"of each of {folds} folds", [gpu.of_one_fold for gpu in gpus]
        if gpus[0].gives_back:
            yield "between its turns", [gpu.kept for gpu in gpus]
    for phase in gpus[0].peaks:
        # The vision tower is a phase of the first GPU alone
        yield f"in all, {phase}", [gpu.peaks.get(phase, 0) for gpu in gpus]
    yield PEAK, [gpu.total for gpu in gpus]
    yield "limit", [gpu.limit for gpu in gpus]
    yield "left", [gpu.left for gpu in gpus]
    yield "CUDA itself, beside the limit", [int(folds * CONTEXT_GIB * GIB) for _ in gpus]


def _describe_layers(gpu: GpuPlan) -> str:
    layers = sum(module.startswith(LAYERS) for module in gpu.modules)
    text = f"{layers} decoder layers"
    if gpu.offloaded_layers:
        text += f", the experts of {len(gpu.offloaded_layers)} offloaded to host memory"
    if gpu.uncheckpointed_layers:
        text += f", {len(gpu.uncheckpointed_layers)} of them without activation checkpointing"
    return text


def print_forecast(
    console: Console, config: Config, gpus: Sequence[Gpu], rows: RowCounts | None
) -> None:
    """Print the expected minutes of a run by the cost model.

    Args:
        console: the terminal.
        config: the run's settings.
        gpus: the machine's.
        rows: None without the data; then as many as `ASSUMED_ROWS`.
    """
    expected = forecast(config, shape_of(config), gpus, rows or ASSUMED_ROWS)
    if expected is None:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
        console.print(
            f"minutes: no rates are known for {names}, only for {', '.join(RATES)} "
            "(vqa_utils/forecasting/rates.py)"
        )
        return
    console.print(
        f"expected for {_describe_rows(rows)}: "
        f"{expected.epoch_s / 60:.1f} minutes per epoch of a fold, "
        f"{expected.run_s / 60:.0f} for the whole run ({_describe_adapters(config, expected)})"
    )
    training = expected.training
    scoring = expected.scoring
    console.print(
        "a model, not a measurement: "
        f"{training.wall:.2f} s per row in training, bound by {training.bound}, and "
        f"{scoring.wall:.2f} s in scoring, bound by {scoring.bound}; "
        "its check is in tests/bench/README.md"
    )


def _describe_rows(rows: RowCounts | None) -> str:
    counts = rows or ASSUMED_ROWS
    extra = f", {counts.extra:,} extra" if counts.extra else ""
    assumed = "" if rows else " (assumed, as the data is not there)"
    return f"{counts.train:,} train{extra} and {counts.test:,} test rows{assumed}"


def _describe_adapters(config: Config, expected: Forecast) -> str:
    """Such as "3 folds and the refit, 2 at a time, 2 epochs"."""
    folds = len(config.fold_numbers)
    text = "1 fold" if folds == 1 else f"{folds} folds"
    if config.refit:
        text += " and the refit"
    if expected.side_by_side > 1:
        text += f", {expected.side_by_side} at a time"
    return f"{text}, {config.epochs:g} epochs"
