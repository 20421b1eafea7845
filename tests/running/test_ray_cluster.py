"""What a cluster is asked for, what is refused, and the scripts that start one."""

import os
import subprocess
import sys

import pytest
import yaml
from ray_nodes import two_nodes

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.presets import preset
from vqa_utils.running.cluster import ray_cluster
from vqa_utils.running.cluster._changes import Changes, Watch

HERE = ROOT / "vqa_utils/running/cluster"
NO_RAY = "import sys; sys.modules['ray'] = None"
REPORT = """
import runpy, sys
try:
    runpy.run_path("run_all.py", run_name="__main__")
finally:
    print("ray" in sys.modules)
"""


def run_all(*arguments, tmp_path, code=None):
    command = [sys.executable, *(["-c", code] if code else ["run_all.py"]), *arguments]
    environment = {
        **os.environ,
        "VQA_RUNS_DIR": str(tmp_path / "runs"),
        "PYTHONPATH": str(tmp_path),
    }
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_without_the_package_one_sentence_says_how_to_install_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_RAY)
    found = run_all("--executor", "ray", tmp_path=tmp_path)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    message = found.stdout.replace("\n", " ")
    assert "pip install ray" in message and "expected the package ray" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_on_this_machine_imports_no_ray(tmp_path, korean_folder):
    dry = ["--data", str(korean_folder), "--dry-run"]
    found = run_all(*dry, tmp_path=tmp_path, code=REPORT)
    assert found.stdout.splitlines()[-1] == "False", found.stdout + found.stderr


@pytest.mark.slow
def test_an_address_is_for_ray_alone(tmp_path):
    found = run_all("--address", "10.0.0.1:6379", tmp_path=tmp_path)
    assert found.returncode == 1 and "--executor ray" in found.stdout


@pytest.mark.slow
def test_a_cluster_without_room_for_a_fold_is_refused_with_what_it_has(tmp_path):
    with two_nodes(VQA_RUNS_DIR="") as cluster:
        asked = ["--preset", "safe", "--executor", "ray", "--address", cluster.address]
        found = run_all(*asked, tmp_path=tmp_path)
    assert found.returncode == 1
    assert "2 GPUs for a fold" in found.stdout and "1 CPUs and 0 GPUs" in found.stdout


@pytest.mark.parametrize(("name", "gpus"), [("safe", 2), ("dense_8b", 1), ("demo", 0)])
def test_a_fold_asks_for_its_presets_gpus(name, gpus):
    assert ray_cluster.gpus_of_fold(preset(name)) == gpus


def test_changes_make_another_folder_the_same(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "r" / "checkpoint-1").mkdir(parents=True)
    (here / "r" / "log.csv").write_text("1")
    (here / "r" / "checkpoint-1" / "state").write_text("half")
    watch = Watch(here, ["r/**/*"])
    changes = watch.changes()
    assert list(changes.written) == ["r/log.csv"], "a checkpoint without its manifest is not whole"
    changes.apply(there)
    assert watch.changes() == Changes()
    (here / "r" / "checkpoint-1" / "manifest.json").write_text("{}")
    (here / "r" / "log.csv").unlink()
    watch.changes().apply(there)
    names = sorted(path.name for path in there.rglob("*") if path.is_file())
    assert names == ["manifest.json", "state"]


def test_the_script_for_slurm_is_bash():
    subprocess.run(["bash", "-n", HERE / "slurm.sh"], check=True)
    text = (HERE / "slurm.sh").read_text()
    assert "#SBATCH --nodes=2" in text and "--executor ray" in text


def test_the_task_for_skypilot_has_its_parts():
    task = yaml.safe_load((HERE / "skypilot.yaml").read_text())
    assert {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"} == set(task)
    assert task["resources"]["accelerators"] == "T4:2" and "--executor ray" in task["run"]
    assert "ray" in task["setup"]
    subprocess.run(["bash", "-n", "-c", task["run"]], check=True)
