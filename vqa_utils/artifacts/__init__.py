"""What lies in runs/<run_id>/: where files are, how they are written, and their contracts.

files          Files between stages: written whole or not at all, named by their hashes
fold_settings  A fold's settings, and the log of what out-of-memory errors changed in them
paths          Every path of the project and of a run, in one place
probabilities  The contract of probs_*.csv, checked when a file is written and when it is read
provenance     Where a result comes from: packages, Python, machine and commit
run            A run's folder as a notebook opens it: its paths and its settings
"""
