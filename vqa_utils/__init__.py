"""What the notebooks share: the rooms of the series, in the order of the work (see README.md)."""

import logging
import os
import sys
import warnings

# Against fragmentation: batches of many lengths leave holes that no later batch fits into. torch reads
# the variable when it first allocates; the second name is that of torch before 2.9
for _name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
    os.environ.setdefault(_name, "expandable_segments:True")

# Loading bars of transformers and the hub, in a terminal alone: a notebook's archive keeps each redraw
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Three notes of libraries that a reader of the notebooks can do nothing about
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm: text bars are fine
# peft reads the name that transformers renamed
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
# On a CPU, bitsandbytes misses an optional kernel package
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
