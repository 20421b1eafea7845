"""Hold what the notebooks share: modules for all rooms, then the rooms in the order of the work.

config         settings of a run: type, default, meaning, rule
errors         base classes of errors shown without a traceback
korean         sentences of reports and launchers, by the English ones
language       the language of a run: it says a sentence
metrics        scores of option probabilities, with intervals and tests
nf4_format     block sizes of bitsandbytes' NF4
presets        named settings, differences from config's defaults
prompts        the chat: instruction, question, options
setting_types  types and rules of settings

artifacts/     the folder of a run: paths, atomic files, contracts of the files
data/          a challenge: CSVs, images, groups and folds
planning/      the memory plan, before anything is loaded
forecasting/   the minutes of a run, from counted work
sharing/       one base in memory, and turns on the GPUs, for all folds of a run
ops/           CUDA kernels, each with its torch fall-back
model/         the model: 4-bit loading, fp16, fast forwards, LoRA
tracking/      reports to TensorBoard and the like
training/      the training of one fold
scoring/       option probabilities of one fold's rows
ensembling/    one answer per row, from folds or runs
analysis/      where the model is wrong, and what a score is worth
running/       the command line, and the steps of a run
experiments/   sweeps, their comparison, blends
exporting/     datasets and notebooks for Kaggle and Colab
tiny_base/     the demo's base model, and its training
"""

import logging
import os
import sys
import warnings

# Against fragmentation: batches of many lengths leave holes that no later batch fits into. torch reads
# the variable when it first allocates; the second name is that of torch before 2.9
for _name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
    os.environ.setdefault(_name, "expandable_segments:True")

# Nothing here is compiled by torch's inductor, which in torch 2.8 starts processes to compile with as
# soon as bitsandbytes is imported: one with torch in it, and a fork of it for each core
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# Loading bars of transformers and the hub, in a terminal alone: a notebook's archive keeps each redraw
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Three notes of libraries that a reader of the notebooks can do nothing about
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm: text bars are fine
# peft reads the name that transformers renamed
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
# On a CPU, bitsandbytes misses an optional kernel package
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
