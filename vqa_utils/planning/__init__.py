"""What is known before anything is loaded: the model's shape, its memory on each GPU, and whether the machine will do.

_hub           What the hub says of a model, and its errors in words that help. Free of torch; the network is asked only in here
_source        Whether a model can be loaded, before any GPU time is spent: its folder is whole, or the hub has it for us
expert_chunks  Which experts share a batched product: padding against launches. Free of torch, as the model of the cost asks the same
gpus           Which GPUs are there, and what a run may take of them
ladder         After an out-of-memory error: the next rung, a change of the settings that saves memory where it ran out
machine_check  Which GPUs are there, what a run may take of them, and whether the settings can work here. Free of torch
memory         How many bytes a model's parts take on a GPU: weights as they are kept, LoRA, and what is alive while it computes
placement      What a GPU's share of a model takes, and how the decoder layers are spread over GPUs. Free of torch
plan           The memory plan: which module lies on which GPU and what that takes, before anything is loaded. Free of torch
shapes         A model's parameters by name and shape, from its config.json alone: what the memory plan counts. Free of torch
"""
