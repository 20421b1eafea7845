from types import SimpleNamespace

import pytest

from vqa_utils.planning.machine import host
from vqa_utils.planning.machine.host import LowestMemory, free_memory


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Sets the machine's free bytes, and a container's limit and use."""

    def set_to(available, limit=None, used=0, cached=0):
        monkeypatch.setattr(
            host.psutil, "virtual_memory", lambda: SimpleNamespace(available=available)
        )
        monkeypatch.setattr(host, "CGROUP", tmp_path)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used}\n")
            (tmp_path / "memory.stat").write_text(
                f"anon 5\ninactive_file {cached}\nactive_file 7\n"
            )

    return set_to


def test_free_memory_is_the_machines_or_the_containers(memory):
    memory(1000)
    assert free_memory() == 1000
    memory(1000, "max")
    assert free_memory() == 1000
    memory(1000, 700, used=200)
    assert free_memory() == 500
    memory(1000, 700, used=600, cached=250)
    assert free_memory() == 350, "what was read can be dropped"
    memory(1000, 700, used=800)
    assert free_memory() == 0


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
