"""Several runs: sweeps over settings, their comparison, blends.

blends        Blends finished runs: a new run of 05_ensemble alone, with the runs as its members
comparison    Compares finished runs by their scores on the same out-of-fold rows
sweep         Runs the points of a sweep one after the other, each an ordinary run
sweep_points  Reads the points of a sweep: a grid of settings, and single points beside it
"""
