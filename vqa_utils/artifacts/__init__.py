"""The folder of a run, runs/<run_id>/: paths, atomic files, and the contracts of the files.

files          Files between stages: written whole or not at all, named by their hashes
fold_settings  A fold's settings, and the log of their changes after out-of-memory errors
paths          Every path of the project and of a run, in one place
probabilities  The contract of probs_*.csv, checked when a file is written and when it is read
provenance     The origin of a result: packages, Python, machine and commit
run            A run's folder as a notebook opens it: its paths and its settings
"""
