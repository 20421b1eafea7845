"""Helpers that the notebooks share: data, folds, prompts, 4-bit models, training, scoring, reports."""

import logging
import warnings

# Three notes of libraries that a reader of the notebooks can do nothing about
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm: text bars are fine
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads the name that transformers renamed
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it misses an optional kernel package
