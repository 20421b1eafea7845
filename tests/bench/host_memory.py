"""How much host memory does loading take, and what does the quantised copy save?

    python tests/bench/host_memory.py --out results.json

Checkpoints of 6 and 12 GB in the official layout (layers of Qwen3-VL-30B-A3B's real shape, random) are loaded in a
fresh process each, once from the checkpoint and once from the quantised copy that the first load left.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from vqa_utils.model.loading import load_base
from vqa_utils.planning.plan import memory_plan
from vqa_utils.planning.shapes import published_config, read_shape
from vqa_utils.presets import preset

LAYER_COUNTS = (3, 8)  # with embeddings, head and vision tower: 6.0 and 12.2 GB
SHARD_BYTES = 4e9


def write_checkpoint(folder: Path, layers: int) -> float:
    """A checkpoint as the hub has it, in shards; its size in GB."""
    config = published_config(preset("safe").model)
    config["text_config"]["num_hidden_layers"] = layers
    config["transformers_version"] = "4.57.0"
    (folder / "config.json").write_text(json.dumps(config))
    device, index, shard, size, number = (
        "cuda" if torch.cuda.is_available() else "cpu",
        {},
        {},
        0,
        1,
    )
    shapes = list(read_shape(config).parameters.items())
    for name, shape in shapes:
        shape = (shape[0], shape[2], shape[1]) if ".experts." in name else shape
        shard[name] = (
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02).cpu()
        )
        size += shard[name].nbytes
        index[name] = f"model-{number:05d}.safetensors"
        if size > SHARD_BYTES or name == shapes[-1][0]:
            save_file(shard, folder / index[name], metadata={"format": "pt"})
            shard, size, number = {}, 0, number + 1
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def anonymous_gib() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


def load(folder: str, copies: str) -> None:
    """In a process of its own: load and print what it took."""
    config = preset("safe", model=folder, cache_dir=copies, max_memory=("28GB",))
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # CUDA's own host memory is not the loader's
    before, peak, done = anonymous_gib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_gib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = load_base(config, memory_plan(config))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    result = {"seconds": round(seconds, 1), "peak_anonymous_gib": round(peak - before, 2)}
    if (
        not torch.cuda.is_available()
    ):  # then the model itself is in it, but for what stays mapped to its file
        result["weights_gib"] = round(
            sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) / 2**30, 2
        )
    if torch.cuda.is_available():
        result["gpu_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(result))


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
            size = write_checkpoint(Path(folder), layers)
            for what in ("checkpoint", "quantised copy"):
                command = [sys.executable, __file__, "--load", folder, copies]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                measured = json.loads(output.splitlines()[-1])
                copy = (
                    sum(file.stat().st_size for file in Path(copies).rglob("*.safetensors")) / 1e9
                )
                results.append(
                    {
                        "from": what,
                        "checkpoint_gb": round(size, 2),
                        "copy_gb": round(copy, 2),
                        **measured,
                    }
                )
                print(json.dumps(results[-1]), flush=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
