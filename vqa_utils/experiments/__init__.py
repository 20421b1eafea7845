"""Work with several runs: sweeps over settings, their comparison, blends.

blends        Blend finished runs: a new run of 05_ensemble alone, with the runs as its members
comparison    Compare finished runs by their scores on the same out-of-fold rows
sweep         Run the points of a sweep one after the other, each an ordinary run
sweep_points  Read the points of a sweep: a grid of settings, and single points
"""
