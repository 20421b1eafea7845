"""Know, before anything is loaded: the model's shape, its memory on each GPU, and if a run will do.

Free of torch.

_parameters    List the parameters that transformers builds from a config.json
_spread        Spread the decoder layers over GPUs
activations    Count the bytes on a GPU beside the weights: training, scoring, vision tower, loading
expert_chunks  Decide which experts share a batched product: padding against launches
gpus           Find the GPUs, and how much of each a run may take
ladder         Choose the next change of settings after an out-of-memory error
machine_check  Check that the machine and the model are there for a run
memory         Count the bytes of weights: packed, and LoRA with its optimizer
placement      Count a GPU's share of the model phase by phase; the plan itself
plan           Plan a run: batches, each module's GPU, all peaks. `memory_plan` is the way in
shapes         Read a model's shape from its config.json
source/        Check that a model can be loaded: its folder is whole, or the hub has it
"""
