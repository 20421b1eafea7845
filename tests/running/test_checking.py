"""What a run reads is checked on any machine."""

import pytest

import run_all
from vqa_utils.data.challenge import DataError
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.presets import preset
from vqa_utils.running.checking import check_inputs


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `run_all.py`; returns its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["run_all.py", *map(str, words)])
        status = 0
        try:
            run_all.main()
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr().out

    return run


def test_rows_folds_model_and_memory_are_checked_without_gpu_and_hub(korean_folder, command):
    status, printed = command("check", "--preset", "safe", "--data", korean_folder, "--t4", 2)
    assert status == 0
    for word in (
        "rows: 24 to train on",
        "pictures: ",
        "texts: ",
        "folds: 8, 8, 8 rows",
        "safe fits",
    ):
        assert word in printed
    assert "model: not here" in printed, "the hub gives no answer"
    status, printed = command("check", "--preset", "safe", "--data", korean_folder, "--t4", 1)
    assert status == 1 and "safe does not fit" in printed


def test_a_plan_that_does_not_fit_ends_with_status_1(command):
    assert command("plan", "--preset", "safe", "--t4", 2)[0] == 0
    assert command("plan", "--preset", "safe", "--t4", 1)[0] == 1


def test_problems_of_the_data_are_the_checks_error(tmp_path, console):
    with pytest.raises(DataError, match=r"train\.csv: expected a file"):
        check_inputs(preset("safe", data=str(tmp_path)), [T4, T4], console)


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_rows_and_machine_are_refused_at_once(words, tmp_path, command):
    status, printed = command("--preset", "safe", "--data", tmp_path, *words)
    assert status == 1 and "found no GPU" in printed and "train.csv: expected a file" in printed
    assert ("01_eda" in printed) == bool(words), "a dry run shows the steps first"


def test_a_dry_run_looks_at_the_rows(tmp_path, command):
    status, printed = command("--data", tmp_path, "--dry-run")
    assert status == 1 and "train.csv: expected a file" in printed


def test_ones_own_data_without_a_preset_are_told_who_answers(korean_folder, command):
    _, printed = command("--data", korean_folder, "--dry-run")
    assert "toy base answers" in printed
    for words in (["--dry-run"], ["--data", korean_folder, "--preset", "demo", "--dry-run"]):
        assert "toy base" not in command(*words)[1]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--set", "image_sid=4"], "did you mean image_side?"),
        (["--preset", "saef"], "did you mean safe?"),
        (["--only", "03_trian_fold"], "did you mean 03_train_fold?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_one_that_is_meant(command, words, meant):
    status, printed = command(*words)
    assert status == 1 and meant in printed


def test_all_settings_are_listed_with_their_meanings(command):
    status, printed = command("settings")
    assert status == 0 and 'data = ""' in printed
    assert "image_side = 384  (a whole number)" in printed and "keeps its aspect ratio" in printed


@pytest.mark.slow
def test_rows_and_folds_need_neither_gpu_nor_hub(korean_folder, stand_in, console, monkeypatch):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "r", *words])
        run_all.run(run_all.parse_arguments(), console)

    run("--preset", "safe", "--data", str(korean_folder), "--only", "01_eda")
    run("--resume", "--only", "02_folds")
    assert [name.split()[-1] for name in stand_in.executed] == ["01_eda", "02_folds"]
    with pytest.raises(RunError, match="found no GPU"):
        run("--resume", "--only", "03_train_fold")
