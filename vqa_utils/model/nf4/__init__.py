"""Mixture-of-experts weights in NF4: quantised while loading, computed with, offloaded.

_offloading  Offloaded experts, copied to the GPU layer by layer
experts      A layer's packed experts: how they are packed, kept and made dense
forward      The experts' arithmetic, forward and backward
quantizer    transformers' quantizer for linear layers and experts together
"""
