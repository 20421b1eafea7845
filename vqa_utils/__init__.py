"""Helpers that the notebooks share: data, folds, prompts, 4-bit models, training, scoring, reports."""
