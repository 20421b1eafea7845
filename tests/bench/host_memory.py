"""How much host memory does loading take, and what does the quantised copy save?

    python tests/bench/host_memory.py --out results.json

Checkpoints of 6 and 12 GB in the official layout (layers of Qwen3-VL-30B-A3B's real shape, random)
are loaded in a fresh process each, once from the checkpoint and once from the quantised copy that
the first load left.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vqa_utils.model.loading import load_base
from vqa_utils.planning.plan import memory_plan
from vqa_utils.planning.shapes import published_config, read_shape
from vqa_utils.presets import preset

LAYER_COUNTS = (3, 8)  # with embeddings, head and vision tower: 6.0 and 12.2 GB
SHARD_BYTES = 4e9
WATCH_SECONDS = 0.02  # between two looks at the memory

GPU = torch.cuda.is_available()
GIB = 2**30


def write_checkpoint(folder: Path, layers: int) -> float:
    """Write a random checkpoint in shards, in the layout of the hub; return its size in GB."""
    config = published_config(preset("safe").model)
    config["text_config"]["num_hidden_layers"] = layers
    config["transformers_version"] = "4.57.0"
    (folder / "config.json").write_text(json.dumps(config))

    index: dict[str, str] = {}  # file by weight
    shard: dict[str, torch.Tensor] = {}
    for name, shape in read_shape(config).parameters.items():
        if ".experts." in name:
            shape = (shape[0], shape[2], shape[1])  # the hub's experts are transposed
        shard[name] = random_weight(shape)
        if sum(weight.nbytes for weight in shard.values()) > SHARD_BYTES:
            write_shard(folder, shard, index)
            shard = {}
    if shard:
        write_shard(folder, shard, index)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return gigabytes(folder)


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    """Draw a weight in bf16, on the GPU if there is one: a CPU takes minutes for 12 GB."""
    empty = torch.empty(shape, dtype=torch.bfloat16, device="cuda" if GPU else "cpu")
    return empty.normal_(std=0.02).cpu()


def write_shard(folder: Path, shard: dict[str, torch.Tensor], index: dict[str, str]) -> None:
    """Write the next file of weights and note them in the index."""
    number = len(set(index.values())) + 1
    file = f"model-{number:05d}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    index |= dict.fromkeys(shard, file)


def gigabytes(folder: Path) -> float:
    """Sum the safetensors below a folder, in GB (10^9 bytes)."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e9


def anonymous_gib() -> float:
    """Return the memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            kib = int(line.split()[1])
            return kib * 1024 / GIB
    raise OSError("/proc/self/status: expected a line RssAnon, found none")


class MemoryWatch:
    """Watches the anonymous memory of this process while it is open."""

    def __enter__(self) -> "MemoryWatch":
        self.before_gib = self.peak_gib = anonymous_gib()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            self.peak_gib = max(self.peak_gib, anonymous_gib())


def load(folder: str, copies: str) -> None:
    """Load in a process of its own, and print time and memory as JSON."""
    config = preset("safe", model=folder, cache_dir=copies, max_memory=("28GB",))
    if GPU:
        torch.zeros(1, device="cuda")  # CUDA's own host memory is not the loader's
    with MemoryWatch() as watch:
        start = time.perf_counter()
        model = load_base(config, memory_plan(config))
        seconds = time.perf_counter() - start
    result = {
        "seconds": round(seconds, 1),
        "peak_anonymous_gib": round(watch.peak_gib - watch.before_gib, 2),
    }
    if GPU:
        result["gpu_peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    else:
        # The model itself is in that memory, but for what stays mapped to its file
        weights = [*model.parameters(), *model.buffers()]
        result["weights_gib"] = round(sum(weight.nbytes for weight in weights) / GIB, 2)
    print(json.dumps(result))


def load_in_fresh_process(folder: str, copies: str) -> dict[str, Any]:
    """Run `load` in a fresh process and return what it printed."""
    command = [sys.executable, __file__, "--load", folder, copies]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Make each checkpoint, load it twice, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(*args.load)
        return
    results = []
    for layers in LAYER_COUNTS:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as copies:
            checkpoint_gb = write_checkpoint(Path(folder), layers)
            for source in ("checkpoint", "quantised copy"):
                measured = load_in_fresh_process(folder, copies)
                result = {
                    "from": source,
                    "checkpoint_gb": round(checkpoint_gb, 2),
                    "copy_gb": round(gigabytes(Path(copies)), 2),
                    **measured,
                }
                results.append(result)
                print(json.dumps(result), flush=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
