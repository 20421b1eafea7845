"""What can be said on the command line, and what a command would not heed."""

import re

import pytest

import run_all
from vqa_utils.errors import RunError
from vqa_utils.running import arguments
from vqa_utils.running.arguments import HEEDED, check_heeded, parse_arguments


def refusal(monkeypatch, *words):
    """What the command says against its arguments; empty where it heeds all."""
    monkeypatch.setattr("sys.argv", ["run_all.py", *words])
    try:
        check_heeded(parse_arguments())
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--predict", "DIR", "--folds", "0", "--limit", "0", "--set", "tta=1"), "--set, --limit, --folds"),
        (("--ensemble", "a", "b", "--resume", "--data", ""), "--data, --resume"),
        (("--compare", "--from", "05_ensemble"), "--from"),
        (("--list-presets", "--compare"), "--compare"),
        (("--sweep", "grid.yaml", "--preset", "demo", "--extra-train", "x.csv", "--refit", "--set", "seed=1", "--limit", "5"),
         "--preset, --extra-train, --refit, --set, --limit"),
        (("--plan", "--only", "03_train_fold", "--status"), "--only, --status"),
    ],
)  # fmt: skip
def test_what_a_command_would_not_heed_is_refused(monkeypatch, words, found):
    assert re.fullmatch(
        rf"{words[0]}: expected .* beside it, as .*; found {found}", refusal(monkeypatch, *words)
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--preset", "safe", "--data", "DIR", "--folds", "0", "--no-ladder", "--set", "seed=1"),
        ("--status", "--run-id", "r", "--set", "tta=2"),
        ("--resume", "--dry-run", "--from", "05_ensemble", "--refit"),
        ("--predict", "DIR", "--run-id", "r"),
        ("--sweep", "grid.yaml", "--dry-run", "--folds", "0", "--force"),
        ("--plan", "2", "--preset", "safe", "--set", "image_side=448"),
        ("--compare", "a", "b"),
    ],
)
def test_what_it_heeds_passes(monkeypatch, words):
    assert refusal(monkeypatch, *words) == ""


def test_the_table_names_arguments_that_there_are():
    known = vars(arguments._parser("").parse_args([]))
    assert {name for command, (heeded, _) in HEEDED.items() for name in (command, *heeded)} <= set(
        known
    )


def test_the_command_refuses_before_it_does_anything(monkeypatch, console, stand_in, korean_folder):
    monkeypatch.setattr(
        "sys.argv", ["run_all.py", "--predict", str(korean_folder), "--set", "tta=1"]
    )
    with pytest.raises(RunError, match="--predict: expected --run-id, --resume beside it"):
        run_all.run(parse_arguments(), console)
