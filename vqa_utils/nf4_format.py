"""State the block sizes of bitsandbytes' NF4, without torch."""

BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a scale of their own (double quantisation)
METHOD = "nf4_with_experts"  # the name in the config.json of a packed model
