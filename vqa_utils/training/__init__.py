"""Train one fold. Notebook 03 runs it.

fold               Train one fold: the adapter, its best epoch kept, meta.json
_trainer           Set up transformers' Trainer with a fold's settings, rows, loss and scores
_rows              Prepare the rows to learn from, with their lengths in tokens
_passes            Split a batch into several passes, if a row in it is an outlier
_steps             Order the rows of each optimizer step, by length
_wordings          Draw each row's wording anew each epoch
_option_shuffling  Shuffle options and label anew each epoch
_loss              Compute the loss on the answer's letter, and the scores of held-out rows
_evaluations       Score held-out rows within epochs too; end a training that gets no better
_checkpoints       Keep a training's checkpoints whole, find the newest one, stop at one
_tracking          Report a training to trackers, as a callback
_callbacks         Log steps, guard against NaN gradients, free and measure memory
"""
