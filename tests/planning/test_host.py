import subprocess
import sys
from types import SimpleNamespace

import pytest

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.planning.machine import host
from vqa_utils.planning.machine.host import (
    GIB,
    LowestMemory,
    folds_on_cpu,
    free_memory,
)

STATS = (
    "anon 5\ninactive_file {cached}\nactive_file 7\n",
    "inactive_file 3\nactive_file 7\ntotal_inactive_file {cached}\ntotal_active_file 7\n",
)


@pytest.fixture(params=[0, 1], ids=["version-2", "version-1"])
def memory(tmp_path, monkeypatch, request):
    """Sets the machine's free bytes, and a container's limit and use."""
    _, limit_file, used_file = host.CGROUPS[request.param]
    elsewhere = [(tmp_path / "none", "limit", "used")]
    monkeypatch.setattr(host, "CGROUPS", [*elsewhere, (tmp_path, limit_file, used_file)])

    def set_to(available, limit=None, used=0, cached=0):
        monkeypatch.setattr(
            host.psutil, "virtual_memory", lambda: SimpleNamespace(available=available)
        )
        if limit is not None:
            (tmp_path / limit_file).write_text(f"{limit}\n")
            (tmp_path / used_file).write_text(f"{used}\n")
            (tmp_path / "memory.stat").write_text(STATS[request.param].format(cached=cached))

    return set_to


def test_free_memory_is_the_machines_or_the_containers(memory):
    memory(1000)
    assert free_memory() == 1000
    memory(1000, "max")
    assert free_memory() == 1000
    memory(1000, 2**63 - 4096, used=200)
    assert free_memory() == 1000
    memory(1000, 700, used=200)
    assert free_memory() == 500
    memory(1000, 700, used=600, cached=250)
    assert free_memory() == 350, "what was read can be dropped"
    memory(1000, 700, used=800)
    assert free_memory() == 0


HAS_A_CHILD = """
import subprocess, sys
from vqa_utils.planning.machine.host import memory_of_children
print(memory_of_children())
holds = "held = bytearray(80 * 2**20); print(flush=True); input()"
command = [sys.executable, "-c", holds]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    print(memory_of_children())
    child.stdin.close()
"""


def test_the_memory_of_children_is_what_they_alone_hold():
    """In a process of its own: this one may have other children, which end when they like."""
    found = subprocess.run(
        [sys.executable, "-c", HAS_A_CHILD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, with_child = map(int, found.stdout.split())
    assert before == 0
    assert 80 * 2**20 < with_child < 120 * 2**20


@pytest.mark.parametrize(("free_gib", "folds"), [(0.5, 1), (1.4, 1), (1.7, 2), (2.1, 3), (24, 65)])
def test_folds_side_by_side_on_a_cpu_fit_into_the_memory(free_gib, folds, memory):
    memory(int(free_gib * GIB))
    assert folds_on_cpu() == folds


def test_the_lowest_of_the_latest_samples_is_told(memory, monkeypatch):
    monkeypatch.setattr(host, "SECONDS_BETWEEN", 0.001)
    memory(5 * 2**30)
    with LowestMemory() as samples:
        while not samples._latest:
            pass
        memory(2**30)
        while min(samples._latest) > 2**30:
            pass
    samples.join()
    assert "1.0 GiB" in samples.lowest()
