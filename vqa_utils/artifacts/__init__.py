"""What lies in runs/<run_id>/: where files are, how they are written and what they promise to their readers.

files          Files between stages: written whole or not at all, checked when they are read, with their origin recorded
fold_settings  A fold's settings: the run's, with what out-of-memory errors have changed for this fold
paths          Every path of the project and of a run, in one place
probabilities  The contract of probs_*.csv: option probabilities that are checked when they are written and when they are read
provenance     Where a result comes from: packages, Python, machine and commit
run            A run's folder as a notebook opens it: its paths and its settings
"""
