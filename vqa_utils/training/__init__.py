"""The training of one fold. Notebook 03 runs it.

fold               One fold: train the adapter, keep its best epoch, write meta.json
_trainer           transformers' Trainer with a fold's settings, rows, loss and scores
_rows              The rows to learn from, with their lengths in tokens
_steps             The rows of each optimizer step, sorted by length
_wordings          Rows in other words each epoch
_option_shuffling  Options in a new order each epoch, the label with them
_loss              The loss on the answer's letter, and the scores of held-out rows
_checkpoints       The name of a training's checkpoints, and the newest to go on from
_callbacks         Beside the steps: log, guard against NaN gradients, versions, memory
"""
