"""Print the scores of a run, its baselines and calibration, and the paths of its files."""

from rich.console import Console

from vqa_utils.analysis.baselines import baseline_table, describe_baselines
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, rows_of, scored_folds
from vqa_utils.ensembling.temperature import before_and_after, describe_calibration_effect
from vqa_utils.running.terminal.tables import print_table


def print_results(paths: RunPaths, config: Config, console: Console) -> None:
    """Print the scores of the scored folds, then the paths of submission and report."""
    if any(paths.fold(k).probs("test").exists() for k in config.fold_numbers):
        _print_scores(paths, config, console)
    files = {
        "submission": paths.submission(config.use_kfold),
        "report": paths.page,
    }
    for name, path in files.items():
        if path.exists():
            console.print(f"{name}: {shown(path)}")


def _print_scores(paths: RunPaths, config: Config, console: Console) -> None:
    train = load_challenge(config).train
    folds = read_folds(paths.folds, train)
    scores = fold_table(paths, config, folds, train)
    print_table(console, "folds, probabilities as scored", scores)
    baselines = baseline_table(paths, config, folds, train)
    print_table(console, "out of fold, against the baselines", baselines)
    console.print(describe_baselines(baselines), markup=False)

    oof = pooled(paths, config, folds, "oof")
    answers = rows_of(oof, train)["answer"]
    probs = before_and_after(paths, oof)
    console.print(describe_calibration_effect(probs, answers), markup=False)

    missing = scored_folds(paths, config)[1]
    if missing:
        console.print(f"folds without test probabilities: {', '.join(map(str, missing))}")
    if config.refit:
        console.print(describe_refit(paths, config), markup=False)
