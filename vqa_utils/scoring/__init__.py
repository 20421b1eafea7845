"""Score one fold's rows: the probabilities of their options. Notebook 04 runs it.

fold        Score a fold's rows: held out and test, closer where it is unsure, by the base, in grey
options     Compute option probabilities: a softmax over the letters' logits at the last position
_batches    Batch rows of like length, and encode them for the model while it computes
_in_flight  Compute several batches at a time, on the GPUs of one model
_orders     Compute several option orders of a row in one forward pass, joined as a tree
"""
