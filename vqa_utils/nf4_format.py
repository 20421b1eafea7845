"""How bitsandbytes lays out NF4, in numbers that need no torch."""

BLOCK, GROUP = 64, 256  # NF4 weights that share a scale, scales that share one of theirs
