"""How run_all.py drives the series: arguments, stages, notebooks executed, what the terminal shows.

arguments   The command line of run_all.py: what can be said, and which of it a command would not heed. Standard library only
execution   One notebook through papermill: executed into the archive, in this process or in one with its share of the machine
lock        One command at a time works on a run
plan_table  The memory plan and the expected minutes in the terminal. Apart from the other tables, so that it comes at once
prediction  Answers to another test set, by the adapters that a run has trained
resolution  A run's folder: which one a command means, its settings, its origin, and what its data is known by
results     What a run came to, in the terminal: scores, baselines, calibration, and where the files are
runner      Runs the steps of a run: what is whole is reused, folds go side by side, and an out-of-memory error takes a rung
stages      The series as data: what each notebook reads and writes, and which steps a command selects. Standard library only
terminal    What the terminal shows: a line for the running notebook (step, loss, pace, time left), and the results' tables
timings     Where a run's time went: papermill's clock in the archived notebooks, split into kernel start, imports and work
"""
