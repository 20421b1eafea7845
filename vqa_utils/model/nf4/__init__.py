"""Keep mixture-of-experts weights in NF4: quantised while loading, computed with, offloaded.

_offloading  Bring offloaded experts to the GPU, layer by layer
experts      Keep a layer's packed experts, and make them dense
forward      Compute the experts, forward and backward
quantizer    Quantise linear layers and experts together, as transformers' quantizer
"""
