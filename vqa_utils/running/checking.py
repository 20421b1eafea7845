"""Check a run's data, model and machine, and load nothing: on a laptop, without a GPU or the hub."""

import functools
import tempfile
from collections.abc import Container, Sequence
from pathlib import Path

from rich.console import Console

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.data.challenge import Challenge, load_challenge
from vqa_utils.data.folds import describe_balance, make_folds
from vqa_utils.data.groups import describe_groups, row_groups
from vqa_utils.data.known.challenges import KNOWN_CHALLENGES
from vqa_utils.data.pictures.notes import describe_notes
from vqa_utils.data.text_lengths import describe_texts, measure_texts
from vqa_utils.errors import RunError, VqaError, problems_of
from vqa_utils.forecasting.folds_at_once import with_folds_at_once
from vqa_utils.planning.machine.check import check_run, check_targets
from vqa_utils.planning.machine.gpus import Gpu, find_gpus
from vqa_utils.planning.machine.host import free_memory
from vqa_utils.planning.plan import is_planned
from vqa_utils.planning.source.check import check_source, source_of, tokenizer_of
from vqa_utils.running.auto_settings import rows_here, with_feature_cache, with_text_lengths
from vqa_utils.running.resolution import with_data
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import Step, due_steps
from vqa_utils.running.terminal.plan_table import print_forecast, print_plan
from vqa_utils.tracking.trackers import check_trackers


def check_inputs(
    config: Config, gpus: Sequence[Gpu], console: Console, given: Container[str] = ()
) -> bool:
    """Check what a run reads, and print what it would find.

    Args:
        config: the settings of the run.
        gpus: those to plan for.
        console: the terminal.
        given: settings that the command gives.

    Returns:
        True if it fits these GPUs.

    Raises:
        DataError: with every problem of the rows and pictures.
        FoldError: folds cannot be made of these rows.
        SourceError: the model has not the layers that are to be trained.
    """
    config = with_data(config)
    with tempfile.TemporaryDirectory() as folder:
        challenge = load_challenge(config, images=Path(folder) / "images.csv")
    _print_data(challenge, config, console)
    check_targets(config)
    check_trackers(config)
    _print_source(config, console)
    if config.model == DEMO_MODEL_NAME or not is_planned(config):
        return True
    return print_whole_plan(config, gpus, console, given)


def check_rows(config: Config) -> None:
    """Check the rows of one's own data, and that their pictures are there; open none, write nothing.

    Raises:
        DataError: with every problem.
    """
    config = with_data(config)
    if config.data not in KNOWN_CHALLENGES:  # one of these would be written
        load_challenge(config)


def refuse_unfit(runner: Runner, steps: Sequence[Step], *, looks_at_rows: bool) -> None:
    """Refuse steps that this machine cannot execute, and then wrong rows in the same message.

    Args:
        runner: of the run.
        steps: to execute.
        looks_at_rows: look at them on any machine; else the run's start does, pictures included.

    Raises:
        RunError: with all problems.
    """
    problems = problems_of([functools.partial(check_trackers, runner.config)])
    due = due_steps(steps, runner.is_reused)
    problems += _problems_of_refit(runner, due)
    # Notebooks of a fold use the model; the others need neither GPU nor hub
    if any(step.fold is not None for step in due):
        if runner.cluster:
            check = functools.partial(runner.cluster.check, runner.config)
        else:
            check = functools.partial(check_run, runner.config, find_gpus())
        problems += problems_of([check])
    if problems or looks_at_rows:
        problems += problems_of([functools.partial(check_rows, runner.config)])
    if problems:
        raise RunError("\n".join(problems))


def _problems_of_refit(runner: Runner, due: Sequence[Step]) -> list[str]:
    """Tell what keeps a refit from the steps of the folds' best adapters, if it trains for these."""
    config = runner.config
    trained = [step.fold for step in due if step.stage.trains]
    is_due = config.refit and config.adapter_numbers[-1] in trained
    if not is_due or not config.ends_at_best:
        return []
    needs = "refit: with eval_every or patience it trains for the steps of the folds' best adapters"
    if runner.cluster:
        return [f"{needs}, which nodes of a cluster do not see; leave out --executor ray or refit"]
    missing = []
    for number in config.fold_numbers:
        if number not in trained and not runner.paths.fold(number).meta.exists():
            missing.append(f"fold {number}")
    return (
        [f"{needs}; expected all to be trained, found no {', '.join(missing)}"] if missing else []
    )


def print_whole_plan(
    config: Config, gpus: Sequence[Gpu], console: Console, given: Container[str] = ()
) -> bool:
    """Print the memory plan, and the expected minutes if the run fits; return whether it does."""
    rows = rows_here(config)
    config = with_feature_cache(with_text_lengths(config, console, given), gpus)
    is_here = bool(gpus) and list(gpus) == find_gpus()
    config = with_folds_at_once(config, gpus, rows, free_memory() if is_here else None)
    fits = print_plan(console, config, gpus).fits
    if fits:
        print_forecast(console, config, gpus, rows)
    return fits


def _print_data(challenge: Challenge, config: Config, console: Console) -> None:
    train, test = challenge.train, challenge.test
    groups = row_groups(challenge, config)
    folds = make_folds(train, groups, config)
    sizes = folds["fold"].value_counts().sort_index()
    tokenizer = tokenizer_of(source_of(config))
    texts = measure_texts(challenge.question_rows, tokenizer, config.prompt)
    lines = {
        "rows": f"{len(train):,} to train on, {len(test):,} of test, {len(challenge.extra):,} extra; "
        "all of them and their pictures can be read",
        "pictures": describe_notes(challenge),
        "texts": describe_texts(texts),
        "groups": describe_groups(groups),
        "folds": f"{', '.join(map(str, sizes))} rows; {describe_balance(folds, train)}",
    }
    for name, text in lines.items():
        console.print(f"{name}: {text}", markup=False)


def _print_source(config: Config, console: Console) -> None:
    """Say whether the model's files are complete; without the hub, that they were not looked at."""
    try:
        check_source(source_of(config))
        console.print(f"model: {config.model}: its files are complete", markup=False)
    except VqaError as error:
        console.print(f"model: not here: {error}", style="yellow", markup=False)
