import pytest
from finished_run import RunWriter


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    return RunWriter(tmp_path / "data")
