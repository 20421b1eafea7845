"""Compute one operation per file: a torch fall-back, and CUDA kernels in the .cu of its name.

choose_experts  Choose the router's k largest logits, and the softmax over these
dequantize      Make NF4 weights dense
dropout         Drop values by a mask that its seed draws again
expert_slots    Give each pair of token and expert a slot, by load
gate            Compute silu(gate) * up * router weight, forward and backward
heads           Make heads of q, k and v: norm, rotary embedding, repetition
launch          Compile the kernels by NVRTC, launch them on torch's stream
linear_gelu     Multiply, add a bias and apply GELU in one kernel
norms           Compute a sum and the norm after it
rotary          Rotate heads by the angles of their positions, which it computes too
router_logits   Multiply a norm by the router's weights in fp32, by products of fp16
token_rows      Copy tokens to their experts' slots; sum what the experts made of each

linear_gelu and router_logits are products of libraries. fp16_vectors.cu is what the kernels share.
All of them work on fp16 on a GPU; anything else takes the fall-back.
"""
