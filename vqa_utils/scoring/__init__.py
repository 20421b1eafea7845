"""Option probabilities of one fold's rows. Notebook 04 runs it.

_orders  Several option orders of a row in one forward pass: the image and the question once, then each order's own end
options  Option probabilities: one forward pass a batch, the four letters' logits at the last position, a softmax over them
"""
