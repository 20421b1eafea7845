"""Many opinions, one answer a row. Notebook 05 shows it; README.md has the rules.

_weights           Weights of a mixture of models, fitted on out-of-fold rows, judged on others
calibration        A temperature for each fold, and if they are used
combining          How members are averaged: mean, geometric mean or vote; their agreement
ensemble           What 05_ensemble shows and writes
ensemble_of_folds  One run's folds combined
ensemble_of_runs   Several runs combined
fold_table         A run's adapters side by side: scores, minutes and memory
members            A run's scored adapters, and the folds' out-of-fold rows pooled
other_runs         Finished runs, read and checked against each other
temperature        Temperature scaling (Guo et al. 2017)
"""
