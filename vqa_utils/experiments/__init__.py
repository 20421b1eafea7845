"""Several runs: sweeps over settings, their comparison, blends.

blends        Several runs as the members of one ensemble: found, checked against each other, and blended by 05_ensemble
comparison    Finished runs side by side: their scores on the same out-of-fold rows, and what chance makes of the differences
sweep         Runs the points of a sweep one after the other. Each is an ordinary run, so a stopped sweep goes on where it was
sweep_points  The points of a sweep: a grid of settings from a YAML file, each with the name and the settings of its run
"""
