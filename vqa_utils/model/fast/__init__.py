"""Fast forwards in place of transformers' and PEFT's: fewer launches, fewer bytes.

Only table.py is used from outside.

table        Which module gets which forward, when and why
_attention   The language model's attention: one product for q, k and v, one kernel for heads
_layer       A decoder layer of Qwen3-VL's mixture of experts as one node of autograd
_lora        LoRA beside 4-bit matrices, on PEFT's layers
_padding     The language model with padding on the right, where attention needs no mask
_projection  Adapted layers with the same input as one product
_shared      Tensors that the layers of one forward share
_vision      The vision tower for all images of a batch at once
"""
