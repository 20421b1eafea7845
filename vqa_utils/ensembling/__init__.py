"""Combine many opinions into one answer per row. Notebook 05 shows it; README.md has the rules.

_weights           Fit mixture weights on out-of-fold rows; judge them on other rows
base_member        Mix the folds with the base without an adapter, where that helps
calibration        Fit one temperature per fold, and decide whether to use them
combining          Combine members' probabilities into one answer per row; measure their agreement
ensemble           Hold what 05_ensemble shows and writes
ensemble_of_folds  Combine the folds of one run: calibrate, then average or as `ensemble` says
ensemble_of_runs   Mix finished runs by fitted weights; compare with the best one
fold_table         Tabulate a run's adapters: scores, minutes, memory
members            Read a run's scored adapters and pool the out-of-fold rows
other_runs         Read finished runs as members, and check them against each other
second_look        Take the second look at uncertain rows, if it lowers the log loss out of fold
temperature        Scale probabilities by a temperature (Guo et al. 2017)
"""
