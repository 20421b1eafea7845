"""One operation a file: its torch fall-back, and its CUDA kernels in the .cu file of the same name.

_launch         Compile the kernels by NVRTC, launch them on torch's stream
choose_experts  The router's k largest logits, and the softmax over these
dequantize      NF4 weights made dense
dropout         Dropout by a mask that its seed draws again
expert_slots    A slot for each pair of token and expert, by load
gate            The experts' gate
heads           Heads of q, k and v: norm, rotary embedding, repetition
norms           A sum and the norm behind it
rotary          Rotary embedding
sum_rows        The sum of each token's rows

fp16_vectors.cu is what the kernels share. All of them work on fp16 on a GPU; anything else takes
the fall-back.
"""
