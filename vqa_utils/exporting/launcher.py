"""Start a run where its notebook is: on Kaggle, on Colab, or in any other folder.

    GPUs -> packages -> data, model, an earlier run -> run_all.py -> submission.csv

At first there may be no packages: what needs them is imported after their installation.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE
from vqa_utils.exporting.inputs import (
    DATA,
    LaunchError,
    Place,
    find_data,
    find_model,
    find_run,
    roomiest_disk,
    this_place,
)
from vqa_utils.language import ENGLISH, called, said, speak
from vqa_utils.setting_types import AUTO

BEGUN = time.time()  # of the launcher: an installation counts for the time budget too
T4_CAPABILITY = "7.5"  # sm_75
# Presets for a machine that is not known before, the largest model first. One GPU of 40 GB holds
# the first with all of its memory
LARGEST_FIRST = (["safe"], ["safe", "--set", "max_memory="], ["dense_8b"], ["single_gpu"])
HUB_CACHE = "HF_HOME"
LAST_LINES = 5  # of pip


def launch(
    preset: str, arguments: Sequence[str] = (), hours: float | None = None, t4: int = 0
) -> Path:
    """Start the run of this place, or go on with it; return its submission.csv.

    Args:
        preset: named settings; "auto" takes the one with the largest model that the GPUs hold.
        arguments: more of run_all.py's.
        hours: of the session; the run ends with a submission before. None sets no limit.
        t4: how many T4 the preset needs; 0 asks for none.

    Raises:
        LaunchError: the machine, the packages, the data or the run have a problem.
    """
    speak(_language_of(arguments))
    place = this_place()
    if t4:
        check_gpus(t4, gpus_here())
    install_packages()
    name, *changes = _preset_that_fits() if preset == AUTO else [preset]
    command = [sys.executable, str(ROOT / "run_all.py"), "--preset", name, *changes]
    command += run_arguments(place, name, arguments)
    if hours is not None:
        left = max(1, hours * 3600 - (time.time() - BEGUN))
        command += ["--time-budget", f"{left:.0f}s"]
    command += arguments
    environment = os.environ | {RUNS_VARIABLE: str(place.output / "runs")}
    environment.setdefault(HUB_CACHE, str(roomiest_disk(place) / "huggingface"))
    print(f"{place.name}:", " ".join(command[1:]), flush=True)
    status = _run(command, environment, place.output)
    submission = _keep_submission(place)
    if status or submission is None:
        raise LaunchError(
            said(
                "run_all.py ended with exit status {status}; its last lines say why", status=status
            )
        )
    return submission


def gpus_here() -> list[tuple[str, str]]:
    """Return each GPU's name and compute capability, such as ("Tesla T4", "7.5")."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = [line.rpartition(", ") for line in found.splitlines() if ", " in line]
    return [(name.strip(), capability.strip()) for name, _, capability in lines]


def check_gpus(count: int, found: Sequence[tuple[str, str]]) -> None:
    """Refuse a machine without so many T4, before anything is installed.

    Raises:
        LaunchError: with the GPUs that are there.
    """
    fitting = [name for name, capability in found if capability == T4_CAPABILITY]
    if len(fitting) >= count and len(fitting) == len(found):
        return
    names = ", ".join(f"{name} (compute capability {number})" for name, number in found)
    raise LaunchError(
        said(
            "expected {count} T4 (compute capability {capability}), found {found}; "
            "on Kaggle: Settings, Accelerator, GPU T4 x2, and start again",
            count=count,
            capability=T4_CAPABILITY,
            found=names or called("no GPU"),
        )
    )


def install_packages() -> None:
    """Install what is missing: from the wheels beside the code if there are any, else by network.

    An installed torch is kept.

    Raises:
        LaunchError: pip's last lines.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet"]
    command += ["--requirement", str(ROOT / "requirements.txt")]
    wheels = ROOT / "wheels"
    if wheels.is_dir():
        command += ["--no-index", "--find-links", str(wheels)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return
    last = "\n".join((found.stdout + found.stderr).strip().splitlines()[-LAST_LINES:])
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    hint = said("switch the internet on, or export with --offline")
    if wheels.is_dir():
        hint = said(
            "if the wheels are of another Python: export them with --python {version}", version=here
        )
    raise LaunchError(said("pip install failed:\n{last}\n{hint}", last=last, hint=hint))


def run_arguments(place: Place, preset: str, given: Collection[str] = ()) -> list[str]:
    """Return what run_all.py has to know of this place: data, model, an earlier run.

    Args:
        place: where this is.
        preset: named settings; the demo has data and a model of its own.
        given: arguments that need not be found.

    Raises:
        LaunchError: there are no data here, or more than one challenge's.
    """
    # They need packages
    from vqa_utils.planning.shapes import published_config
    from vqa_utils.presets import preset as settings_of

    arguments = []
    if "--data" not in given:
        data = find_data(place)
        if data is None and preset != "demo":
            raise LaunchError(
                said(
                    "expected a folder or zip with {files} below {inputs}, found none; attach the "
                    'challenge, or name it in ARGUMENTS: ["--data", "FOLDER"]',
                    files=", ".join(DATA),
                    inputs=", ".join(map(str, place.inputs)),
                )
            )
        arguments += ["--data", str(data)] if data else []
    expected = published_config(settings_of(preset).model)
    if "--model" not in given and expected:
        model = find_model(place, expected)  # without it, the run takes it from the hub
        arguments += ["--model", str(model)] if model else []
    if any((place.output / "runs").glob("*/config.json")):
        return [*arguments, "--resume"]
    earlier = find_run(place)
    return [*arguments, "--resume-from", str(earlier)] if earlier else arguments


def _preset_that_fits() -> list[str]:
    """Return the largest preset whose plan fits the GPUs that are here, and its changes.

    Raises:
        LaunchError: none fits.
    """
    gpus = ", ".join(name for name, _ in gpus_here())
    plan = [sys.executable, str(ROOT / "run_all.py"), "plan", "--preset"]
    for words in LARGEST_FIRST if gpus else ():
        if subprocess.run([*plan, *words], capture_output=True, check=False).returncode == 0:
            fits = said(
                "preset: {words}, the largest that fits {gpus}", words=" ".join(words), gpus=gpus
            )
            print(fits, flush=True)
            return words
    names = ", ".join(dict.fromkeys(words[0] for words in LARGEST_FIRST))
    raise LaunchError(
        said(
            "expected a GPU that holds one of the presets {names}, found {gpus}",
            names=names,
            gpus=gpus or called("no GPU"),
        )
    )


def _language_of(arguments: Sequence[str]) -> str:
    """Return the language that run_all.py's arguments ask for."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--lang="):
            return word.removeprefix("--lang=")
        if word == "--lang":
            return following
    return ENGLISH


def _run(command: Sequence[str], environment: dict[str, str], folder: Path) -> int:
    """Run a command, and print its lines as they come; a stop of the cell stops it."""
    running = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert running.stdout is not None  # a pipe
    try:
        for line in running.stdout:
            print(line, end="", flush=True)
        return running.wait()
    finally:
        if running.poll() is None:
            running.terminate()  # a training saves after its step
            running.wait()


def _keep_submission(place: Place) -> Path | None:
    """Copy the newest submission of the runs to where Kaggle looks for it."""
    written = (place.output / "runs").glob("*/submission_*.csv")
    newest = max(written, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return None
    kept = place.output / "submission.csv"
    shutil.copyfile(newest, kept)
    return kept
