"""The commands of run_all.py, and the options that each one takes."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import run_all
from vqa_utils.artifacts.paths import ROOT
from vqa_utils.running.command_line.arguments import parse_arguments

PAGES = [
    ROOT / "README.md",
    ROOT / "runs/README.md",
    ROOT / "notebooks/README.md",
    *(ROOT / "vqa_utils").glob("**/README.md"),
]
# A command line of a block, up to its comment; and one in backticks, maybe over two lines
OF_A_BLOCK = re.compile(r"^(?:.*&& |# then: | *)python run_all\.py\b([^#`\n]*)", re.MULTILINE)
IN_BACKTICKS = re.compile(r"`python run_all\.py\b([^`]*)`")


@pytest.fixture
def parse(monkeypatch):
    """Parses the words of a command line."""

    def parse(*words):
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        return parse_arguments()

    return parse


def refusal(capsys, parse, *words):
    """Return the message of a command line that is refused."""
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("predict", "DIR", "--folds", "0"), "--folds"),
        (("predict", "DIR", "--set", "tta=1"), "--set"),
        (("blend", "a", "b", "--resume"), "--resume"),
        (("blend", "a", "b", "--data", ""), "--data"),
        (("compare", "--from", "05_ensemble"), "--from"),
        (("presets", "--run-id", "r"), "--run-id"),
        (("sweep", "grid.yaml", "--preset", "demo"), "--preset"),
        (("sweep", "grid.yaml", "--limit", "5"), "--limit"),
        (("plan", "--only", "03_train_fold"), "--only"),
        (("plan", "2"), "2"),
        (("status", "--force"), "--force"),
        (("--res",), "--res"),
    ],
)
def test_an_option_that_a_command_does_not_heed_is_refused(capsys, parse, words, refused):
    command = words[0] if words[0] in run_all.COMMANDS else "run"
    message = refusal(capsys, parse, *words)
    assert f"`{command}` does not take {refused}" in message
    assert f"{command} --help" in message


@pytest.mark.parametrize("words", [("--plan", "2"), ("--preset", "safe", "plan")])
def test_a_command_that_does_not_come_first_is_named(capsys, parse, words):
    assert "run_all.py plan --help" in refusal(capsys, parse, *words)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys, parse):
    message = refusal(capsys, parse, "stauts")
    assert all(name in message for name in run_all.COMMANDS)


@pytest.mark.parametrize("words", [(), ("--preset", "safe"), ("run", "--preset", "safe")])
def test_run_is_the_default_command(parse, words):
    args = parse(*words)
    assert args.command == "run"
    assert args.preset == ("safe" if words else None)


def test_options_of_run_have_their_defaults_in_other_commands(parse):
    run = vars(parse("run"))
    for words in (("status",), ("predict", "DIR"), ("sweep", "FILE"), ("plan",), ("presets",)):
        args = vars(parse(*words))
        assert run | {"command": words[0]} == {name: args[name] for name in run}


def test_fold_numbers_are_sorted_and_each_taken_once(capsys, parse):
    assert parse("--folds", "2,0,2").folds == [0, 2]
    assert parse().folds == []
    assert "'0;2'" in refusal(capsys, parse, "--folds", "0;2")


@pytest.mark.parametrize(
    ("text", "seconds"), [("11.5h", 41400), ("90min", 5400), ("45s", 45), ("2 h", 7200)]
)
def test_a_time_budget_has_a_unit(parse, text, seconds):
    assert parse("--time-budget", text).time_budget == seconds


@pytest.mark.parametrize("text", ["11.5", "h", "0h", "-1h", "1e3h", "1h30", "inf"])
def test_another_time_budget_is_refused(capsys, parse, text):
    assert repr(text) in refusal(capsys, parse, f"--time-budget={text}")


def test_the_pages_show_command_lines_that_can_be_parsed(parse):
    commands = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for options in OF_A_BLOCK.findall(text) + IN_BACKTICKS.findall(text):
            words = shlex.split(options)
            if words != ["--help"]:
                commands.add(parse(*words).command)
    assert commands == set(run_all.COMMANDS)


@pytest.mark.parametrize(
    ("words", "going_on"),
    [
        (("--preset", "demo"), "python run_all.py --resume goes on"),
        (("--run-id", "r", "--preset", "demo"), "python run_all.py --resume --run-id r goes on"),
        (("sweep", "grid.yaml"), "the same command"),
        (("predict", "DIR"), "the same command"),
        (("blend", "one", "two"), "another --run-id"),
    ],
)
def test_a_stopped_command_says_how_to_go_on(monkeypatch, capsys, words, going_on):
    def stop(args, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "run", stop)
    monkeypatch.setattr("sys.argv", ["run_all.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code == 130
    assert going_on in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("plan",), ("status",), ("compare",), ("presets",), ("--dry-run",)]
)
def test_a_stopped_command_that_only_looks_promises_nothing(monkeypatch, capsys, words):
    def stop(args, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "run", stop)
    monkeypatch.setattr("sys.argv", ["run_all.py", *words])
    with pytest.raises(SystemExit):
        run_all.main()
    assert capsys.readouterr().out.strip() == "stopped"


def test_an_error_of_the_user_is_one_message_and_exit_status_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["run_all.py", "status", "--run-id", "absent"])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"error: {tmp_path}/absent: ") and printed.count("\n") == 1


def test_every_command_has_a_help_of_its_own(capsys, parse):
    for name in run_all.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            parse(name, "--help")
        assert ended.value.code == 0
        assert f"python run_all.py {'[run]' if name == 'run' else name}" in capsys.readouterr().out


def test_a_locale_without_utf8_is_told_what_to_set():
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "run_all.py", "presets"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | odd, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert "ascii" in found.stderr and "PYTHONUTF8=1" in found.stderr
