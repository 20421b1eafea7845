"""Option probabilities of one fold's rows. Notebook 04 runs it.

options   Option probabilities: the letters' logits at the last position, and their softmax
_batches  Batches of rows of like length, encoded for the model while it computes
_orders   Several option orders of a row in one forward pass, joined as a tree
"""
