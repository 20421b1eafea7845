"""Helpers that the notebooks share: data, folds, prompts, 4-bit models, training, scoring, reports."""

import logging
import os
import sys
import warnings

# Against fragmentation: batches of many lengths leave holes that no later one fits. Read when torch first allocates; the
# second name is the one of torch before 2.9
for _name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
    os.environ.setdefault(_name, "expandable_segments:True")

# Loading bars of transformers and the hub, in a terminal alone: a notebook's archive keeps every redraw, in red
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Three notes of libraries that a reader of the notebooks can do nothing about
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm: text bars are fine
warnings.filterwarnings(
    "ignore", message=".*is_gradient_checkpointing.*"
)  # peft reads the name that transformers renamed
logging.getLogger("bitsandbytes").setLevel(
    logging.ERROR
)  # on a CPU it misses an optional kernel package
