"""Many opinions, one answer a row. Notebook 05 shows it.

_weights     Weights of a linear mixture of models, fitted on out-of-fold rows and judged on rows that the fit did not see
combining    Members' probabilities combined into one answer a row, and how far the members agree
ensemble     What 05_ensemble shows: members, how they were combined into one answer a row, and what that gave
fold_table   A run's adapters side by side: scores on the rows that each held out, minutes and memory
members      From the folds' probabilities to one answer a row
other_runs   Finished runs as the members of one ensemble: found, and checked against each other
temperature  Temperature scaling of a fold's probabilities, judged on rows that its fit did not see (Guo et al. 2017)
"""
