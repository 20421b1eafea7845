"""Replace transformers' and PEFT's forwards by fast ones: fewer launches, fewer bytes.

Only table.py is used from outside.

table        Say which module gets which forward, when and why
_attention   Compute the language model's attention: one product, one kernel for heads
_layer       Compute a decoder layer of Qwen3-VL as one node of autograd
_lora        Compute LoRA beside 4-bit matrices, on PEFT's layers
_padding     Pad the language model's rows on the right, where attention needs no mask
_projection  Multiply by several adapted layers with the same input at once
_second_half Compute a layer's experts, or its MLP, in both directions
_shared      Share tensors between the layers of one forward
_vision      Run the vision tower for all images of a batch at once
"""
