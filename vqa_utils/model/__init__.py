"""The model: loaded in 4 bits, checked, safe in fp16, fast, with LoRA on top; see README.md.

_quantized_copy  Quantised weights kept between folds; free of torch
encoder          Rows and images -> the model's tensors, with labels for training
fp16             fp32 residual streams, norms and router around fp16 products
loading          The processor, the base, the adapter; the order of everything done to a model
loading_check    Loaded weights against the plan: bytes, types, GPUs
nf4/             Experts in 4 bits: quantised while read, computed with, offloaded
fast/            Fast forwards in place of transformers' and PEFT's, in one table
"""
