"""Print a run's scores, baselines and calibration, and its end: score, files, what comes next."""

from typing import NamedTuple

from rich.console import Console

from vqa_utils.analysis.baselines import baseline_table, describe_baselines
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, rows_of, scored_folds
from vqa_utils.ensembling.temperature import before_and_after, describe_calibration_effect
from vqa_utils.metrics import accuracy, accuracy_interval, correct
from vqa_utils.running.terminal.console import END
from vqa_utils.running.terminal.events import tell
from vqa_utils.running.terminal.tables import print_table


class Score(NamedTuple):
    """The accuracy on a run's out-of-fold rows, with Wilson's 95 % interval."""

    rows: int
    accuracy: float
    low: float
    high: float


def has_scores(paths: RunPaths, config: Config) -> bool:
    """Tell whether a fold is scored."""
    return any(paths.fold(k).probs("test").exists() for k in config.fold_numbers)


def score_of(paths: RunPaths, config: Config) -> Score:
    """Score the out-of-fold rows of the scored folds."""
    train = load_challenge(config).train
    oof = pooled(paths, config, read_folds(paths.folds, train), "oof")
    answers = rows_of(oof, train)["answer"]
    low, high = accuracy_interval(correct(oof, answers))
    return Score(len(oof), accuracy(oof, answers), low, high)


def print_end(
    paths: RunPaths, config: Config, console: Console, *, is_whole: bool, has_results: bool
) -> None:
    """Print the score, the submission, the page and the next command; tell them as an event.

    Args:
        paths: the run.
        config: its settings.
        console: the terminal.
        is_whole: no notebook is left to execute.
        has_results: the command has scored the run.
    """
    found: dict[str, object] = {}
    if has_results and has_scores(paths, config):
        score = score_of(paths, config)
        found |= score._asdict()
        console.print(
            f"score: {score.accuracy:.3f} of {score.rows} rows right, out of fold "
            f"(95 % interval {score.low:.3f} to {score.high:.3f})",
            style=END,
        )
    files = {"page": paths.page}
    if has_results:
        files = {"submission": paths.submission(config.use_kfold), **files}
    for name, path in files.items():
        if path.exists():
            found[name] = str(path.absolute())
            console.print(f"{name}: {shown(path)}", style=END)
    following = next_commands(paths, config, is_whole=is_whole)
    for command, purpose in following.items():
        console.print(f"next: {command} ({purpose})", style=END)
    tell(console, "finished", run=paths.run_id, is_whole=is_whole, **found, next=[*following])


def next_commands(paths: RunPaths, config: Config, *, is_whole: bool) -> dict[str, str]:
    """Return commands that may follow a run, with their purposes."""
    resume = f"python run_all.py --resume --run-id {paths.run_id}"
    if not is_whole:
        return {resume: "goes on with what is left"}
    following = {f"python run_all.py open --run-id {paths.run_id}": "shows the page"}
    if not config.refit:
        following[f"{resume} --refit"] = "trains one more adapter on all rows, for the test set"
    return following


def print_words(console: Console, words: str) -> None:
    """Print sentences, in lines that fit a terminal: it would break words. A file has them whole."""
    console.print(words, markup=False, soft_wrap=not console.is_terminal)


def print_results(paths: RunPaths, config: Config, console: Console) -> None:
    """Print the scores of the scored folds, against the baselines."""
    if not has_scores(paths, config):
        return
    train = load_challenge(config).train
    folds = read_folds(paths.folds, train)
    scores = fold_table(paths, config, folds, train)
    print_table(console, "folds, probabilities as scored", scores)
    baselines = baseline_table(paths, config, folds, train)
    print_table(console, "out of fold, against the baselines", baselines)
    print_words(console, describe_baselines(baselines))

    oof = pooled(paths, config, folds, "oof")
    answers = rows_of(oof, train)["answer"]
    probs = before_and_after(paths, oof)
    print_words(console, describe_calibration_effect(probs, answers))

    missing = scored_folds(paths, config)[1]
    if missing:
        console.print(f"folds without test probabilities: {', '.join(map(str, missing))}")
    if config.refit:
        console.print(describe_refit(paths, config), markup=False)
