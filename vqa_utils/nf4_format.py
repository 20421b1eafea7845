"""State the block sizes of bitsandbytes' NF4, without torch."""

BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a scale of their own (double quantisation)
