"""Tables and presets in the terminal."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

import run_all
from vqa_utils.errors import RunError
from vqa_utils.presets import PRESETS, preset
from vqa_utils.running.terminal import tables
from vqa_utils.running.terminal.live import follow, progress_lines
from vqa_utils.running.terminal.results import print_words
from vqa_utils.running.terminal.tables import print_presets, print_table


def test_fractions_have_three_decimals(console):
    frame = pd.DataFrame({
        "fold": [0, "all"],
        "rows": [30, 60],
        "accuracy": [1.0, 0.97],
        "log_loss": [0.08249, None],
        "p": [1.8234e-19, 0.5],
        "minutes": [12.3456, 107.0],
    })  # fmt: skip
    print_table(console, "scores", frame)
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    cells = [re.split(r"\s*│\s*", line.strip("│ ")) for line in lines]
    assert cells[0] == ["0", "30", "1.000", "0.082", "<0.001", "12.346"]
    assert cells[1] == ["all", "60", "0.970", "", "0.500", "107.000"]


def test_each_preset_is_listed_with_its_model_and_step(console):
    print_presets(console)
    text = console.file.getvalue()
    for name in PRESETS:
        config = preset(name)
        own = re.search(rf"^{name} .*\n(.*\n(?:  .*\n)?)", text, re.MULTILINE)[1]
        assert config.model in own and f"{config.effective_batch} rows" in own


def test_a_notebook_that_ends_early_has_no_full_bar(console):
    with progress_lines(console) as progress:
        with follow(progress, console, "whole", None):
            pass
        with pytest.raises(KeyboardInterrupt), follow(progress, console, "stopped", None):
            raise KeyboardInterrupt
    whole, stopped = progress.tasks
    assert whole.finished and not stopped.finished
    assert stopped.completed == 0 and stopped.fields["text"] == "not finished"


def test_plain_output_has_a_line_as_soon_as_a_notebook_ends(console):
    """Of folds side by side, the first to end is not kept back until the last has."""
    with progress_lines(console) as progress, follow(progress, console, "03-fold0", None):
        with pytest.raises(RunError), follow(progress, console, "03-fold1", None):
            raise RunError
        ended = console.file.getvalue()
    assert re.fullmatch(r"  03-fold1 +0:00:0\d  not finished\n", ended)
    assert re.fullmatch(r"  03-fold0 +0:00:0\d\n", console.file.getvalue()[len(ended) :])


@pytest.mark.parametrize(("columns", "has_bar"), [(80, False), (120, True)])
def test_a_trainings_line_fits_the_terminal(columns, has_bar):
    console = Console(file=io.StringIO(), width=columns, force_terminal=True)
    with progress_lines(console) as progress:
        task = progress.add_task("03_train_fold-fold12", total=114, text="")
        progress.update(task, completed=99, text="step 99/114  loss 0.055  0.48 s/step  0:38 left")
        (line,) = (line for line in lines_of(progress) if "03_train" in line)
    assert "0:00:00" in line and line.rstrip().endswith("0.48 s/step  0:38 left")
    assert ("━" in line) == has_bar and len(line.rstrip()) <= columns


@pytest.mark.parametrize(("is_terminal", "lines"), [(True, 2), (False, 1)])
def test_sentences_are_broken_between_words_in_a_terminal_alone(is_terminal, lines):
    words = " ".join(["extraordinary"] * 6)  # 83 letters
    console = Console(
        file=io.StringIO(), width=80, soft_wrap=True, highlight=False, force_terminal=is_terminal
    )
    print_words(console, words)
    printed = console.file.getvalue().splitlines()
    assert len(printed) == lines and " ".join(line.strip() for line in printed) == words


def lines_of(progress):
    """The lines that a terminal of the progress's width shows."""
    shown = Console(file=io.StringIO(), width=progress.console.width)
    shown.print(progress.get_renderable())
    return shown.file.getvalue().splitlines()


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[/red]", ":smile:", "{0}", "%s", "[b"])
def test_names_are_printed_as_they_are(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / name))
    monkeypatch.setattr("sys.argv", ["run_all.py", "compare"])
    run_all.main()
    assert f"{tmp_path / name} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":smile:", "{0}", "[b"])
def test_tables_show_names_as_they_are(monkeypatch, capsys, name):
    frame = pd.DataFrame({name: ["1", name]})
    show = lambda console: tables.print_table(console, f"title {name}", frame)  # noqa: E731
    monkeypatch.setattr(tables, "print_presets", show)
    monkeypatch.setattr("sys.argv", ["run_all.py", "presets"])
    run_all.main()
    out = capsys.readouterr().out
    assert f"title {name}" in out and out.count(name) == 3
