"""The training of one fold. Notebook 03 runs it.

_batches           What each optimizer step is made of: micro-batches of rows of like length, their words and the order of their options
_callbacks         What happens beside the training's steps: the log, the guard against gradients that are no numbers, versions, free memory
_option_shuffling  Options in a new order each epoch, the label with them: no letter is worth more than another
_wordings          Rows in other words each epoch: the wording of each is drawn anew
fold               One fold: transformers' Trainer on a 4-bit base with LoRA, and the adapter of the best epoch
"""
