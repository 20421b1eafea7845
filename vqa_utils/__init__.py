"""Helpers that the notebooks share: data, folds, prompts, 4-bit models, training, scoring, reports."""

import logging
import os
import warnings

# Against fragmentation: batches of many lengths leave holes that no later one fits. Read when torch first allocates; the
# second name is the one of torch before 2.9
for _name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
    os.environ.setdefault(_name, "expandable_segments:True")

# Three notes of libraries that a reader of the notebooks can do nothing about
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm: text bars are fine
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads the name that transformers renamed
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it misses an optional kernel package
