import shutil
from pathlib import Path

import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from stand_in import arguments

import run_all
from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths, runs_dir
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.folds import FoldError
from vqa_utils.errors import RunError
from vqa_utils.planning.source.check import SourceError, source_of
from vqa_utils.presets import preset
from vqa_utils.running import resolution
from vqa_utils.running.auto_settings import for_machine, with_text_lengths
from vqa_utils.running.resolution import resolve_run, start_run, with_data
from vqa_utils.setting_types import ConfigError


def test_a_new_run_has_the_presets_settings_and_the_commands_changes():
    given = arguments(preset="safe", set=["lora_r=12"], limit=5, data="some/where")
    paths, config = resolve_run(given, "now")
    assert paths.run_id == "now-safe" and (config.lora_r, config.limit) == (12, 5)
    assert config.data == str(Path("some/where").resolve())


@pytest.mark.parametrize("setting", ["data", "model", "extra_train", "cache_dir"])
@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b"])
def test_a_path_that_can_be_none_is_told_at_once(setting, name):
    with pytest.raises(ConfigError, match=f"{setting}: expected a path") as error:
        resolve_run(arguments(set=[f"{setting}={name}"]), "now")
    assert repr(name[:80])[:-1] in str(error.value) and len(str(error.value)) < 300


def test_a_run_that_is_there_is_not_overwritten(korean_folder):
    start_run(RunPaths("there"), preset("demo", data=str(korean_folder)))
    with pytest.raises(RunError, match=r"runs/there .*--resume.*--force"):
        resolve_run(arguments(run_id="there"), "now")


@pytest.mark.parametrize(
    "given",
    [
        {"run_id": "there", "resume": True},
        {"resume": True},
        {"command": "status"},
        {"run_id": "there", "force": True},
    ],
)
def test_a_command_goes_on_with_a_run(given, korean_folder):
    config = preset("demo", data=str(korean_folder), epochs=2)
    start_run(RunPaths("there"), config)
    assert (runs_dir() / "latest").resolve().name == "there"
    paths, found = resolve_run(arguments(**given), "now")
    assert (paths.run_id, found) == ("there", config)
    changed = resolve_run(arguments(**given, set=["epochs=3"]), "now")[1]
    assert to_dict(changed) == to_dict(config) | {"epochs": 3.0}


def test_the_origin_of_every_command_of_a_run_is_kept(korean_folder, monkeypatch):
    for commit in "abc":
        monkeypatch.setattr(resolution, "provenance", lambda commit=commit: {"git_commit": commit})
        start_run(RunPaths("thrice"), preset("demo", data=str(korean_folder)))
    found = read_json(RunPaths("thrice").provenance)
    commits = [found["git_commit"], *(start["git_commit"] for start in found["earlier"])]
    assert commits == ["c", "b", "a"]
    for start in found["earlier"]:
        assert start["inputs"] == found["inputs"] and "earlier" not in start


def with_a_long_row(folder, words):
    train = pd.read_csv(folder / "train.csv", dtype=str)
    train.loc[3, "question"] += " 자세히 보세요." * words
    train.to_csv(folder / "train.csv", index=False)
    return train.loc[3, "id"]


def test_texts_are_planned_for_as_the_data_has_them(korean_folder, tmp_path, console):
    usual = for_machine(preset("demo", data=str(korean_folder)), [], console)
    assert 100 < usual.text_tokens == usual.longest_text < 200 and 100 < usual.longest_test < 200
    assert console.file.getvalue() == ""
    folder = shutil.copytree(korean_folder, tmp_path / "data")
    long = with_a_long_row(folder, words=300)
    found = for_machine(preset("demo", data=str(folder)), [], console)
    assert found.text_tokens == usual.text_tokens and found.longest_text > 1000
    (line,) = " ".join(console.file.getvalue().split()).split("; they")[:1]
    assert line.endswith(f"train.csv, id {long} ({found.longest_text:,})")
    others = for_machine(preset("demo", data=str(folder), limit=3), [], console)
    assert others.longest_text < 200


def test_texts_are_measured_by_each_command_but_for_what_it_gives(korean_folder, tmp_path, console):
    """The data may have grown since; numbers of an earlier command are no wish."""
    earlier = preset("demo", data=str(korean_folder), text_tokens=90, longest_text=700)
    assert 100 < with_text_lengths(earlier, console).longest_text < 200
    half = with_text_lengths(earlier, console, given={"text_tokens"})
    assert half.text_tokens == 90 and 100 < half.longest_text < 200
    for unknown in (
        preset("demo", data=str(tmp_path / "none"), longest_text=700),
        preset("demo", data=str(korean_folder), model=str(tmp_path)),
    ):
        assert with_text_lengths(unknown, console) == unknown


def test_a_torn_tokenizer_is_told_at_once(korean_folder, tmp_path, console):
    (tmp_path / "tokenizer.json").write_text('{"model": {"ty')
    torn = preset("demo", data=str(korean_folder), model=str(tmp_path))
    with pytest.raises(SourceError, match=r"tokenizer\.json: expected JSON"):
        with_text_lengths(torn, console)


@pytest.fixture
def command(stand_in, console, monkeypatch):
    """Runs `run_all.py` on the run `mine`; returns the notebooks that were executed."""

    def run(*words):
        stand_in.executed.clear()
        monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "mine", *words])
        run_all.run(run_all.parse_arguments(), console)
        return stand_in.executed

    return run


@pytest.fixture
def folds_of_two(command, tmp_path):
    """The folder of a challenge, with the run `mine` of two folds."""
    folder = write_korean_challenge(tmp_path / "data", train=8, test=2)
    command("--data", str(folder), "--only", "02_folds", "--set", "n_folds=2")
    return folder


def first_ids():
    """The first row of each of the two folds."""
    folds = pd.read_csv(RunPaths("mine").folds)
    return [folds["id"][folds["fold"] == k].iloc[0] for k in (0, 1)]


def test_a_stage_that_uses_folds_asks_for_them_first(command, korean_folder, stand_in):
    with pytest.raises(FoldError, match="02_folds"):
        command("--data", str(korean_folder), "--only", "03_train_fold", "--set", "n_folds=2")
    assert not stand_in.executed


def test_a_group_in_two_folds_is_found_before_anything_runs(command, folds_of_two, stand_in):
    ids = first_ids()
    folds = pd.read_csv(RunPaths("mine").folds)
    folds.loc[folds["id"].isin(ids), "group"] = "picture 0"
    folds.to_csv(RunPaths("mine").folds, index=False)
    with pytest.raises(FoldError, match=rf"folds\.csv: .*{min(ids)}"):
        command("--resume", "--from", "03_train_fold")
    assert not stand_in.executed
    assert command("--resume", "--only", "01_eda") == ["mine 01_eda"], "a stage without folds"


def test_a_picture_in_two_folds_is_found_before_anything_runs(command, folds_of_two, stand_in):
    first, second = first_ids()
    images = folds_of_two / "images"
    shutil.copyfile(images / f"{first}.png", images / f"{second}.png")
    with pytest.raises(FoldError, match=rf"contents: .*{max(first, second)}"):
        command("--resume", "--from", "03_train_fold")
    assert not stand_in.executed


@pytest.mark.parametrize(
    "name",
    [
        "latest",
        "demo-data",
        "hard-data",
        "tensorboard",
        "trackio",
        "wandb",
        "a/b",
        "../x",
        ".",
        "..",
        ".locks",
        "",
        "x" * 151,
        "a b",
        "{x}",
    ],
)
def test_a_run_id_is_a_plain_name(name):
    with pytest.raises(RunError, match=f"--run-id: .*{name}"):
        resolve_run(arguments(run_id=name), "now")


def test_a_models_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert source_of(resolve_run(arguments(model="mine"), "now")[1]) == str(tmp_path / "mine")
    on_the_hub = "Qwen/Qwen3-VL-8B-Instruct"
    assert resolve_run(arguments(model=on_the_hub), "now")[1].model == on_the_hub


def test_another_preset_keeps_the_settings_that_it_does_not_name(korean_folder):
    start_run(RunPaths("other"), preset("safe", data=str(korean_folder), seed=7, n_folds=5))
    given = arguments(run_id="other", resume=True, preset="low_memory")
    found = resolve_run(given, "now")[1]
    assert (found.seed, found.n_folds, found.data, found.lora_r) == (7, 5, str(korean_folder), 4)


def test_a_run_that_is_not_there_cannot_be_resumed():
    with pytest.raises(RunError, match="runs/nowhere: "):
        resolve_run(arguments(run_id="nowhere", resume=True), "now")
    with pytest.raises(ConfigError, match=r"nowhere/config.json: "):
        open_run("nowhere")


def test_a_notebook_opened_by_hand_makes_the_interactive_run(monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config = open_run("interactive")
    assert config == preset("demo") and paths.config.exists()
    assert open_run("interactive")[1] == open_run("interactive", 0)[1] == config
    assert not (tmp_path / "latest").exists() and not paths.fold(0).folder.exists()


def test_data_is_found_below_kaggles_input_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(resolution, "KAGGLE_INPUT", tmp_path)
    with pytest.raises(RunError, match="--data: "):
        with_data(preset("safe"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "train.csv").touch()
    assert with_data(preset("safe")).data == str(tmp_path / "one")
    (tmp_path / "two" / "train.csv").touch()
    with pytest.raises(RunError, match=r"one, .*two"):
        with_data(preset("safe"))
    assert with_data(preset("demo")) == preset("demo")
