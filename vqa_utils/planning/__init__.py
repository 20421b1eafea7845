"""Know, before anything is loaded: the model's shape, its memory on each GPU, and if a run will do.

Free of torch.

_parameters    List a model's parameters by name and shape
_spread        Spread the decoder layers over GPUs
activations    Count the bytes beside the weights: a decoder layer in training and scoring,
               vision tower, loading
expert_chunks  Cut experts into batched products: padding against launches
gpus           Find the GPUs, and how much of each a run may take
host           Measure the machine's own memory
ladder         Choose the next change of settings after an out-of-memory error
machine_check  Refuse a run without the machine or the model for it
memory         Count the bytes of weights only: packed, and LoRA with its optimizer
placement      Count a GPU's share of the model phase by phase; the plan itself
plan           Plan a run: batches, each module's GPU, all peaks. `memory_plan` is the way in
shapes         Read a model's shape from its config.json
source/        Check that a model can be loaded: its folder is complete, or the hub has it
"""
