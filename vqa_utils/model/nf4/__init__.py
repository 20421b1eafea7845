"""Mixture-of-experts weights in NF4: quantised while loading, computed with, offloaded to host memory.

_offloading  Experts that wait in host memory: copied to the GPU layer by layer, the next while this one computes
experts      A layer's frozen mixture-of-experts weights as packed NF4: how they are packed, kept and made dense again
forward      The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits
quantizer    NF4 for whole models: bitsandbytes' 4-bit linear layers, and fused mixture-of-experts weights beside them
"""
