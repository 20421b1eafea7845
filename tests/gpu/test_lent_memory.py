"""A base in GPU memory that several processes map. `python -m pytest -m gpu` where there is a GPU."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from lending import lent_here

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT
from vqa_utils.model.lending import attach, lender
from vqa_utils.model.lending.blocks import allocate, mapped
from vqa_utils.model.loading import base_key, compute_dtype, load_base, load_packed
from vqa_utils.planning.plan import memory_plan
from vqa_utils.running.notebooks.kernels import import_code
from vqa_utils.sharing.gpu_memory import PAGE
from vqa_utils.sharing.lender import sharing_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def one_gpu(config):
    return dataclasses.replace(config, max_memory=("10GB",))


@pytest.fixture
def plan(one_gpu):
    return memory_plan(one_gpu)


@pytest.fixture
def lent(one_gpu, plan):
    """Lends the demo's base to this process."""
    key = base_key(one_gpu, compute_dtype(one_gpu))
    base, memories = lender.lend(load_packed(one_gpu, plan), key)
    with lent_here(base, memories) as server:
        yield server


def test_a_lent_base_is_the_loaded_one_and_takes_no_memory(one_gpu, plan, lent, encoder, challenge):
    before = torch.cuda.memory_allocated()
    found = load_base(one_gpu, plan)
    taken = torch.cuda.memory_allocated() - before
    assert lent.lent == 1 and attach.borrowed_bytes(0) > 2**20
    # Its own: norms and router in fp32, a few tables of bitsandbytes
    assert taken < attach.borrowed_bytes(0) / 10
    wanted = load_packed(one_gpu, plan)
    ours = found.state_dict()
    for name, tensor in wanted.state_dict().items():
        assert ours[name].device == tensor.device
        assert torch.equal(ours[name].to(tensor.dtype), tensor), name


def test_this_machine_can_lend():
    assert sharing_problem(torch.cuda.device_count()) == ""


WRITES = """
import torch
from vqa_utils.model.lending.blocks import allocate, mapped
from vqa_utils.sharing.gpu_memory import PAGE
memory = allocate(PAGE, 0)
memory.tensor.fill_(3)
seen = mapped(memory.export(), PAGE, 0)
print(int(seen.sum()) == 3 * PAGE, flush=True)
seen[0] = 1
torch.cuda.synchronize()
"""


def test_a_write_ends_the_process_that_tries():
    found = subprocess.run(
        [sys.executable, "-c", WRITES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "True\n" and found.returncode == 1
    assert "CUDA error" in found.stderr


def test_a_mapping_follows_the_lenders_memory():
    memory = allocate(2 * PAGE, 0)
    seen = mapped(memory.export(), 2 * PAGE, 0)
    memory.tensor[PAGE] = 7
    assert int(seen[PAGE]) == 7


HAS_CONTEXTS = """
import torch
print([torch._C._cuda_hasPrimaryContext(gpu) for gpu in range(torch.cuda.device_count())])
"""


def test_a_kernel_that_waits_has_taken_nothing_of_a_gpu():
    """Not even CUDA's own memory, which the plan counts for the folds at a time alone."""
    for name in ("03_train_fold", "04_infer"):
        program = import_code(NOTEBOOKS / f"{name}.ipynb") + HAS_CONTEXTS
        command = [sys.executable, "-c", program]
        found = subprocess.run(command, cwd=NOTEBOOKS, capture_output=True, text=True, check=True)
        assert found.stdout == f"{[False] * torch.cuda.device_count()}\n"
