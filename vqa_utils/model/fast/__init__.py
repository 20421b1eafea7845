"""Forwards that replace those of transformers and PEFT: fewer launches, fewer bytes.

_attention  The language model's attention with few launches: one product for q, k and v, and one kernel for all that is done to heads
_layer      A decoder layer of Qwen3-VL's mixture of experts as one node of autograd
_lora       LoRA beside 4-bit matrices with few launches and few bytes: PEFT's own layers, another forward
_padding    Rows that are padded on the left, computed with their padding on the right: causal attention then needs no mask
_vision     The vision tower for all images of a batch at once, and without autograd, as it is frozen
"""
