"""Know, before anything is loaded: the model's shape, its memory on each GPU, and if a run will do.

Free of torch.

_parameters    List a model's parameters by name and shape
_spread        Spread the decoder layers over GPUs
activations    Count the bytes beside the weights: a decoder layer in training and scoring, loading
batches        Make the batches that a run is planned for
expert_chunks  Cut experts into batched products: padding against launches
gpu_plan       Say what a plan puts on each GPU, and what that takes
images         Count the bytes of pictures: pixels, the vision tower, its features
ladder         Choose the next change of settings after an out-of-memory error
memory         Count the bytes of weights only: packed, and LoRA with its optimizer
placement      Count a GPU's share of the model phase by phase
plan           Plan a run: batches, each module's GPU, all peaks. `memory_plan` is the way in
shapes         Read a model's shape from its config.json
machine/       Know the machine: its GPUs, its own memory, and if a run can do on it
source/        Check that a model can be loaded: its folder is complete, or the hub has it
"""
