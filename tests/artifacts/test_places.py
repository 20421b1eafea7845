"""Paths as they hold on any machine, and texts without a machine's names."""

import getpass
import os
from pathlib import Path

import pytest

from vqa_utils.artifacts import places
from vqa_utils.artifacts.places import located, portable, without_names

USER = "jiwoo.kim"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a user, whose repository is outside of the home folder."""
    home = tmp_path / "home" / USER
    monkeypatch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setattr(places, "ROOT", tmp_path / "opt" / "vqa")
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "fast" / "runs"))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("home/jiwoo.kim/eyes", "~/eyes"),
        ("home/jiwoo.kim", "~"),
        ("home/jiwoo.kim2/eyes", "../../home/jiwoo.kim2/eyes"),
        ("opt/vqa", "./"),
        ("opt/vqa/models/mine", "./models/mine"),
        ("opt/eyes", "../eyes"),
        ("input/눈 {a} %s [1]", "../../input/눈 {a} %s [1]"),
        ("scratch/jiwoo.kim/eyes", "../../scratch/$USER/eyes"),
        ("input/..hidden", "../../input/..hidden"),
    ],
)
def test_a_path_is_written_without_names_and_found_again(machine, path, written):
    assert portable(str(machine / path)) == written
    assert located(written) == str(machine / path)


def test_a_repository_in_the_home_folder_needs_no_sign_for_it(machine, monkeypatch):
    monkeypatch.setattr(places, "ROOT", Path.home() / "work" / "vqa")
    assert portable(str(Path.home() / "eyes")) == "../../eyes"
    assert located("../../eyes") == str(Path.home() / "eyes")
    assert portable(str(machine / "input")) == "../../../../input"


def test_a_run_is_found_by_another_user_elsewhere(machine, monkeypatch):
    written = [portable(str(machine / f"{folder}/{USER}/eyes")) for folder in ("home", "scratch")]
    monkeypatch.setenv("HOME", "/home/other")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "other")
    found = ["/home/other/eyes", str(machine / "scratch/other/eyes")]
    assert [located(text) for text in written] == found


@pytest.mark.parametrize(
    "text", ["", "auto", "easy-vqa", "demo", "Qwen/Qwen3-VL-8B-Instruct", "a/b", ".x", "~x/y"]
)
def test_a_name_that_is_no_path_stays(machine, text):
    assert portable(text) == located(text) == text


def test_a_machine_without_home_or_user_is_served(machine, monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 4321")

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    path = str(machine / "home" / USER / "eyes")
    assert located(portable(path)) == path
    assert without_names("/etc/hosts of $USER") == "/etc/hosts of $USER"


def test_a_text_names_no_folder_user_or_secret(machine, monkeypatch):
    secrets = {"HF_TOKEN": "hf_abcdefgh", "MY_KEY": "short", "PGPASSWORD": "correct.horse"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    data = str(machine / "scratch" / USER / "eyes")
    text = {
        "a": [f"{data}/train.csv line 2", f"File {machine}/opt/vqa/vqa_utils/x.py:12, in f"],
        "b": f"'{machine}/fast/runs/r/config.json', {machine}/home/{USER}/.netrc, ~/vqa",
        "c": {"": "https://x:hf_abcdefgh@hub, correct.horse, short"},
        "d": f"file://{machine}/opt/vqa-2/x and {machine}/opt/vqa.",
        "image/png": f"{machine}/opt/vqa/",
        "n": 1,
    }
    assert without_names(text, [data]) == {
        "a": ["../../scratch/$USER/eyes/train.csv line 2", "File ./vqa_utils/x.py:12, in f"],
        "b": "'runs/r/config.json', ~/.netrc, ~/vqa",
        "c": {"": "https://x:$HF_TOKEN@hub, $PGPASSWORD, short"},
        "d": f"file://{machine}/opt/vqa-2/x and ..",
        "image/png": f"{machine}/opt/vqa/",
        "n": 1,
    }


def test_a_traceback_of_ipython_is_shortened_too(machine, monkeypatch):
    """It writes the home folder as a tilde."""
    monkeypatch.setattr(places, "ROOT", Path.home() / "vqa")
    assert without_names(f"File ~{os.sep}vqa/vqa_utils/x.py:12") == "File ./vqa_utils/x.py:12"
    coloured = "\x1b[36mFile \x1b[39m\x1b[32m{}/vqa_utils/x.py:12\x1b[39m"
    assert without_names(coloured.format(places.ROOT)) == coloured.format(".")
