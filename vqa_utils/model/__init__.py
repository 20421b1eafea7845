"""The model: loaded in 4 bits, checked, made safe in fp16 and fast, with LoRA on top.

_quantized_copy  Where quantised weights are kept between folds, and whether a kept copy can be trusted. Free of torch
encoder          Rows and images -> the model's tensors, with labels where the model learns
fp16             fp16 that does not overflow: matrices in 16 bits, everything that sums over layers in 32
loading          Loading: the processor, the 4-bit base, and the LoRA adapter on top. Every fold starts from a fresh base
loading_check    What was really loaded: bytes, types and GPUs of each group of weights, against the plan
"""
