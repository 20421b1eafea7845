"""Load the model in 4 bits, check it, keep it safe in fp16, and make it fast; see README.md.

_quantized_copy  Keep quantised weights between folds; free of torch
adapter          Put LoRA on a base: a new adapter, or a trained one from its folder
cache_folders    Find disks for what is kept between folds and runs; free of torch
encoder          Turn rows and images into the model's tensors, with labels where it learns
fp16             Compute in fp16 without overflow: fp32 residual streams, norms and router
pass_size        Keep passes within the tokens that are planned; outliers in passes of their own
hand_over        Hold one GPU at a time while other folds, or other batches, hold the others
loading          Load the processor and the base; `finish` has all steps in their order
notebook_memory  Free the memory of a model in a notebook
preparing        Pack a base without a GPU, for sessions that have one
loading_check    Compare loaded weights with the plan: bytes, types, GPUs
nf4/             Keep experts in 4 bits: quantised while read, computed with, offloaded
lending/         Load a base once and lend its memory to the processes of a run's folds
features/        Run the vision tower once for each picture, and keep what it makes
fast/            Replace transformers' and PEFT's forwards by fast ones, from one table
"""
