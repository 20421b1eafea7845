"""One operation a file: its torch fall-back, and its CUDA kernel of the same name beside it.

_launch     The CUDA kernels of this folder: compiled by NVRTC when they are first asked for, launched on torch's stream
dequantize  NF4 weights made dense, bit by bit as bitsandbytes does it
dropout     Dropout whose mask is drawn again from a seed, so that none is kept for the backward
gate        The experts' gate: act_fn(gate) * up * the router's weight, forward and backward, in one pass over memory each
heads       From q, k and v side by side to heads: RMS norm, rotary embedding, and k and v once for each head of q
norms       Norms together with the sum that they stand behind: one pass over the residual stream, forward and backward
rotary      Rotary embedding: heads turned by the angles of their positions
routing     Which experts a token goes to, and which rows each expert computes: pairs sorted by expert, and experts by load, in chunks
sum_rows    The sum of each token's rows, one of each expert that it went to
"""
