"""Load the base, pack it into blocks, hand them to the driver, exit. A program.

    python -m vqa_utils.model.lending.lender FD

FD is the driver's connection, which brings the run's id, and a folder with another test.csv to
answer, or "". By then the imports are through.

When it exits, its CUDA memory is free, but for the blocks.
"""

import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import PreTrainedModel

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import read_config
from vqa_utils.artifacts.stop import (
    VARIABLE,
    StopRequested,
    file_to_stop,
    leave_signals_to_the_driver,
)
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge, load_test
from vqa_utils.model.features.encoding import Pictures, pictures_of
from vqa_utils.model.lending.blocks import Memory, allocate
from vqa_utils.model.lending.fingerprint import fingerprint
from vqa_utils.model.loading import (
    base_key,
    compute_dtype,
    feature_store,
    load_packed,
    with_features,
)
from vqa_utils.ops.launch import compile_ahead
from vqa_utils.planning.memory import module_of
from vqa_utils.planning.plan import memory_plan
from vqa_utils.sharing.gpu_memory import PAGE, LendingError, self_test
from vqa_utils.sharing.lent import Block, LentBase, LentTensor
from vqa_utils.sharing.server import LOADED, STOPPED, send_descriptors

ALIGNMENT = 256  # bytes, as CUDA's own allocations

State = dict[str, torch.Tensor]


def pack(state: State) -> tuple[list[Memory], list[Block], dict[str, LentTensor]]:
    """Move tensors into blocks, one for each module of the memory plan and device.

    Args:
        state: a model's state dict, and nothing else that refers to its tensors. It is emptied
            block by block, so that a GPU needs room for one block more.
    """
    aliases = _without_aliases(state)
    memories: list[Memory] = []
    blocks: list[Block] = []
    tensors: dict[str, LentTensor] = {}
    for gpu, names in _groups(state):
        places, size = _laid_out(len(blocks), {name: state[name] for name in names})
        memory = allocate(size, gpu)
        for name, place in places.items():
            source = state.pop(name).contiguous()
            flat = source.reshape(-1).view(torch.uint8)
            memory.tensor[place.offset : place.offset + len(flat)].copy_(flat)
            del source, flat
        if gpu is not None:
            torch.cuda.empty_cache()  # what was copied is free for the next block
        memories.append(memory)
        blocks.append(Block(gpu, size, fingerprint(memory.tensor)))
        tensors |= places
    for name, first in aliases.items():
        tensors[name] = tensors[first]
    return memories, blocks, tensors


def _without_aliases(state: State) -> dict[str, str]:
    """Take tied weights out of a state, but for the first; return the first's name for each."""
    first_of: dict[tuple[int, torch.Size], str] = {}
    aliases = {}
    for name, tensor in list(state.items()):
        first = first_of.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first != name and tensor.numel():
            aliases[name] = first
            del state[name]
    return aliases


def _groups(state: State) -> Iterable[tuple[int | None, list[str]]]:
    """Group the names of tensors by device and by module, as the memory plan has modules."""
    groups: dict[tuple[int | None, str], list[str]] = {}
    for name, tensor in state.items():
        gpu = tensor.device.index if tensor.is_cuda else None
        # What a GPU's tensors have in host memory, such as shapes, needs no block of its own
        module = module_of(name) if gpu is not None or not torch.cuda.is_available() else ""
        groups.setdefault((gpu, module), []).append(name)
    for (gpu, _), names in groups.items():
        yield gpu, names


def _laid_out(block: int, tensors: State) -> tuple[dict[str, LentTensor], int]:
    """Give tensors their places in a block, one after the other; return the block's bytes too."""
    places = {}
    offset = 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        places[name] = LentTensor(block, offset, dtype, tuple(tensor.shape))
        offset += _rounded(tensor.nbytes, ALIGNMENT)
    return places, _rounded(max(1, offset), PAGE)


def _rounded(size: int, unit: int) -> int:
    """Round up to a multiple of a unit."""
    return -(-size // unit) * unit


def lend(model: PreTrainedModel, key: str) -> tuple[LentBase, list[Memory]]:
    """Pack a model that was just loaded into blocks.

    The caller hands over its only reference: `lend(load(), key)`.
    """
    content = model.config.to_diff_dict()
    content["architectures"] = [type(model).__name__]
    state = dict(model.state_dict())
    del model
    gc.collect()  # modules refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what quantising has left
    memories, blocks, tensors = pack(state)
    return LentBase(key, content, tuple(blocks), tensors), memories


def pictures_of_run(paths: RunPaths, config: Config, predict: str) -> Pictures:
    """List all pictures that the folds of a run show: its own, or those of a folder to answer."""
    if predict:
        test, _ = load_test(Path(predict), paths.predicting(predict).images)
        return pictures_of(Path(predict), [test])
    challenge = load_challenge(config)
    tables = [challenge.train, challenge.extra, challenge.test]
    return pictures_of(challenge.folder, tables, grey=challenge.train if config.baselines else None)


def end_with(connection: Connection) -> None:
    """Exit when the driver's end of the connection is closed."""
    try:
        connection.poll(None)
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Run the program."""
    leave_signals_to_the_driver()
    connection = Connection(int(arguments[0]))
    try:
        run_id, predict = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return  # the driver needs no base, or has ended
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    start = time.monotonic()
    paths = RunPaths(run_id)
    os.environ[VARIABLE] = str(file_to_stop(paths))
    config = read_config(paths)
    plan = memory_plan(config)
    self_test(range(len(plan.gpus)) if plan else [])
    pictures = pictures_of_run(paths, config, predict) if config.caches_features else None
    dtype = compute_dtype(config)
    key = base_key(config, dtype, feature_store(config, dtype, pictures))

    def load() -> PreTrainedModel:
        compile_ahead(dtype)
        model = load_packed(config, plan)
        connection.send_bytes(LOADED)
        return with_features(model, config, pictures)

    base, memories = lend(load(), key)
    base = dataclasses.replace(base, seconds=time.monotonic() - start)
    connection.send_bytes(base.to_json().encode())
    send_descriptors(connection, [memory.export() for memory in memories])
    os._exit(0)  # the driver waits for its GPU memory; to end in order takes a second more


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StopRequested:
        sys.exit(STOPPED)
    except LendingError as error:
        sys.exit(f"this machine's processes cannot share memory: {error}")
